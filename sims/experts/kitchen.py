"""Scripted experts for the Franka Kitchen: one element after the other, by inverse kinematics.

What a stage aims at is computed from the simulator's state in every step, and a stage that no
longer fits the state is left, so the expert corrects itself when a thing is pushed back, and can
be asked about states that another policy reached. It reads the simulator (it makes training data);
the agent never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sims.experts.ik import ArmServo, Pose
from sims.experts.kitchen_skills import Stage, make_skill
from sims.kitchen_elements import ELEMENTS, STRICT_STEPS, STRICT_TRAVEL, check_tasks

_STUCK_STEPS = 20
_LOST_M = 0.08
_TOUCHING_M = 0.025
_HOLDING_M = 0.045
_NEARBY_M = 0.3
_EMPTY_M = 0.004
_CLOSED_M = 0.07  # the kettle's handle, the thickest, keeps the fingers 0.065 apart
_FOLD_STEPS = 40
_RESTED_RAD = 0.3
_REST = np.array([0.15, -1.6, 1.84, -2.3, 0.26, 0.9, 1.6])


class KitchenExpert:
    """Carries out elements of the Franka Kitchen in the order given.

    Args:
        env: a KitchenEnv, already reset; its `model` and `data` are read.
        rng: source of the small variation of each approach.
        tasks: names of elements; those of the environment when None.
        miss_m: (3,) metres, by which it works beside every handle; for episodes that fail.

    Raises:
        ValueError: an element is unknown.
    """

    def __init__(
        self,
        env: Any,
        rng: np.random.Generator,
        tasks: Sequence[str] | None = None,
        *,
        miss_m: np.ndarray | None = None,
    ) -> None:
        self._model, self._data = env.model, env.data
        self._rng = rng
        self._servo = ArmServo(self._model, self._data, _REST)
        self._tasks = check_tasks(env.tasks if tasks is None else tasks)
        self._left = list(self._tasks)
        self._miss = np.zeros(3) if miss_m is None else miss_m
        self.retries = 0
        self._gave_up = False
        self._begin()

    @property
    def element(self) -> str | None:
        """The element being worked on; None when all are done."""
        return self._left[0] if self._left else None

    @property
    def stage_name(self) -> str:
        """The leg of the skill that is under way."""
        return self._stage.name

    @property
    def is_at_handle(self) -> bool:
        """Whether the hand has come to where it takes hold, or can come no nearer."""
        return self._gave_up or self._stage.contact is not None

    @property
    def _stage(self) -> Stage:
        return self._stages[self._index]

    def act(self) -> np.ndarray:
        """The next action, float32 (9,) in [-1, 1]."""
        self._advance()
        if self.element is None:
            return self.hold()
        if self._fold_left > 0:
            return self._servo.fold(1.0)
        speed = self._stage.speed_m * (1 + 0.1 * float(self._jitter[3]))
        return self._servo.action(self._aim(), self._stage.opening, speed)

    def hold(self) -> np.ndarray:
        """The action (9,) that keeps the arm where it is, the fingers as the stage has them."""
        opening = 1.0 if self.element is None else self._stage.opening
        return self._servo.halt(opening)

    def _aim(self) -> Pose:
        pose = self._stage.aim()
        return replace(pose, tip=pose.tip + self._miss)

    def resync(self) -> None:
        """Choose the stage from the state alone: for labels where another policy has acted."""
        if self.element is None:
            return
        touching = next(i for i, stage in enumerate(self._stages) if stage.contact is not None)
        stage = self._stages[touching]
        assert stage.contact is not None
        tip, front, there = self._servo.tip, self._stages[1].aim().tip, stage.contact()
        away = float(np.linalg.norm(tip - there))
        if stage.left is not None:  # a push goes on beyond where it began
            away = min(away, _detour_m(tip, there, stage.aim().tip))
        self._fold_left = 0
        if self._is_open(self.element):
            self._go_to(len(self._stages) - 1)
        elif stage.left is None and away < _HOLDING_M and self._holds():
            self._go_to(touching + 1)
            if self._stage.left is None and self._is_over(slack=2.0):
                self._go_to(self._index + 1)
        elif away < _TOUCHING_M:
            self._go_to(touching)
        elif _detour_m(tip, front, there) < _TOUCHING_M:
            self._go_to(touching - 1)
        else:
            self._go_to(1 if away < _NEARBY_M else 0)

    def _holds(self) -> bool:
        """Whether the fingers are closed around something."""
        return _EMPTY_M < self._servo.gap_m < _CLOSED_M

    # ---- which stage --------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start the first element left, with a fresh variation."""
        self._held, self._tries, self._fold_left = 0, 0, 0
        if self.element is not None:
            self._vary()
            self._go_to(0)

    def _vary(self) -> None:
        assert self.element is not None
        self._jitter = self._rng.uniform(-1, 1, 4)
        self._stages = make_skill(self.element, self._model, self._data, self._jitter)

    def _go_to(self, index: int) -> None:
        self._index, self._waited, self._idle, self._best = index, 0, 0, np.inf

    def _advance(self) -> None:
        if self.element is None:
            return
        is_open = self._is_open(self.element)
        self._held = self._held + 1 if is_open else 0
        if self._fold_left > 0:
            self._fold_left = self._fold_left - 1 if self._servo.unrest > _RESTED_RAD else 0
            return
        last = self._index == len(self._stages) - 1
        stuck = self._is_stuck()
        if self._held > STRICT_STEPS and (
            self._index == 0 or (last and (self._is_over() or stuck))
        ):
            self._finish()
        elif stuck and self._index <= 1 and self._is_over(slack=2.0):
            self._go_to(self._index + 1)  # the arm is folded too far to come nearer
        elif self._miss.any() and (self._is_lost() or stuck):
            self._gave_up = True  # who misses stays where it is
        elif self._is_lost() or stuck or (last and not is_open):
            self._retry()
        elif not last and self._is_over():
            self._go_to(self._index + 1)

    def _retry(self) -> None:
        """Back to the standoff and anew, varied; or only back off when the element is open.

        Every second time the arm first folds to its rest posture, for it may have wound itself up.
        """
        self.retries += 1
        self._tries += 1
        far = self._stage.contact is None and self._index < len(self._stages) - 1
        self._vary()
        self._go_to(len(self._stages) - 1 if self._held else 1)
        if not self._held and (far or self._tries % 2 == 0):
            self._fold_left = _FOLD_STEPS
            self._go_to(0)

    def _finish(self) -> None:
        """Go on to the first element that is not open: it may be one that was pushed back."""
        ahead = self._left[1:]
        self._left = [t for t in self._tasks if t in ahead or not self._is_open(t)]
        self._begin()

    def _is_open(self, task: str) -> bool:
        return ELEMENTS[task].travel(self._data.qpos) >= STRICT_TRAVEL

    def _is_over(self, slack: float = 1.0) -> bool:
        stage = self._stage
        if stage.skip is not None and stage.skip():
            return True
        if stage.left is not None:
            return stage.left() <= 0 or self._held > STRICT_STEPS + 3
        away, turned = self._servo.distance(self._aim())
        if away > slack * stage.near_m or turned > slack * stage.turn:
            return False
        self._waited += 1
        return self._waited > stage.wait

    def _is_lost(self) -> bool:
        """Whether the hand is no longer where it could work the element."""
        contact = self._stage.contact
        return contact is not None and bool(
            np.linalg.norm(self._servo.tip - contact() - self._miss) > _LOST_M
        )

    def _is_stuck(self) -> bool:
        """Whether the stage has come no nearer to its end for a while."""
        away, turned = self._servo.distance(self._aim())
        left = self._stage.left() if self._stage.left is not None else away + 0.1 * turned
        self._idle = 0 if left < self._best - 0.004 else self._idle + 1
        self._best = min(self._best, left) if self._idle else left
        return self._idle > _STUCK_STEPS


def _detour_m(place: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """How much longer the way from `start` to `end` is by `place`, all (3,) metres."""
    legs = np.linalg.norm(place - start) + np.linalg.norm(end - place)
    return float(legs - np.linalg.norm(end - start))
