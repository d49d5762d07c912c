"""Scripted experts for Meta-World that show what recovering looks like, and what failing does.

The experts read the simulator (they make training data); the agent never does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from sims.disturbances import move_object
from sims.experts import Fault
from sims.metaworld import MetaWorldEnv

_STALL_STEPS = 20
_RETREAT_STEPS = 12
_BURST_STEPS = (4, 10)


class MetaWorldExpert:
    """Meta-World's scripted policy, with disturbance of what is executed and recovery from it.

    The label of a step is the clean action; what is executed may be disturbed, so that the
    demonstrations also show states off the expert's path and the way back from them (as in
    DART, arXiv 1703.09327).

    Args:
        env: the environment, already reset.
        rng: source of the disturbances.
        burst_rate: chance per step that a short push in a random direction begins.
        fault: what goes wrong in this episode. "stopped": the hand halts for good; "moved": the
            thing is put elsewhere while the hand works on it (the expert then recovers);
            "missed": the hand goes for a place beside the thing.
        fault_step: when it goes wrong.
        recover: whether to let go and rise when nothing moves; turn it off when another policy
            acts and stands still of its own accord.
    """

    def __init__(
        self,
        env: MetaWorldEnv,
        rng: np.random.Generator,
        *,
        burst_rate: float = 0.0,
        fault: Fault = "none",
        fault_step: int = 0,
        recover: bool = True,
    ) -> None:
        self._env = env
        self._policy: Any = ENV_POLICY_MAP[f"{env.task}-v3"]()  # type: ignore[abstract]
        # where the thing is in raw_obs; that of reach is the goal, at the end
        self._aim = slice(36, 39) if env.spec_.thing == env.spec_.other else slice(4, 7)
        self._rng = rng
        self._burst_rate = burst_rate
        self._burst = np.zeros(4, np.float32)
        self._burst_left = 0
        self.fault: Fault = fault
        self.fault_step = fault_step
        self._recover = recover
        angle = rng.uniform(0, 2 * np.pi)
        self._miss = rng.uniform(0.08, 0.14) * np.array([np.cos(angle), np.sin(angle), 0.0])
        self._step = 0
        self._retreat_left = 0
        self._retreats = 0
        self._trail: list[np.ndarray] = []
        self._has_moved = False
        self.fault_task: str | None = env.task

    def act(self) -> tuple[np.ndarray, np.ndarray]:
        """The next action as (label, executed), both float32 (4,) within the bounds."""
        label = self._clean_action()
        executed = self._disturbed(label)
        self._step += 1
        return label, executed

    def disturb(self, step: int) -> None:
        """Put the thing elsewhere when this episode's fault says so."""
        if self.fault == "moved" and step == self.fault_step:
            self._has_moved = move_object(self._env, self._rng)

    @property
    def happened(self) -> Fault:
        """What has gone wrong so far."""
        is_late = self._step > self.fault_step
        has_failed = self._has_moved if self.fault == "moved" else is_late
        return self.fault if has_failed else "none"

    def _clean_action(self) -> np.ndarray:
        if self.fault == "stopped" and self._step >= self.fault_step:
            return np.array([0, 0, 0, self._last_grip], np.float32)
        if self._retreat_left > 0 or self._is_stuck():
            return self._retreat()
        obs = self._env.raw_obs.copy()
        if self.fault == "missed" and self._step >= self.fault_step:
            obs[self._aim] += self._miss
        action = np.clip(self._policy.get_action(obs), -1, 1).astype(np.float32)
        self._last_grip = float(action[3])
        return action

    _last_grip = -1.0

    def _is_stuck(self) -> bool:
        """Whether neither the hand nor the thing has moved for a while."""
        if not self._recover or self.fault in ("stopped", "missed"):
            return False
        self._trail.append(self._env.raw_obs[:7].copy())
        recent = np.stack(self._trail[-_STALL_STEPS:])
        if len(recent) < _STALL_STEPS or np.ptp(recent, axis=0).max() > 0.012:
            return False
        self._retreats += 1
        self._retreat_left = _RETREAT_STEPS if self._retreats <= 8 else 0
        return self._retreat_left > 0

    def _retreat(self) -> np.ndarray:
        self._retreat_left -= 1
        self._trail.clear()
        return np.array([0, 0, 0.8, -1], np.float32)  # open, and up

    def _disturbed(self, label: np.ndarray) -> np.ndarray:
        if self.fault in ("stopped", "missed"):
            return label
        if self._burst_left == 0 and self._rng.random() < self._burst_rate:
            self._burst_left = int(self._rng.integers(*_BURST_STEPS))
            self._burst = self._rng.uniform(-1, 1, 4).astype(np.float32)
            # mostly keep the grip: a dropped thing is a rarer event than a pushed hand
            self._burst[3] = 0.0 if self._rng.random() < 0.95 else -2.0
        if self._burst_left == 0:
            return label
        self._burst_left -= 1
        push = np.concatenate([self._burst[:3], label[3:] + self._burst[3:]])
        return np.clip(push, -1, 1).astype(np.float32)
