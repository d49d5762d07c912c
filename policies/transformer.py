"""6. Features and robot state → an action chunk, decoded by a small transformer.

As in ACT (arXiv 2304.13705): learned queries, one for each step of the chunk, attend to each other
and to what is seen, here the Embodied-former's queries, z_global and the robot's state. Overlapping
chunks are averaged at run time (`embodied.agent.chunking`). ACT's variational encoder is left out:
it models the style of human demonstrators, and ours come from a script.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from embodied.types import Fed
from policies.memory import Memory, decoder
from policies.scaling import Scaling, masked_mean


@dataclass(frozen=True)
class TransformerPolicyConfig:
    """Sizes of the policy.

    Args:
        n_queries, width: Q and D of z_instance.
        global_width: width of z_global.
        state_size: S.
        action_size: A.
        horizon: H, actions in a chunk.
        hidden: width of its tokens.
        n_heads: attention heads; divides `hidden`.
        n_layers: of the decoder.
        ensemble: m of temporal ensembling: the weight of the prediction that is i looks younger
            than the oldest is exp(-m i). None to carry chunks out as they come.
    """

    n_queries: int = 32
    width: int = 256
    global_width: int = 768
    state_size: int = 4
    action_size: int = 4
    horizon: int = 16
    hidden: int = 192
    n_heads: int = 4
    n_layers: int = 3
    ensemble: float | None = 0.01


class TransformerPolicy(nn.Module):
    """z_instance, z_global and state → (H, A) actions and a done logit."""

    kind: ClassVar[str] = "transformer"

    def __init__(self, config: TransformerPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.horizon, self.ensemble = config.horizon, config.ensemble
        self.fed = Fed()
        self.states, self.actions = Scaling(config.state_size), Scaling(config.action_size)
        self.memory = Memory(config.width, config.global_width, config.state_size, config.hidden)
        # one for each step, and one for the done head
        self.steps = nn.Parameter(torch.randn(config.horizon + 1, config.hidden) * 0.02)
        self.decoder = decoder(config.hidden, config.n_heads, config.n_layers)
        self.action_out = nn.Linear(config.hidden, config.action_size)
        self.done_out = nn.Linear(config.hidden, 1)

    def set_statistics(self, states: Tensor, actions: Tensor, pooled: Tensor) -> None:
        """From the training data: states (N, S) and actions (N, A)."""
        self.states.fit_moments(states)
        self.actions.fit_moments(actions)

    def _decode(self, z_instance: Tensor, z_global: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """→ scaled actions (B, H, A) and done logits (B,)."""
        memory = self.memory(z_instance, z_global, self.states(state))  # (B, Q + 2, hidden)
        decoded = self.decoder(self.steps.expand(len(state), -1, -1), memory)
        return self.action_out(decoded[:, :-1]), self.done_out(decoded[:, -1]).squeeze(1)

    def act(
        self,
        z_instance: Tensor,
        z_global: Tensor,
        state: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, Q, D), (B, C), (B, S) → actions (B, H, A), unclipped, and done logits (B,)."""
        scaled, done = self._decode(z_instance, z_global, state)
        return self.actions.inverse(scaled), done

    def loss(
        self,
        z_instance: Tensor,
        z_global: Tensor,
        state: Tensor,
        actions: Tensor,
        valid: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean absolute error of scaled actions against `actions` (B, H, A); done logits (B,)."""
        guess, done = self._decode(z_instance, z_global, state)
        return masked_mean((guess - self.actions(actions)).abs().mean(-1), valid), done
