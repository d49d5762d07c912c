"""One episode from reset to end: the only caller of `env.step`.

Whoever acts (the agent, a scripted expert, random) stands behind the `Actor` protocol. The
simulator's truth flows one way, into labels and the outcome; nothing of it reaches the actor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from embodied.types import (
    Episode,
    Observation,
    Outcome,
    Plan,
    SimulatorFault,
    Step,
    Vocabulary,
)

PICTURE_EVERY = 2
"""Control steps between the pictures that the agent looks at; its clips have the same stride."""


class Environment(Protocol):
    """What the loop needs of a gymnasium environment of `sims`."""

    env_id: str
    task: str
    layout_sha: str
    action_space: Any

    @property
    def vocabulary(self) -> Vocabulary: ...
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]: ...
    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict]: ...
    def labels(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Decision:
    """What an actor decided for this step.

    Args:
        action: float32 (A,), to be executed.
        subgoal: index of the sub-goal being worked on.
        label: the action to record for imitation when it differs from the executed one.
        stop: the actor gives the episode up; no action is executed.
    """

    action: np.ndarray
    subgoal: int = 0
    label: np.ndarray | None = None
    stop: bool = False


class Actor(Protocol):
    """Whoever acts in an episode."""

    def begin(self, observation: Observation, instruction: str, vocabulary: Vocabulary) -> Plan: ...
    def act(self, observation: Observation) -> Decision: ...
    def report(self) -> dict[str, Any]: ...


class RefusedTask(ValueError):
    """The scene cannot offer what was asked."""


StepObserver = Callable[[Observation, Decision], None]


def observe(raw: dict[str, Any]) -> Observation:
    """A gymnasium observation as the checked contract."""
    return Observation(raw["images"], raw["state"])


def run_episode(
    env: Environment,
    actor: Actor,
    instruction: str,
    *,
    seed: int,
    labelled: bool = False,
    keep_images: bool = False,
    linger_steps: int = 0,
    observers: Sequence[StepObserver] = (),
    before_step: Callable[[int], None] | None = None,
) -> Episode:
    """Run `actor` on the layout of `seed` until success, the horizon, or the actor gives up.

    Args:
        labelled: record sub-goal and pixel labels with every step (training data).
        keep_images: keep the pictures in the returned steps.
        linger_steps: how long to go on after success, so that recordings show the finished state.
        observers: called before every step with what was seen and decided.
        before_step: called with the step's number before acting; disturbances hook in here.

    Returns:
        The episode. A simulator fault is an outcome of its own; an actor's exception propagates.

    Raises:
        RefusedTask: the actor refused the instruction; nothing was executed.
        ValueError: an action with NaN or infinity in it; it is not executed.
    """
    started = time.perf_counter()
    raw, info = env.reset(seed=seed)
    observation = observe(raw)
    plan = actor.begin(observation, instruction, env.vocabulary)
    if plan.refused is not None:
        raise RefusedTask(plan.refused)
    steps: list[Step] = []
    outcome: Outcome = "failure"
    left = None  # steps left once the task has succeeded
    truncated = False
    while not truncated and left != 0:
        if before_step is not None:
            before_step(len(steps))
        decision = actor.act(observation)
        if decision.stop:
            break
        if not np.isfinite(decision.action).all():  # both simulators would take it without a word
            raise ValueError(f"an action must be finite, got {decision.action}")
        for observer in observers:
            observer(observation, decision)
        labels = env.labels() if labelled else None
        try:
            raw, reward, _, truncated, info = env.step(decision.action)
        except SimulatorFault:
            outcome = "sim_fault"
            break
        steps.append(_record(observation, decision, labels, reward, info, keep_images))
        observation = observe(raw)
        if left is not None:
            left -= 1
        elif info["success"]:
            outcome, left = "success", linger_steps
    return Episode(
        env_id=env.env_id,
        task=env.task,
        instruction=instruction,
        seed=seed,
        layout_sha=env.layout_sha,
        plan=plan,
        steps=steps,
        outcome=outcome,
        info={**_truth(info), **actor.report(), "wall_s": time.perf_counter() - started},
    )


TRUTH = ("completed", "completed_strict", "success_benchmark", "success_strict", "met_at_start")
"""What the environment says at the end of tasks and rules, where it has several."""


def _truth(info: dict[str, Any]) -> dict[str, Any]:
    return {name: info[name] for name in TRUTH if name in info}


def _record(
    observation: Observation,
    decision: Decision,
    labels: dict[str, Any] | None,
    reward: float,
    info: dict[str, Any],
    keep_images: bool,
) -> Step:
    if not keep_images:
        observation = replace(observation, images={})
    action = decision.action if decision.label is None else decision.label
    step = Step(
        observation,
        np.asarray(action, np.float32),
        decision.subgoal,
        reward=reward,
        success=bool(info["success"]),
    )
    if labels is None:
        return step
    index = labels["subgoal"]
    met = sum(1 << i for i, holds in enumerate(labels["met"]) if holds)
    done = bool(labels["met"][index])
    return replace(step, subgoal=index, done=done, met=met, pixels=labels["pixels"])
