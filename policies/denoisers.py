"""Networks that tell the noise in an action chunk: a 1-D U-Net and a transformer.

Both as in Diffusion Policy (arXiv 2303.04137), much smaller: `forward(noisy, level, seen)` with
noisy actions (B, H, A) and noise levels (B,) gives the noise (B, H, A).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from policies.memory import decoder


class LevelEmbedding(nn.Module):
    """Noise levels (B,) → (B, width), by sines and a small network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.net = nn.Sequential(
            nn.Linear(width, 2 * width), nn.Mish(), nn.Linear(2 * width, width)
        )

    def forward(self, level: Tensor) -> Tensor:
        half = self.width // 2
        rates = torch.exp(
            torch.arange(half, device=level.device) * (-math.log(10_000) / max(1, half - 1))
        )
        angles = level[:, None].float() * rates  # (B, width / 2)
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=1))


def _conv(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(n_in, n_out, 3, padding=1), nn.GroupNorm(8, n_out), nn.Mish())


class FilmBlock(nn.Module):
    """Two convolutions, the first one's output scaled and shifted by what is seen; residual."""

    def __init__(self, n_in: int, n_out: int, seen_width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(n_in, n_out), _conv(n_out, n_out)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(seen_width, 2 * n_out))
        self.skip = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """(B, n_in, H), (B, seen_width) → (B, n_out, H)."""
        scale, shift = self.film(seen)[..., None].chunk(2, dim=1)  # each (B, n_out, 1)
        hidden = self.first(x) * (1 + scale) + shift
        return self.second(hidden) + self.skip(x)


class UNet(nn.Module):
    """Convolutions over the steps of a chunk, at `n_levels` time scales.

    Args:
        action_size: A.
        seen_width: width of the vector that it is conditioned on.
        width: channels at the finest scale, doubled at every coarser one; a multiple of 8.
        n_levels: scales. The horizon is a multiple of 2 ** (n_levels - 1).
    """

    def __init__(self, action_size: int, seen_width: int, width: int, n_levels: int) -> None:
        super().__init__()
        self.level = LevelEmbedding(width)
        wide = seen_width + width
        sizes = [width * 2**i for i in range(n_levels)]
        pairs = list(zip([action_size, *sizes[:-1]], sizes, strict=True))
        self.down = nn.ModuleList(FilmBlock(a, b, wide) for a, b in pairs)
        self.shrink = nn.ModuleList(nn.Conv1d(b, b, 3, 2, 1) for b in sizes[:-1])
        self.middle = FilmBlock(sizes[-1], sizes[-1], wide)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(2 * b, b, 4, 2, 1) for b in sizes[-2::-1])
        self.up = nn.ModuleList(FilmBlock(2 * b, b, wide) for b in sizes[-2::-1])
        self.out = nn.Sequential(_conv(width, width), nn.Conv1d(width, action_size, 1))

    def forward(self, noisy: Tensor, level: Tensor, seen: Tensor) -> Tensor:
        """`seen` is a vector (B, seen_width)."""
        seen = torch.cat([self.level(level), seen], dim=1)
        x = noisy.transpose(1, 2)  # (B, A, H)
        kept = []
        for block, shrink in zip(self.down, [*self.shrink, nn.Identity()], strict=True):
            x = block(x, seen)
            kept.append(x)
            x = shrink(x)
        x = self.middle(x, seen)
        for grow, block, skip in zip(self.grow, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([grow(x), skip], dim=1), seen)
        return cast(Tensor, self.out(x)).transpose(1, 2)


class TransformerDenoiser(nn.Module):
    """The chunk's steps attend to each other, to what is seen and to the noise level."""

    def __init__(
        self, action_size: int, horizon: int, width: int, n_heads: int, n_layers: int
    ) -> None:
        super().__init__()
        self.level = LevelEmbedding(width)
        self.action_in = nn.Linear(action_size, width)
        self.position = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.decoder = decoder(width, n_heads, n_layers)
        self.out = nn.Linear(width, action_size)

    def forward(self, noisy: Tensor, level: Tensor, seen: Tensor) -> Tensor:
        """`seen` are tokens (B, M, width)."""
        memory = torch.cat([self.level(level)[:, None], seen], dim=1)
        return self.out(self.decoder(self.action_in(noisy) + self.position, memory))
