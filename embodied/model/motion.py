"""8. What a robot feels of its own motion, in words for the judge.

A clip of eight frames shows badly whether a hand stands still or is about to go on; the robot's
own joints tell it for certain.
"""

from __future__ import annotations

import numpy as np

MOTIONS = ("", "stands still", "hardly moves", "moves")
"""All that can be said of it; nothing where it is not known."""

_STILL_BELOW = 0.01
_SLOW_BELOW = 0.05


def motion_text(states: np.ndarray) -> str:
    """How far the robot moved, from its own states (T, S) over the clip (m, rad, opening).

    The entry that changed most counts, so that closing the gripper is motion too.
    """
    largest = float(np.ptp(states, axis=0).max())
    _, still, slow, moving = MOTIONS
    if largest < _STILL_BELOW:
        return still
    return slow if largest < _SLOW_BELOW else moving
