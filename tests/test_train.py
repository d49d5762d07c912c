"""The training loop: stopping and going on changes nothing, and what diverges is not hidden."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from embodied import checkpoint
from embodied.checkpoint import CheckpointError
from embodied.train import MovingAverage, TrainOptions, learning_rate_at, train
from embodied.training_state import seed_all


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


# --- going on where another stopped ------------------------------------------------------------


class Chancy(nn.Module):
    """Draws from every global generator of random numbers."""

    def __init__(self) -> None:
        super().__init__()
        seed_all(7)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 1))

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        chance = {"numpy": float(np.random.random()), "python": random.gauss()}  # noqa: NPY002
        error = self.layers(batch).squeeze(1) - sum(chance.values())
        return error.square().mean(), chance


def test_random_numbers_go_on_where_they_stopped(tmp_path: Path) -> None:
    """Python's `gauss` draws two and keeps one: saved at an odd step, that is kept too."""
    straight = Chancy()
    figures = train(straight, _sample, _options(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        train(Chancy(), _interrupted_at(8), _options(tmp_path / "b"))
    resumed = Chancy()
    seed_all(99)  # what the new process has drawn so far does not matter
    assert train(resumed, _sample, _options(tmp_path / "b")) == figures
    assert _equal(straight, resumed)
    random_states = [
        checkpoint.load(tmp_path / run / "training_state")[1]["random"] for run in "ab"
    ]
    assert random_states[0] == random_states[1]


def test_without_its_random_state_dropout_would_differ(tmp_path: Path) -> None:
    straight, resumed = Chancy(), Chancy()
    train(straight, _sample, _options(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        train(Chancy(), _interrupted_at(8), _options(tmp_path / "b"))
    tensors, notes = checkpoint.load(tmp_path / "b" / "training_state")
    del notes["random"]
    checkpoint.save(tmp_path / "b" / "training_state", tensors, notes)
    seed_all(99)
    train(resumed, _sample, _options(tmp_path / "b"))
    assert not _equal(straight, resumed)


@pytest.mark.parametrize("named", ["run", "run/training_state"])
def test_resume_goes_on_in_another_directory(tmp_path: Path, named: str) -> None:
    straight, resumed = Toy(), Toy()
    figures = train(straight, _sample, _options(tmp_path / "straight"))
    with pytest.raises(KeyboardInterrupt):
        train(Toy(), _interrupted_at(7), _options(tmp_path / "run"))
    before = (tmp_path / "run" / "training_state" / "SHA256SUMS").read_bytes()
    asked: list[int] = []

    def sample(step: int) -> Tensor:
        asked.append(step)
        return _sample(step)

    options = _options(tmp_path / "on", resume=tmp_path / named)
    assert train(resumed, sample, options) == figures and asked == [5, 6, 7, 8, 9]
    assert _equal(straight, resumed)
    assert (tmp_path / "run" / "training_state" / "SHA256SUMS").read_bytes() == before
    assert train(Toy(), asked.append, options) == figures  # now it has a state of its own


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to resume in .*/nowhere: name the output dir"):
        train(Toy(), _sample, _options(tmp_path / "a", resume=tmp_path / "nowhere"))
    options = _options(tmp_path / "b", resume=tmp_path / "b")  # stopped before its first state
    assert train(Toy(), _sample, options)["loss"] > 0


def test_a_state_that_was_being_replaced_is_found(tmp_path: Path) -> None:
    """As a process leaves it that was killed between the two renames, and one while writing."""
    straight, resumed = Toy(), Toy()
    train(straight, _sample, _options(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        train(Toy(), _interrupted_at(7), _options(tmp_path / "b"))
    state = tmp_path / "b" / "training_state"
    state.rename(state.with_name(".training_state.old"))
    half = state.with_name(".training_state.new-abc")
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    asked: list[int] = []

    def sample(step: int) -> Tensor:
        asked.append(step)
        return _sample(step)

    train(resumed, sample, _options(tmp_path / "b"))
    assert asked == [5, 6, 7, 8, 9] and _equal(straight, resumed)
    assert not [p.name for p in (tmp_path / "b").iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same() -> None:
    """More of them: scripts/check_kill.py"""
    script = Path(__file__).parents[1] / "scripts" / "check_kill.py"
    command = [sys.executable, str(script), "--training", "toy", "--kills", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "toy: 3 kills" in done.stdout and "DIFFERENT" not in done.stdout


# --- how often, how much ------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "saved"), [(0, [9]), (4, [4, 8, 9]), (20, [9])])
def test_how_often_states_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, saved: list[int]
) -> None:
    steps: list[int] = []
    save = checkpoint.save

    def spy(folder: Path, tensors: Any, config: dict[str, Any]) -> None:
        steps.append(config["next_step"])
        save(folder, tensors, config)

    monkeypatch.setattr("embodied.train.checkpoint.save", spy)
    train(Toy(), _sample, _options(tmp_path, steps=9, save_every=every, log_every=0))
    assert steps == saved and not (tmp_path / "log.jsonl").exists()


def test_no_average_when_its_decay_is_zero(tmp_path: Path) -> None:
    averaged, plain = Toy(), Toy()
    train(averaged, _sample, _options(tmp_path / "a"))
    train(plain, _sample, _options(tmp_path / "b", ema_decay=0.0))
    (a, _), (b, _) = (checkpoint.load(tmp_path / run / "training_state") for run in "ab")
    assert b.keys() == {k for k in a if not k.startswith("ema.")}
    assert all(torch.equal(a[k], b[k]) for k in b)  # the training itself is the same
    assert torch.equal(plain.body[0].weight, b["weight.body.0.weight"])
    on = Toy()  # an average may begin later
    train(on, _sample, _options(tmp_path / "b", steps=11, ema_decay=0.5))
    state = checkpoint.load(tmp_path / "b" / "training_state")[0]
    expected = 0.5 * (b["weight.body.0.weight"] + state["weight.body.0.weight"])
    torch.testing.assert_close(state["ema.body.0.weight"], expected)


# --- the log -------------------------------------------------------------------------------------


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {tag: [(e.step, e.value) for e in of] for tag, of in found.items()}


def test_the_log_of_a_resumed_run_is_that_of_one_that_never_stopped(tmp_path: Path) -> None:
    train(Toy(), _sample, _options(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        train(Toy(), _interrupted_at(9), _options(tmp_path / "b"))  # logged 8, saved 5
    log = tmp_path / "b" / "log.jsonl"
    with log.open("a") as file:
        file.write('{"step": 9, "los')  # as a killed process leaves it
    train(Toy(), _sample, _options(tmp_path / "b"))
    lines = [
        [{**json.loads(x), "seconds": 0} for x in (tmp_path / run / "log.jsonl").open()]
        for run in "ab"
    ]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == [2, 4, 6, 8, 10]
    boards = [_scalars(tmp_path / run) for run in "ab"]
    assert boards[0] == boards[1] and boards[0].keys() == {"loss", "worst", "lr"}
    assert boards[0]["loss"] == [(line["step"], pytest.approx(line["loss"])) for line in lines[0]]


def test_a_tracker_is_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Run:
        def log(self, figures: dict[str, float], step: int) -> None:
            told.append((step, figures["loss"]))

        def finish(self) -> None:
            told.append("finished")

    def init(**keywords: Any) -> Run:
        told.append(keywords)
        return Run()

    for name in ("trackio", "wandb"):
        told.clear()
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.init = init  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
        train(Toy(), _sample, _options(tmp_path / name, track=name))
        lines = [json.loads(x) for x in (tmp_path / name / "log.jsonl").open()]
        assert told[1:] == [*((x["step"], x["loss"]) for x in lines), "finished"]
        assert told[0]["name"] == name and told[0]["resume"] == "allow"
        assert told[0]["config"]["steps"] == 10 and ("id" in told[0]) == (name == "wandb")


def test_a_tracker_that_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("embodied.run_log.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--track wandb needs the package wandb: pip install wan"):
        train(Toy(), _sample, _options(tmp_path / "out", track="wandb"))
    assert not (tmp_path / "out").exists()
