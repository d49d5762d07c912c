"""`embodied record` in the kitchen, end to end: words of both languages, plans, pictures."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from embodied.cli.record import ExpertActor, RecordOptions, record
from embodied.episodes import DatasetReader
from embodied.model.plan import parse_thought
from embodied.types import Observation
from sims.kitchen import KitchenEnv
from sims.kitchen_tasks import SUBGOALS, TASKS, VOCABULARY, plan_subgoals

LIGHT = "light switch"
SEEDS = (1, 2)  # of which one is asked for in English and one in Chinese


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> DatasetReader:
    folder = tmp_path_factory.mktemp("kitchen") / "set"
    options = RecordOptions(f"kitchen/{LIGHT}", 2, folder, seed=SEEDS[0], image_size=32, workers=1)
    assert record(options) == 0
    return DatasetReader(folder)


def test_both_languages_ask_for_the_same_plan(recorded: DatasetReader) -> None:
    assert [(e.env_id, e.task, e.seed) for e in recorded.episodes] == [
        (f"kitchen/{LIGHT}", LIGHT, seed) for seed in SEEDS
    ]
    han = [bool(re.search(r"[\u4e00-\u9fff]", e.instruction)) for e in recorded.episodes]
    assert sorted(han) == [False, True]
    for meta in recorded.episodes:
        assert meta.success and meta.tag == "none"
        assert meta.plan.subgoals == SUBGOALS[LIGHT] and meta.plan.tasks == (LIGHT,)
        assert meta.plan.instruction == meta.instruction != ""


def test_labels_follow_what_happens(recorded: DatasetReader) -> None:
    for i, meta in enumerate(recorded.episodes):
        columns = recorded.arrays(i)
        index, success = columns["subgoal_index"], columns["next.success"]
        assert set(index) == {0, 1} and index[0] == 0 and index[-1] == 1
        first = int(success.argmax())
        assert success[first] and meta.length == first + 11  # lingers
        met = columns["subgoal.met"]
        assert met[0] == 0 and met[-1] == 0b11
        action = columns["action"]
        assert action.shape == (meta.length, 9) and np.abs(action).max() <= 1
        assert columns["observation.state"].shape == (meta.length, 9)


def test_things_are_where_the_pixels_say(recorded: DatasetReader) -> None:
    """The hand comes to the switch in the picture too; what stands still stays where it is."""
    for i, meta in enumerate(recorded.episodes):
        assert list(recorded.cameras) == ["overview", "wrist"]
        for camera in recorded.cameras:
            pictures = recorded.frames(i, camera)
            assert pictures.shape == (meta.length, 32, 32, 3) and pictures.std() > 1
        pixels = recorded.arrays(i)["observation.pixels.overview"]
        places = pixels.reshape(meta.length, len(recorded.nouns), 2)
        gripper, switch = (places[:, recorded.nouns.index(n)] for n in ("gripper", LIGHT))
        assert ((switch >= 0) & (switch <= 1)).all() and np.ptp(switch, axis=0).max() < 0.05
        far = np.linalg.norm(gripper - switch, axis=1)
        assert far.min() < 0.1 < 0.5 * far[0]
        told = parse_thought(meta.plan.thought)
        assert set(told) == {LIGHT, "gripper"}
        for noun, place in told.items():
            assert np.abs(places[0, recorded.nouns.index(noun)] - place).max() < 1 / 64


def test_a_goal_of_all_seven_is_planned_and_asked_for(tmp_path: Path) -> None:
    env = KitchenEnv(TASKS, cameras=("overview",), image_size=32, env_id="kitchen/7")
    try:
        first, _ = env.reset(seed=0)
        observation = Observation(first["images"], first["state"])
        actor = ExpertActor(env, 0, RecordOptions("kitchen/7", 1, tmp_path))
        plan = actor.begin(observation, "all of it", VOCABULARY)
        assert plan.subgoals == plan_subgoals(TASKS) and len(plan.subgoals) == 15
        assert np.isfinite(actor.act(observation).action).all()
        assert env.tracker.plan == plan.subgoals
    finally:
        env.close()


def test_faults_are_drawn_among_those_of_the_scene(tmp_path: Path) -> None:
    options = RecordOptions("kitchen/2", 1, tmp_path, fault_fraction=1.0)
    drawn = set()
    for seed in range(40):
        env = SimpleNamespace(env_id="kitchen/2", tasks=(LIGHT, "microwave"))
        drawn.add(ExpertActor(env, seed, options)._draw_fault())
    assert drawn == {"stopped", "missed", "pushed_back"}  # no kettle, so none is moved
