"""What is shared by rounds or processes adds up to the whole batch, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sharing_run
import torch
from sharing_run import Reader, Words
from torch import Tensor

from embodied import checkpoint
from embodied.processes import Processes
from embodied.sharing import fractions, on_device, scaled, share_of
from embodied.train import TrainOptions, train

ROOT = Path(__file__).parents[1]
N_STEPS = 20


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    sharing_run.run(folder, steps=N_STEPS)
    return folder


def _losses(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def _assert_equal(folder: Path, alone: Path, bar: float = 1e-5) -> None:
    """Losses of every step, trained weights, and the state to go on from."""
    ours, theirs = _losses(folder), _losses(alone)
    assert len(ours) == len(theirs) == N_STEPS
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, abs=bar)
    for part in ("trained", "training_state"):
        (a, _), (b, _) = checkpoint.load(folder / part), checkpoint.load(alone / part)
        assert a.keys() == b.keys()
        assert max(float((a[k] - b[k]).abs().max()) for k in a) < bar


# --- in one process ----------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [2, 9])
def test_accumulation_changes_nothing(alone: Path, tmp_path: Path, rounds: int) -> None:
    sharing_run.run(tmp_path, accumulation=rounds, steps=N_STEPS)
    _assert_equal(tmp_path, alone)


def test_the_mean_of_the_shares_means_would_be_seen(alone: Path, tmp_path: Path) -> None:
    """The comparison fails when shares are weighed by their number alone."""

    class Naive(Reader):
        def counts(self, batch: Words) -> dict[str, float]:
            return dict.fromkeys(("word", "goal"), float(len(batch.names)))

    torch.manual_seed(0)
    options = TrainOptions(
        tmp_path, steps=N_STEPS, learning_rate=0.01, warmup=3, log_every=1, accumulation=3
    )
    train(Naive(), sharing_run.sample, options)
    with pytest.raises(AssertionError):
        _assert_equal(tmp_path, alone, bar=1e-3)


@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_contributions_add_up(n: int) -> None:
    """Loss, figures and gradients; also where a share has nothing that is known."""
    torch.manual_seed(1)
    module, batch = Reader(), sharing_run.sample(5)
    whole, figures = module.loss(batch)
    whole.backward()
    expected = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    total, parts = torch.zeros(()), dict.fromkeys(figures, 0.0)
    for i in range(n):
        share = share_of(batch, i, n)
        part, told = module.loss(share, fractions(module.counts(share), module.counts(batch)))
        part.backward()
        total = total + part.detach()
        parts = {k: v + told[k] for k, v in parts.items()}
    torch.testing.assert_close(total, whole.detach())
    assert parts == pytest.approx(figures, abs=1e-6)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected.get(name))


def test_shares_are_a_partition_in_which_rows_stay_together() -> None:
    batch = {"uses": [sharing_run.sample(0), sharing_run.sample(1)], "none": None, "word": "as is"}
    shares = [share_of(batch, i, 4) for i in range(4)]
    assert all(s["none"] is None and s["word"] == "as is" and len(s["uses"]) == 2 for s in shares)
    for use in range(2):
        ours, rows = batch["uses"][use], [s["uses"][use] for s in shares]  # type: ignore[index]
        assert [len(r.names) for r in rows] == [3, 2, 2, 2]
        names = [name for r in rows for name in r.names]
        assert sorted(names) == ours.names
        order = [ours.names.index(name) for name in names]
        assert torch.equal(torch.cat([r.ids for r in rows]), ours.ids[order])
    assert torch.equal(share_of(ours, 0, 1).ids, ours.ids)


def test_a_number_has_no_rows() -> None:
    assert share_of({"weight": torch.tensor(2.0), "n": 3}, 1, 2) == {"weight": 2.0, "n": 3}
    batch = sharing_run.sample(0)
    assert on_device(batch, torch.device("cpu")) is batch
    moved = on_device(batch, torch.device("meta"))
    assert moved.ids.is_meta and moved.goals.is_meta and moved.names == batch.names


def test_nothing_of_nothing_counts_nothing() -> None:
    assert fractions({"a": 1, "b": 0}, {"a": 4, "b": 0}) == {"a": 0.25, "b": 0.0}


def test_batch_sizes_in_proportion() -> None:
    assert scaled((48, 12, 16), 0) == (48, 12, 16)
    assert scaled((48, 12, 16), 152) == (96, 24, 32)
    assert scaled((16, 0, 0), 5) == (5, 0, 0) and scaled((98, 1, 1), 10) == (8, 1, 1)
    assert scaled((18, 7, 10, 13), 24) == (9, 4, 5, 6)
    with pytest.raises(ValueError, match="a batch of 2 cannot have some of 3 uses: make it 3 or"):
        scaled((98, 0, 1, 1), 2)


def test_batch_sizes_make_the_total_whatever_it_is() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        sizes = tuple(int(n) for n in rng.integers(0, 30, 7))
        n_kinds = sum(n > 0 for n in sizes)
        total = int(rng.integers(max(1, n_kinds), 100))
        if n_kinds:
            rows = scaled(sizes, total)
            assert sum(rows) == total
            for n, row in zip(sizes, rows, strict=True):
                assert (row == 0) == (n == 0)
                if n * total >= 2 * sum(sizes):  # far from the least, which is one
                    assert abs(row - n * total / sum(sizes)) <= n_kinds / 2


# --- what goes wrong ---------------------------------------------------------------------------


def test_a_batch_too_small_to_share(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="9 rows of a batch cannot be shared by 10.*accumulation"):
        sharing_run.run(tmp_path, accumulation=10)


def test_rounds_are_counted_from_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--accumulation is a number of rounds from 1, not 0"):
        sharing_run.run(tmp_path, accumulation=0)


def test_a_loss_that_is_not_finite_in_one_share_stops_the_training(tmp_path: Path) -> None:
    def sample(step: int) -> Words:
        batch = sharing_run.sample(step)
        batch.goals[7] = torch.tensor([torch.nan, torch.inf])
        return batch

    class Careless(Reader):
        def loss(self, batch: Words, fractions: Any = None) -> tuple[Tensor, dict[str, float]]:
            loss, figures = super().loss(batch, fractions)
            return loss + (torch.inf if batch.goals.isinf().any() else 0.0), figures

    options = TrainOptions(tmp_path, steps=2, accumulation=3)
    with pytest.raises(FloatingPointError, match="the loss is (inf|nan) at step 0"):
        train(Careless(), sample, options)


def test_weights_read_by_one_process_only_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        num_processes, process_index, device = 2, 1, torch.device("cpu")
        destroy_process_group = staticmethod(lambda: None)

    monkeypatch.setattr("accelerate.PartialState", lambda **_: Two())
    monkeypatch.setattr("embodied.processes.atexit.register", lambda _: None)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert Processes.here() == Processes(1, 2, torch.device("cpu"), sharded=True)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ValueError, match="fsdp_cpu_ram_efficient_loading to false"):
        Processes.here()


# --- in two processes --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("config", "rounds"), [("cpu2", 1), ("cpu2", 2), ("fsdp", 2)], ids=str)
def test_two_processes_equal_one(alone: Path, tmp_path: Path, config: str, rounds: int) -> None:
    """Started as the documentation says; the state has the whole weights however they were cut."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "scripts" / "accelerate" / f"{config}.yaml")]
    command += ["--num_processes", "2", str(ROOT / "tests" / "sharing_run.py")]
    command += [str(tmp_path), str(rounds), str(N_STEPS)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    _assert_equal(tmp_path, alone)
    _, config_of_state = checkpoint.load(tmp_path / "training_state")
    assert len(config_of_state["random"]) == 2
    assert config_of_state["random"][0] != config_of_state["random"][1]
    torch.manual_seed(0)  # one process goes on where two have been
    options = TrainOptions(tmp_path, steps=N_STEPS + 1, learning_rate=0.01, warmup=3, log_every=1)
    assert train(Reader(), sharing_run.sample, options)["loss"] > 0
    assert [line["step"] for line in _losses(tmp_path)] == list(range(1, N_STEPS + 2))
