"""The noise of a diffusion: how it is added, and one step of taking it away, by DDPM or by DDIM.

Equal to `DDPMScheduler` and `DDIMScheduler` of diffusers with beta_schedule "squaredcos_cap_v2",
epsilon prediction, clipped samples and leading time steps, as Diffusion Policy (arXiv 2303.04137)
uses them. DDPM: arXiv 2006.11239; DDIM with eta = 0: arXiv 2010.02502; squared-cosine betas:
arXiv 2102.09672.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Sampler = Literal["ddpm", "ddim"]


def squared_cosine_betas(n: int, most: float = 0.999) -> Tensor:
    """The variances (n,) of the noise that each of n steps adds."""
    kept = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    return torch.tensor([min(1 - kept((i + 1) / n) / kept(i / n), most) for i in range(n)])


class NoiseSchedule(nn.Module):
    """Noise levels 0..n - 1, the last one nearly noise alone.

    Args:
        n: of training.
        sampler: how noise is taken away.
        n_inference: how many of the levels are visited in doing so, evenly from 0 on.

    Raises:
        ValueError: there is no such sampler, or there are fewer levels than are to be visited.
    """

    kept: Tensor

    def __init__(self, n: int, sampler: Sampler, n_inference: int) -> None:
        if sampler not in get_args(Sampler) or not 1 <= n_inference <= n:
            raise ValueError(
                f"a sampler is one of {get_args(Sampler)} with 1 to {n} steps, got {sampler!r} "
                f"with {n_inference}"
            )
        super().__init__()
        self.n, self.sampler, self.stride = n, sampler, n // n_inference
        kept = (1.0 - squared_cosine_betas(n)).cumprod(0)
        self.register_buffer("kept", kept, persistent=False)  # the share of the signal's variance
        self.levels = [i * self.stride for i in reversed(range(n_inference))]

    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """`clean` and `noise` (B, …) mixed for the levels (B,)."""
        kept = self.kept[level].view(-1, *[1] * (clean.ndim - 1))
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def step(
        self,
        predicted: Tensor,
        level: int,
        sample: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """From `level` to the one visited next.

        Args:
            predicted: the noise that is thought to be in `sample`; both (B, …).
            generator: of the noise that DDPM puts back; DDIM puts none back.
        """
        kept = self.kept[level]
        before = level - self.stride
        kept_before = self.kept[before] if before >= 0 else torch.ones_like(kept)
        clean = (sample - (1 - kept).sqrt() * predicted) / kept.sqrt()
        clean = clean.clamp(-1, 1)
        if self.sampler == "ddim":
            return kept_before.sqrt() * clean + (1 - kept_before).sqrt() * predicted
        kept_now = kept / kept_before
        beta = 1 - kept_now
        mean = kept_before.sqrt() * beta / (1 - kept) * clean
        mean = mean + kept_now.sqrt() * (1 - kept_before) / (1 - kept) * sample
        if level == 0:
            return mean
        variance = ((1 - kept_before) / (1 - kept) * beta).clamp_min(1e-20)
        noise = torch.randn(sample.shape, generator=generator).to(sample)
        return mean + variance.sqrt() * noise
