"""The benchmark's table: what is counted together, over what the intervals are, what is run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest

from embodied.cli import eval_info
from embodied.cli.main import COMMANDS, _parse
from embodied.metrics import OverSeeds, Rate
from sims import scenes

ROOT = Path(__file__).resolve().parent.parent
DRAWER, HAMMER = "metaworld/drawer-open-v3", "metaworld/hammer-v3"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts" / "benchmark.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


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
    options = benchmark.BenchmarkOptions("mw5", output_dir=tmp_path)
    infos = [[_info(drawer=[True] * 19 + [False], hammer=[True] * 20)]]
    benchmark.write(options, [benchmark.summarise(_row(benchmark), infos)])
    again = _row(benchmark, features="r3m", start="tasks seen")
    benchmark.write(options, [benchmark.summarise(again, infos)])
    benchmark.write(options, [benchmark.summarise(again, infos)])  # in its own place
    assert len(json.loads((tmp_path / "table.json").read_text())) == 2
    lines = (tmp_path / "table.md").read_text().splitlines()
    first, second = (line for line in lines if line.startswith("| 10 |"))
    assert "| corner2 | mlp | held out | 19/20 = 95 % [76, 99] | 20/20 = 100 % [84, 100]" in first
    assert "| corner2 | mlp r3m | tasks seen |" in second
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
    rows = benchmark.rows_of(options, "held out")
    assert len({row.folder(Path()) for row in rows}) == len(rows) == 2


def test_the_planner_s_config_says_whether_it_has_seen_the_tasks(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left_out: tuple[str, ...] = scenes.resolve_tasks("mw5")
    seen = tmp_path / "seen"
    monkeypatch.setattr(benchmark, "left_out_of", lambda folder: () if folder == seen else left_out)
    options = benchmark.BenchmarkOptions("mw5", model=tmp_path)
    assert benchmark.start_of(options) == "held out"
    assert benchmark.start_of(benchmark.BenchmarkOptions("fk5", model=tmp_path)) == "tasks seen"
    assert benchmark.start_of(benchmark.BenchmarkOptions("mw5")) == "tasks seen"
    both = benchmark.BenchmarkOptions("mw5", model=tmp_path, init=tmp_path)
    assert benchmark.start_of(both) == "held out, policy too"
    other = benchmark.BenchmarkOptions("mw5", model=tmp_path, init=seen)
    assert benchmark.start_of(other) == "tasks seen"
    left_out = left_out[1:]
    assert benchmark.start_of(options) == "tasks seen"


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
    understood: list[Any] = []

    def run(command: list[str], check: bool) -> Any:
        name, argv = command[3], command[4:]
        module, function = COMMANDS[name].path.split(":")
        target = get_type_hints(getattr(importlib.import_module(module), function))["options"]
        options = _parse(target, name, argv)
        understood.append(options)
        if name == "evaluate":
            options.output_dir.mkdir(parents=True)
            eval_info.write(options.output_dir, _evaluated(options))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(benchmark.subprocess, "run", run)
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


def _evaluated(options: Any) -> dict[str, Any]:
    """An eval_info of an evaluation in which every episode succeeded."""
    tasks = [
        {
            "per_episode": [
                {"env": env, "seed": i, "layout_sha": str(i), "success": True, "outcome": "success"}
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
