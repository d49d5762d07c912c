"""The command line: exit statuses, one clear line for every bad input, clean stdout with --json."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embodied import checkpoint, video
from embodied.cli.main import COMMANDS, main

if TYPE_CHECKING:
    from tests.cli.conftest import FakeAgent

DRAWER = "metaworld/drawer-open-v3"
EMBODIED = [
    sys.executable,
    "-c",
    "import sys; from embodied.cli.main import main; sys.exit(main())",
]


def call(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EMBODIED, *argv], capture_output=True, text=True, timeout=120)


def one_line(capfd: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr; nothing is on stdout."""
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err
    return err.strip()


# ------------------------------------------------------------------------------- help and options


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from embodied.cli.main import main; main(['--help']); "
        "heavy = {'numpy', 'torch', 'tyro', 'mujoco'} & set(sys.modules); sys.exit(bool(heavy))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 1.0
    for name in COMMANDS:
        assert name in done.stdout


def test_no_command_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("embodied-planner ")


@pytest.mark.parametrize("name", ["run", "plan", "record", "evaluate", "compare", "doctor"])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: embodied {name}" in out and "--" in out
    assert "-dir" not in out.replace("output_dir", "")  # flags keep their underscores


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name: str) -> None:
    module, function = COMMANDS[name].path.split(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    assert f"def {function}(" in Path(spec.origin).read_text(encoding="utf-8")


def test_threads_that_wait_are_told_to_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    main(["--version"])
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("PASSIVE", "0")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["evaluat"], "did you mean 'evaluate'?"),
        (["fly"], "there are: run, plan"),
        (["run"], "TASK"),
        (["run", "open", "the", "drawer"], "Unrecognized options: the, drawer"),
        (["evaluate", "--env", DRAWER, "--n_epsodes", "3"], "--n_episodes"),
        (["evaluate", "--env", DRAWER, "--n_episodes", "three"], "'three'"),
        (["evaluate", "--env", DRAWER, "--n_episodes", "0"], "--n_episodes is at least 1"),
        (["evaluate", "--env", DRAWER, "--actor", "me"], "'agent'"),
        (["evaluate", "--env", DRAWER, "--actor", "expert", "--ablate", "blind"], "'expert'"),
        (["evaluate", "--env", DRAWER, "--workers", "0"], "--workers is at least 1"),
        (["evaluate", "--env", DRAWER, "--seeds", "5"], "FIRST:LAST"),
        (["evaluate", "--env", DRAWER, "--seeds", "9:5"], "FIRST <= LAST"),
        (["evaluate", "--env", DRAWER, "--seeds", "1:3", "--n_episodes", "4"], "has 3 layouts"),
        (["evaluate", "--env", "mt11"], "did you mean"),
        (["run", "open the drawer", "--env", "metaworld/drawer-opn-v3"], f"did you mean {DRAWER}"),
        (["run", "open the drawer", "--seed", "-1"], "got -1"),
        (["plan"], "--batch"),
        (["plan", "open the drawer", "--batch", "x.jsonl"], "either a task"),
        (["plan", "--batch", "no_such_file.jsonl"], "no_such_file.jsonl: No such file"),
        (["compare", "no_such_a", "no_such_b"], "no_such_a: No such file"),
    ],
)
def test_bad_options_get_one_line(
    argv: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert said in one_line(capfd)


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("instruction", "said"),
    [
        ("", "is empty"),
        (" \t ", "is empty"),
        ("\u200b", "is empty"),
        ("open " * 81, "404 characters"),
        ("open the\x07drawer", "U+0007) at position 9"),
        ("open\nthe drawer", "U+000A"),
        ("open \udcff", "U+DCFF"),
    ],
)
def test_bad_instructions(
    command: str, instruction: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([command, instruction]) == 2
    assert said in one_line(capfd)


def test_good_instructions_pass() -> None:
    from embodied.cli.common import check_instruction

    assert check_instruction("  open the drawer ") == "open the drawer"
    assert check_instruction("打开抽屉。") == "打开抽屉。"
    assert len(check_instruction("x" * 400)) == 400


# ------------------------------------------------------------------------------------ run and plan


def test_plan_prints_one_object(fake_agent: FakeAgent, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "open the drawer", "--json", "--seed", "200003"]) == 0
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and "chatter" in err
    plan = json.loads(out)
    assert plan.pop("latency_s") >= 0
    steps = [
        {"verb": "reach", "args": ["drawer handle"], "text": "reach(drawer handle)"},
        {"verb": "pull", "args": ["drawer handle"], "text": "pull(drawer handle)"},
    ]
    assert plan == {
        "instruction": "open the drawer",
        "env": DRAWER,
        "seed": 200003,
        "tasks": ["drawer-open"],
        "thought": "Thought: a handle.",
        "steps": steps,
        "refused": None,
    }


@pytest.mark.parametrize("env", [[], ["--env", DRAWER]])
@pytest.mark.parametrize("command", ["plan", "run"])
def test_refusal_is_one_line_and_status_2(
    command: str,
    env: list[str],
    fake_agent: FakeAgent,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = ["--output_dir", str(tmp_path)] if command == "run" else []
    assert main([command, "make me coffee", "--json", *env, *folder]) == 2
    out, err = capfd.readouterr()
    assert "make me coffee" in err.splitlines()[-1] and "Traceback" not in err
    refusal = json.loads(out)
    assert "make me coffee" in refusal["refused"] and refusal["steps"] == []
    assert list(tmp_path.iterdir()) == []


def test_batch_keeps_order_and_answers_refusals(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = [
        {"instruction": "open the drawer"},
        {"instruction": "make me coffee"},
        {"instruction": "打开 drawer", "env": "metaworld/drawer-close-v3", "seed": 7},
        {"instruction": "pull the drawer", "env": None, "seed": None},
    ]
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in asked) + "\n\n", encoding="utf-8")
    assert main(["plan", "--batch", str(path), "--json"]) == 0
    answers = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [a["instruction"] for a in answers] == [line["instruction"] for line in asked]
    assert [a["env"] for a in answers] == [DRAWER, None, "metaworld/drawer-close-v3", DRAWER]
    assert [a["seed"] for a in answers] == [200000, 200000, 7, 200000]
    assert [a["refused"] is None for a in answers] == [True, False, True, True]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected"),
        ('{"task": "x"}', "line 2: expected"),
        ('{"instruction": ""}', "line 2: the instruction is empty"),
        ('{"instruction": "x", "env": "metaworld/drawer"}', "line 2: unknown environment"),
        ('{"instruction": "x", "seed": "one"}', 'line 2: "env" is a name'),
    ],
)
def test_bad_batch_lines_are_named_before_anything_is_done(
    line: str, said: str, fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text('{"instruction": "open the drawer"}\n' + line + "\n", encoding="utf-8")
    assert main(["plan", "--batch", str(path), "--json"]) == 2
    assert said in one_line(capfd)


def run_drawer(folder: Path, *more: str) -> int:
    return main(["run", "open the drawer", "--output_dir", str(folder), "--horizon", "6", *more])


def test_failed_run_has_status_1_and_a_video(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_drawer(tmp_path, "--json") == 1
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert (result["success"], result["outcome"]) == (False, "failure")
    assert (result["n_steps"], result["n_replans"]) == (6, 1)
    assert result["verdicts"][0]["status"] == "progressing"
    assert result["env"] == DRAWER and DRAWER in err
    frames = video.read_mp4(result["video"])
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0 and len(frames) > 3
    assert Path(result["video"]).with_suffix(".gif").read_bytes().startswith(b"GIF8")


def test_a_level_is_for_the_kitchen(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_drawer(tmp_path, "--level", "1", "--json") == 2
    out, err = capfd.readouterr()
    assert out == "" and f"--level is for the kitchen; {DRAWER} has" in err.splitlines()[-1]


def test_run_tells_what_was_done_and_what_not_quite() -> None:
    from embodied.cli.run import _how_far

    fields: dict[str, Any] = {"success": False, "completed_strict": []}
    fields["completed"] = ["microwave", "kettle"]
    told = "done by FrankaKitchen's rule: microwave, kettle; strictly: nothing (which counts here)"
    assert _how_far(fields) == [told]
    assert _how_far({**fields, "success": True}) == [] == _how_far({"success": False})


def test_successful_run_has_status_0(
    fake_agent: FakeAgent,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from sims.metaworld import MetaWorldEnv

    step = MetaWorldEnv.step

    def easy(self: Any, action: np.ndarray) -> Any:
        observation, reward, _, truncated, info = step(self, action)
        return observation, reward, True, truncated, info | {"success": True}

    monkeypatch.setattr(MetaWorldEnv, "step", easy)
    assert run_drawer(tmp_path) == 0
    assert "success after 1 steps" in capfd.readouterr().out


def _fault() -> None:
    from embodied.types import SimulatorFault

    raise SimulatorFault("the cabinet flew away")


def test_crash_is_a_crash(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_agent.trouble = lambda: 1 // 0
    assert run_drawer(tmp_path, "--json") == 1
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert (result["outcome"], result["success"], result["n_steps"]) == ("crash", False, 2)
    assert "ZeroDivisionError" in err and Path(result["video"]).exists()


def test_simulator_fault_is_its_own_outcome(
    fake_agent: FakeAgent,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from sims.metaworld import MetaWorldEnv

    monkeypatch.setattr(MetaWorldEnv, "_check_physics", lambda self: _fault())
    assert run_drawer(tmp_path, "--json") == 1
    assert json.loads(capfd.readouterr().out)["outcome"] == "sim_fault"


def test_actions_that_are_no_numbers_never_reach_the_simulator(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from embodied.agent.rollout import Decision

    fake_agent.act = lambda observation: Decision(np.full(4, np.nan, np.float32))  # type: ignore
    assert run_drawer(tmp_path, "--json") == 1
    assert json.loads(capfd.readouterr().out)["outcome"] == "crash"


def test_interrupt_is_130_and_leaves_nothing_half_written(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    fake_agent.trouble = interrupt
    assert run_drawer(tmp_path, "--json") == 130
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[-1] == "embodied: interrupted"
    assert "Traceback" not in err and list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------- bad disks


def test_output_dir_that_is_a_file(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    assert run_drawer(tmp_path / "taken") == 2
    assert "cannot write to the folder" in one_line(capfd)


def test_read_only_folder(fake_agent: FakeAgent, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_drawer(Path("/proc/no_such_folder")) == 2
    assert "cannot write to the folder /proc/no_such_folder" in one_line(capfd)


def test_disk_that_fills_up(
    fake_agent: FakeAgent,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.gif")

    monkeypatch.setattr(video, "write_gif", full)
    assert run_drawer(tmp_path) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[-1] == "embodied: a.gif: No space left on device"
    assert "Traceback" not in err


# ------------------------------------------------------------------------------- bad checkpoints


def damage(folder: Path, how: str) -> None:
    """Save a checkpoint in `folder` and spoil it."""
    tensors = {"former.weight": torch.ones(64, 64)}
    checkpoint.save(folder, tensors, {"model": {}})
    weights = folder / checkpoint.WEIGHTS
    content = bytearray(weights.read_bytes())
    match how:
        case "truncated":
            weights.write_bytes(content[: len(content) // 2])
        case "bit-flipped":
            content[-5] ^= 1
            weights.write_bytes(content)
        case "NaN":
            save_file({"former.weight": torch.full((64, 64), torch.nan)}, weights)
            checkpoint.write_manifest(folder)
        case "corrupt config":
            (folder / checkpoint.CONFIG).write_text("{")
        case "without weights":
            weights.unlink()
        case "missing":
            folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize("command", ["run", "plan", "evaluate"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "is damaged: SHA-256"),
        ("bit-flipped", "is damaged: SHA-256"),
        ("NaN", "has NaN or infinity"),
        ("corrupt config", "is damaged: SHA-256"),
        ("without weights", "is missing"),
        ("missing", "no checkpoint folder"),
    ],
)
def test_bad_checkpoints(
    command: str, how: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    damage(model, how)
    task = ["--env", DRAWER] if command == "evaluate" else ["open the drawer"]
    folder = [] if command == "plan" else ["--output_dir", str(tmp_path / "out")]
    assert main([command, *task, "--model", str(model), *folder]) == 2
    out, err = capfd.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and said in last and str(model) in last
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short episode of 64-pixel pictures."""
    folder = tmp_path_factory.mktemp("data") / "set"
    assert main(RECORD + ["--output_dir", str(folder)]) == 0
    return folder


RECORD = ["record", "--env", "metaworld/reach-v3", "--n_episodes", "1"]
RECORD += ["--horizon", "12", "--image_size", "64", "--workers", "1"]


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("meta/info.json", "meta/info.json' is missing"),
        ("data/chunk-000/file-000.parquet", "file-000.parquet' is missing"),
        ("videos/observation.images.wrist/chunk-000/file-000.mp4", "no video at"),
    ],
)
def test_dataset_with_missing_files(
    missing: str,
    said: str,
    small_dataset: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(small_dataset, folder)
    (folder / missing).unlink()
    capfd.readouterr()
    assert main(RECORD + ["--output_dir", str(folder)]) == 2
    assert said in one_line(capfd)


# --------------------------------------------------------------------- the whole path, untrained


def test_tiny_agent_plans_and_acts(
    tiny_weights: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Told in words, in any scene; untrained, so it may also refuse."""
    argv = ["run", "open the drawer", *tiny_weights, "--output_dir", str(tmp_path), "--json"]
    status = main([*argv, "--horizon", "40"])
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert "Traceback" not in err
    if result["refused"] is not None:
        assert status == 2 and result["n_steps"] == 0
    else:
        assert status == (0 if result["success"] else 1)
        assert 1 <= result["n_steps"] <= 40 and Path(result["video"]).exists()


# --------------------------------------------------------------------------------- real processes


def test_ctrl_c_on_a_real_process(tmp_path: Path) -> None:
    argv = ["evaluate", "--env", DRAWER, "--actor", "random", "--output_dir", str(tmp_path)]
    process = subprocess.Popen(
        [*EMBODIED, *argv, "--n_videos", "0"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    log = tmp_path / "episodes.jsonl"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err.rstrip().endswith("embodied: interrupted") and "Traceback" not in err
    assert "EGLError" not in err
    assert all(json.loads(line)["n_steps"] for line in log.read_text().splitlines())


def test_a_clean_run_is_quiet_at_exit(tmp_path: Path) -> None:
    argv = ["--n_episodes", "1", "--horizon", "5", "--n_videos", "1", "--output_dir", str(tmp_path)]
    done = call("evaluate", "--env", DRAWER, "--actor", "random", *argv, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and json.loads(done.stdout)["overall"]["n_episodes"] == 1
    assert "Error" not in done.stderr and "Traceback" not in done.stderr


# ------------------------------------------------------------------- the real agent, when shipped


def test_shipped_agent_opens_the_drawer(
    shipped_agent: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real LLM and ViT through `run`, told in words only, to success."""
    assert main(["run", "open the drawer", "--output_dir", str(tmp_path), "--json"]) == 0
    out, _ = capfd.readouterr()
    result = json.loads(out)
    assert result["env"] == DRAWER and result["tasks"] == ["drawer-open"]
    assert (result["success"], result["outcome"]) == (True, "success")
    assert result["steps"] and result["thought"] and result["verdicts"]
    assert len(video.read_mp4(result["video"])) > 10


def test_shipped_agent_refuses_in_one_line_with_what_it_can_do(
    shipped_agent: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["run", "book a table for two in Paris", "--output_dir", str(tmp_path), "--json"]
    assert main(asked) == 2
    out, err = capfd.readouterr()
    assert json.loads(out)["refused"] in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_shipped_agent_plans_a_batch(
    shipped_agent: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asked.jsonl"
    asked = ["open the drawer", "what is the weather like?", "关上窗户"]
    path.write_text("\n".join(json.dumps({"instruction": a}) for a in asked), encoding="utf-8")
    assert main(["plan", "--batch", str(path), "--json"]) == 0
    answers = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [a["env"] for a in answers] == [DRAWER, None, "metaworld/window-close-v3"]
    assert answers[0]["latency_s"] < 30
