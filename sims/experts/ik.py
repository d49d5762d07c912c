"""Hand velocity control of the kitchen's Franka arm: damped least squares on the tip's Jacobian.

What it returns depends on the simulator's state and the wanted pose alone, so that it can be asked
about states that another policy reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

ARM = slice(0, 7)
FINGERS = slice(7, 9)

_STEP_S = 0.08  # one control step
_FULL_ACTION_RAD = 2.0 * _STEP_S  # what an action of 1 adds to a joint's set-point
# The position actuators cover this part of the way to a new set-point within a control step …
_REACHED = np.array([0.52, 0.52, 0.52, 0.52, 0.62, 0.62, 0.62])
# … and this is a step's way over speed at its end (s).
_WAY_PER_SPEED = _STEP_S / np.array([0.84, 0.84, 0.84, 0.84, 0.6, 0.6, 0.6])
_MARGIN_RAD = 0.03
_ROTATION_ARM_M = 0.25  # how a radian weighs against a metre
_DAMPING = 0.04


@dataclass(frozen=True)
class Pose:
    """Where the finger tips should be and how the hand should be turned.

    Args:
        tip: metres, world (3,).
        yaw: turn about the vertical, radians; 0 faces the wall (+y), positive towards −x.
        pitch: how far the hand looks down, radians.
        roll: turn about the hand's own axis, radians; at 0 the fingers open sideways.
        spin: turn of all that about the world's y, radians, clockwise as seen by the robot.
    """

    tip: np.ndarray
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    spin: float = 0.0

    @property
    def rotation(self) -> np.ndarray:
        """Site axes as columns (3, 3): x up, y along world x, z forwards when all angles are 0."""
        facing = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
        return (
            rotation((0, 1, 0), self.spin)
            @ rotation((0, 0, 1), self.yaw)
            @ rotation((1, 0, 0), -self.pitch)
            @ rotation((0, 1, 0), self.roll)
            @ facing
        )


class ArmServo:
    """Moves the finger tips towards a pose.

    Args:
        model: mujoco.MjModel of the kitchen.
        data: its mujoco.MjData; read, never written.
        rest: the posture (7,), radians, to which the arm tends where the hand does not care.
        tip_m: how far beyond the `end_effector` site the controlled point lies.
    """

    def __init__(self, model: Any, data: Any, rest: np.ndarray, tip_m: float = 0.035) -> None:
        self._model, self._data = model, data
        self.rest = rest
        self._tip_m = tip_m
        self._site = model.site("end_effector").id
        self._body = int(model.site_bodyid[self._site])
        self._stiffness = model.actuator_gainprm[ARM, 0]
        low = np.maximum(model.jnt_range[ARM, 0], model.actuator_ctrlrange[ARM, 0])
        high = np.minimum(model.jnt_range[ARM, 1], model.actuator_ctrlrange[ARM, 1])
        low[5] = 0.0  # FrankaKitchen's own limit
        self._low, self._high = low + _MARGIN_RAD, high - _MARGIN_RAD

    @property
    def rotation(self) -> np.ndarray:
        """The site's axes as columns (3, 3)."""
        return self._data.site_xmat[self._site].reshape(3, 3)

    @property
    def tip(self) -> np.ndarray:
        """The controlled point, metres, world (3,)."""
        return self._data.site_xpos[self._site] + self._tip_m * self.rotation[:, 2]

    @property
    def gap_m(self) -> float:
        """Between the fingers; 0.08 when they are open."""
        return float(self._data.qpos[7:9].sum())

    def distance(self, pose: Pose) -> tuple[float, float]:
        """How far the hand is from `pose`: metres, radians."""
        turn = _rotation_vector(pose.rotation @ self.rotation.T)
        return float(np.linalg.norm(pose.tip - self.tip)), float(np.linalg.norm(turn))

    def action(self, pose: Pose, opening: float, speed_m: float) -> np.ndarray:
        """FrankaKitchen's action (9,) towards `pose`.

        Args:
            pose: where to.
            opening: 1 opens the fingers, −1 closes them.
            speed_m: the longest way of the tip in this control step, metres.
        """
        way = _limited(0.45 * (pose.tip - self.tip), speed_m)
        turn = _limited(0.35 * _rotation_vector(pose.rotation @ self.rotation.T), 0.12)
        return self._command(self._solve(np.concatenate([way, _ROTATION_ARM_M * turn])), opening)

    def fold(self, opening: float) -> np.ndarray:
        """FrankaKitchen's action (9,) towards the rest posture, joint by joint."""
        return self._command(0.3 * (self.rest - self._data.qpos[ARM]), opening)

    def halt(self, opening: float) -> np.ndarray:
        """FrankaKitchen's action (9,) that stops every joint."""
        return self._command(np.zeros(7), opening)

    @property
    def unrest(self) -> float:
        """The farthest that a joint is from the rest posture, radians."""
        return float(np.abs(self.rest - self._data.qpos[ARM]).max())

    def _command(self, dq: np.ndarray, opening: float) -> np.ndarray:
        """The action (9,) that makes the joints move by about `dq`, radians, smoothly."""
        dq = self._smooth(dq)
        hold = self._data.qfrc_bias[ARM] / self._stiffness  # what gravity would pull it down
        action = np.append((dq / _REACHED + hold) / _FULL_ACTION_RAD, [opening, opening])
        return np.clip(action, -1, 1).astype(np.float32)

    def _solve(self, twist: np.ndarray) -> np.ndarray:
        """Joint displacements (7,) for a tip displacement (6,); joints at a limit stay there."""
        q = self._data.qpos[ARM]
        jac = self._jacobian()
        pull = np.clip(0.08 * (self.rest - q), -0.03, 0.03)
        free = np.ones(7, bool)
        dq = np.zeros(7)
        for _ in range(4):
            j = jac * free
            inverse = j.T @ np.linalg.inv(j @ j.T + _DAMPING**2 * np.eye(6))
            dq = inverse @ twist
            dq += free * (pull - inverse @ (j @ (free * pull)))
            out = ((q + dq < self._low) & (dq < 0)) | ((q + dq > self._high) & (dq > 0))
            if not (out & free).any():
                break
            free &= ~out
        back = np.clip(np.clip(q, self._low, self._high) - q, -0.02, 0.02)
        return np.where(free, dq, back)

    def _smooth(self, dq: np.ndarray) -> np.ndarray:
        """Bound each joint's way in this step, and its change since the last."""
        dq = dq * min(1.0, 0.075 / max(float(np.abs(dq).max()), 1e-9))
        last = self._data.qvel[ARM] * _WAY_PER_SPEED
        return last + np.clip(dq - last, -0.03, 0.03)

    def _jacobian(self) -> np.ndarray:
        """Of the tip (6, 7): metres, and radians times `_ROTATION_ARM_M`."""
        linear, angular = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        mujoco.mj_jac(self._model, self._data, linear, angular, self.tip, self._body)
        return np.concatenate([linear[:, ARM], _ROTATION_ARM_M * angular[:, ARM]])


def _limited(vector: np.ndarray, longest: float) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector * min(1.0, longest / max(length, 1e-9))


def rotation(axis: tuple[float, float, float], angle_rad: float) -> np.ndarray:
    quat, matrix = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quat, np.array(axis, float), angle_rad)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)


def _rotation_vector(rotation: np.ndarray) -> np.ndarray:
    quat, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quat, rotation.ravel())
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector
