"""Many episodes of one evaluation, in this process or in several; one record each."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embodied.agent.rollout import PICTURE_EVERY, Actor, Decision
from embodied.cli.attempt import Attempt, Recorder, attempt, outcome_line
from embodied.cli.common import quiet_libraries
from embodied.cli.eval_info import Record
from embodied.types import Observation, Plan, Vocabulary
from sims import language, scenes

ActorKind = Literal["agent", "expert", "random"]
Ablation = Literal["none", "plan_zeroed", "plan_shuffled", "blind", "no_loop"]
Instructions = Literal["canonical", "paraphrases", "another_task"]
Rule = Literal["benchmark", "strict"]


@dataclass(frozen=True)
class Setting:
    """Who acts, told what, for how long; everything but the layout that decides an episode."""

    actor: ActorKind
    model: Path | None
    policy: Path | None
    ablate: Ablation
    instructions: Instructions
    horizon: int | None
    rule: Rule | None = None


@dataclass(frozen=True)
class Job:
    """One layout to try, and where its video goes."""

    env_id: str
    seed: int
    video: Path | None = None


class RandomActor:
    """Uniform noise within the bounds: the floor of every table."""

    def __init__(self, env: Any, seed: int) -> None:
        self._space = env.action_space
        self._rng = np.random.default_rng([seed, 4])

    def begin(self, observation: Observation, instruction: str, vocabulary: Vocabulary) -> Plan:
        some = vocabulary.narrowed(vocabulary.tasks[:1])  # any plan will do, and it is ignored
        return Plan(instruction, "Thought: none.", some.subgoals, some.tasks)

    def act(self, observation: Observation) -> Decision:
        action = self._rng.uniform(self._space.low, self._space.high)
        return Decision(action.astype(np.float32))

    def report(self) -> dict[str, Any]:
        return {}


def scripted_expert(env: Any, seed: int) -> Actor:
    """The scripted expert without noise or faults: the ceiling of every table."""
    from embodied.cli.record import ExpertActor, RecordOptions

    return ExpertActor(env, seed, RecordOptions(env.env_id, 1, Path()))


class Trials:
    """Runs jobs one after the other; keeps its agent, and its environment while that is the same.

    Raises, when called:
        ValueError, OSError: the agent's weights cannot be used.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._env: Any = None
        self._agent: Any = None

    def __call__(self, job: Job) -> Record:
        env = self._open(job.env_id)
        actor = self._actor(env, job.seed)
        instruction = self._instruction(env, job.seed)
        recorder = None
        if job.video is not None:
            recorder = Recorder(env, self._words(actor, instruction), fine=False)
        tried = attempt(env, actor, instruction, job.seed, recorder)
        video = job.video if tried.n_steps else None
        if recorder is not None and video is not None:
            recorder.finish(outcome_line(tried))
            recorder.save_mp4(video)
        setup = {
            "success_rule": env.success_rule,
            "horizon": env.horizon,
            "train_seeds": _train_seeds(actor, env.env_id),
            "render_flags": env.render_flags,
        }
        if tried.outcome in ("crash", "sim_fault"):
            self._close_env()  # do not trust what such an episode leaves behind
        return _record(env, job.seed, instruction, tried, video) | {"setup": setup}

    def _open(self, env_id: str) -> Any:
        if self._env is None or self._env.env_id != env_id:
            self._close_env()
            s = self._setting
            self._env = scenes.make(
                env_id,
                horizon=s.horizon,
                render=s.actor == "agent",  # no other looks at pictures
                picture_every=PICTURE_EVERY,
                **self._rule(env_id),
            )
        return self._env

    def _rule(self, env_id: str) -> dict[str, Any]:
        rule = self._setting.rule
        if rule is not None and scenes.family(env_id) != scenes.KITCHEN:
            raise ValueError(f"--rule is for the kitchen; {env_id} has one rule of success")
        return {} if rule is None else {"rule": rule}

    def _actor(self, env: Any, seed: int) -> Actor:
        match self._setting.actor:
            case "expert":
                return scripted_expert(env, seed)
            case "random":
                return RandomActor(env, seed)
            case "agent":
                if self._agent is None:
                    from embodied.cli.assemble import load_agent

                    s = self._setting
                    self._agent = load_agent(s.model, s.policy, ablate=s.ablate)
                self._agent.route(language.canonical(env.tasks), scenes.scene_of(env.env_id))
                return self._agent

    def _instruction(self, env: Any, seed: int) -> str:
        tasks = env.tasks_of(seed)
        match self._setting.instructions:
            case "canonical":
                return language.canonical(tasks)
            case "paraphrases":
                return language.ask(np.random.default_rng([seed, 3]), tasks)
            case "another_task":
                return language.canonical(_others(env.vocabulary.tasks, tasks))

    def _words(self, actor: Any, instruction: str) -> Callable[[], list[str]]:
        if self._setting.actor == "agent":
            return actor.caption
        return lambda: [instruction, f"({self._setting.actor})"]

    def _close_env(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def close(self) -> None:
        self._close_env()


def _others(offered: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """As many tasks of the scene, none of which is asked for: those that come next.

    Raises:
        ValueError: the scene does not offer so many.
    """
    first = offered.index(tasks[0])
    others = [t for t in (*offered[first:], *offered[:first]) if t not in tasks]
    if len(others) < len(tasks):
        raise ValueError(f"the scene of '{', '.join(tasks)}' does not offer as many other tasks")
    return others[: len(tasks)]


_TRUTH = ("completed", "completed_strict", "success_benchmark", "success_strict")
"""What an episode of several tasks or rules tells besides its success."""


def _record(env: Any, seed: int, instruction: str, tried: Attempt, video: Path | None) -> Record:
    steps = [] if tried.episode is None else tried.episode.steps
    rewards = [step.reward for step in steps] or [0.0]
    planned = tried.plan is not None and tried.plan.refused is None
    report = tried.report
    return {
        "env": env.env_id,
        "task": env.task,
        "tasks": list(env.tasks),
        "seed": seed,
        "layout_sha": getattr(env, "layout_sha", ""),
        "instruction": instruction,
        "outcome": tried.outcome,
        "success": tried.success,
        "first_success_step": None if tried.episode is None else tried.episode.first_success_step,
        "n_steps": tried.n_steps,
        "n_replans": report.get("n_replans", 0),
        "n_retries": report.get("n_retries", 0),
        "plan": [s.text for s in tried.plan.subgoals] if tried.plan and planned else [],
        "thought": tried.plan.thought if tried.plan and planned else "",
        "refused": tried.refused,
        "verdicts": report.get("verdicts", []),
        "sum_reward": sum(rewards),
        "max_reward": max(rewards),
        **{name: report[name] for name in _TRUTH if name in report},
        "plan_s": tried.begin_s,
        "wall_s": tried.wall_s,
        "control_hz": tried.control_hz,
        "video": None if video is None else str(video),
    }


_trials: Trials | None = None  # a worker process's own


def _start(setting: Setting) -> None:
    global _trials
    quiet_libraries()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    _trials = Trials(setting)


def _work(job: Job) -> Record:
    assert _trials is not None
    record = _trials(job)
    atexit.unregister(_trials.close)  # last in, first out: contexts are freed before GL itself
    atexit.register(_trials.close)
    return record


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started within never see Ctrl-C, which is their parent's to handle."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def in_processes(jobs: list[Job], setting: Setting, n_workers: int) -> Iterator[Record]:
    """The records of `jobs` as they are finished by `n_workers` processes of one thread each.

    Raises:
        ChildProcessError: a process died.
    """
    others = set(active_children())
    pool = ProcessPoolExecutor(
        n_workers, mp_context=get_context("spawn"), initializer=_start, initargs=(setting,)
    )
    try:
        with _deaf_to_interrupts():
            futures = [pool.submit(_work, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise ChildProcessError(
            "a worker process died, perhaps for want of memory: run the same command again, with "
            "fewer --workers; finished episodes are kept"
        ) from None
    except BaseException:
        for child in set(active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _train_seeds(actor: Any, env_id: str) -> list[int] | None:
    """Layout seeds that what moves this robot was trained on; None where nothing was."""
    motor = getattr(actor, "motors", {}).get(scenes.family(env_id))
    return None if motor is None or motor.train_seeds is None else list(motor.train_seeds)
