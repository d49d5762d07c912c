"""The one training loop: any module with `.loss(batch)`, any sampler of batches by step.

A batch is a function of the step's number and the seed alone, so that a resumed run sees the
same data in the same order as one that never stopped. It is what one step learns from, however
many processes and rounds of accumulation share it, see `embodied.sharing`. Weights of the
exponential moving average are what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from embodied import checkpoint, sharing
from embodied.processes import Processes, distribute, synchronised, unshard
from embodied.run_log import RunLog, Tracker, check_tracker
from embodied.sharing import Fractions
from embodied.training_state import (
    STATE,
    MovingAverage,
    Trained,
    locate,
    random_state,
    set_random_state,
)


class Trainable(Protocol):
    """What the loop needs of a module."""

    def loss(
        self, batch: Any, fractions: Fractions | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss and figures; each part times its fraction when the batch is a share."""
        ...

    def counts(self, batch: Any) -> dict[str, float]:
        """Over how many things each part of the loss is a mean; asked only to share a batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """What every training can be told.

    Args:
        steps: optimiser steps in all.
        learning_rate: its peak, after the warm-up; it then falls along a cosine to a hundredth.
        warmup: steps of linear warm-up.
        weight_decay: of AdamW, on matrices only.
        ema_decay: of the moving average of the weights, shorter at the start; 0 for none.
        clip_norm: largest norm of the gradient.
        accumulation: rounds that a step's batch is cut into, for less memory; nothing else changes.
        save_every: steps between saved states; 0 to save at the end only.
        log_every: steps between lines of log.jsonl and TensorBoard; 0 for none.
        seed: of the weights' initial values and of the batches.
        resume: a run's directory, or the training_state in it, to go on from.
        track: where to log besides log.jsonl and TensorBoard.
    """

    steps: int = 4000
    learning_rate: float = 5e-4
    warmup: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.998
    clip_norm: float = 1.0
    accumulation: int = 1
    save_every: int = 500
    log_every: int = 20
    seed: int = 0
    resume: Path | None = None
    track: Tracker = "none"


@dataclass(frozen=True)
class TrainOptions(LoopOptions):
    """How to train, and where.

    Args:
        output_dir: for the log and the state to resume from.
    """

    output_dir: Path

    @classmethod
    def of(cls, options: LoopOptions, output_dir: Path) -> TrainOptions:
        """What `options` say of the loop."""
        return cls(output_dir, **{f.name: getattr(options, f.name) for f in fields(LoopOptions)})


def learning_rate_at(step: int, options: LoopOptions) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    low = 0.01
    return options.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    module: nn.Module, sample: Callable[[int], Any], options: TrainOptions
) -> dict[str, float]:
    """Train `module` to the last step, from the state in `output_dir` when there is one.

    Args:
        sample: the step's number → its batch; a pure function.

    Returns:
        The last step's figures, from the state when no step is left. The module ends with the
        averaged weights; with several processes it is the main one's that counts.

    Raises:
        FloatingPointError: the loss is not finite.
        CheckpointError: the state in `output_dir` is damaged, or of another training.
        ValueError: there is nothing to resume, a tracker's package is missing, or a batch is too
            small for so many shares.
    """
    if options.accumulation < 1:
        raise ValueError(f"--accumulation is a number of rounds from 1, not {options.accumulation}")
    check_tracker(options.track)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    training = _Training(module, options, Processes.here())
    first, figures = training.restore()
    module.train()
    with training.log(first) as log, training.bar(first) as bar:
        for step in range(first, options.steps):
            figures = training.step(sample(step), step)
            bar.update()
            if _is_due(step, options.log_every):
                log(step + 1, figures)
                bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items() if k != "lr"})
            if _is_due(step, options.save_every) or step + 1 == options.steps:
                training.save(step + 1, figures)
    training.finish()
    return figures


def _is_due(step: int, every: int) -> bool:
    return every > 0 and (step + 1) % every == 0


def _optimizer(parameters: dict[str, nn.Parameter], options: TrainOptions) -> torch.optim.AdamW:
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.99))


class _Training:
    """A training under way in this process."""

    def __init__(self, module: nn.Module, options: TrainOptions, processes: Processes) -> None:
        self._module, self._options, self._processes = module, options, processes
        self._loss = distribute(module, processes)
        parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        ema = MovingAverage(parameters, options.ema_decay) if options.ema_decay > 0 else None
        self._trained = Trained(parameters, _optimizer(parameters, options), ema)
        self._state = options.output_dir / STATE
        if processes.index > 0:  # no two processes drop out the same
            torch.manual_seed(options.seed + processes.index)

    def restore(self) -> tuple[int, dict[str, float]]:
        """The number of the next step, and the last one's figures."""
        folder = self._state_to_resume()
        if folder is None:
            return 0, {}
        config = self._trained.restore(folder)
        random_states = config.get("random", [])  # older states have none, nor figures
        if self._processes.index < len(random_states):
            set_random_state(random_states[self._processes.index])
        return int(config["next_step"]), config.get("figures", {})

    def _state_to_resume(self) -> Path | None:
        """The state in `output_dir`, else that of the run to resume; None to start afresh."""
        if self._processes.is_main:
            checkpoint.recover(self._state)
        self._processes.wait()
        if self._state.is_dir() or self._options.resume is None:
            return self._state if self._state.is_dir() else None
        other = locate(self._options.resume)
        if other.is_dir():
            return other
        if other.absolute() == self._state.absolute():
            return None  # stopped before a state was saved
        raise ValueError(
            f"there is nothing to resume in {self._options.resume}: name the output directory of"
            f" a run, or the {STATE} in it"
        )

    def step(self, batch: Any, step: int) -> dict[str, float]:
        """One optimiser step. Returns its figures."""
        optimizer, parameters = self._trained.optimizer, self._trained.parameters
        rate = learning_rate_at(step, self._options)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        figures = self._backward(batch)
        if not math.isfinite(figures["loss"]):
            raise FloatingPointError(f"the loss is {figures['loss']} at step {step}")
        torch.nn.utils.clip_grad_norm_(parameters.values(), self._options.clip_norm)
        optimizer.step()
        if self._trained.ema is not None:
            self._trained.ema.update(step)
        return {**figures, "lr": rate}

    def _backward(self, batch: Any) -> dict[str, float]:
        """Gradients of the whole batch's loss, and its figures."""
        processes, rounds = self._processes, self._options.accumulation
        if processes.count * rounds == 1:
            loss, figures = self._loss(sharing.on_device(batch, processes.device))
            loss.backward()
            return {"loss": float(loss.detach()), **figures}
        figures = {}
        for i, (share, fractions) in enumerate(self._shares(batch)):
            with synchronised(self._loss, last=i + 1 == rounds):
                loss, parts = self._loss(share, fractions)
                (loss * processes.count).backward()  # of which the processes take the average
            for name, value in {"loss": float(loss.detach()), **parts}.items():
                figures[name] = figures.get(name, 0.0) + value
        return dict(zip(figures, processes.sums([*figures.values()]), strict=True))

    def _shares(self, batch: Any) -> Iterator[tuple[Any, Fractions]]:
        """This process's shares of the batch, one a round."""
        processes, rounds = self._processes, self._options.accumulation
        module: Any = self._module
        whole = module.counts(batch)
        for i in range(rounds):
            index, n = i * processes.count + processes.index, processes.count * rounds
            share = sharing.share_of(batch, index, n)
            fractions = sharing.fractions(module.counts(share), whole)
            yield sharing.on_device(share, processes.device), fractions

    def save(self, next_step: int, figures: dict[str, float]) -> None:
        """Save what is needed to go on from here."""
        tensors = self._trained.tensors()
        states = self._processes.gather(random_state())
        if self._processes.is_main:
            notes = {"next_step": next_step, "figures": figures, "options": _plain(self._options)}
            checkpoint.save(self._state, tensors, {**notes, "random": states})
        self._processes.wait()

    @contextmanager
    def log(self, first: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """Writes figures down, in the main process."""
        if not self._processes.is_main:
            yield lambda step, figures: None
            return
        options = self._options
        log = RunLog(options.output_dir, first, options.track, _plain(options))
        try:
            yield log.write
        finally:
            log.close()

    def bar(self, first: int) -> Any:
        """The progress bar, in the main process."""
        silent = not self._processes.is_main
        total = self._options.steps
        return tqdm(total=total, initial=first, unit="step", mininterval=2.0, disable=silent)

    def finish(self) -> None:
        """Leave the averaged weights in the module."""
        if self._trained.ema is not None:
            self._trained.ema.copy_to_model()
        unshard(self._module, self._processes)
        self._module.eval()


def _plain(options: TrainOptions) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}
