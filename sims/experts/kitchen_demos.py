"""The kitchen's expert with disturbances and faults: its episodes show ways back as well."""

from __future__ import annotations

import numpy as np

from sims.experts import Fault
from sims.experts.kitchen import KitchenExpert
from sims.kitchen import N_ARM, KitchenEnv
from sims.kitchen_disturbances import move_kettle, push_back
from sims.kitchen_elements import ELEMENTS

_BURST_STEPS = (2, 6)
_BURST = 0.35
_MISS_M = (0.07, 0.12)
_PUSH_FROM = 0.4
"""The part of the way from which an element can be pushed back."""
_ALONG, _ALONG_STEPS = 0.15, 24
"""An element goes along when so much of its way is done within so many steps."""


class KitchenDemonstrator:
    """The expert; what is executed may be disturbed, and the label stays the clean action.

    Args:
        env: the environment, already reset.
        rng: source of the variation and the disturbances.
        burst_rate: chance per step that a short push of the arm in a random direction begins.
        fault: "stopped": the hand halts for good. "missed": it works beside the handle. "moved":
            the kettle is put elsewhere. "pushed_back": an element that is under way or done is
            set back to its start. From the last two the expert recovers.
        fault_step: when it goes wrong; an element is pushed back once one is far enough, and a
            handle is missed when the hand is there, unless the element goes along after all.
        follows: whether another policy acts, so that every action is told from the state alone.
    """

    def __init__(
        self,
        env: KitchenEnv,
        rng: np.random.Generator,
        *,
        burst_rate: float = 0.0,
        fault: Fault = "none",
        fault_step: int = 0,
        follows: bool = False,
    ) -> None:
        self._env, self._rng = env, rng
        self.fault: Fault = fault
        self.fault_step = fault_step
        self._burst_rate, self._burst_left = burst_rate, 0
        self._burst = np.zeros(N_ARM, np.float32)
        angle = rng.uniform(0, 2 * np.pi)
        miss = rng.uniform(*_MISS_M) * np.array([np.cos(angle), 0.0, np.sin(angle)])
        self._expert = KitchenExpert(env, rng, miss_m=miss if fault == "missed" else None)
        self._follows = follows
        self._step = 0
        self._has_failed = False
        self._worked: str | None = None
        self.fault_task: str | None = None

    def act(self) -> tuple[np.ndarray, np.ndarray]:
        """The next action as (label, executed), both float32 (9,) within the bounds."""
        if self._follows:
            self._expert.resync()
        stopped = self.fault == "stopped" and self._step >= self.fault_step
        label = self._expert.hold() if stopped else self._expert.act()
        if self.fault == "missed":
            self._look_at_miss()
        self._has_failed |= stopped
        self._step += 1
        return label, label if stopped else self._disturbed(label)

    def _look_at_miss(self) -> None:
        """A hand that works beside a handle may still catch it, or let it go half way."""
        task = self._expert.element
        travel = 1.0 if task is None else ELEMENTS[task].travel(self._env.data.qpos)
        if task != self._worked:
            self._worked, self._best, self._along_at = task, travel, -_ALONG_STEPS
            self._has_failed = False
        if travel > self._best + _ALONG:
            self._best, self._along_at = travel, self._step
        goes_along = self._step - self._along_at < _ALONG_STEPS
        in_vain = (self._has_failed or self._expert.is_at_handle) and not goes_along
        if in_vain and not self._has_failed:
            self.fault_step = self._step
        self._has_failed = in_vain and task is not None

    def disturb(self, step: int) -> None:
        """Push an element back, or move the kettle, when this episode's fault says so."""
        if self._has_failed or step < self.fault_step:
            return
        if self.fault == "moved":
            self._has_failed, self.fault_task = move_kettle(self._env, self._rng), "kettle"
        elif self.fault == "pushed_back":
            travel = self._env.truth().travel
            far = [task for task in self._env.tasks if travel[task] > _PUSH_FROM]
            self.fault_task = str(self._rng.choice(far)) if far else None
            self._has_failed = bool(far) and push_back(self._env, str(self.fault_task))
        if self._has_failed:
            self.fault_step = step

    @property
    def happened(self) -> Fault:
        """What has gone wrong so far."""
        return self.fault if self._has_failed else "none"

    def _disturbed(self, label: np.ndarray) -> np.ndarray:
        if self._burst_left == 0 and self._rng.random() < self._burst_rate:
            self._burst_left = int(self._rng.integers(*_BURST_STEPS))
            self._burst = self._rng.uniform(-_BURST, _BURST, N_ARM).astype(np.float32)
        if self._burst_left == 0:
            return label
        self._burst_left -= 1
        executed = label.copy()
        executed[:N_ARM] += self._burst
        return np.clip(executed, -1, 1)
