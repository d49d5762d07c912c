"""Altered pictures: what moved is said to have moved, by how much, and nothing else is."""

from __future__ import annotations

import numpy as np

from embodied.model.augment import Augmenter


def _spots(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Grey pictures (n, 2, 100, 50, 3) with a white spot, and its x and y in 0..1."""
    rng = np.random.default_rng(0)
    frames = np.full((n, 2, 100, 50, 3), 90, np.uint8)
    at = np.stack([rng.integers(10, 40, (n, 2)), rng.integers(10, 90, (n, 2))], axis=-1)
    for place in np.ndindex(n, 2):
        x, y = at[place]
        frames[place][y, x] = 255
    return frames, at / np.array([50, 100])


def test_a_spot_is_found_where_the_shift_says() -> None:
    frames, at = _spots()
    altered, shifts = Augmenter(1)(frames)
    assert altered.shape == frames.shape and altered.dtype == np.uint8
    for place in np.ndindex(frames.shape[:2]):
        y, x = np.unravel_index(altered[place].sum(-1).argmax(), (100, 50))
        np.testing.assert_allclose((x / 50, y / 100), at[place] + shifts[place], atol=1e-6)
    assert np.abs(shifts).max() <= 0.04 and len(np.unique(shifts[..., 1])) > 5


def test_colours_change_a_little_and_the_seed_decides() -> None:
    frames, _ = _spots(8)
    frames[..., 0] += 60
    one, again, other = (Augmenter(seed)(frames)[0] for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    ratio = one[..., 50, 25, :].astype(float) / frames[..., 50, 25, :]
    assert ratio.min() > 0.5 and ratio.max() < 1.6 and np.abs(ratio - 1).max() > 0.05
