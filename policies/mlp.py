"""6. Features and robot state → an action chunk: the paper's light policy network.

EmbodiedGPT (arXiv 2305.15021, section 3.3) concatenates the instance feature z_instance with the
global feature z_global and lets an MLP act on them. Here the robot's own state joins them, and
the network gives the next H actions at once (chunks as in ACT, arXiv 2304.13705). A second head
tells how likely the current sub-goal is met, which the monitor uses to know when to look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from embodied.types import Fed
from policies.scaling import masked_mean


@dataclass(frozen=True)
class MLPPolicyConfig:
    """Sizes of the policy.

    Args:
        n_queries, width: Q and D of z_instance.
        global_width: width of z_global.
        state_size: S.
        action_size: A.
        horizon: H, actions in a chunk.
        query_width: what each query is squeezed to before all are joined.
        hidden: width of the hidden layers.
    """

    n_queries: int = 32
    width: int = 256
    global_width: int = 768
    state_size: int = 4
    action_size: int = 4
    horizon: int = 8
    query_width: int = 24
    hidden: int = 512


class MLPPolicy(nn.Module):
    """z_instance ⊕ z_global ⊕ state → MLP → (H, A) actions and a done logit."""

    kind: ClassVar[str] = "mlp"
    ensemble: ClassVar[None] = None
    state_mean: Tensor
    state_std: Tensor

    def __init__(self, config: MLPPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.horizon = config.horizon
        self.fed = Fed()
        hidden = config.hidden
        self.squeeze = nn.Linear(config.width, config.query_width)
        self.global_in = nn.Sequential(
            nn.LayerNorm(config.global_width), nn.Linear(config.global_width, 64)
        )
        joint = config.n_queries * config.query_width + 64 + config.state_size
        self.trunk = nn.Sequential(
            nn.Linear(joint, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
        )
        self.action_out = nn.Linear(hidden, config.horizon * config.action_size)
        self.done_out = nn.Linear(hidden, 1)
        self.register_buffer("state_mean", torch.zeros(config.state_size))
        self.register_buffer("state_std", torch.ones(config.state_size))

    def set_state_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Normalise robot states by the training data's mean and standard deviation, each (S,)."""
        self.state_mean.copy_(mean)
        self.state_std.copy_(std.clamp_min(1e-3))

    def set_statistics(self, states: Tensor, actions: Tensor, pooled: Tensor) -> None:
        """From the training data: states (N, S). Actions stay in the environment's own units."""
        self.set_state_statistics(states.mean(0), states.std(0))

    def act(
        self,
        z_instance: Tensor,
        z_global: Tensor,
        state: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, Q, D), (B, C), (B, S) → actions (B, H, A), unclipped, and done logits (B,)."""
        squeezed = self.squeeze(z_instance).flatten(1)  # (B, Q * query_width)
        normed = (state - self.state_mean) / self.state_std
        joint = torch.cat([squeezed, self.global_in(z_global), normed], dim=1)
        hidden = self.trunk(joint)
        actions = self.action_out(hidden).unflatten(1, (self.horizon, -1))  # (B, H, A)
        return actions, self.done_out(hidden).squeeze(1)

    def loss(
        self,
        z_instance: Tensor,
        z_global: Tensor,
        state: Tensor,
        actions: Tensor,
        valid: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean absolute error against `actions` (B, H, A), and done logits (B,)."""
        guess, done = self.act(z_instance, z_global, state)
        return masked_mean((guess - actions).abs().mean(-1), valid), done
