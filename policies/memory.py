"""What a policy is fed, as tokens that a transformer can attend to."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """z_instance (B, Q, D), z_global (B, C) and the scaled state (B, S) → tokens (B, Q + 2, W)."""

    def __init__(self, width: int, global_width: int, state_size: int, memory_width: int) -> None:
        super().__init__()
        self.instance_in = nn.Linear(width, memory_width)
        self.global_in = nn.Sequential(
            nn.LayerNorm(global_width), nn.Linear(global_width, memory_width)
        )
        self.state_in = nn.Linear(state_size, memory_width)
        self.kind = nn.Parameter(torch.randn(3, memory_width) * 0.02)

    def forward(self, z_instance: Tensor, z_global: Tensor, state: Tensor) -> Tensor:
        parts = (
            self.instance_in(z_instance),
            self.global_in(z_global)[:, None],
            self.state_in(state)[:, None],
        )
        return torch.cat([part + kind for part, kind in zip(parts, self.kind, strict=True)], dim=1)


def decoder(width: int, n_heads: int, n_layers: int) -> nn.TransformerDecoder:
    """Self-attention and cross-attention, pre-norm. No dropout: training draws nothing."""
    layer = nn.TransformerDecoderLayer(
        width, n_heads, 4 * width, 0.0, nn.functional.gelu, batch_first=True, norm_first=True
    )
    return nn.TransformerDecoder(layer, n_layers, nn.LayerNorm(width))
