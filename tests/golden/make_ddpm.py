"""Makes ddpm.safetensors: what diffusers' schedulers do with given noise.

    pip install diffusers==0.42.1    # in an environment of its own
    python tests/golden/make_ddpm.py

Chunks are (3, 8, 2). `predicted.<level>` is what a denoiser is supposed to have said at a level,
and `<sampler>.<n>.<level>` the sample after that level; DDPM's own noise comes from torch's
generator with seed 1, drawn level by level.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import save_file

N = 100
SETTINGS = dict(
    num_train_timesteps=N,
    beta_schedule="squaredcos_cap_v2",
    prediction_type="epsilon",
    clip_sample=True,
)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(3, 8, 2, generator=generator)  # noqa: E731
    clean, noise, start = draw().clamp(-1, 1), draw(), draw()
    level = torch.tensor([0, 37, 99])
    ddpm, ddim = DDPMScheduler(**SETTINGS), DDIMScheduler(**SETTINGS)
    out = {"clean": clean, "noise": noise, "start": start, "level": level, "betas": ddpm.betas}
    out["noisy"] = ddpm.add_noise(clean, noise, level)
    out |= {f"predicted.{i}": draw() for i in range(N)}
    for name, scheduler, n in (("ddpm", ddpm, N), ("ddpm", ddpm, 20), ("ddim", ddim, 10)):
        scheduler.set_timesteps(n)
        sample, own = start, torch.Generator().manual_seed(1)
        for t in scheduler.timesteps.tolist():
            extra = {"generator": own} if name == "ddpm" else {}
            sample = scheduler.step(out[f"predicted.{t}"], t, sample, **extra).prev_sample
            out[f"{name}.{n}.{t}"] = sample
    metadata = {"source": "diffusers 0.42.1, tests/golden/make_ddpm.py"}
    save_file(out, Path(__file__).with_name("ddpm.safetensors"), metadata)


if __name__ == "__main__":
    main()
