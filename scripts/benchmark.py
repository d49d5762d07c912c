"""The few-shot benchmarks: demonstrations, policies, test layouts, a table. See mw5.sh and others.

    scripts/mw5.sh [--full] [--model PLANNER] [--output_dir D] …

For every number of demonstrations, set of cameras and training seed a policy is trained on the
expert's demonstrations and evaluated on layouts of the test family, by `embodied`'s own commands.
All start from one planner. In a row "held out" nothing that was trained had seen the benchmark's
tasks before; the planner's config says whether it has. Every step resumes where it was interrupted.

`--features former r3m` adds R3M's head, `--eval_ablate plan_zeroed no_loop` the same policies
without plan or closed loop; each such row is paired with the full system, training seed by training
seed and layout by layout. R3M's head has nothing to start from, so beside it the full system is
trained from nothing as well, whatever --init says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import few_shot
import tyro
from benchmark_table import Row, paired, start_of, summarise, write

from embodied.cli import eval_info
from embodied.types import Features, FedAblation
from sims import scenes

_ALSO: dict[str, list[str]] = {"mt50": ["--horizon", "400"]}  # as others evaluate it

_RECORD_S, _SEE_S, _TUNING_S = 1.5, 1.0, 300.0
"""To record a demonstration, to see its features through one camera, and to teach a held-out
planner the tasks, on two busy cores."""
_STEP_S, _R3M_STEP_S, _EPISODE_S = 1 / 3, 1 / 50, 4.0
"""A step of training: two trainings at once take twice as long. An episode of evaluation, on one
core."""

_CORRECTED_FROM, _ROUND, _CORRECTED_STEPS, _BETA, _CORRECTING_RATE = 5000, 1000, 160, 0.25, 3e-4
"""First layout of episodes with corrections, how much further each round's is, their length, the
share of stretches in which the expert acts, so that later parts of a task are seen too, and the
learning rate with which it goes on."""

EvalAblation = Literal["plan_zeroed", "plan_shuffled", "blind", "no_loop"]


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
    """What is run without flags, in less than 100 minutes on two cores (`minutes`); or all of it.

    Baselines, which flags add, come on top.
    """
    match name, full:
        case "mw5", False:
            return Protocol((10, 25), ("workspace,wrist",), 3, 20, 1200)
        case "mw5", True:
            return Protocol((10, 25), ("workspace,wrist", "corner2"), 5, 100, 6000)
        case "fk5", False:
            return Protocol((10, 25), ("overview,wrist",), 3, 20, 1200)
        case "fk5", True:
            return Protocol((10, 25), ("overview,wrist", "overview"), 5, 100, 6000)
        case "mt50", False:
            return Protocol((8,), ("corner2", "corner2,wrist"), 1, 4, 3000)
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
            not given. It too must have left the benchmark's tasks out for a row "held out". Rows
            whose policy is fed something else than it was start from nothing.
        output_dir: outputs/<name> when not given.
        full: the whole protocol: 5 seeds × 2 cameras × 100 layouts; 50 demonstrations for mt50.
        n_demos: instead of the protocol's.
        cameras: instead of the protocol's; rows apart by ";", names by ",".
        n_seeds, n_layouts, steps: instead of the protocol's.
        n_corrections: episodes per task in which the trained policy acts and the expert says what
            it would have done (DAgger, arXiv 1011.0686); the policy then learns from demonstrations
            and these for half as many steps again. They take an expert at hand: no few-shot.
        n_rounds: of corrections: in the second one the policy of the first one acts, on other
            layouts, and learns from the demonstrations and both.
        per_task: a policy for each task, as R3M has; else one for all of them.
        policy, ablate: as for `embodied train-policy`.
        features: the same; several make a row each.
        eval_ablate: what to take from the full system when it is evaluated, one row each.
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
    n_corrections: int = 0
    n_rounds: int = 1
    per_task: bool = False
    policy: Literal["mlp", "transformer", "diffusion"] = "mlp"
    features: tuple[Features, ...] = ("former",)
    ablate: FedAblation = "none"
    eval_ablate: tuple[EvalAblation, ...] = ()
    rule: Literal["benchmark", "strict"] = "benchmark"
    workers: int = os.cpu_count() or 1

    def __post_init__(self) -> None:
        if self.n_rounds < 1 or (self.n_rounds > 1 and not self.n_corrections):
            raise ValueError(
                "--n_rounds counts rounds of corrections, from 1: more than one needs"
                f" --n_corrections; got {self.n_rounds} and {self.n_corrections}"
            )
        if self.eval_ablate and ("former" not in self.features or self.ablate != "none"):
            raise ValueError(
                "--eval_ablate takes something from the full system: give --features former among "
                f"others, and no --ablate; got {' '.join(self.features)} and {self.ablate}"
            )
        if "r3m" in self.features and self.policy != "mlp":
            raise ValueError(f"R3M's head is compared with --policy mlp, not {self.policy}")

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


def rows_of(options: BenchmarkOptions) -> list[Row]:
    """The rows, in the table's order."""
    p, o = options.protocol, options
    rule = o.rule if o.name == "fk5" else ""
    planner = few_shot.held_out([o.model], o.name)
    rows = []
    for n, cameras, features in product(p.n_demos, p.cameras, o.features):
        inits = _inits(o, features, cameras)
        for init in inits:
            policy = None if init is None else few_shot.held_out([init], o.name)
            start = start_of(planner_held_out=planner, policy_held_out=policy)
            row = Row(n, cameras, o.policy, features, o.ablate, o.per_task, p.steps, start, rule)
            row = replace(row, n_corrections=o.n_corrections, n_rounds=o.n_rounds)
            rows.append(row)
            if row.is_full and init == inits[0]:
                rows += [replace(row, eval_ablate=ablate) for ablate in o.eval_ablate]
    return rows


def _inits(options: BenchmarkOptions, features: str, cameras: str) -> list[Path | None]:
    """What policies start from; from nothing as well, where others of the table have to."""
    init = options.init
    if init is None or not _fits(options, init, features, cameras):
        return [None]
    alone = all(_fits(options, init, other, cameras) for other in options.features)
    return [init] if alone else [init, None]


def _fits(options: BenchmarkOptions, init: Path, features: str, cameras: str) -> bool:
    """Whether `init` was fed what a row's policies are fed."""
    fed = json.loads((init / "config.json").read_text(encoding="utf-8")).get("fed", {})
    own = scenes.cameras(scenes.resolve_env_ids(options.name)[0])
    was = (fed.get("features", "former"), fed.get("ablate", "none"), fed.get("cameras") or [*own])
    return was == (features, options.ablate, cameras.split(","))


def minutes(options: BenchmarkOptions, rows: list[Row]) -> float:
    """About how long all of it takes on two cores, from the speeds above."""
    p, n_tasks = options.protocol, len(scenes.resolve_env_ids(options.name))
    n_policies = p.n_seeds * (n_tasks if options.per_task else 1)
    trained = dict.fromkeys(replace(row, eval_ablate="none") for row in rows)
    step_s = [_R3M_STEP_S if row.features == "r3m" else _STEP_S for row in trained]
    n_cameras = sum(len(cameras.split(",")) for cameras in p.cameras)
    n_corrected = options.n_corrections * options.n_rounds
    n_episodes = max(p.n_demos) + _spare(p) + n_corrected * p.n_seeds
    demos_s = n_tasks * n_episodes * (_RECORD_S + n_cameras * _SEE_S)
    is_tuned = few_shot.held_out([options.model], options.name)
    tuning_s = len(p.n_demos) * _TUNING_S * is_tuned
    n_trainings = 1 + 0.5 * options.n_rounds * bool(options.n_corrections)
    training_s = n_policies * p.steps * sum(step_s) * n_trainings
    evaluation_s = len(rows) * p.n_seeds * n_tasks * p.n_layouts * _EPISODE_S / 2
    return (demos_s + tuning_s + training_s + evaluation_s) / 60


# --- what is run ------------------------------------------------------------------------------


def embodied(*argv: str) -> int:
    """Run a command of ours. Returns 0, or 1 when episodes crashed; stops when it fails."""
    print("embodied " + " ".join(argv), file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "embodied.cli.main", *argv], check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return done.returncode


def record(options: BenchmarkOptions) -> Path:
    """The expert's demonstrations, enough for every row.

    Through the rows' cameras, and the planner's own where it has to learn the tasks from them.
    """
    p = options.protocol
    folder = options.out / "demos"
    is_tuned = few_shot.held_out([options.model], options.name)
    own = scenes.cameras(scenes.resolve_env_ids(options.name)[0]) if is_tuned else ()
    names = dict.fromkeys([*own, *(name for row in p.cameras for name in row.split(","))])
    argv = ["--env", options.name, "--n_episodes", str(max(p.n_demos) + _spare(p))]
    argv += ["--noise", "0.02", "--cameras", ",".join(names), "--workers", str(options.workers)]
    embodied("record", *argv, "--output_dir", str(folder))
    return folder


def _spare(protocol: Protocol) -> int:
    """Noise makes the expert fail now and then."""
    return 2 + max(protocol.n_demos) // 3


def parts_of(options: BenchmarkOptions) -> list[str]:
    """What one policy is trained on and evaluated on: an environment, or the whole set."""
    return scenes.resolve_env_ids(options.name) if options.per_task else [options.name]


def train(options: BenchmarkOptions, row: Row, demos: Path, seed: int) -> None:
    """The policies of one training seed; with corrections, those without them before."""
    if row.n_corrections:
        train(options, row.before, demos, seed)
    for part in parts_of(options):
        folder = _place(options, row, seed, part)
        if (folder / "train" / "policy" / "config.json").is_file():
            continue
        argv = ["--dataset", str(demos), "--n_demos", str(row.n_demos), "--seed", str(seed)]
        argv += ["--policy", row.policy, "--features", row.features, "--ablate", row.ablate]
        argv += ["--cameras", row.cameras, "--features_dir", str(options.out / "features")]
        argv += ["--tasks", ",".join(scenes.tasks_of(part))] if options.per_task else []
        argv += [] if options.model is None else ["--model", str(options.model)]
        if row.n_corrections:
            before = _place(options, row.before, seed, part) / "train" / "policy"
            correct(options, row, before, part, folder / "corrections")
            places = [_place(options, each, seed, part) / "corrections" for each in row.rounds]
            argv += ["--corrections", ",".join(map(str, places)), "--init", str(before)]
            argv += ["--steps", str(row.steps // 2), "--learning_rate", str(_CORRECTING_RATE)]
        else:
            argv += ["--init", str(options.init)] if row.from_a_policy else []
            argv += ["--steps", str(row.steps)]
        embodied("train-policy", *argv, "--output_dir", str(folder / "train"))


def correct(options: BenchmarkOptions, row: Row, policy: Path, part: str, folder: Path) -> None:
    """Episodes in which `policy` acts, on layouts without demonstrations, with expert's labels."""
    first = _CORRECTED_FROM + (row.n_rounds - 1) * _ROUND
    argv = ["--env", part, "--n_episodes", str(row.n_corrections), "--policy", str(policy)]
    argv += [] if options.model is None else ["--model", str(options.model)]
    argv += ["--seed", str(first), "--beta", str(_BETA), "--cameras", row.cameras]
    argv += ["--horizon", str(_CORRECTED_STEPS), "--workers", str(options.workers)]
    embodied("record", *argv, "--output_dir", str(folder))


def tuned(options: BenchmarkOptions, row: Row, demos: Path) -> Path | None:
    """The planner that acts: one that has not seen the tasks learns them from demonstrations."""
    if options.model is None or not few_shot.held_out([options.model], options.name):
        return options.model
    folder = options.out / f"planner_{row.n_demos}demos"
    if not (folder / "planner" / "config.json").is_file():
        argv = few_shot.tuning(options.model, demos, row.n_demos, options.out / "features")
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
        argv += ["--ablate", row.eval_ablate] if row.eval_ablate != "none" else []
        argv += _ALSO.get(options.name, [])
        embodied("evaluate", *argv, "--output_dir", str(folder / row.eval_name))
        infos.append(eval_info.read_info(folder / row.eval_name))
    return infos


def evaluations(options: BenchmarkOptions, row: Row) -> list[Path]:
    """Where the evaluations of all training seeds are."""
    every = product(range(options.protocol.n_seeds), parts_of(options))
    return [_place(options, row, seed, part) / row.eval_name for seed, part in every]


def _place(options: BenchmarkOptions, row: Row, seed: int, part: str) -> Path:
    folder = row.folder(options.out) / f"seed{seed}"
    return folder / part.replace("/", "_") if options.per_task else folder


def run(options: BenchmarkOptions, row: Row, demos: Path) -> dict[str, Any]:
    """Whatever of one row is not there yet. Returns its line of table.json."""
    planner = tuned(options, row, demos)  # before the policies: they share its features
    train(options, row, demos, 0)  # alone: it computes the features that the others share
    seeds = range(options.protocol.n_seeds)
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(partial(train, options, row, demos), seeds[1:]))
    return summarise(row, [evaluate(options, row, planner, seed) for seed in seeds])


def main() -> None:
    options = tyro.cli(
        BenchmarkOptions, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True
    )
    options.out.mkdir(parents=True, exist_ok=True)
    rows = rows_of(options)
    about = f"{len(rows)} row(s), about {minutes(options, rows):.0f} minutes on two cores"
    print(about, file=sys.stderr, flush=True)
    demos = record(options)
    told: list[dict[str, Any]] = []
    for row in rows:
        told.append(run(options, row, demos))
        write(options.name, options.out, told)
    for row, line in zip(rows, told, strict=True):
        if not row.is_full and row.full in rows:
            line["paired"] = paired(evaluations(options, row), evaluations(options, row.full))
    write(options.name, options.out, told)
    print((options.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
