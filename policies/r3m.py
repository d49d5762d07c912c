"""6. A baseline: the head of R3M's protocol, on our frozen features.

R3M (arXiv 2203.12601) judges a frozen picture feature by what a small network can do with it: the
feature and the robot's state, batch normalisation, two layers of 256, one action, squared error.
Ours is that network on z_global. The done head, which the agent's monitor needs, reads the hidden
layer without changing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embodied.types import Fed
from policies.scaling import masked_mean


@dataclass(frozen=True)
class R3MPolicyConfig:
    """Sizes of the head.

    Args:
        n_queries, width: Q and D of z_instance, which is not read.
        global_width: width of z_global.
        state_size: S.
        action_size: A.
        horizon: 1: it gives the next action only.
        hidden: width of both hidden layers.
    """

    n_queries: int = 32
    width: int = 256
    global_width: int = 768
    state_size: int = 4
    action_size: int = 4
    horizon: int = 1
    hidden: int = 256

    def __post_init__(self) -> None:
        if self.horizon != 1:
            raise ValueError(f"R3M's head gives one action at a time, got horizon {self.horizon}")


class BatchNorm(nn.Module):
    """Batch normalisation of (B, size), whose statistics at run time are those of the data.

    What is fed is frozen, so it is known beforehand what running averages would tend to.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.mean, self.var, self.weight, self.bias, training=self.training, momentum=0.0
        )


class R3MPolicy(nn.Module):
    """z_global ⊕ state → BatchNorm → MLP → one action."""

    kind: ClassVar[str] = "r3m"
    ensemble: ClassVar[None] = None

    def __init__(self, config: R3MPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.horizon = config.horizon
        self.fed = Fed("r3m")
        size, hidden = config.global_width + config.state_size, config.hidden
        self.norm = BatchNorm(size)
        self.trunk = nn.Sequential(
            nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.action_out = nn.Linear(hidden, config.action_size)
        self.done_out = nn.Linear(hidden, 1)

    def set_statistics(self, states: Tensor, actions: Tensor, pooled: Tensor) -> None:
        """From the training data: states (N, S), and z_global (M, C) of its pictures."""
        self.norm.mean.copy_(torch.cat([pooled.mean(0), states.mean(0)]))
        self.norm.var.copy_(torch.cat([pooled.var(0), states.var(0)]))

    def act(
        self,
        z_instance: Tensor,
        z_global: Tensor,
        state: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, C), (B, S) → actions (B, 1, A) and done logits (B,). Draws nothing."""
        hidden = self.trunk(self.norm(torch.cat([z_global, state], dim=1)))
        return self.action_out(hidden)[:, None], self.done_out(hidden.detach()).squeeze(1)

    def loss(
        self,
        z_instance: Tensor,
        z_global: Tensor,
        state: Tensor,
        actions: Tensor,
        valid: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error against `actions` (B, 1, A), and done logits (B,)."""
        guess, done = self.act(z_instance, z_global, state)
        return masked_mean((guess - actions).square().mean(-1), valid), done
