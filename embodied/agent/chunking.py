"""6. What overlapping action chunks say of the same step, averaged."""

from __future__ import annotations

import numpy as np


class Ensemble:
    """Temporal ensembling, as in ACT (arXiv 2304.13705, section IV-C).

    Args:
        m: of the i-th oldest chunk that speaks of a step, the weight is exp(-m i).
    """

    def __init__(self, m: float) -> None:
        self._m = m
        self._chunks: list[np.ndarray] = []  # oldest first, each from the present step on

    def clear(self) -> None:
        """Forget earlier chunks: what they wanted is not wanted any more."""
        self._chunks = []

    def add(self, chunk: np.ndarray, n: int) -> np.ndarray:
        """The next actions, at most `n`, after which `add` is called again.

        Args:
            chunk: (H, A), the first action for the present step.
        """
        n = min(n, len(chunk))
        self._chunks.append(chunk)
        actions = np.stack([self._mean(step) for step in range(n)])
        self._chunks = [chunk[n:] for chunk in self._chunks if len(chunk) > n]
        return actions

    def _mean(self, step: int) -> np.ndarray:
        said = np.stack([chunk[step] for chunk in self._chunks if len(chunk) > step])
        weights = np.exp(-self._m * np.arange(len(said)))
        return (weights[:, None] * said).sum(0) / weights.sum()
