"""Putting the agent together: one policy or several, each for its own robot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import policies
from embodied.checkpoint import CheckpointError
from embodied.cli.assemble import load_agent, policy_folders, save_policy
from embodied.model.planner import Planner


@pytest.fixture(scope="module")
def planner_dir(tiny_weights: list[str]) -> Path:
    return Path(tiny_weights[1])


def _save(folder: Path, planner_dir: Path, scene: str, n: int, **more: object) -> None:
    config = Planner.load(planner_dir).config
    policy = policies.make(
        "mlp",
        n_queries=config.former.n_queries,
        width=config.former.width,
        global_width=config.global_width,
        state_size=n,
        action_size=n,
        horizon=8,
    )
    agent = {"execute": 2, "retreat": [0.0] * n, "retreat_steps": 4, **more}
    save_policy(folder, policy, None, agent=agent, scenes=[scene], train_seeds=[n])


@pytest.fixture(scope="module")
def several(planner_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policies")
    _save(folder / "sawyer", planner_dir, "metaworld", 4)
    _save(folder / "panda", planner_dir, "kitchen", 9, monitor={"stall_steps": 7})
    return folder


def test_each_robot_has_its_own_motor(several: Path, planner_dir: Path) -> None:
    agent = load_agent(planner_dir, several)
    assert set(agent.motors) == {"metaworld", "kitchen"}
    sizes = {name: len(motor.retreat) for name, motor in agent.motors.items()}
    assert sizes == {"metaworld": 4, "kitchen": 9}
    assert {n: m.train_seeds for n, m in agent.motors.items()} == {
        "metaworld": (4,),
        "kitchen": (9,),
    }
    assert agent.motors["kitchen"].monitor.stall_steps == 7
    assert "kitchen" in agent.catalogue and "metaworld/reach-v3" in agent.catalogue


def test_one_policy_knows_its_own_scenes_only(several: Path, planner_dir: Path) -> None:
    agent = load_agent(planner_dir, several / "panda")
    assert list(agent.catalogue) == ["kitchen"]


def test_two_policies_for_one_robot(several: Path, planner_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    shutil.copytree(several, folder)
    shutil.copytree(several / "panda", folder / "zz")
    with pytest.raises(CheckpointError, match="zz is a second policy for kitchen"):
        load_agent(planner_dir, folder)


def test_a_folder_without_any(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no policy"):
        policy_folders(tmp_path)
