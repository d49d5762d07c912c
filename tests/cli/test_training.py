"""What the training commands share: run.json, `--resume`, and shares of real batches."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from embodied import checkpoint
from embodied.cli import training
from embodied.cli.finetune import FinetuneOptions, finetune
from embodied.cli.main import main
from embodied.cli.train_policy import TrainPolicyOptions
from embodied.cli.training import git_hash, resumed_options
from embodied.egocot.conversations import ConversationSampler

STAGES = ("align", "words", "plan")
Run = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(
    tiny_planner: Path,
    recorded_set: Path,
    features_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A stage of a few steps in a folder of its own, by the command line."""

    def trained(stage: str, folder: Path | None = None, **changes: Any) -> Path:
        folder = folder or tmp_path_factory.mktemp(stage)
        flags: dict[str, Any] = {
            "dataset": "" if stage == "words" else recorded_set,
            "model": tiny_planner,
            "steps": 4,
            "warmup": 2,
            "learning_rate": 0.01,
            "features_dir": features_dir,
            "log_every": 1,
            "save_every": 2,
        }
        words = [w for k, v in (flags | changes).items() for w in (f"--{k}", str(v))]
        words = [w for w in words if w != "True"]
        assert main(["finetune", "--stage", stage, "--output_dir", str(folder), *words]) == 0
        return folder

    return trained


@pytest.fixture(scope="module")
def words(run: Run) -> Path:
    return run("words")


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "training_state")[0]


def _losses(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


# --- shares of real batches --------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_changes_nothing(
    run: Run, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of unequal lengths, places out of view, chunks that end early.

    In float32: with bfloat16 the gradients of shares are rounded one by one.
    """
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    whole, shared = run(stage), run(stage, accumulation=3)
    for mine, other in zip(_losses(shared), _losses(whole), strict=True):
        assert mine == pytest.approx(other, abs=1e-4)
    a, b = _weights(whole), _weights(shared)
    assert max(float((a[k] - b[k]).abs().max()) for k in a if k.startswith("weight.")) < 5e-4


def test_gradient_checkpointing_changes_nothing(run: Run, words: Path) -> None:
    again = run("words", gradient_checkpointing=True)
    assert _losses(again) == _losses(words)
    a, b = _weights(words), _weights(again)
    assert all(torch.equal(a[k], b[k]) for k in a)


# --- run.json ----------------------------------------------------------------------------------


def test_a_run_says_how_it_was_started(words: Path, tiny_planner: Path) -> None:
    told = json.loads((words / "run.json").read_text())
    assert told["command"] == "finetune" and told["seed"] == 0
    assert told["options"]["stage"] == "words" and told["options"]["steps"] == 4
    assert told["options"]["model"] == str(tiny_planner) and told["options"]["ema_decay"] == 0.998
    (start,) = told["starts"]
    assert torch.__version__.startswith(start["versions"]["torch"]) and start["processes"] == 1
    assert start["git_hash"] == git_hash() and start["time"][:2] == "20"


def test_git_hash_is_that_of_this_code_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        user = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *user, "-C", str(tmp_path), *arguments], check=True)

    code = tmp_path / "embodied" / "cli" / "training.py"
    code.parent.mkdir(parents=True)
    code.write_text("one")
    monkeypatch.setattr(training, "__file__", str(code))
    assert git_hash() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = git_hash()
    assert clean is not None and len(clean) == 40
    code.write_text("two")
    assert git_hash() == f"{clean}-dirty"
    installed = tmp_path / "lib" / "embodied" / "cli" / "training.py"  # in someone's repository
    monkeypatch.setattr(training, "__file__", str(installed))
    assert git_hash() is None


# --- going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["", "training_state"])
def test_resume_needs_no_other_flag(run: Run, words: Path, tmp_path: Path, named: str) -> None:
    draw = ConversationSampler.__call__

    def stop(self: Any, step: int) -> Any:
        if step == 3:
            raise ValueError("stopped here")
        return draw(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConversationSampler, "__call__", stop)
        with pytest.raises(AssertionError):
            run("words", tmp_path)
    moved = tmp_path.with_name(tmp_path.name + " moved")
    tmp_path.rename(moved)
    assert main(["finetune", "--resume", str(moved / named)]) == 0
    moved.rename(tmp_path)
    assert _losses(tmp_path) == _losses(words)
    for part in ("training_state", "planner"):
        a, b = (checkpoint.load(folder / part)[0] for folder in (tmp_path, words))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 2


def test_flags_replace_what_the_run_had(words: Path, tmp_path: Path) -> None:
    argv = ["finetune", f"--resume={words}", "--output_dir", str(tmp_path), "--steps", "5"]
    assert main(argv) == 0
    assert [line["step"] for line in _losses(tmp_path)] == [5]
    assert checkpoint.load(words / "training_state")[1]["next_step"] == 4
    told = json.loads((tmp_path / "run.json").read_text())["options"]
    assert told["steps"] == 5 and told["learning_rate"] == 0.01 and told["resume"] == str(words)


def test_options_come_back_as_they_were(words: Path) -> None:
    options = resumed_options(FinetuneOptions, "finetune", ["--resume", str(words)])
    assert isinstance(options, FinetuneOptions) and options.output_dir == words
    assert isinstance(options.model, Path) and options.resume is None and options.warmup == 2
    assert resumed_options(FinetuneOptions, "finetune", ["--steps", "3"]) is None
    assert resumed_options(dict, "record", ["--resume", str(words)]) is None


def _one_line(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    capfd.readouterr()
    assert main([*argv]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_what_cannot_be_resumed_is_one_line(
    words: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "no " in (said := _one_line(capfd, "finetune", "--resume", str(tmp_path)))
    assert "run.json, so nothing to resume: name the output directory of a run" in said
    said = _one_line(capfd, "train-policy", "--resume", str(words))
    assert "is a run of `embodied finetune`, not of `train-policy`" in said
    (tmp_path / "run.json").write_text("{")
    assert "is no run.json" in _one_line(capfd, "finetune", "--resume", str(tmp_path))
    told = json.loads((words / "run.json").read_text())
    told["options"]["bells"] = told["options"].pop("stage")
    (tmp_path / "run.json").write_text(json.dumps(told))
    said = _one_line(capfd, "finetune", "--resume", str(tmp_path))
    assert "of another version, which differs in: bells, stage" in said


def test_a_missing_tracker_is_one_line(
    tmp_path: Path, tiny_planner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embodied.run_log.find_spec", lambda name: None)
    options = FinetuneOptions("words", tmp_path, model=tiny_planner, track="trackio")
    with pytest.raises(ValueError, match="--track trackio needs the package trackio: pip install"):
        finetune(options)


def test_both_commands_know_the_loop_s_options() -> None:
    for kind in (FinetuneOptions, TrainPolicyOptions):
        names = set(kind.__dataclass_fields__)
        assert {"accumulation", "resume", "track", "ema_decay", "log_every", "save_every"} <= names
