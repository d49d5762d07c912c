"""`embodied train-policy`: from demonstrations to a saved policy, with the tiny planner."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import policies
from embodied import checkpoint
from embodied.checkpoint import CheckpointError
from embodied.cli.assemble import load_policy, save_policy
from embodied.cli.main import main
from embodied.cli.train_policy import TrainPolicyOptions, choose_demos, train_policy
from embodied.egocot.dataset import AlignmentSampler
from embodied.model.former import EmbodiedFormer
from embodied.model.planner import Planner

Run = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(
    tiny_planner: Path,
    recorded_set: Path,
    features_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A policy, trained into a folder of its own unless told another."""

    def trained(folder: Path | None = None, **changes: Any) -> Path:
        folder = folder or tmp_path_factory.mktemp("policy")
        settings: dict[str, Any] = dict(
            dataset=str(recorded_set),
            output_dir=folder,
            model=tiny_planner,
            steps=4,
            batch_size=8,
            learning_rate=0.1,  # a hundredth of it in the first step of the warm-up
            features_dir=features_dir,
        )
        assert train_policy(TrainPolicyOptions(**settings | changes)) == 0
        return folder

    return trained


@pytest.fixture(scope="module")
def straight(run: Run) -> Path:
    return run()


@pytest.fixture(scope="module")
def planner(tiny_planner: Path) -> Planner:
    return Planner.load(tiny_planner)


def _tensors(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load(folder / "policy")[0]


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- what comes out --------------------------------------------------------------------------


def test_a_policy_with_a_former_of_its_own(straight: Path, planner: Planner) -> None:
    policy, former, config = load_policy(straight / "policy", planner)
    assert former is not planner.former and policy.horizon == 8
    mine, theirs = former.state_dict(), planner.former.state_dict()
    assert not any(torch.equal(mine[k], theirs[k]) for k in mine if k.endswith("query.weight"))
    assert config["train_seeds"] == [0, 1] and config["n_demos"] == 0
    assert config["agent"]["execute"] == 4 and config["scenes"] == ["metaworld"]
    assert set(config["figures"]) == {"loss", "action", "done", "place", "lr"}
    assert all(math.isfinite(value) for value in config["figures"].values())


def test_the_former_may_stay_as_it_is(run: Run, planner: Planner) -> None:
    folder = run(train_former=False)
    state, _ = checkpoint.load(folder / "training_state")
    assert not [k for k in state if ".former." in k]
    _, former, config = load_policy(folder / "policy", planner)
    assert former is planner.former and not config["has_former"]


def test_the_planner_is_left_alone(run: Run, tiny_planner: Path, straight: Path) -> None:
    checkpoint.check_manifest(tiny_planner, "")
    assert sorted(p.name for p in straight.iterdir()) == ["policy", "training_state"]


def test_stopped_and_gone_on_with_is_exactly_the_same(
    run: Run, straight: Path, tmp_path: Path
) -> None:
    """Two steps, then two more: within the warm-up the schedule does not know of the end."""
    run(tmp_path, steps=2)
    halfway = _tensors(tmp_path)
    run(tmp_path)
    assert _same(_tensors(tmp_path), _tensors(straight)) and not _same(halfway, _tensors(straight))
    states = [checkpoint.load(folder / "training_state")[0] for folder in (tmp_path, straight)]
    assert _same(*states)


def test_interrupted_it_goes_on_from_the_last_saved_state(
    run: Run, straight: Path, tmp_path: Path
) -> None:
    draw = AlignmentSampler.__call__

    def stop(self: AlignmentSampler, step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return draw(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AlignmentSampler, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, save_every=2)
    assert checkpoint.load(tmp_path / "training_state")[1]["next_step"] == 2
    run(tmp_path, save_every=2)
    assert _same(_tensors(tmp_path), _tensors(straight))


def test_run_again_when_finished_it_saves_the_same(
    run: Run, straight: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(straight, tmp_path / "again"))
    run(folder)
    (mine, told), (theirs, meant) = (checkpoint.load(f / "policy") for f in (folder, straight))
    assert _same(mine, theirs) and told == meant and set(told["figures"]) > {"loss"}


# --- which demonstrations ---------------------------------------------------------------------


def _episode(task: str, seed: int, success: bool = True, **info: Any) -> Any:
    return SimpleNamespace(meta=SimpleNamespace(task=task, seed=seed, success=success, info=info))


EPISODES = [
    _episode("hammer", 0),
    _episode("hammer", 1, success=False),
    _episode("reach", 2),
    _episode("hammer", 3),
    _episode("reach", 4, success=False, acted="policy"),  # the expert's corrections
    _episode("hammer", 5),
]


@pytest.mark.parametrize(
    ("n_demos", "seeds"), [(0, [0, 3, 5, 2, 4]), (1, [0, 2]), (2, [0, 3, 2, 4])]
)
def test_the_first_successes_of_each_task(n_demos: int, seeds: list[int]) -> None:
    assert [e.meta.seed for e in choose_demos(EPISODES, n_demos)] == seeds


def test_too_few_demonstrations_are_named_even_when_there_is_none() -> None:
    with pytest.raises(ValueError, match=r"3 successful demon.* got {'reach': 2}"):
        choose_demos(EPISODES, 3)
    failed = _episode("push", 9, success=False)
    with pytest.raises(ValueError, match=r"1 successful demon.* got {'push': 0}"):
        choose_demos([*EPISODES, failed], 1)
    assert len(choose_demos([*EPISODES, failed], 0)) == 5
    with pytest.raises(ValueError, match=r"all successful demon.* got {'push': 0}"):
        choose_demos([failed], 0)


def test_fewer_demonstrations_leave_the_others_out(
    run: Run, recorded_set: Path, tiny_planner: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = checkpoint.load(run(steps=1, n_demos=1) / "policy")[1]
    assert config["train_seeds"] == [0] and config["n_demos"] == 1
    assert "1 demonstrations" in capfd.readouterr().err
    argv = ["train-policy", "--dataset", str(recorded_set), "--model", str(tiny_planner)]
    folder = recorded_set.parent / "never made"
    assert main([*argv, "--output_dir", str(folder), "--n_demos", "5"]) == 2
    assert "got {'coffee-button': 2}" in capfd.readouterr().err.splitlines()[-1]
    assert not folder.exists()


# --- on from another policy -------------------------------------------------------------------


@pytest.mark.parametrize("train_former", [True, False])
def test_init_begins_where_the_other_ended(run: Run, straight: Path, train_former: bool) -> None:
    """Its former too, whether that is trained further or not; its horizon, not the option's."""
    init = straight / "policy"
    settings = {"init": init, "train_former": train_former, "n_demos": 1, "horizon": 3}
    assert _same(_tensors(run(steps=0, **settings)), _tensors(straight))
    further = _tensors(run(steps=2, **settings))
    changed = {k for k, v in _tensors(straight).items() if not torch.equal(v, further[k])}
    assert {k.split(".")[0] for k in changed} == (
        {"policy", "former"} if train_former else {"policy"}
    )
    assert not [k for k in changed if "state_" in k]  # the statistics are what it knows


def test_a_policy_of_another_width_is_refused(run: Run, planner: Planner, tmp_path: Path) -> None:
    config = replace(planner.config.former, width=64)
    sizes = {"n_queries": config.n_queries, "global_width": planner.config.global_width}
    policy = policies.make("mlp", width=64, **sizes)
    for name, former in (("with", EmbodiedFormer(config)), ("without", None)):
        save_policy(tmp_path / name, policy, former)
        with pytest.raises(CheckpointError, match="of width 64, the planner's is 32; give the --m"):
            load_policy(tmp_path / name, planner)
    with pytest.raises(CheckpointError, match="of width 64, the planner's is 32; give the --m"):
        run(tmp_path / "out", init=tmp_path / "with")
    assert not (tmp_path / "out").exists()
