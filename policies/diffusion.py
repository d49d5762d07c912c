"""6. Features and robot state → an action chunk, drawn by denoising.

Diffusion Policy (arXiv 2303.04137): a network learns to tell the noise in noisy action chunks, and
a chunk is drawn by taking noise away step by step. So where two ways are equally good it takes one
of them, and not their mean. What is seen is worked out once a call, and the denoiser alone runs at
every step. Of each chunk the first few actions are carried out before the next look (receding
horizon; the agent's `execute`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from embodied.types import Fed
from policies.denoisers import TransformerDenoiser, UNet
from policies.memory import Memory
from policies.scaling import Scaling, masked_mean
from policies.schedule import NoiseSchedule, Sampler

Denoiser = Literal["unet", "transformer"]


@dataclass(frozen=True)
class DiffusionPolicyConfig:
    """Sizes of the policy.

    Args:
        n_queries, width: Q and D of z_instance.
        global_width: width of z_global.
        state_size: S.
        action_size: A.
        horizon: H, actions in a chunk; even for the U-Net.
        hidden: width of what the denoiser is conditioned on.
        query_width: what each token is squeezed to before all are joined.
        denoiser: "unet" or "transformer".
        denoiser_width: channels of the U-Net at its finest of two scales.
        n_heads, n_layers: of the transformer.
        sampler: "ddim" or "ddpm".
        n_noise_levels: of training.
        n_inference_steps: denoiser calls an action chunk.
        n_draws: noisy chunks that are made of each sample of a training batch.
    """

    n_queries: int = 32
    width: int = 256
    global_width: int = 768
    state_size: int = 4
    action_size: int = 4
    horizon: int = 16
    hidden: int = 192
    query_width: int = 24
    denoiser: Denoiser = "unet"
    denoiser_width: int = 64
    n_heads: int = 4
    n_layers: int = 3
    sampler: Sampler = "ddim"
    n_noise_levels: int = 100
    n_inference_steps: int = 10
    n_draws: int = 4


class DiffusionPolicy(nn.Module):
    """z_instance, z_global and state → (H, A) actions, drawn, and a done logit."""

    kind: ClassVar[str] = "diffusion"
    ensemble: ClassVar[None] = None  # a mean of draws may be none of the ways

    def __init__(self, config: DiffusionPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.horizon = config.horizon
        self.fed = Fed()
        self.states, self.actions = Scaling(config.state_size), Scaling(config.action_size)
        hidden = config.hidden
        self.memory = Memory(config.width, config.global_width, config.state_size, hidden)
        self.squeeze = nn.Linear(hidden, config.query_width)
        self.joint = nn.Linear((config.n_queries + 2) * config.query_width, hidden)
        self.done_out = nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.denoiser = _denoiser(config)
        self.schedule = NoiseSchedule(
            config.n_noise_levels, config.sampler, config.n_inference_steps
        )

    def set_statistics(self, states: Tensor, actions: Tensor, pooled: Tensor) -> None:
        """From the training data: states (N, S) and actions (N, A)."""
        self.states.fit_moments(states)
        self.actions.fit_range(actions)  # the denoiser's samples are clipped to -1..1

    def _look(self, z_instance: Tensor, z_global: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """→ what the denoiser is conditioned on, (B, …), and done logits (B,)."""
        tokens = self.memory(z_instance, z_global, self.states(state))  # (B, Q + 2, hidden)
        joint = self.joint(self.squeeze(tokens).flatten(1))  # (B, hidden)
        seen = joint if self.config.denoiser == "unet" else tokens
        return seen, self.done_out(joint).squeeze(1)

    def act(
        self,
        z_instance: Tensor,
        z_global: Tensor,
        state: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, Q, D), (B, C), (B, S) → actions (B, H, A), drawn, and done logits (B,)."""
        seen, done = self._look(z_instance, z_global, state)
        shape = (len(state), self.horizon, self.config.action_size)
        sample = torch.randn(shape, generator=generator).to(state)
        for level in self.schedule.levels:
            at = torch.full((len(state),), level, device=state.device)
            noise = self.denoiser(sample, at, seen)
            sample = self.schedule.step(noise, level, sample, generator)
        return self.actions.inverse(sample), done

    def loss(
        self,
        z_instance: Tensor,
        z_global: Tensor,
        state: Tensor,
        actions: Tensor,
        valid: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error of the noise in noisy `actions` (B, H, A); done logits (B,)."""
        seen, done = self._look(z_instance, z_global, state)
        seen, clean, valid = (
            x.repeat_interleave(self.config.n_draws, 0)
            for x in (seen, self.actions(actions), valid)
        )
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        level = torch.randint(self.schedule.n, (len(clean),), generator=generator).to(clean.device)
        guess = self.denoiser(self.schedule.add_noise(clean, noise, level), level, seen)
        return masked_mean((guess - noise).square().mean(-1), valid), done


def _denoiser(config: DiffusionPolicyConfig) -> nn.Module:
    match config.denoiser:
        case "unet":
            if config.horizon % 2:
                raise ValueError(f"the U-Net needs an even horizon, got {config.horizon}")
            return UNet(config.action_size, config.hidden, config.denoiser_width, n_levels=2)
        case "transformer":
            return TransformerDenoiser(
                config.action_size, config.horizon, config.hidden, config.n_heads, config.n_layers
            )
        case _:
            raise ValueError(f"a denoiser is unet or transformer, got {config.denoiser!r}")
