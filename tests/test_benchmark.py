"""The benchmark's table: what is counted together, over what the intervals are, what is run."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest

from embodied.cli import eval_info
from embodied.cli.main import COMMANDS, _parse
from embodied.metrics import OverSeeds, Paired, Rate
from sims import scenes
from tests.scripts import load_script

ROOT = Path(__file__).resolve().parent.parent
DRAWER, HAMMER = "metaworld/drawer-open-v3", "metaworld/hammer-v3"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmark")


@pytest.fixture
def held_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, benchmark: ModuleType) -> Path:
    """A folder that counts as planner and as policy, neither of which has seen the ten tasks."""
    known = (*scenes.resolve_tasks("mw5"), *scenes.resolve_tasks("fk5"))
    monkeypatch.setattr(
        benchmark.few_shot, "left_out_of", lambda folder: known if folder.name == "held" else ()
    )
    (tmp_path / "held").mkdir()
    fed = {"features": "former", "cameras": [], "ablate": "none"}
    (tmp_path / "held" / "config.json").write_text(json.dumps({"fed": fed}))
    return tmp_path / "held"


def _info(**successes: list[bool | None]) -> dict[str, Any]:
    """An eval_info of some tasks; None is a crash."""
    tasks = []
    for name, outcomes in successes.items():
        env = {"drawer": DRAWER, "hammer": HAMMER}[name]
        episodes = [
            {"env": env, "seed": i, "layout_sha": f"{env}{i}", "success": bool(won)}
            | {"outcome": "crash" if won is None else "success" if won else "failure"}
            for i, won in enumerate(outcomes)
        ]
        tasks.append({"per_episode": episodes})
    return {"per_task": tasks}


def _row(benchmark: ModuleType, **more: Any) -> Any:
    values = dict(n_demos=10, cameras="corner2", policy="mlp", features="former", ablate="none")
    values |= dict(per_task=False, steps=5, start="held out", rule="")
    return benchmark.Row(**{**values, **more})


def test_episodes_of_all_seeds_are_counted_and_seeds_are_the_replicates(
    benchmark: ModuleType,
) -> None:
    one = [_info(drawer=[True, True, False, None], hammer=[False] * 4)]
    two = [_info(drawer=[True] * 4), _info(hammer=[True, False, False, False])]  # a policy a task
    told = benchmark.summarise(_row(benchmark), [one, two])
    drawer, everything = told["tasks"][DRAWER], told["all"]
    assert (drawer["k"], drawer["n"], drawer["n_set_apart"]) == (6, 7, 1)
    assert drawer["wilson95"] == Rate(6, 7).wilson95
    assert (everything["k"], everything["n"]) == (7, 15)
    rates = [(2 / 3 + 0) / 2, (1 + 1 / 4) / 2]
    assert told["per_seed"] == pytest.approx(rates)
    over = OverSeeds.of(rates)
    assert told["over_seeds"] == pytest.approx(
        {"mean": over.mean, "low": over.low, "high": over.high}
    )
    assert (told["n_seeds"], told["n_layouts"]) == (2, 8)


def test_the_table_shows_every_row_and_is_completed_by_later_runs(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    infos = [[_info(drawer=[True] * 19 + [False], hammer=[True] * 20)]]
    benchmark.write("mw5", tmp_path, [benchmark.summarise(_row(benchmark), infos)])
    again = _row(benchmark, features="r3m", start="tasks seen")
    benchmark.write("mw5", tmp_path, [benchmark.summarise(again, infos)])
    benchmark.write("mw5", tmp_path, [benchmark.summarise(again, infos)])  # in its own place
    assert len(json.loads((tmp_path / "table.json").read_text())) == 2
    lines = (tmp_path / "table.md").read_text().splitlines()
    first, second = (line for line in lines if line.startswith("| 10 |"))
    assert (
        "| corner2 | mlp | nothing | held out | 19/20 = 95 % [76, 99] | 20/20 = 100 % [84, 100]"
        in first
    )
    assert "| corner2 | mlp r3m | nothing | tasks seen |" in second
    assert first.endswith("| 39/40 = 98 % [87, 100] | 97.5 % (one seed), 1 seed(s) |")


def test_the_protocols_have_the_seeds_cameras_and_layouts_that_they_name(
    benchmark: ModuleType,
) -> None:
    for name in ("mw5", "fk5"):
        full = benchmark.protocol(name, full=True)
        assert (full.n_seeds, len(full.cameras), full.n_layouts) == (5, 2, 100)
        assert full.n_demos == benchmark.protocol(name, full=False).n_demos == (10, 25)
        assert len(scenes.resolve_env_ids(name)) == 5
    assert benchmark.protocol("mt50", full=True).n_layouts == 10
    assert benchmark.protocol("mt50", full=False).cameras[0] == "corner2"
    options = benchmark.BenchmarkOptions("fk5", cameras="left; left,wrist", n_demos=(3,))
    assert options.protocol.cameras == ("left", "left,wrist")
    rows = benchmark.rows_of(options)
    assert len({row.folder(Path()) for row in rows}) == len(rows) == 2


def _starts(benchmark: ModuleType, name: str = "mw5", **more: Any) -> list[tuple[str, str]]:
    """What the policies are fed, and the start, of the rows at one number of demonstrations."""
    options = benchmark.BenchmarkOptions(name, n_demos=(10,), **more)
    return [(row.features, row.start) for row in benchmark.rows_of(options)]


def test_the_configs_say_whether_planner_and_policy_have_seen_the_tasks(
    benchmark: ModuleType, held_out: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    (seen / "config.json").write_text("{}")
    assert _starts(benchmark, model=held_out) == [("former", "held out")]
    assert _starts(benchmark, "mt50", model=held_out)[0] == ("former", "tasks seen")
    assert _starts(benchmark) == [("former", "tasks seen")]
    both = {"model": held_out, "init": held_out}
    assert _starts(benchmark, **both) == [("former", "held out, policy too")]
    for other in ({"init": seen}, {"model": seen}, {"model": None}):
        assert _starts(benchmark, **both | other) == [("former", "tasks seen, from a policy")]


def test_r3m_s_head_and_what_it_is_compared_with_start_from_nothing(
    benchmark: ModuleType, held_out: Path
) -> None:
    more = {"model": held_out, "features": ("former", "r3m")}
    assert _starts(benchmark, **more) == [("former", "held out"), ("r3m", "held out")]
    assert _starts(benchmark, **more, init=held_out) == [
        ("former", "held out, policy too"),
        ("former", "held out"),
        ("r3m", "held out"),
    ]
    options = benchmark.BenchmarkOptions("mw5", init=held_out, **more)
    *_, r3m = benchmark.rows_of(options)
    assert r3m.full in benchmark.rows_of(options) and not r3m.full.from_a_policy
    other_cameras = _starts(benchmark, model=held_out, init=held_out, cameras="corner2")
    assert other_cameras == [("former", "held out")]


def test_folders_of_earlier_runs_are_found_again(benchmark: ModuleType) -> None:
    row = _row(benchmark, cameras="workspace,wrist", steps=1200, start="held out, policy too")
    name = "10demos_workspace+wrist_mlp_1200steps_held_out_policy_too"
    assert row.folder(Path()).name == name and row.eval_name == "eval"
    zeroed = replace(row, eval_ablate="plan_zeroed")
    assert zeroed.folder(Path()).name == name and zeroed.eval_name == "eval_plan_zeroed"
    kitchen = _row(benchmark, cameras="overview,wrist", steps=1500, rule="benchmark")
    assert kitchen.folder(Path()).name == "10demos_overview+wrist_mlp_1500steps_held_out_benchmark"


def test_a_table_of_before_is_read(benchmark: ModuleType, tmp_path: Path) -> None:
    told = benchmark.summarise(_row(benchmark), [[_info(drawer=[True], hammer=[True])]])
    older = {k: v for k, v in told.items() if k != "eval_ablate"}
    (tmp_path / "table.json").write_text(json.dumps([older]))
    benchmark.write("mw5", tmp_path, [told])
    assert json.loads((tmp_path / "table.json").read_text()) == [json.loads(json.dumps(told))]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"eval_ablate": ("no_loop",), "features": ("r3m",)}, "takes something from the full"),
        ({"eval_ablate": ("no_loop",), "ablate": "plan_zeroed"}, "got former and plan_zeroed"),
        ({"features": ("former", "r3m"), "policy": "diffusion"}, "with --policy mlp, not diff"),
    ],
)
def test_rows_that_cannot_be_are_refused(
    more: dict[str, Any], reason: str, benchmark: ModuleType
) -> None:
    with pytest.raises(ValueError, match=reason):
        benchmark.BenchmarkOptions("fk5", **more)


@pytest.mark.parametrize("name", ["mw5", "fk5", "mt50"])
def test_what_is_run_without_flags_ends_within_100_minutes(
    name: str, benchmark: ModuleType, held_out: Path
) -> None:
    def about(**more: Any) -> float:
        options = benchmark.BenchmarkOptions(name, model=held_out, **more)
        return benchmark.minutes(options, benchmark.rows_of(options))

    usual = about()
    assert 30 < usual < 100 < about(n_seeds=3, n_layouts=30, steps=4000) < about(full=True)
    assert about(n_seeds=9) > 2 * usual and about(n_layouts=100) > usual + 20
    if name != "mt50":
        ablated = about(eval_ablate=("plan_zeroed",))  # is evaluated and not trained
        assert usual + 15 < ablated < usual + 25


def test_speeds_are_those_of_the_clock(benchmark: ModuleType) -> None:
    """By hand: 75 demonstrations, two cameras, 3000 steps at 3 a second, 200 episodes of 4 s."""
    options = benchmark.BenchmarkOptions("mw5", n_demos=(10,), n_seeds=2, steps=1500)
    demos, training, evaluation = 75 * (1.5 + 2), 3000 / 3, 2 * 100 * 4 / 2
    expected = (demos + training + evaluation) / 60
    assert benchmark.minutes(options, benchmark.rows_of(options)) == pytest.approx(expected)


def test_the_planners_cameras_are_recorded_only_where_it_learns_from_the_demonstrations(
    benchmark: ModuleType, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, ...]] = []
    monkeypatch.setattr(benchmark, "embodied", lambda *argv: said.append(argv) or 0)
    for model in (None, held_out):
        benchmark.record(benchmark.BenchmarkOptions("mw5", model, cameras="corner2"))
    recorded = [argv[argv.index("--cameras") + 1] for argv in said]
    assert recorded == ["corner2", "workspace,wrist,corner2"]


@pytest.mark.parametrize("name", ["mw5", "fk5", "mt50"])
def test_every_benchmark_has_its_script(name: str) -> None:
    script = ROOT / "scripts" / f"{name}.sh"
    assert f"--name {name} " in script.read_text() and script.stat().st_mode & 0o100


def test_a_command_that_fails_stops_the_benchmark_and_crashes_do_not(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter([0, 1, 2])

    def run(command: list[str], check: bool) -> Any:
        return type("Done", (), {"returncode": next(codes)})

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    assert [benchmark.embodied("evaluate"), benchmark.embodied("evaluate")] == [0, 1]
    with pytest.raises(SystemExit) as stop:
        benchmark.embodied("evaluate")
    assert stop.value.code == 2


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("name", ["mw5", "fk5", "mt50"])
def test_every_command_is_understood_and_the_table_is_written(
    name: str,
    per_task: bool,
    benchmark: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The whole benchmark, with commands that are read and not carried out."""
    understood = _pretend(benchmark, monkeypatch)
    argv = ["benchmark", "--name", name, "--output_dir", str(tmp_path / "out"), "--n_seeds", "2"]
    monkeypatch.setattr(sys, "argv", [*argv, "--workers", "1", *["--per_task"] * per_task])
    benchmark.main()
    n_policies = len(scenes.resolve_env_ids(name)) if per_task else 1
    kinds = [type(options).__name__ for options in understood]
    assert kinds.count("RecordOptions") == 1
    assert kinds.count("TrainPolicyOptions") == kinds.count("EvaluateOptions") == 4 * n_policies
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [len(row["tasks"]) for row in rows] == [len(scenes.resolve_env_ids(name))] * 2
    recorded = set(understood[0].cameras.split(","))
    assert all(set(row["cameras"].split(",")) <= recorded for row in rows)
    folders = {o.policy for o in understood if type(o).__name__ == "EvaluateOptions"}
    trained = {o.output_dir / "policy" for o in understood if hasattr(o, "train_former")}
    assert folders == trained and len(folders) == 4 * n_policies


def _pretend(
    benchmark: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    lost: Mapping[str, set[int]] | None = None,
) -> list[Any]:
    """Let commands be read and not carried out. Returns their options, as they come.

    Args:
        lost: features or ablation of an evaluation → the layouts in which it fails.
    """
    understood: list[Any] = []

    def run(command: list[str], check: bool) -> Any:
        name, argv = command[3], command[4:]
        module, function = COMMANDS[name].path.split(":")
        target = get_type_hints(getattr(importlib.import_module(module), function))["options"]
        options = _parse(target, name, argv)
        understood.append(options)
        if name in ("train-policy", "finetune"):
            made = options.output_dir / ("policy" if name == "train-policy" else "planner")
            made.mkdir(parents=True)
            (made / "config.json").touch()
        if name == "evaluate":
            options.output_dir.mkdir(parents=True)
            eval_info.write(options.output_dir, _evaluated(options, lost or {}))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    return understood


def _run_corrected(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, *flags: str
) -> list[Any]:
    """The commands of one mt50 row with six corrections a task, as they were understood."""
    understood = _pretend(benchmark, monkeypatch)
    argv = ["benchmark", "--name", "mt50", "--output_dir", str(out), "--n_seeds", "1"]
    argv += ["--cameras", "corner2", "--n_corrections", "6", "--workers", "1", *flags]
    monkeypatch.setattr(sys, "argv", argv)
    benchmark.main()
    return understood


def test_a_policy_is_corrected_and_learns_on(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    understood = _run_corrected(benchmark, monkeypatch, tmp_path, "--steps", "900")
    demos, first, corrected, second, evaluated = understood
    assert (demos.policy, first.corrections, first.init, first.steps) == (None, "", None, 900)
    assert (corrected.policy, corrected.n_episodes) == (first.output_dir / "policy", 6)
    assert corrected.family == "train" and corrected.seed > demos.seed + demos.n_episodes
    assert second.corrections == str(corrected.output_dir) and second.init == corrected.policy
    assert (second.steps, second.n_demos) == (450, first.n_demos)
    assert evaluated.policy == second.output_dir / "policy" != corrected.policy
    assert "| 8 and 6 corrections | corner2 |" in (tmp_path / "table.md").read_text()


def test_each_round_of_corrections_is_of_the_policy_before_and_learns_from_all_of_them(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    understood = _run_corrected(benchmark, monkeypatch, tmp_path, "--n_rounds", "2")
    _, _, corrected, second, again, third, evaluated = understood
    assert again.policy == second.output_dir / "policy" == third.init
    assert again.seed > corrected.seed + corrected.n_episodes
    assert third.corrections == f"{corrected.output_dir},{again.output_dir}"
    assert len({corrected.output_dir, again.output_dir}) == 2
    assert evaluated.policy == third.output_dir / "policy"
    assert "| 8 and 2 × 6 corrections | corner2 |" in (tmp_path / "table.md").read_text()


def test_rounds_without_corrections_are_refused(benchmark: ModuleType) -> None:
    with pytest.raises(ValueError, match="--n_rounds.*--n_corrections"):
        benchmark.BenchmarkOptions("mt50", n_rounds=2)
    with pytest.raises(ValueError, match="from 1"):
        benchmark.BenchmarkOptions("mt50", n_corrections=6, n_rounds=0)


def test_the_ten_tasks_rows_are_paired_with_the_full_system(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, held_out: Path, tmp_path: Path
) -> None:
    """R3M's head and the plan zeroed, out of one command; each policy is trained once."""
    lost = {"r3m": {0, 1}, "plan_zeroed": {1, 2, 3}, "no_loop": set()}
    understood = _pretend(benchmark, monkeypatch, lost)
    out = tmp_path / "out"
    argv = ["benchmark", "--name", "fk5", "--output_dir", str(out), "--n_demos", "10"]
    argv += ["--model", str(held_out), "--init", str(held_out), "--n_layouts", "9"]
    argv += ["--features", "r3m", "former", "--eval_ablate", "plan_zeroed", "no_loop"]
    monkeypatch.setattr(sys, "argv", [*argv, "--workers", "1"])
    benchmark.main()
    trained = [o for o in understood if type(o).__name__ == "TrainPolicyOptions"]
    assert sorted((o.features, o.init is not None, o.seed) for o in trained) == sorted(
        (features, begun, seed)
        for features, begun in (("former", True), ("former", False), ("r3m", False))
        for seed in range(3)
    )
    (tuning,) = (o for o in understood if type(o).__name__ == "FinetuneOptions")
    assert (tuning.few_shot, tuning.model) == (10, held_out)
    evaluated = [o for o in understood if type(o).__name__ == "EvaluateOptions"]
    assert {o.model for o in evaluated} == {tuning.output_dir / "planner"}
    assert len({o.output_dir for o in evaluated}) == len(evaluated) == 3 * 5

    rows = {
        (told["features"], told["eval_ablate"], "policy" in told["start"]): told
        for told in json.loads((out / "table.json").read_text())
    }
    assert len(rows) == 5
    for (features, ablate, _), told in rows.items():
        if (name := features if features == "r3m" else ablate) == "none":
            assert "paired" not in told
            continue
        n_lost = 3 * 5 * len(lost[name])
        pair = told["paired"]
        assert (pair["n"], pair["only_a"], pair["only_b"]) == (3 * 5 * 9, 0, n_lost)
        assert pair["mcnemar_p"] == pytest.approx(Paired(135, 0, n_lost).p)
        assert pair["layouts_p"] == pytest.approx(Paired(45, 0, n_lost // 3).p)
    folders = [rows["r3m", "none", False]["paired"][side].split(",") for side in ("a", "b")]
    assert [Path(f).parts[-2:] for f in folders[0]] == [(f"seed{i}", "eval") for i in range(3)]
    assert all("r3m" in f and "policy_too" not in f for f in folders[0])
    assert all("r3m" not in f and "policy_too" not in f for f in folders[1])
    text = (out / "table.md").read_text()
    assert "## The full system against a row, paired" in text
    line = next(
        ln for ln in text.splitlines() if ln.startswith("| 10 |") and "r3m | nothing | 1" in ln
    )
    assert "| 135/135 | 105/135 | +22.2 points | 1.9e-09 |" in line


def _evaluated(options: Any, lost: Mapping[str, set[int]]) -> dict[str, Any]:
    """An eval_info of an evaluation in which every episode succeeded, but for the lost ones."""
    failed = set(lost.get(options.ablate, ()))
    failed |= {i for name, of in lost.items() if f"_{name}_" in str(options.policy) for i in of}
    tasks = [
        {
            "per_episode": [
                {"env": env, "seed": i, "layout_sha": str(i), "success": i not in failed}
                | {"outcome": "failure" if i in failed else "success"}
                for i in range(options.n_episodes)
            ]
        }
        for env in scenes.resolve_env_ids(options.env)
    ]
    return {"per_task": tasks}


def test_rates_are_those_of_the_evaluations(benchmark: ModuleType) -> None:
    info = _info(drawer=[True, False, None])
    counted = benchmark.summarise(_row(benchmark), [[info]])["tasks"][DRAWER]
    rate = eval_info.rate_of(info["per_task"][0]["per_episode"])
    assert (counted["k"], counted["n"]) == (rate.k, rate.n) == (1, 2)
