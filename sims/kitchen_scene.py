"""Gymnasium-Robotics' kitchen with our cameras in it, and without its noise."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from sims.rendering import CameraPose, place_camera

import mujoco  # isort: skip  (after sims.rendering, which picks the GL back end)

with contextlib.redirect_stderr(io.StringIO()):  # it announces changes to other environments
    from gymnasium_robotics.envs.franka_kitchen import kitchen_env as franka

# "overview" was searched for among places in the room, by rays to the hand and the handle it works
# on, in 277 postures at work: each is seen in 93 % of them (else the hand covers the handle), every
# handle is seen while all other elements are open, and nothing is far from the picture's middle.
_POSES = {
    "overview": CameraPose(eye=(-0.9, -1.05, 3.0), target=(-0.33, 0.45, 2.17), fovy_deg=42.0),
    "left": CameraPose(eye=(-1.25, -0.4, 2.5), target=(-0.25, 0.5, 2.1), fovy_deg=55.0),
    "right": CameraPose(eye=(0.85, -0.45, 2.8), target=(-0.3, 0.55, 2.2), fovy_deg=46.0),
}
# In the hand's frame, whose z points along the fingers; behind them, on the side that is up when
# the hand faces the wall.
_WRIST = CameraPose(eye=(0.085, -0.085, 0.08), target=(0.0, 0.0, 0.30), fovy_deg=65.0)
CAMERA_NAMES = (*_POSES, "wrist")


def _model_with_cameras(xml: str) -> Any:
    spec = mujoco.MjSpec.from_file(xml)
    for name in _POSES:
        spec.worldbody.add_camera(name=name)
    spec.body("panda0_link7").add_camera(name="wrist")
    model = spec.compile()
    for name, pose in {**_POSES, "wrist": _WRIST}.items():
        place_camera(model, name, pose)
    model.site_group[model.site("end_effector").id] = 3  # not drawn; no robot has such a ball
    return model


def make_kitchen() -> Any:
    """FrankaKitchen without noise, that counts all seven tasks, on a model with our cameras."""
    kitchen = franka.KitchenEnv(
        robot_noise_ratio=0.0,
        object_noise_ratio=0.0,
        terminate_on_tasks_completed=False,
        remove_task_when_completed=False,
    )
    robot = kitchen.robot_env
    robot.model = kitchen.model = _model_with_cameras(robot.fullpath)
    robot.data = kitchen.data = mujoco.MjData(robot.model)
    return kitchen
