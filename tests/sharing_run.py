"""A training whose losses are means over unequal counts; run by itself or by `accelerate launch`.

usage: sharing_run.py OUTPUT_DIR [ACCUMULATION] [STEPS]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embodied import checkpoint
from embodied.processes import Processes
from embodied.sharing import Fractions
from embodied.train import TrainOptions, train


@dataclass(frozen=True)
class Words:
    """ids (B, L), mask (B, L): how many a row counts differs; goals (B, 2) are NaN if unknown."""

    ids: Tensor
    mask: Tensor
    goals: Tensor
    names: list[str]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Reader(nn.Module):
    """Of two parts, one that is frozen, one that no loss reaches, one tied."""

    _no_split_modules = ("Layer",)

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.layers[0].up.weight.requires_grad_(False)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.words.weight
        self.goal = nn.Linear(8, 2)
        self.unused = nn.Linear(3, 3)

    def counts(self, batch: Words) -> dict[str, float]:
        return {"word": float(batch.mask.sum()), "goal": float(batch.goals.isfinite().sum())}

    def loss(
        self, batch: Words, fractions: Fractions | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        of = fractions or {"word": 1.0, "goal": 1.0}
        x = self.words(batch.ids)
        for layer in self.layers:
            x = layer(x)
        known = batch.goals.isfinite()
        errors = (self.goal(x.mean(1)) - batch.goals.nan_to_num()).abs()
        goal = errors[known].mean() if known.any() else errors.sum() * 0
        word = F.cross_entropy(self.out(x)[batch.mask], batch.ids[batch.mask])
        parts = {"word": of["word"] * word, "goal": of["goal"] * goal}
        return parts["word"] + parts["goal"], {k: float(v.detach()) for k, v in parts.items()}


def sample(step: int) -> Words:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(11, (9, 5), generator=generator)
    lengths = torch.randint(1, 6, (9, 1), generator=generator)
    goals = torch.randn(9, 2, generator=generator)
    goals[torch.rand(9, 2, generator=generator) < 0.6] = torch.nan
    return Words(ids, torch.arange(5) < lengths, goals, [*"abcdefghi"])


def run(folder: Path, accumulation: int = 1, steps: int = 20) -> dict[str, Tensor]:
    """Train, and save what the main process ends with in `folder`/trained."""
    torch.manual_seed(0)
    module = Reader()
    options = TrainOptions(
        folder, steps=steps, learning_rate=0.01, warmup=3, log_every=1, accumulation=accumulation
    )
    train(module, sample, options)
    tensors = {k: v.detach() for k, v in module.state_dict().items()}
    if Processes.here().is_main:
        checkpoint.save(folder / "trained", tensors, {})
    return tensors


if __name__ == "__main__":
    run(Path(sys.argv[1]), *map(int, sys.argv[2:]))
