"""The training loop: stopping and going on changes nothing, and what diverges is not hidden."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embodied import checkpoint
from embodied.checkpoint import CheckpointError
from embodied.train import MovingAverage, TrainOptions, learning_rate_at, train


class Toy(nn.Module):
    """A regression; one head is never used, one weight is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 1))
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        error = self.body(batch).squeeze(1) - batch.sum(1).sin()
        return error.square().mean(), {"worst": float(error.detach().abs().max())}


def _sample(step: int) -> Tensor:
    return torch.randn(16, 3, generator=torch.Generator().manual_seed(step))


def _options(folder: Path, **changes: Any) -> TrainOptions:
    plain = TrainOptions(folder, steps=10, learning_rate=0.01, warmup=3, save_every=5, log_every=2)
    return replace(plain, **changes)


def _interrupted_at(step: int) -> Callable[[int], Tensor]:
    def sample(now: int) -> Tensor:
        if now == step:
            raise KeyboardInterrupt
        return _sample(now)

    return sample


def _equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_interrupted_and_resumed_is_exactly_the_same(tmp_path: Path) -> None:
    straight, resumed = Toy(), Toy()
    figures = train(straight, _sample, _options(tmp_path / "a"))
    for interruption in (7, 9):  # both go back to the state after step 5
        with pytest.raises(KeyboardInterrupt):
            train(resumed, _interrupted_at(interruption), _options(tmp_path / "b"))
    resumed = Toy()  # a new process knows nothing but the folder
    assert train(resumed, _sample, _options(tmp_path / "b")) == figures
    assert _equal(straight, resumed)
    states = [checkpoint.load(tmp_path / run / "training_state")[0] for run in "ab"]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_training_what_is_finished_changes_nothing(tmp_path: Path) -> None:
    first, again = Toy(), Toy()
    options = _options(tmp_path, steps=9)  # whose last step is not in the log
    figures = train(first, _sample, options)
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    asked: list[int] = []
    assert train(again, asked.append, options) == figures != {}
    assert not asked and _equal(first, again)
    assert written == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_state_from_before_figures_were_kept_still_serves(tmp_path: Path) -> None:
    straight, resumed = Toy(), Toy()
    figures = train(straight, _sample, _options(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        train(resumed, _interrupted_at(7), _options(tmp_path / "b"))
    state = tmp_path / "b" / "training_state"
    tensors, notes = checkpoint.load(state)
    del notes["figures"]
    checkpoint.save(state, tensors, notes)
    resumed = Toy()
    assert train(resumed, _sample, _options(tmp_path / "b")) == figures
    assert _equal(straight, resumed)


def test_it_learns_and_leaves_frozen_weights_alone(tmp_path: Path) -> None:
    module = Toy()
    before = float(module.loss(_sample(999))[0].detach())
    train(module, _sample, _options(tmp_path, steps=150, save_every=1000))
    assert float(module.loss(_sample(999))[0].detach()) < 0.5 * before
    assert torch.equal(module.frozen, torch.ones(2)) and not module.training


def test_log_and_figures(tmp_path: Path) -> None:
    figures = train(Toy(), _sample, _options(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    assert set(lines[0]) == {"step", "seconds", "loss", "worst", "lr"}
    assert {k: lines[-1][k] for k in figures} == figures


# --- the moving average ----------------------------------------------------------------------


def test_moving_average_against_its_formula() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average = MovingAverage({"w": weight}, decay=0.9)
    expected = torch.zeros(3)
    for step in range(120):
        value = torch.randn(3, generator=torch.Generator().manual_seed(step))
        weight.data.copy_(value)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.average["w"], expected)
    average.copy_to_model()
    torch.testing.assert_close(weight.data, expected)


def test_the_averaged_weights_are_kept(tmp_path: Path) -> None:
    module = Toy()
    train(module, _sample, _options(tmp_path))
    state, _ = checkpoint.load(tmp_path / "training_state")
    assert torch.equal(module.body[0].weight, state["ema.body.0.weight"])
    assert not torch.equal(module.body[0].weight, state["weight.body.0.weight"])


# --- the schedule ----------------------------------------------------------------------------


def test_learning_rate_from_warm_up_to_a_hundredth() -> None:
    options = TrainOptions(Path(), steps=1000, learning_rate=0.5, warmup=100)
    rates = [learning_rate_at(step, options) for step in range(1001)]
    assert rates[0] == pytest.approx(0.005) and rates[99] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.5) and rates[550] == pytest.approx(0.5 * 0.505)
    assert rates[1000] == pytest.approx(0.005) and max(rates) <= 0.5
    assert all(a < b for a, b in pairwise(rates[:100]))
    assert all(a > b for a, b in pairwise(rates[100:]))
    assert learning_rate_at(0, replace(options, warmup=0)) == pytest.approx(0.5)


def test_weight_decay_on_matrices_only(tmp_path: Path) -> None:
    module = Toy()
    vectors = [p for p in module.body.parameters() if p.ndim < 2]

    def nothing(_: Tensor) -> tuple[Tensor, dict[str, float]]:
        return sum(p.sum() * 0 for p in module.body.parameters()), {}  # type: ignore[return-value]

    module.loss = nothing  # type: ignore[method-assign]
    before = [p.clone() for p in module.body.parameters()]
    train(module, _sample, _options(tmp_path, weight_decay=0.5, ema_decay=0.0))
    for parameter, old in zip(module.body.parameters(), before, strict=True):
        same = torch.equal(parameter, old)
        assert same == any(parameter is v for v in vectors)


# --- what goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path, bad: float) -> None:
    def sample(step: int) -> Tensor:
        return _sample(step) if step < 7 else torch.full((2, 3), bad)

    with pytest.raises(FloatingPointError, match="the loss is nan at step 7"):
        train(Toy(), sample, _options(tmp_path))
    assert checkpoint.load(tmp_path / "training_state")[1]["next_step"] == 5


def test_the_state_of_another_training_is_refused(tmp_path: Path) -> None:
    train(Toy(), _sample, _options(tmp_path))
    other = Toy()
    other.body[3] = nn.Linear(8, 2)
    with pytest.raises(
        CheckpointError, match=r"another training: 2 weights differ.*'body\.3\.bias'"
    ):
        train(other, _sample, _options(tmp_path, steps=20))


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    train(Toy(), _sample, _options(tmp_path))
    path = tmp_path / "training_state" / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        train(Toy(), _sample, _options(tmp_path, steps=20))
