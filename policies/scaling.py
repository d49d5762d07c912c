"""Units of the data ↔ the range that a network works in, kept with its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEAST = 1e-3


class Scaling(nn.Module):
    """Maps each entry x to (x - shift) / scale, and back. Does nothing before it is fitted."""

    shift: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def fit_moments(self, rows: Tensor) -> None:
        """Give `rows` (N, size) mean 0 and standard deviation 1; what never moves stays at 0."""
        self._set(rows.mean(0), rows.std(0, correction=0))

    def fit_range(self, rows: Tensor) -> None:
        """Give `rows` (N, size) the range -1..1; what never moves stays at 0."""
        low, high = rows.amin(0), rows.amax(0)
        self._set((low + high) / 2, (high - low) / 2)

    def _set(self, shift: Tensor, scale: Tensor) -> None:
        self.shift.copy_(shift)
        self.scale.copy_(scale.clamp_min(_LEAST))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale

    def inverse(self, y: Tensor) -> Tensor:
        return y * self.scale + self.shift


def masked_mean(error: Tensor, valid: Tensor) -> Tensor:
    """The mean of `error` (B, H) over the steps that are `valid` (B, H)."""
    return (error * valid).sum() / valid.sum()
