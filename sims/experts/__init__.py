"""Scripted experts: what they do is imitated, and they read the simulator; the agent never does."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np

from sims.scenes import KITCHEN, family

Fault = Literal["none", "stopped", "missed", "moved", "pushed_back"]


class Demonstrator(Protocol):
    """An expert in one episode, with what goes wrong in it.

    Attributes:
        fault_step: the control step at which it goes wrong.
        fault_task: the task that it happens to, where it is known.
    """

    fault_step: int
    fault_task: str | None

    @property
    def happened(self) -> Fault:
        """What has gone wrong so far; "none" where the scene allowed nothing of the kind."""
        ...

    def act(self) -> tuple[np.ndarray, np.ndarray]:
        """The next action as (label, executed), both float32 within the bounds."""
        ...

    def disturb(self, step: int) -> None:
        """Change the scene before control step `step` when this episode's fault says so."""
        ...


def faults(env: Any) -> tuple[Fault, ...]:
    """What can go wrong in `env`, besides nothing."""
    if family(env.env_id) != KITCHEN:
        from sims.disturbances import free_joint_address

        is_fixed = free_joint_address(env) is None
        return ("stopped", "missed") if is_fixed else ("stopped", "missed", "moved")
    moved: tuple[Fault, ...] = ("moved",) if "kettle" in env.tasks else ()
    return ("stopped", "missed", "pushed_back", *moved)


def demonstrator(
    env: Any,
    rng: np.random.Generator,
    *,
    burst_rate: float = 0.0,
    fault: Fault = "none",
    fault_step: int = 0,
    recover: bool = True,
) -> Demonstrator:
    """The expert of `env`, which has been reset.

    Args:
        rng: source of its variation and of the disturbances.
        burst_rate: chance per step that a short push in a random direction begins.
        fault: what goes wrong in this episode; one of `faults`.
        fault_step: when it goes wrong.
        recover: whether it lets go and starts again when nothing moves; off when another policy
            acts, and may stand still of its own accord.
    """
    if family(env.env_id) == KITCHEN:
        from sims.experts.kitchen_demos import KitchenDemonstrator

        return KitchenDemonstrator(
            env,
            rng,
            burst_rate=burst_rate,
            fault=fault,
            fault_step=fault_step,
            follows=not recover,
        )
    from sims.experts.metaworld import MetaWorldExpert

    return MetaWorldExpert(
        env, rng, burst_rate=burst_rate, fault=fault, fault_step=fault_step, recover=recover
    )
