"""Many episodes of one evaluation; one record each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embodied.agent.rollout import PICTURE_EVERY, TRUTH, Actor, Decision
from embodied.cli.attempt import Attempt, Recorder, attempt, outcome_line
from embodied.cli.eval_info import Record
from embodied.types import Observation, Plan, Vocabulary
from sims import language, scenes

ActorKind = Literal["agent", "expert", "random"]
Ablation = Literal["none", "plan_zeroed", "plan_shuffled", "blind", "no_loop"]
Instructions = Literal["canonical", "paraphrases", "another_task"]
Rule = Literal["benchmark", "strict"]


@dataclass(frozen=True)
class Setting:
    """Who acts, told what, for how long; everything but the layout that decides an episode.

    `device` is where the agent computes; every process has an agent of its own there.
    """

    actor: ActorKind
    model: Path | None
    policy: Path | None
    ablate: Ablation
    instructions: Instructions
    horizon: int | None
    rule: Rule | None = None
    level: int = 0
    device: str = "auto"


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
            "cameras": _looks_through(actor, env),
            "render_flags": env.render_flags,
            "device": _device(actor),
        }
        if tried.outcome in ("crash", "sim_fault"):
            self._close_env()  # do not trust what such an episode leaves behind
        record = _record(env, job.seed, instruction, tried, video) | {"setup": setup}
        return record | {"oracle": True} if _is_oracle(actor, env.env_id) else record

    def _open(self, env_id: str) -> Any:
        if self._env is None or self._env.env_id != env_id:
            self._close_env()
            s = self._setting
            self._env = scenes.make(
                env_id,
                horizon=s.horizon,
                render=s.actor == "agent",  # no other looks at pictures
                picture_every=PICTURE_EVERY,
                **self._cameras(env_id),
                **kitchen_options(env_id, s.rule, s.level),
            )
        return self._env

    def _cameras(self, env_id: str) -> dict[str, Any]:
        """What the agent needs to see; the environment's own for whoever looks at nothing."""
        if self._setting.actor != "agent":
            return {}
        return {"cameras": cameras_for(self._load_agent(), env_id)}

    def _actor(self, env: Any, seed: int) -> Actor:
        match self._setting.actor:
            case "expert":
                return scripted_expert(env, seed)
            case "random":
                return RandomActor(env, seed)
            case "agent":
                self._load_agent()
                self._agent.route(language.canonical(env.tasks), scenes.scene_of(env.env_id))
                self._tell_oracles(env)
                return self._agent

    def _load_agent(self) -> Any:
        if self._agent is None:
            from embodied import devices
            from embodied.cli.assemble import load_agent

            s, device = self._setting, devices.pick(self._setting.device)
            self._agent = load_agent(s.model, s.policy, ablate=s.ablate, device=device)
        return self._agent

    def _tell_oracles(self, env: Any) -> None:
        """Let a policy that is a ceiling look at the truth of `env`."""
        from embodied.cli.oracle import OraclePolicy, true_places

        for motor in getattr(self._agent, "motors", {}).values():
            if isinstance(motor.policy, OraclePolicy):
                cameras = motor.policy.fed.cameras or env.cameras
                motor.policy.truth = partial(true_places, env, cameras)

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

    def work(self, job: Job) -> Iterator[Record]:
        """The same, as the engines want it."""
        yield self(job)

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


_TOLD = (*TRUTH, "seen_done")
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
        "n_put_off": report.get("n_put_off", 0),
        "n_repeats": report.get("n_repeats", 0),
        "plan": [s.text for s in tried.plan.subgoals] if tried.plan and planned else [],
        "thought": tried.plan.thought if tried.plan and planned else "",
        "refused": tried.refused,
        "verdicts": report.get("verdicts", []),
        "sum_reward": sum(rewards),
        "max_reward": max(rewards),
        **{name: report[name] for name in _TOLD if name in report},
        "plan_s": tried.begin_s,
        "wall_s": tried.wall_s,
        "control_hz": tried.control_hz,
        "video": None if video is None else str(video),
    }


def _is_oracle(actor: Any, env_id: str) -> bool:
    """Whether what moves this robot was told where things are: a ceiling."""
    motor = getattr(actor, "motors", {}).get(scenes.family(env_id))
    return motor is not None and motor.policy.fed.features == "oracle"


def kitchen_options(env_id: str, rule: Rule | None, level: int) -> dict[str, Any]:
    """What an environment is told that only the kitchen can be.

    Raises:
        ValueError: it is another one.
    """
    asked: dict[str, Any] = {} if rule is None else {"rule": rule}
    asked |= {"level": level} if level else {}
    if asked and scenes.family(env_id) != scenes.KITCHEN:
        flags = " and ".join(f"--{name}" for name in asked)
        there = f"{env_id} has one rule of success, and nothing is open at its start"
        raise ValueError(f"{flags} is for the kitchen; {there}: leave it out")
    return asked


def cameras_for(actor: Any, env_id: str) -> tuple[str, ...]:
    """The environment's own cameras, and what more the policy looks through."""
    motor = getattr(actor, "motors", {}).get(scenes.family(env_id))
    more = () if motor is None else motor.policy.fed.cameras
    return tuple(dict.fromkeys((*scenes.cameras(env_id), *more)))


def _looks_through(actor: Any, env: Any) -> list[str] | None:
    """The cameras whose pictures the policy is fed; None for actors without one."""
    motor = getattr(actor, "motors", {}).get(scenes.family(env.env_id))
    if motor is None:
        return None
    from embodied.model.planner import cameras_of

    fed = motor.policy.fed
    if fed.features in ("blind", "state", "oracle"):
        return []
    return list(cameras_of(fed.cameras or actor.planner.config.cameras, env.cameras))


def _device(actor: Any) -> str | None:
    """Where the networks of what acts compute; None for actors without any."""
    device = getattr(getattr(actor, "planner", None), "device", None)
    return None if device is None else str(device)


def _train_seeds(actor: Any, env_id: str) -> list[int] | None:
    """Layout seeds that what moves this robot was trained on; None where nothing was."""
    motor = getattr(actor, "motors", {}).get(scenes.family(env_id))
    return None if motor is None or motor.train_seeds is None else list(motor.train_seeds)
