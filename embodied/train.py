"""The one training loop: any module with `.loss(batch)`, any sampler of batches by step.

A batch is a function of the step's number and the seed alone, so that a resumed run sees the
same data in the same order as one that never stopped. Weights of the exponential moving average
are what is kept.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from embodied import checkpoint


class Trainable(Protocol):
    """What the loop needs of a module."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]: ...


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Args:
        output_dir: for the log and the state to resume from.
        steps: optimiser steps in all.
        learning_rate: its peak, after the warm-up; it then falls along a cosine to a hundredth.
        warmup: steps of linear warm-up.
        weight_decay: of AdamW, on matrices only.
        ema_decay: of the moving average of the weights; shorter at the start.
        clip_norm: largest norm of the gradient.
        save_every: steps between saved states.
        log_every: steps between lines of log.jsonl.
        seed: of the weights' initial values and of the batches.
    """

    output_dir: Path
    steps: int = 4000
    learning_rate: float = 5e-4
    warmup: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.998
    clip_norm: float = 1.0
    save_every: int = 500
    log_every: int = 20
    seed: int = 0


def learning_rate_at(step: int, options: TrainOptions) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    low = 0.01
    return options.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


class MovingAverage:
    """Exponential moving average of the trained weights."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.average = {name: p.detach().float().clone() for name, p in parameters.items()}

    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self.average[name].lerp_(parameter.detach().float(), 1 - decay)

    def copy_to_model(self) -> None:
        """Put the averaged weights into the model."""
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self.average[name])


_ADAM = ("step", "exp_avg", "exp_avg_sq")


def _optimizer(parameters: dict[str, nn.Parameter], options: TrainOptions) -> torch.optim.AdamW:
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.99))


def _state_tensors(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, ema: MovingAverage
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weight.{name}"] = parameter.detach()
        tensors[f"ema.{name}"] = ema.average[name]
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = value
    return tensors


def _restore(
    folder: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    ema: MovingAverage,
) -> tuple[int, dict[str, float]]:
    """Put a saved state back. Returns the number of the next step, and the last one's figures.

    Raises:
        CheckpointError: the state is damaged, or of a training of other weights.
    """
    tensors, config = checkpoint.load(folder)
    wanted = {name: parameter.shape for name, parameter in parameters.items()}
    given = {k.removeprefix("weight."): v.shape for k, v in tensors.items() if _is_weight(k)}
    if wanted != given:
        odd = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
        raise checkpoint.CheckpointError(
            f"{folder} is the state of another training: {len(odd)} weights differ, the first is"
            f" {odd[0]!r}; give another output directory, or delete it to start afresh"
        )
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"weight.{name}"])
        ema.average[name] = tensors[f"ema.{name}"]
        keys = [k for k in _ADAM if f"adam.{k}.{name}" in tensors]  # none before a first gradient
        if keys:
            optimizer.state[parameter] = {k: tensors[f"adam.{k}.{name}"] for k in keys}
    return int(config["next_step"]), config.get("figures", {})  # older states have none


def _is_weight(key: str) -> bool:
    return key.startswith("weight.")


def train(
    module: nn.Module, sample: Callable[[int], Any], options: TrainOptions
) -> dict[str, float]:
    """Train `module` to the last step, from the state in `output_dir` when there is one.

    Args:
        sample: the step's number → its batch; a pure function.

    Returns:
        The last step's figures, from the state when no step is left. The module ends with the
        averaged weights.

    Raises:
        FloatingPointError: the loss is not finite.
        CheckpointError: the state in `output_dir` is damaged, or of another training.
    """
    out = options.output_dir
    out.mkdir(parents=True, exist_ok=True)
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    optimizer = _optimizer(parameters, options)
    ema = MovingAverage(parameters, options.ema_decay)
    state_dir = out / "training_state"
    first, figures = 0, dict[str, float]()
    if state_dir.is_dir():
        first, figures = _restore(state_dir, parameters, optimizer, ema)
    module.train()
    started = time.perf_counter()
    with tqdm(total=options.steps, initial=first, unit="step", mininterval=2.0) as bar:
        for step in range(first, options.steps):
            figures = _one_step(module, sample, step, optimizer, parameters, options)
            ema.update(step)
            bar.update()
            if (step + 1) % options.log_every == 0:
                _log(out, step, figures, time.perf_counter() - started)
                bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items() if k != "lr"})
            if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
                tensors = _state_tensors(parameters, optimizer, ema)
                notes = {"next_step": step + 1, "figures": figures, "options": _plain(options)}
                checkpoint.save(state_dir, tensors, notes)
    ema.copy_to_model()
    module.eval()
    return figures


def _one_step(
    module: Any,
    sample: Callable[[int], Any],
    step: int,
    optimizer: torch.optim.AdamW,
    parameters: dict[str, nn.Parameter],
    options: TrainOptions,
) -> dict[str, float]:
    rate = learning_rate_at(step, options)
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss, figures = module.loss(sample(step))
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters.values(), options.clip_norm)
    optimizer.step()
    return {"loss": float(loss.detach()), **figures, "lr": rate}


def _plain(options: TrainOptions) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}


def _log(out: Path, step: int, figures: dict[str, float], seconds: float) -> None:
    line = {"step": step + 1, "seconds": round(seconds, 1), **figures}
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
