"""What watching oneself is worth: an element of the kitchen falls shut again while the agent works.

Two elements are asked for. Some steps after the first of them is done, it is set back to its start.
The same test starts are tried three times: by the agent as it is, by the agent without its monitor
(the policy's done head alone moves the plan on), and with an oracle in place of the monitor, which
is told the truth. Only starts in which an element was pushed back count.

    .venv/bin/python scripts/pushback.py [--n_episodes N] [--seeds FIRST:LAST] [--workers N]

Without flags it takes about 25 minutes on two cores; the bar asks for --n_episodes 100.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from embodied import engines
from embodied.agent.agent import Agent, AgentOptions
from embodied.agent.monitor import Look, Monitor
from embodied.agent.rollout import PICTURE_EVERY, RefusedTask, run_episode
from embodied.cli.eval_info import EpisodeLog, Record
from embodied.cli.evaluate import layout_seeds
from embodied.cli.trials import cameras_for
from embodied.cli.unseen import TrainLayouts
from embodied.metrics import Paired, Rate
from embodied.types import Observation, Plan, Subgoal, Verdict, Vocabulary
from sims import language
from sims.kitchen import KitchenEnv
from sims.kitchen_disturbances import push_back
from sims.kitchen_elements import ELEMENTS, LOST_M, KitchenTruth, is_met
from sims.kitchen_tasks import OWNER, SUBGOALS

FULL, WITHOUT, ORACLE = MODES = ("full loop", "no monitor", "oracle")
_N_EPISODES = 45
_AFTER_STEPS = 15
_IDLE_STEPS = 50
_NEARER = 0.01  # metres to the handle, or part of the element's way


@dataclass(frozen=True)
class PushbackOptions:
    """How often both elements are open at the end although one was pushed back.

    Args:
        env: several elements of the kitchen, as `kitchen/N` or by name.
        n_episodes: starts, each tried in every mode; 45, or as many as --seeds has.
        seeds: FIRST:LAST, the layout seeds to take them from; the test family when not given.
        horizon: control steps an episode.
        model, policy: folders of trained weights instead of the shipped ones.
        workers: processes, one thread each.
        output_dir: where the outcomes go, a JSON line an episode; what is there is not run again.
    """

    env: str = "kitchen/2"
    n_episodes: int | None = None
    seeds: str | None = None
    horizon: int = 700
    model: Path | None = None
    policy: Path | None = None
    workers: int = os.cpu_count() or 1
    output_dir: Path = Path("outputs/pushback")

    @property
    def layouts(self) -> list[int]:
        """The seeds to try."""
        default = None if self.seeds else _N_EPISODES
        return layout_seeds(self.seeds, self.n_episodes or default)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides an episode's outcome besides its seed and mode."""
        weights = {"model": self.model, "policy": self.policy}
        named = {name: folder and str(folder) for name, folder in weights.items()}
        return {"env": self.env, "horizon": self.horizon, **named}


class PushedBack:
    """Sets the first element that is done back to its start, once, some steps later."""

    def __init__(self, env: KitchenEnv) -> None:
        self._env = env
        self._element: str | None = None
        self._wait = _AFTER_STEPS
        self.step: int | None = None

    def __call__(self, step: int) -> None:
        if self._element is None:
            done = self._env.completion.completed_strict
            self._element = done[0] if done else None
            return
        self._wait -= 1
        if self._wait < 0 and self.step is None and push_back(self._env, self._element):
            self.step = step


class Always(Monitor):
    """Looks whenever it may."""

    def watch(self, state: np.ndarray, done_probability: float | None) -> Look:
        return "claimed"


class OracleAgent(Agent):
    """Told the truth at every picture: done, lost, or come no nearer. No agent.

    What it does about that is the agent's own: a task that came undone is turned to when the plan
    is through, and what has failed is tried again. So it shows what a perfect monitor would gain
    with these reactions and this policy, not what a better policy would.
    """

    env: KitchenEnv

    def begin(self, observation: Observation, instruction: str, vocabulary: Vocabulary) -> Plan:
        plan = super().begin(observation, instruction, vocabulary)
        self._monitor = Always(self._motor.monitor)
        return plan

    def _begin_subgoal(self, index: int, first: Sequence[np.ndarray] = ()) -> None:
        super()._begin_subgoal(index, first)
        self._nearest, self._since = -np.inf, self._n_steps

    def _judge(self, subgoal: Subgoal) -> Verdict:
        truth = self.env.truth()
        if self._is_done(subgoal, truth):
            return Verdict("done", "it is achieved", 1.0)
        is_current = self._n_steps > 0 and subgoal == self._plans[-1].subgoals[self._index]
        if is_current and self._is_lost(subgoal, truth):
            return Verdict("failed", "the gripper is in the wrong place", 1.0)
        if is_current and self._is_idle(subgoal, truth):
            return Verdict("failed", "nothing moves", 1.0)
        return Verdict("progressing", "the work is going on", 1.0)

    def _is_done(self, subgoal: Subgoal, truth: KitchenTruth) -> bool:
        """An element has to stay open for a few steps before the hand leaves it."""
        task = OWNER[subgoal]
        if self._n_steps and subgoal == SUBGOALS[task][-1] and task in self.env.tasks:
            return task in self.env.completion.completed_strict
        return is_met(subgoal, truth)

    def _is_lost(self, subgoal: Subgoal, truth: KitchenTruth) -> bool:
        task = OWNER[subgoal]
        at_handle = subgoal != SUBGOALS[task][0] and not truth.is_open(task)
        return at_handle and truth.gaps_m[task] > ELEMENTS[task].reach_m + LOST_M

    def _is_idle(self, subgoal: Subgoal, truth: KitchenTruth) -> bool:
        """Whether the hand, or then the element, has come no nearer for a while."""
        task = OWNER[subgoal]
        works = subgoal == SUBGOALS[task][-1]
        near = truth.travel[task] if works else -truth.gaps_m[task]
        if near > self._nearest + _NEARER:
            self._nearest, self._since = near, self._n_steps
        return self._n_steps - self._since >= _IDLE_STEPS


Job = tuple[int, str]  # layout seed and mode


class Pusher:
    """Tries starts, one after the other, in one process."""

    def __init__(self, options: PushbackOptions) -> None:
        from embodied.cli.assemble import load_agent
        from sims import scenes

        self._options = options
        whole = load_agent(options.model, options.policy)
        parts = whole.planner, whole.motors, whole.catalogue
        env = scenes.make(
            options.env,
            horizon=options.horizon,
            rule="strict",
            picture_every=PICTURE_EVERY,
            cameras=cameras_for(whole, options.env),
        )
        assert isinstance(env, KitchenEnv)
        self._env = env
        oracle = OracleAgent(*parts)
        oracle.env = env
        without = Agent(*parts, AgentOptions("no_loop"))
        self._agents = dict(zip(MODES, (whole, without, oracle), strict=True))

    def work(self, job: Job) -> Iterator[Record]:
        """One start in one mode. What counts is all elements at once, after the push."""
        seed, mode = job
        yield {
            **self._options.settings,
            "mode": mode,
            "seed": seed,
            **run_one(self._env, self._agents[mode], seed),
        }

    def close(self) -> None:
        self._env.close()


def run_one(env: Any, agent: Agent, seed: int) -> Record:
    """What came of a start. A refusal is a failure, in which nothing was pushed."""
    said, pushed = language.canonical(env.tasks_of(seed)), PushedBack(env)
    outcome, n_steps = "failure", 0
    try:
        episode = run_episode(env, agent, said, seed=seed, before_step=pushed)
        outcome, n_steps = str(episode.outcome), len(episode.steps)
    except RefusedTask as refusal:
        print(f"seed {seed}, refused: {refusal}", file=sys.stderr)
    return {
        "layout_sha": env.layout_sha,
        "tasks": list(env.tasks),
        "pushed_at": pushed.step,
        "outcome": outcome,
        "success": outcome == "success",
        "n_steps": n_steps,
    }


def measure(options: PushbackOptions) -> list[Record]:
    """Every start in every mode; outcomes are kept as they come.

    Raises:
        ValueError: layouts were trained on, --env is no goal of several elements of the kitchen,
            or the folder holds outcomes of other settings.
    """
    _check_env(options.env)
    seeds = options.layouts
    trained = TrainLayouts.of(options.model, options.policy)
    trained.check_seeds((options.env, seed) for seed in seeds)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    log = EpisodeLog(options.output_dir / "episodes.jsonl")
    _check_settings(log.records, options)
    wanted = [(seed, mode) for seed in seeds for mode in MODES]
    there = {(r["seed"], r["mode"]) for r in log.records}
    missing = [job for job in wanted if job not in there]
    with closing(_results(missing, options)) as results:
        for record in results:
            log.append(record)
            done = f"{len(log.records)}: seed {record['seed']}, {record['mode']}"
            print(f"{done}: {record['outcome']}", file=sys.stderr)
    return [r for r in log.records if (r["seed"], r["mode"]) in set(wanted)]


def _check_env(env_id: str) -> None:
    from sims import scenes

    scenes.check_env_id(env_id)
    told = env_id.partition("/")[2]
    n_tasks = int(told) if told.isdecimal() else len(scenes.tasks_of(env_id))
    if scenes.family(env_id) != scenes.KITCHEN or n_tasks < 2:
        raise ValueError(f"--env names two or more elements, like kitchen/2; got {env_id!r}")


def _check_settings(records: Sequence[Record], options: PushbackOptions) -> None:
    for record in records:
        changed = [k for k, v in options.settings.items() if record.get(k) != v]
        if changed:
            told = ", ".join(f"{key} was {record.get(key)}" for key in changed)
            raise ValueError(
                f"{options.output_dir} holds outcomes of other settings ({told}): choose another "
                "--output_dir, or delete it"
            )


def _results(jobs: list[Job], options: PushbackOptions) -> Iterator[Record]:
    if options.workers > 1 and len(jobs) > 1:
        yield from engines.run("process", partial(Pusher, options), jobs, options.workers)
    elif jobs:
        with closing(Pusher(options)) as pusher:
            for job in jobs:
                yield from pusher.work(job)


def valid(records: Sequence[Record], mode: str) -> dict[int, Record]:
    """Seed → what came of it in that mode, where the simulator did not break down."""
    return {r["seed"]: r for r in records if r["mode"] == mode and r["outcome"] != "sim_fault"}


def uplift(records: Sequence[Record], mode: str, other: str) -> Paired:
    """`mode` against `other` on the starts in which an element was pushed back in both."""
    a, b = valid(records, other), valid(records, mode)
    shared = [
        seed
        for seed in sorted(a.keys() & b.keys())
        if a[seed]["pushed_at"] is not None and b[seed]["pushed_at"] is not None
    ]
    return Paired.of([a[s]["success"] for s in shared], [b[s]["success"] for s in shared])


def table(records: Sequence[Record]) -> str:
    """For people: how many starts were pushed back, how often that was mended, and the uplifts."""
    lines = []
    for mode in MODES:
        of = valid(records, mode).values()
        pushed = Rate.of(r["success"] for r in of if r["pushed_at"] is not None)
        n_faults = sum(r["mode"] == mode for r in records) - len(of)
        faults = f"; {n_faults} simulator faults" if n_faults else ""
        lines.append(
            f"{mode:<11} pushed back in {pushed.n} of {len(of)} starts; then {pushed}; "
            f"of all starts {Rate.of(r['success'] for r in of)}{faults}"
        )
    for mode, other in ((FULL, WITHOUT), (ORACLE, FULL)):
        lines.append(f"{mode} less {other}: {_told(uplift(records, mode, other))}")
    return "\n".join(lines)


def _told(paired: Paired) -> str:
    if paired.interval95 is None or paired.difference is None:
        return "no start was pushed back in both"
    low, high = (100 * bound for bound in paired.interval95)
    return (
        f"{100 * paired.difference:+.0f} points [{low:+.0f}, {high:+.0f}] on the {paired.n} starts "
        f"pushed back in both ({paired.only_b} against {paired.only_a}, p = {paired.p:.4f})"
    )


def main() -> None:
    options = tyro.cli(PushbackOptions, use_underscores=True)
    try:
        records = measure(options)
    except ValueError as error:
        sys.exit(f"pushback.py: {error}")
    print(table(records))


if __name__ == "__main__":
    main()
