"""What a training needs to go on as if it had never stopped.

Weights, Adam's moments and the moving average are a checkpoint; the states of the generators of
random numbers, which dropout and the like draw from, are in its config.json, one of each process.
The order of the data needs no state: a batch is a function of the step's number and the seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embodied import checkpoint
from embodied.processes import placed_like, whole

STATE = "training_state"


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


@dataclass(frozen=True)
class Trained:
    """What changes while training; `ema` is None when no average is kept."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    ema: MovingAverage | None

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name; when sharded, every process has to ask."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = whole(parameter.detach())
            if self.ema is not None:
                tensors[f"ema.{name}"] = whole(self.ema.average[name])
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = whole(value)
        return tensors

    def restore(self, folder: Path) -> dict[str, Any]:
        """Put a saved state back. Returns what was saved with it.

        Raises:
            CheckpointError: the state is damaged, or of a training of other weights.
        """
        tensors, config = checkpoint.load(folder)
        self._check(folder, tensors)
        for name, parameter in self.parameters.items():
            weight = placed_like(tensors[f"weight.{name}"], parameter)
            parameter.data.copy_(weight)
            if self.ema is not None:  # it starts here if none was kept so far
                average = tensors.get(f"ema.{name}", tensors[f"weight.{name}"].float())
                self.ema.average[name] = placed_like(average, parameter)
            keys = [k for k in _ADAM if f"adam.{k}.{name}" in tensors]  # none before a gradient
            if keys:
                moments = {k: tensors[f"adam.{k}.{name}"] for k in keys}
                self.optimizer.state[parameter] = {
                    k: v if k == "step" else placed_like(v, parameter) for k, v in moments.items()
                }
        return config

    def _check(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        wanted = {name: parameter.shape for name, parameter in self.parameters.items()}
        prefix = "weight."
        given = {k.removeprefix(prefix): v.shape for k, v in tensors.items() if k[:7] == prefix}
        if wanted != given:
            odd = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
            raise checkpoint.CheckpointError(
                f"{folder} is the state of another training: {len(odd)} weights differ, the first"
                f" is {odd[0]!r}; give another output directory, or delete it to start afresh"
            )


def locate(directory: Path) -> Path:
    """The state of a run, given the run's directory or the state's own."""
    return directory if directory.name == STATE else directory / STATE


# --- random numbers ---------------------------------------------------------------------------
# NumPy's and Python's global generators are none of ours, but libraries draw from them.


def seed_all(seed: int) -> None:
    """Seed every global generator of random numbers."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every global generator, as JSON can hold it."""
    _, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    version, words, gauss = random.getstate()
    state = {
        "torch": _hex(torch.get_rng_state().numpy()),
        "numpy": [_hex(np.asarray(keys)), *rest],
        "python": [version, _hex(np.array(words, np.uint32)), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = _hex(torch.cuda.get_rng_state().numpy())
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(torch.from_numpy(_from_hex(state["torch"], np.uint8)))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", _from_hex(keys, np.uint32), *rest))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(_from_hex(words, np.uint32).tolist()), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(_from_hex(state["cuda"], np.uint8)))


def _hex(values: np.ndarray) -> str:
    return values.tobytes().hex()


def _from_hex(text: str, dtype: type) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), dtype).copy()
