"""Altered copies of pictures, for a policy that is to see past light and a camera's exact place."""

from __future__ import annotations

import numpy as np

_SHIFT = 0.04
_JITTER = 0.2


class Augmenter:
    """Random shifts (as in DrQ, arXiv 2004.13649) and colours, for each picture its own.

    Args:
        seed: what is drawn for the pictures, in the order in which they come.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 7])

    def __call__(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pictures uint8 (T, cameras, H, W, 3).

        Returns:
            The altered ones, and how far each was moved to the right and down, float32
            (T, cameras, 2), as a part of its width and height.
        """
        out = np.empty_like(frames)
        shifts = np.zeros((*frames.shape[:2], 2), np.float32)
        for place in np.ndindex(frames.shape[:2]):
            moved, shifts[place] = self._shift(frames[place])
            out[place] = self._recolour(moved)
        return out, shifts

    def _shift(self, picture: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
        """Moved by up to 4 %; the border is repeated where nothing is known."""
        height, width = picture.shape[:2]
        dx, dy = (int(self._rng.integers(-m, m + 1)) for m in _margins(width, height))
        rows = np.clip(np.arange(height) - dy, 0, height - 1)
        columns = np.clip(np.arange(width) - dx, 0, width - 1)
        return picture[rows][:, columns], (dx / width, dy / height)

    def _recolour(self, picture: np.ndarray) -> np.ndarray:
        """Brightness, contrast and saturation changed by up to 20 %."""
        bright, contrast, colour = self._rng.uniform(1 - _JITTER, 1 + _JITTER, 3)
        x = picture.astype(np.float32) * bright
        mean = x.mean()
        x = (x - mean) * contrast + mean
        grey = x.mean(-1, keepdims=True)
        return np.clip((x - grey) * colour + grey, 0, 255).round().astype(np.uint8)


def _margins(width: int, height: int) -> tuple[int, int]:
    return round(width * _SHIFT), round(height * _SHIFT)
