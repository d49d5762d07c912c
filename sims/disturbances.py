"""What can go wrong from outside while an episode runs, as seeded changes to the simulator."""

from __future__ import annotations

import mujoco
import numpy as np

from sims.metaworld import MetaWorldEnv

_TABLE_LOW, _TABLE_HIGH = np.array([-0.25, 0.45]), np.array([0.25, 0.85])
_TRIES = 100


def free_joint_address(env: MetaWorldEnv) -> int | None:
    """Where the first free joint begins in qpos; None when everything is fixed to the scene."""
    model = env._sawyer.model
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    return int(model.jnt_qposadr[free[0]]) if len(free) else None


def _place_nearby(xy: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A place on the table 5 to 10 cm from `xy`; None when there is none."""
    for _ in range(_TRIES):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.10)
        place = xy + distance * np.array([np.cos(angle), np.sin(angle)])
        if (place >= _TABLE_LOW).all() and (place <= _TABLE_HIGH).all():
            return place
    return None


def move_object(env: MetaWorldEnv, rng: np.random.Generator) -> bool:
    """Put the thing 5 to 10 cm away on the table.

    Returns:
        Whether it was moved. It is not, and nothing changes, when it is fixed to the scene, when
        what moves freely is not what the task is about (the puck of reach, the mug of
        coffee-button), or when it is far from the table.
    """
    address = free_joint_address(env)
    if address is None:
        return False
    sawyer, thing = env._sawyer, env._thing().copy()
    before = sawyer.data.qpos.copy(), sawyer.data.qvel.copy()
    warmstart = sawyer.data.qacc_warmstart.copy()
    qpos = before[0].copy()
    place = _place_nearby(qpos[address : address + 2], rng)
    if place is None:
        return False
    qpos[address : address + 2] = place
    # back to the height it lay at; the joint's origin need not be the thing's point of reference
    qpos[address + 2] += env._thing_start[2] - thing[2] + 0.005
    sawyer.set_state(qpos, np.zeros_like(before[1]))
    if np.linalg.norm(env._thing()[:2] - thing[:2]) > 0.04:
        return True
    sawyer.set_state(*before)
    sawyer.data.qacc_warmstart[:] = warmstart
    return False
