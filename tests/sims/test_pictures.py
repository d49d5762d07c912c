"""Pictures at every second step: what is between shows the last one again, and costs nothing."""

from __future__ import annotations

import numpy as np
import pytest

from sims import scenes

MOVES = {"metaworld/drawer-open-v3": (0.0, 0.0, -1.0, 1.0), "kitchen": (0.5,) * 7 + (1.0, 1.0)}


@pytest.mark.parametrize("env_id", MOVES)
def test_every_second_picture_is_the_one_of_always(env_id: str) -> None:
    action = np.array(MOVES[env_id], np.float32)
    seen = {}
    for every in (1, 2):
        env = scenes.make(env_id, image_size=48, picture_every=every)
        try:
            assert env.render_flags["picture_every"] == every
            raw, _ = env.reset(seed=0)
            frames = [raw["images"]["wrist"]]
            states = [raw["state"]]
            for _ in range(5):
                raw = env.step(action)[0]
                frames.append(raw["images"]["wrist"])
                states.append(raw["state"])
            again = env.reset(seed=1)[0]["images"]["wrist"]
        finally:
            env.close()
        seen[every] = np.stack(frames), np.stack(states), again
    always, sometimes = seen[1][0], seen[2][0]
    assert np.array_equal(always[::2], sometimes[::2])
    assert np.array_equal(sometimes[::2], sometimes[1::2])
    assert not np.array_equal(always[1::2], sometimes[1::2])
    assert np.array_equal(seen[1][1], seen[2][1])
    assert np.array_equal(seen[1][2], seen[2][2])


def test_a_picture_is_the_callers_own() -> None:
    env = scenes.make("metaworld/drawer-open-v3", image_size=32, picture_every=2)
    try:
        first = env.reset(seed=0)[0]["images"]["wrist"]
        kept = first.copy()
        first[:] = 0
        assert np.array_equal(env.step(np.zeros(4, np.float32))[0]["images"]["wrist"], kept)
    finally:
        env.close()
