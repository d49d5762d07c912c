"""The few-shot benchmarks: demonstrations, policies, test layouts, a table. See mw5.sh and others.

    scripts/mw5.sh [--full] [--model PLANNER] [--output_dir D] …

For every number of demonstrations, set of cameras and training seed a policy is trained on the
expert's demonstrations and evaluated on layouts of the test family, by `embodied`'s own commands.
All start from one planner. In a row "held out" nothing that was trained had seen the benchmark's
tasks before; the planner's config says whether it has. Every step resumes where it was interrupted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import tyro

from embodied.cli import eval_info
from embodied.cli.splits import left_out_of
from embodied.metrics import OverSeeds, macro
from embodied.types import Features, FedAblation
from embodied.video import replacing
from sims import scenes

_PLANNER_STEPS = 60
_ALSO: dict[str, list[str]] = {"mt50": ["--horizon", "400"]}  # as others evaluate it


@dataclass(frozen=True)
class Protocol:
    """How much of a benchmark is run.

    Args:
        n_demos: demonstrations per task, one row each.
        cameras: what the policy looks through, one row each.
        n_seeds: training seeds.
        n_layouts: test layouts per task.
        steps: of training.
    """

    n_demos: tuple[int, ...]
    cameras: tuple[str, ...]
    n_seeds: int
    n_layouts: int
    steps: int


def protocol(name: str, *, full: bool) -> Protocol:
    """What is run without flags: for two cores and less than 100 minutes; or all of it."""
    match name, full:
        case "mw5", False:
            return Protocol((10, 25), ("workspace,wrist",), 3, 30, 2000)
        case "mw5", True:
            return Protocol((10, 25), ("workspace,wrist", "corner2"), 5, 100, 6000)
        case "fk5", False:
            return Protocol((10, 25), ("overview,wrist",), 3, 20, 2000)
        case "fk5", True:
            return Protocol((10, 25), ("overview,wrist", "overview"), 5, 100, 6000)
        case "mt50", False:
            return Protocol((8,), ("corner2", "corner2,wrist"), 1, 4, 4000)
        case "mt50", True:
            return Protocol((50,), ("corner2", "corner2,wrist"), 3, 10, 20_000)
    raise AssertionError(name)


@dataclass(frozen=True)
class BenchmarkOptions:
    """Which benchmark, from which planner, how much of it.

    Args:
        name: mw5, fk5 or mt50.
        model: the planner to start from; one that has left the benchmark's tasks out, such as
            scripts/held_out.sh makes. The shipped one has seen them, and the table says so.
        init: a policy to start from, such as held_out.sh makes beside its planner; a fresh one when
            not given. It too must have left the benchmark's tasks out for a row "held out".
        output_dir: outputs/<name> when not given.
        full: the whole protocol: 5 seeds × 2 cameras × 100 layouts; 50 demonstrations for mt50.
        n_demos: instead of the protocol's.
        cameras: instead of the protocol's; rows apart by ";", names by ",".
        n_seeds, n_layouts, steps: instead of the protocol's.
        per_task: a policy for each task, as R3M has; else one for all of them.
        policy, features, ablate: as for `embodied train-policy`.
        rule: what counts as success in the kitchen.
        workers: processes that record and evaluate, and trainings at once.
    """

    name: Literal["mw5", "fk5", "mt50"]
    model: Path | None = None
    init: Path | None = None
    output_dir: Path | None = None
    full: bool = False
    n_demos: tuple[int, ...] = ()
    cameras: str = ""
    n_seeds: int | None = None
    n_layouts: int | None = None
    steps: int | None = None
    per_task: bool = False
    policy: Literal["mlp", "transformer", "diffusion"] = "mlp"
    features: Features = "former"
    ablate: FedAblation = "none"
    rule: Literal["benchmark", "strict"] = "benchmark"
    workers: int = os.cpu_count() or 1

    @property
    def out(self) -> Path:
        return self.output_dir or Path("outputs") / self.name

    @property
    def protocol(self) -> Protocol:
        usual = protocol(self.name, full=self.full)
        rows = tuple(row.strip() for row in self.cameras.split(";") if row.strip())
        return Protocol(
            self.n_demos or usual.n_demos,
            rows or usual.cameras,
            self.n_seeds or usual.n_seeds,
            self.n_layouts or usual.n_layouts,
            self.steps or usual.steps,
        )


@dataclass(frozen=True)
class Row:
    """One row of the table: policies that differ in their training seed only."""

    n_demos: int
    cameras: str
    policy: str
    features: str
    ablate: str
    per_task: bool
    steps: int
    start: str
    rule: str

    def folder(self, out: Path) -> Path:
        words = [f"{self.n_demos}demos", self.cameras.replace(",", "+"), self.policy]
        words += [f"{self.steps}steps"]
        words += [w for w in (self.features, self.ablate) if w not in ("former", "none")]
        start = self.start.replace(", ", "_").replace(" ", "_")
        words += [*(["per_task"] if self.per_task else []), start]
        words += [self.rule] if self.rule else []
        return out / "_".join(words)


def rows_of(options: BenchmarkOptions, start: str) -> list[Row]:
    """The rows, in the table's order."""
    p, o = options.protocol, options
    rule = o.rule if o.name == "fk5" else ""
    return [
        Row(n, cameras, o.policy, o.features, o.ablate, o.per_task, p.steps, start, rule)
        for n, cameras in product(p.n_demos, p.cameras)
    ]


def start_of(options: BenchmarkOptions) -> str:
    """Whether the planner, or the policy to start from, has seen the benchmark's tasks."""
    starts = [options.model, *([] if options.init is None else [options.init])]
    tasks = set(scenes.resolve_tasks(options.name))
    if any(start is None or tasks - set(left_out_of(start)) for start in starts):
        return "tasks seen"
    return "held out" if options.init is None else "held out, policy too"


# --- what is run ------------------------------------------------------------------------------


def embodied(*argv: str) -> int:
    """Run a command of ours. Returns 0, or 1 when episodes crashed; stops when it fails."""
    print("embodied " + " ".join(argv), file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "embodied.cli.main", *argv], check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return done.returncode


def record(options: BenchmarkOptions) -> Path:
    """The expert's demonstrations, enough for every row."""
    p = options.protocol
    folder = options.out / "demos"
    own = scenes.cameras(scenes.resolve_env_ids(options.name)[0])
    names = dict.fromkeys([*own, *(name for row in p.cameras for name in row.split(","))])
    most = max(p.n_demos)
    spare = 2 + most // 3  # noise makes the expert fail now and then
    argv = ["--env", options.name, "--n_episodes", str(most + spare)]
    argv += ["--noise", "0.02", "--cameras", ",".join(names), "--workers", str(options.workers)]
    embodied("record", *argv, "--output_dir", str(folder))
    return folder


def parts_of(options: BenchmarkOptions) -> list[str]:
    """What one policy is trained on and evaluated on: an environment, or the whole set."""
    return scenes.resolve_env_ids(options.name) if options.per_task else [options.name]


def train(options: BenchmarkOptions, row: Row, demos: Path, seed: int) -> None:
    """The policies of one training seed."""
    for part in parts_of(options):
        argv = ["--dataset", str(demos), "--n_demos", str(row.n_demos), "--seed", str(seed)]
        argv += ["--policy", row.policy, "--features", row.features, "--ablate", row.ablate]
        argv += ["--cameras", row.cameras, "--steps", str(row.steps)]
        argv += ["--features_dir", str(options.out / "features")]
        argv += ["--tasks", ",".join(scenes.tasks_of(part))] if options.per_task else []
        argv += [] if options.model is None else ["--model", str(options.model)]
        argv += [] if options.init is None else ["--init", str(options.init)]
        folder = _place(options, row, seed, part) / "train"
        if not (folder / "policy" / "config.json").is_file():
            embodied("train-policy", *argv, "--output_dir", str(folder))


def tuned(options: BenchmarkOptions, row: Row, demos: Path) -> Path | None:
    """The planner that acts: one that has not seen the tasks learns them from the demonstrations.

    Of their pictures, plans and own instructions, that is; the former, which the policies start
    from, stays as it is.
    """
    if options.model is None or row.start == "tasks seen":
        return options.model
    folder = options.out / f"planner_{row.n_demos}demos"
    if not (folder / "planner" / "config.json").is_file():
        argv = ["--stage", "plan", "--model", str(options.model), "--look_at", str(demos)]
        argv += ["--few_shot", str(row.n_demos), "--steps", str(_PLANNER_STEPS)]
        argv += ["--batch_size", "24", "--learning_rate", "0.0005"]
        argv += ["--features_dir", str(options.out / "features")]
        embodied("finetune", *argv, "--output_dir", str(folder))
    return folder / "planner"


def evaluate(
    options: BenchmarkOptions, row: Row, planner: Path | None, seed: int
) -> list[dict[str, Any]]:
    """The eval_info of one training seed's policies."""
    infos = []
    for part in parts_of(options):
        folder = _place(options, row, seed, part)
        argv = ["--env", part, "--n_episodes", str(options.protocol.n_layouts), "--n_videos", "1"]
        argv += ["--policy", str(folder / "train" / "policy"), "--workers", str(options.workers)]
        argv += [] if planner is None else ["--model", str(planner)]
        argv += ["--rule", row.rule] if row.rule else []
        argv += _ALSO.get(options.name, [])
        embodied("evaluate", *argv, "--output_dir", str(folder / "eval"))
        infos.append(eval_info.read_info(folder / "eval"))
    return infos


def _place(options: BenchmarkOptions, row: Row, seed: int, part: str) -> Path:
    folder = row.folder(options.out) / f"seed{seed}"
    return folder / part.replace("/", "_") if options.per_task else folder


# --- the table --------------------------------------------------------------------------------


def summarise(row: Row, seeds: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """What a row's evaluations say.

    Args:
        seeds: for each training seed its eval_infos, which together have every task once.
    """
    by_seed = [_episodes(infos) for infos in seeds]
    tasks = list(dict.fromkeys(r["env"] for records in by_seed for r in records))
    together = [record for records in by_seed for record in records]
    rates = [macro(eval_info.rate_of(_of(records, t)) for t in tasks) for records in by_seed]
    over = OverSeeds.of([rate for rate in rates if rate is not None])
    return {
        **asdict(row),
        "tasks": {task: _counts(_of(together, task)) for task in tasks},
        "all": _counts(together),
        "per_seed": rates,
        "over_seeds": asdict(over),
        "n_seeds": len(by_seed),
        "n_layouts": len({(r["env"], r["layout_sha"]) for r in together}),
    }


def _episodes(infos: Sequence[dict[str, Any]]) -> list[eval_info.Record]:
    return [r for info in infos for task in info["per_task"] for r in task["per_episode"]]


def _of(records: Sequence[eval_info.Record], env: str) -> list[eval_info.Record]:
    return [record for record in records if record["env"] == env]


def _counts(records: Sequence[eval_info.Record]) -> dict[str, Any]:
    rate = eval_info.rate_of(records)
    apart = len(records) - rate.n
    return {"k": rate.k, "n": rate.n, "wilson95": rate.wilson95, "n_set_apart": apart}


def markdown(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The table for people: a row a protocol row, a column a task."""
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    shown = tasks if len(tasks) <= 10 else []  # mt50's are in the JSON
    head = ["demos", "cameras", "policy", "planner", *(t.split("/")[-1] for t in shown)]
    head += ["all", "mean over training seeds"]
    lines = [f"# {name}", "", _line(head), _line(["---"] * len(head))]
    for row in rows:
        words = [row["policy"], *(row[k] for k in ("features", "ablate"))]
        kind = " ".join(w for w in words if w not in ("former", "none"))
        start = ", ".join(filter(None, [row["start"], row["rule"] and f"rule {row['rule']}"]))
        cells = [str(row["n_demos"]), row["cameras"], kind, start]
        cells += [_cell(row["tasks"][task]) for task in shown]
        over = OverSeeds(**row["over_seeds"])
        lines.append(_line([*cells, _cell(row["all"]), f"{over}, {row['n_seeds']} seed(s)"]))
    note = (
        "Successes of episodes on test layouts, all training seeds together, with Wilson's 95 % "
        "interval, which takes the policies as given; the last column is the mean over training "
        "seeds of the mean over tasks, with Student's 95 % interval over the seeds. Every seed has "
        "the same demonstrations and the same layouts. Cameras are the policy's; the planner looks "
        "through its own two."
    )
    return "\n".join([*lines, "", note, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(counts: dict[str, Any]) -> str:
    apart = f" ({counts['n_set_apart']} apart)" if counts["n_set_apart"] else ""
    if counts["wilson95"] is None:
        return f"0/0{apart}"
    low, high = (100 * bound for bound in counts["wilson95"])
    percent = 100 * counts["k"] / counts["n"]
    return f"{counts['k']}/{counts['n']} = {percent:.0f} % [{low:.0f}, {high:.0f}]{apart}"


def write(options: BenchmarkOptions, rows: Sequence[dict[str, Any]]) -> None:
    """Put the rows among those of earlier runs in table.json, and write table.md anew."""
    path = options.out / "table.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    names = list(Row.__dataclass_fields__)
    keyed = {tuple(row[n] for n in names): row for row in [*before, *rows]}
    with replacing(path) as partial:
        partial.write_text(json.dumps([*keyed.values()], indent=2), encoding="utf-8")
    with replacing(options.out / "table.md") as partial:
        partial.write_text(markdown(options.name, [*keyed.values()]), encoding="utf-8")


def main() -> None:
    options = tyro.cli(
        BenchmarkOptions, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True
    )
    options.out.mkdir(parents=True, exist_ok=True)
    start = start_of(options)
    demos = record(options)
    told = []
    for row in rows_of(options, start):
        train(options, row, demos, 0)  # alone: it computes the features that the others share
        more = range(1, options.protocol.n_seeds)
        with ThreadPoolExecutor(options.workers) as pool:
            list(pool.map(partial(train, options, row, demos), more))
        seeds = range(options.protocol.n_seeds)
        planner = tuned(options, row, demos)
        told.append(summarise(row, [evaluate(options, row, planner, seed) for seed in seeds]))
        write(options, told)
    print((options.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
