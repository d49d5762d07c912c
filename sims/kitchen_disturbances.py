"""What can go wrong from outside in the kitchen while an episode runs.

A disturbance that would leave things inside one another is not carried out.
"""

from __future__ import annotations

import mujoco
import numpy as np

from sims.kitchen import N_ROBOT, KitchenEnv
from sims.kitchen_elements import ELEMENTS, set_element
from sims.kitchen_tasks import check_tasks

_STOVE_LOW, _STOVE_HIGH = np.array([-0.36, 0.3]), np.array([0.2, 0.7])
_MOVE_M = (0.08, 0.2)
_YAW_RAD = 0.4
_TRIES = 50
_DEEPEST_M = 0.005


def push_back(env: KitchenEnv, element: str) -> bool:
    """Set an element back to its start, at rest.

    Returns:
        Whether it was; it is not, and nothing changes, when the robot is in the way.

    Raises:
        ValueError: no such element.
    """
    (name,) = check_tasks([element])
    qpos = env.data.qpos.copy()
    set_element(env.model, qpos, ELEMENTS[name], 0.0)
    return _put(env, qpos)


def move_kettle(env: KitchenEnv, rng: np.random.Generator) -> bool:
    """Put the kettle elsewhere on the stove, 8 to 20 cm away and turned a little.

    Returns:
        Whether it was; it is not, and nothing changes, when there is no free place.
    """
    kettle = ELEMENTS["kettle"]
    here = env.data.qpos[kettle.indices[:2]].copy()
    for _ in range(_TRIES):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(*_MOVE_M)
        yaw = rng.uniform(-_YAW_RAD, _YAW_RAD)
        place = here + distance * np.array([np.cos(angle), np.sin(angle)])
        if (place < _STOVE_LOW).any() or (place > _STOVE_HIGH).any():
            continue
        qpos = env.data.qpos.copy()
        turn = [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        qpos[kettle.indices] = [*place, kettle.start[2], *turn]
        if _put(env, qpos):
            return True
    return False


def _put(env: KitchenEnv, qpos: np.ndarray) -> bool:
    """Make `qpos` the state, with all things at rest; undone when it makes things overlap."""
    model, data = env.model, env.data
    before = data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy()
    depth = _depth_m(env)
    data.qpos[:] = qpos
    data.qvel[N_ROBOT:] = 0.0
    mujoco.mj_forward(model, data)
    if _depth_m(env) <= max(depth, _DEEPEST_M):
        return True
    data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = before
    mujoco.mj_forward(model, data)
    return False


def _depth_m(env: KitchenEnv) -> float:
    """How deep two things are inside each other, at most."""
    return max((-float(contact.dist) for contact in env.data.contact), default=0.0)
