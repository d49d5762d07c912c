"""How each element of the Franka Kitchen is worked: a list of stages for the kitchen's expert.

Every aim is computed from the simulator's state when it is asked for. Positions are in metres in
the world's frame: x to the right, y towards the wall, z up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sims.experts.ik import Pose, rotation

OPEN, CLOSED = 1.0, -1.0
_GRIP_M = 0.03  # how far beyond a handle's middle the tip is while the fingers hold it
_MICROWAVE_GRIP_M = 0.015  # its handle is nearer to the door
_KNOB_GRIP_M = 0.0
_KNOB_PITCH = 0.45
_KETTLE_STANDS_M = 1.62  # height of the kettle's origin, and of its handle, while it stands
_KETTLE_HANDLE_M = 1.878
_KETTLE_PITCH = 0.6


@dataclass(frozen=True)
class Stage:
    """One leg of a skill.

    Args:
        name: for reports.
        aim: the pose to reach, from the state of now.
        opening: of the fingers; see ArmServo.action.
        speed_m: longest way per control step, metres.
        near_m: how near is near enough, metres.
        turn: how far the hand may still be turned, radians.
        wait: control steps to stay once there, for the fingers.
        left: for a leg that moves the element: how far it still has to go, radians or metres. The
            leg then ends when this is 0, wherever the hand is.
        contact: where the tip belongs while the hand is at the element; away from it, it has lost.
        skip: whether there is nothing to do in this leg.
    """

    name: str
    aim: Callable[[], Pose]
    opening: float
    speed_m: float = 0.035
    near_m: float = 0.03
    turn: float = 0.4
    wait: int = 0
    left: Callable[[], float] | None = None
    contact: Callable[[], np.ndarray] | None = None
    skip: Callable[[], bool] | None = None


Skill = tuple[Stage, ...]
"""Stages in order; the first leads to the neighbourhood, the second is where a retry starts, the
last backs off."""


def make_skill(element: str, model: Any, data: Any, jitter: np.ndarray) -> Skill:
    """The skill for `element`.

    Args:
        jitter: (4,) in −1..1, varies the approach: x, y, z and yaw.
    """
    scene = _Scene(model, data, jitter)
    match element:
        case "slide cabinet":
            return _slide_cabinet(scene)
        case "light switch":
            return _light_switch(scene)
        case "microwave":
            return _microwave(scene)
        case "bottom burner":
            return _burner(scene, "knob_Joint_2", "knob2_site", 0.93)
        case "top burner":
            return _burner(scene, "knob_Joint_4", "knob4_site", 0.95)
        case "hinge cabinet":
            return _hinge_cabinet(scene)
        case "kettle":
            return _kettle(scene)
    raise ValueError(f"there is no skill for element {element!r}")


class _Scene:
    """Places and joints by name."""

    def __init__(self, model: Any, data: Any, jitter: np.ndarray) -> None:
        self._model, self._data = model, data
        self.jitter = jitter

    def site(self, name: str) -> np.ndarray:
        return self._data.site_xpos[self._model.site(name).id].copy()

    def joint(self, name: str) -> float:
        return float(self._data.qpos[self._model.joint(name).qposadr[0]])

    def anchor(self, name: str) -> np.ndarray:
        return self._data.xanchor[self._model.joint(name).id]

    def free_body(self, name: str) -> np.ndarray:
        """Position and quaternion (7,) of the body with the free joint `name`."""
        first = self._model.joint(name).qposadr[0]
        return self._data.qpos[first : first + 7].copy()

    def hand_to(self, site: str) -> float:
        """How far the `end_effector` site is from `site`, metres."""
        return float(np.linalg.norm(self.site("end_effector") - self.site(site)))

    def level_pitch(self) -> float:
        """The pitch of the hand that would make the kettle in its grip stand straight."""
        forward = self._data.site("end_effector").xmat.reshape(3, 3)[:, 2]
        up = self._data.body("kettleroot").xmat.reshape(3, 3)[:, 2]
        pitch = np.arcsin(np.clip(-forward[2], -1, 1)) - np.arctan2(up[1], up[2])
        return float(np.clip(pitch, 0.2, 1.0))

    def swung(self, site: str, joint: str, angle_rad: float) -> np.ndarray:
        """Where `site` will be once `joint`, which is vertical, has turned by `angle_rad` more."""
        pivot = self.anchor(joint)
        return pivot + rotation((0, 0, 1), angle_rad) @ (self.site(site) - pivot)


def _slide_cabinet(scene: _Scene) -> Skill:
    def left() -> float:
        return 0.36 - scene.joint("slide_cabinet")

    def pose(along: float, ahead: float = 0.0) -> Pose:
        yaw = 0.45 + 0.1 * scene.jitter[3] - 1.6 * scene.joint("slide_cabinet")
        tip = scene.site("slide_site") + _forward(yaw, along)
        return Pose(tip + [ahead, 0, -0.03], yaw)

    def drag() -> Pose:
        return pose(_GRIP_M, float(np.clip(left() + 0.01, 0.01, 0.05)))

    # not through the hinged door when that stands open
    x = 0.02 if scene.joint("right_hinge_cabinet") > 0.5 else -0.2
    return _grasp(np.array([x, 0.42, 2.33]), pose, drag, left, scene.jitter)


def _microwave(scene: _Scene) -> Skill:
    def left() -> float:
        return scene.joint("microwave") + 0.73

    def pose(along: float, swing: float = 0.0) -> Pose:
        yaw = 0.45 + 0.1 * scene.jitter[3]
        tip = scene.swung("microhandle_site", "microwave", -swing) + _forward(yaw, along)
        return Pose(tip + [0, 0, 0.02], yaw, 0.2)

    def pull() -> Pose:
        return pose(_MICROWAVE_GRIP_M, float(np.clip(left() + 0.03, 0.03, 0.15)))

    via = np.array([-0.52, 0.28, 1.95])
    return _grasp(via, pose, pull, left, scene.jitter, grip_m=_MICROWAVE_GRIP_M)


def _hinge_cabinet(scene: _Scene) -> Skill:
    """Pull the handle; once the door is ajar, the left finger pushes it on to the right."""
    joint = "right_hinge_cabinet"

    def left() -> float:
        return 1.37 - scene.joint(joint)

    def pose(along: float, swing: float = 0.0) -> Pose:
        angle = scene.joint(joint) + swing
        yaw = max(0.45 - angle, 0.0) + 0.3 * max(angle - 0.7, 0.0) + 0.05 * scene.jitter[3]
        tip = scene.swung("hinge_site2", joint, swing) + _forward(yaw, along)
        return Pose(tip + [0, 0, -0.03], yaw)

    def pull() -> Pose:
        return pose(_GRIP_M, float(np.clip(left() + 0.03, 0.03, 0.2)))

    def leave() -> Pose:
        return Pose(np.array([-0.05, 0.33, 2.3]), 0.2)  # right of the open door, and below it

    skill = _grasp(np.array([-0.4, 0.4, 2.33]), pose, pull, left, scene.jitter)
    return (*skill, Stage("leave", leave, OPEN, 0.045, 0.12, 1.0))


def _grasp(
    via: np.ndarray,
    pose: Callable[..., Pose],
    work: Callable[[], Pose],
    left: Callable[[], float],
    jitter: np.ndarray,
    *,
    grip_m: float = _GRIP_M,
    ahead: float = 0.0,
) -> Skill:
    """Take a handle, do `work` with it, let go.

    `pose` has the tip so far beyond the handle, and where it would be once that has moved on. With
    `ahead` the hand is that far ahead of the handle while it lets go, so as not to drag it back.
    """

    def standoff() -> Pose:
        aim = pose(-0.11)
        return replace(aim, tip=aim.tip + 0.015 * jitter[:3])

    def go() -> Pose:
        return replace(pose(0), tip=via + 0.03 * jitter[:3])

    def grip() -> Pose:
        return pose(grip_m)

    def let_go(along: float) -> Pose:
        return pose(along, ahead) if ahead else pose(along)

    def contact() -> np.ndarray:
        return grip().tip

    return (
        Stage("via", go, OPEN, 0.045, 0.1, 1.0),
        Stage("standoff", standoff, OPEN, 0.04, 0.03),
        Stage("approach", grip, OPEN, 0.025, 0.015),
        Stage("take", grip, CLOSED, 0.02, 0.03, wait=4, contact=contact),
        Stage("work", work, CLOSED, 0.03, left=left, contact=contact),
        Stage("release", lambda: let_go(grip_m), OPEN, 0.02, 0.06, 1.0, wait=3, contact=contact),
        Stage("back", lambda: let_go(-0.11), OPEN, 0.035, 0.04, 1.0),
    )


def _light_switch(scene: _Scene) -> Skill:
    def left() -> float:
        return scene.joint("light_switch") + 0.67

    pitch = 0.1 if scene.joint("right_hinge_cabinet") > 0.3 else 0.4  # below the open door

    def pose(x: float, y: float, swing: float = 0.0) -> Pose:
        tip = scene.swung("light_site", "light_switch", -swing) + [x, y, 0.0]
        return Pose(tip, 0.15 + 0.1 * scene.jitter[3], pitch)

    return _push(
        np.array([-0.32, 0.35, 2.2]),
        lambda: pose(0.065, -0.13),
        lambda: pose(0.06, -0.03),
        lambda: pose(0.01, -0.03, float(np.clip(left() + 0.15, 0.15, 0.4))),
        lambda: pose(0.05, -0.14),
        left,
        scene.jitter,
    )


def _burner(scene: _Scene, joint: str, site: str, goal_rad: float) -> Skill:
    """Take the knob's bar between the fingers and turn it to the right."""

    def left() -> float:
        return scene.joint(joint) + goal_rad

    def pose(along: float, swing: float = 0.0) -> Pose:
        half = 0.5 * (swing - scene.joint(joint))  # all by the wrist's roll would hit the disc
        yaw = 0.1 + 0.1 * scene.jitter[3]
        hand = Pose(scene.site(site), yaw, pitch, half, half)
        return replace(hand, tip=hand.tip + along * hand.rotation[:, 2])

    def turn() -> Pose:
        return pose(_KNOB_GRIP_M, float(np.clip(left() + 0.6, 0.6, 0.9)))

    # the open hinged door hangs over the knobs: then come from below it
    door_open = scene.joint("right_hinge_cabinet") > 0.3
    pitch = (2.28 - scene.site(site)[2]) * 3 if door_open else _KNOB_PITCH
    via = np.array([-0.25, 0.4, 2.15 if door_open else 2.25])
    return _grasp(via, pose, turn, left, scene.jitter, grip_m=_KNOB_GRIP_M, ahead=0.5)


def _push(
    via: np.ndarray,
    standoff: Callable[[], Pose],
    beside: Callable[[], Pose],
    work: Callable[[], Pose],
    back: Callable[[], Pose],
    left: Callable[[], float],
    jitter: np.ndarray,
) -> Skill:
    """Push with closed fingers from `beside` an element."""

    def varied() -> Pose:
        aim = standoff()
        return replace(aim, tip=aim.tip + [0.0, *(0.015 * jitter[1:3])])

    def go() -> Pose:
        return replace(standoff(), tip=via + 0.03 * jitter[:3])

    def contact() -> np.ndarray:
        return beside().tip

    return (
        Stage("via", go, CLOSED, 0.045, 0.1, 1.0),
        Stage("standoff", varied, CLOSED, 0.04, 0.02, 0.3),
        Stage("approach", beside, CLOSED, 0.025, 0.015, 0.3),
        Stage("work", work, CLOSED, 0.025, left=left, contact=contact),
        Stage("back", back, CLOSED, 0.035, 0.04, 1.0),
    )


def _kettle(scene: _Scene) -> Skill:
    """Grip the handle from above, lift, carry over the stove and set down."""
    goal = np.array([-0.23, 0.75])

    def away() -> np.ndarray:
        return np.append(goal - scene.free_body("kettle")[:2], 0.0)

    def left() -> float:
        too_high = scene.free_body("kettle")[2] - _KETTLE_STANDS_M - 0.01
        return max(float(np.linalg.norm(away())) - 0.02, too_high)

    def pose(along: float) -> Pose:
        forward = np.array([0.0, np.cos(_KETTLE_PITCH), -np.sin(_KETTLE_PITCH)])
        return Pose(scene.site("kettle_site") + along * forward, 0, _KETTLE_PITCH, np.pi / 2)

    def held(step: np.ndarray, height: float) -> Pose:
        tip = pose(_GRIP_M).tip + step
        tip[2] = _KETTLE_HANDLE_M + height
        return Pose(tip, 0.0, scene.level_pitch(), np.pi / 2)

    def carry() -> Pose:
        far = float(np.linalg.norm(away()))
        step = away() * min(1.0, 0.06 / max(far, 1e-9))
        return held(step, 0.03 if far > 0.03 else -0.005)

    grasp = _grasp(np.array([-0.28, 0.18, 2.05]), pose, carry, left, scene.jitter)
    lift = Stage("lift", lambda: held(np.zeros(3), 0.03), CLOSED, 0.015, 0.015, 1.0)
    return (*grasp[:4], lift, *grasp[4:])


def _forward(yaw: float, metres: float) -> np.ndarray:
    return metres * np.array([-np.sin(yaw), np.cos(yaw), 0.0])
