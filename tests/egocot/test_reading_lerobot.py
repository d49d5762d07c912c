"""A LeRobotDataset recorded here becomes records; records become columns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from good_record import GOOD

from embodied.egocot.clips import read_clip
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.readers import (
    load_columns,
    load_with_datasets,
    read_lerobot,
    read_records,
)
from embodied.egocot.records import Record, write_records
from embodied.egocot.schema import arrow_schema
from embodied.egocot.words import in_words, narrated
from embodied.episodes import DatasetError, DatasetWriter
from embodied.model.plan import REASONS
from embodied.types import Episode, Observation, Plan, Step, Subgoal

REACH, PULL = Subgoal("reach", ("drawer handle",)), Subgoal("pull", ("drawer handle",))
ASKED = "把抽屉打开"
PLAN = Plan(ASKED, "Thought: nothing in view.", (REACH, PULL), ("drawer-open",))
SHADE = 6  # grey levels from picture to picture


def episode(seed: int, n: int = 40, *, outcome: Any = "success", **changes: Any) -> Episode:
    """Reaches until the middle, then pulls; success from two thirds to six steps from the end."""
    steps = []
    for t in range(n):
        grey = np.full((32, 48, 3), SHADE * t, np.uint8)
        half, success = t >= n // 2, outcome == "success" and n * 2 // 3 <= t < n - 6
        pixels = {"drawer handle": {"side": (0.25, t / n)}, "gripper": {"side": (0.5, 0.125)}}
        pixels["nail"] = {"side": (0.1, 0.1)}
        observation = Observation({"wrist": grey, "side": grey}, np.zeros(2, np.float32))
        met = outcome == "success" and t > n * 2 // 3
        action = np.zeros(2, np.float32)
        steps.append(Step(observation, action, int(half), met, 0.0, success, pixels))
    info = {"tag": changes.pop("tag", "none"), "fault_step": changes.pop("fault_step", 0)}
    env_id, task = "metaworld/drawer-open-v3", "drawer-open"
    made = Episode(env_id, task, ASKED, seed, "sha", PLAN, steps, outcome)
    return replace(made, info=info, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "drawers"
    writer = DatasetWriter(
        root,
        fps=10,
        cameras={"wrist": (32, 48), "side": (32, 48)},
        state_names=["x", "y"],
        action_names=["dx", "dy"],
    )
    refused = Plan("melt it", "", (), refused="the scene cannot melt")
    plain = episode(3).steps
    with writer:
        writer.add(episode(0))
        writer.add(episode(1, outcome="failure", tag="stopped", fault_step=22))
        writer.add(episode(2, outcome="crash"))
        writer.add(episode(3, plan=refused, steps=[replace(s, subgoal=0) for s in plain]))
        writer.add(episode(4, outcome="failure", tag="missed", fault_step=39))
    return root


def read(root: Path, **more: Any) -> tuple[list[Record], Quarantine]:
    with Quarantine() as quarantine:
        options = {"licence": "Apache-2.0", "camera": "side", **more}
        return list(read_lerobot(root, quarantine, **options)), quarantine


def test_the_start_of_an_episode_is_what_the_planner_sees(root: Path) -> None:
    found, quarantine = read(root, split="test")
    assert quarantine.counts.bad == {
        "outcome: must be success or failure": 1,
        "plan: is missing or refused": 1,
    }
    first, second, third = found
    assert first.id == "metaworld/drawer-open-v3/0/none/side/start"
    assert (first.first_frame, first.last_frame) == (0, 0)
    assert (second.first_frame, third.first_frame) == (40, 160)
    assert first.instruction == ASKED and first.actions == (REACH, PULL) and first.verdict is None
    assert first.plan == ("reach the drawer handle", "pull the drawer handle")
    assert first.places == {"drawer handle": (0.25, 0.0), "gripper": (0.5, 0.125)}  # and no nail
    assert first.caption == "In view: the drawer handle, the gripper."
    assert first.provenance.licence == "Apache-2.0" and first.provenance.method == "simulator"
    assert {record.split for record in found} == {"test"} and first.score is None
    clip = read_clip(root, second.clip, second.first_frame, second.last_frame)
    assert clip.frames.max() < 4  # the first picture of its episode, black


def test_a_camera_without_pixel_labels_leaves_the_thought_empty(root: Path) -> None:
    (record, *_), _ = read(root, camera=None)  # the first one
    assert "images.wrist" in record.clip and record.thought == ()
    assert record.caption == "Nothing that the task needs is in view."


def test_each_sub_goal_is_a_clip_with_its_verdict(root: Path) -> None:
    found, _ = read(root, parts=("subgoal",))
    done = ("done", REASONS["done"][0])
    expected = [  # first and last frame, what, the verdict
        (0, 20, REACH, done),
        (20, 27, PULL, done),  # up to the picture that shows success
        (40, 60, REACH, done),
        (60, 79, PULL, ("failed", "the gripper stopped short")),
        (160, 180, REACH, done),
        (180, 199, PULL, ("progressing", "the work is going on")),
    ]
    for record, (first, last, subgoal, verdict) in zip(found, expected, strict=True):
        assert (record.first_frame, record.last_frame) == (first, last)
        assert record.actions == (subgoal,) and record.instruction == in_words(subgoal)
        assert record.verdict is not None
        assert (record.verdict.status, record.verdict.reason) == verdict
        assert record.caption == narrated(subgoal, record.verdict.status == "done")
        shown = read_clip(root, record.clip, first, last).frames.mean(axis=(1, 2, 3))
        assert shown[0] == pytest.approx(SHADE * (first % 40), abs=4)
        assert shown[-1] == pytest.approx(SHADE * (last % 40), abs=4)
        y = record.places["drawer handle"][1]
        assert y == pytest.approx(first % 40 / 40) and "nail" not in record.places


def test_a_whole_episode_ends_where_success_was_last_seen(root: Path) -> None:
    (first, second, _), _ = read(root, parts=("episode",))
    assert (first.first_frame, first.last_frame) == (0, 34)
    assert first.verdict is not None and first.verdict.status == "done"
    both = "The robot reaches the drawer handle. The robot {} the drawer handle."
    assert first.caption == both.format("pulls")
    assert (second.first_frame, second.last_frame) == (40, 79)
    assert second.verdict is not None and second.verdict.status == "failed"
    assert second.caption == both.format("tries to pull")


def test_records_of_all_parts_can_be_written_beside_the_data_set(root: Path) -> None:
    found, quarantine = read(root, parts=("start", "subgoal", "episode"), start_steps=100)
    assert len(found) == 12 == quarantine.counts.good and found[0].last_frame == 39
    write_records(root / "records.jsonl", found)
    assert list(read_records(root)) == found  # the clips are there and long enough
    (root / "records.jsonl").unlink()


def test_what_cannot_be_asked_of_a_data_set(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no camera 'top'.*wrist"):
        read(root, camera="top")
    with pytest.raises(DatasetError, match="no data set at"):
        read(tmp_path)
    for options in ({"parts": ("end",)}, {"start_steps": 0}):
        with pytest.raises(ValueError, match="parts are"):
            read(root, **options)
    with pytest.raises(ValueError, match="outcome: must be success or failure, got 'crash'"):
        list(read_lerobot(root, licence="MIT"))


@pytest.mark.parametrize(
    ("subgoal", "words", "seen"),
    [
        ("press down(button)", "press down the button", "The robot presses down the button."),
        ("reach(goal)", "reach the goal", "The robot reaches the goal."),
        ("hit(hammer, nail)", "hit the nail with the hammer", None),
        ("grasp(nut, gripper)", "grasp the nut with the gripper", None),
        (
            "carry(cup, shelf)",
            "carry the cup (the shelf)",
            "The robot carries the cup (the shelf).",
        ),
    ],
)
def test_sub_goals_in_words(subgoal: str, words: str, seen: str | None) -> None:
    parsed = Subgoal.parse(subgoal)
    assert in_words(parsed) == words
    assert narrated(parsed, False) == f"The robot tries to {words}."
    if seen:
        assert narrated(parsed, True) == seen


# --- columns ---------------------------------------------------------------------------------


def sparse(i: int, full: bool) -> Record:
    """A record in which all that can be null or empty is, or nothing."""
    record = json.loads(json.dumps(GOOD))
    if not full:
        record |= dict.fromkeys(("first_frame", "last_frame", "verdict", "score"))
        record |= {name: [] for name in ("thought", "plan", "actions", "questions")}
        nobody = {"method": "human", "model": None, "prompt_version": None}
        record["provenance"] = {**GOOD["provenance"], **nobody}
    return Record.from_json({**record, "id": str(i)})


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, list[Record]]:
    """So many sparse records first that a reader which guesses by the first block is misled."""
    records = [sparse(i, i >= 3000) for i in range(3010)]
    write_records(tmp_path / "a.jsonl", records[:3005])
    write_records(tmp_path / "b.jsonl", records[3005:])
    return tmp_path, records


def test_every_line_has_the_same_columns_and_types(mixed: tuple[Path, list[Record]]) -> None:
    folder, records = mixed
    table = load_columns(folder)
    assert table.schema == arrow_schema()
    assert [Record.from_json(row) for row in table.to_pylist()] == records
    with (folder / "a.jsonl").open("a") as file:
        file.write(json.dumps({**GOOD, "extra": 1}) + "\n")
    with pytest.raises(ValueError, match=r"a.jsonl' is no table of records"):
        load_columns(folder)


def test_hugging_faces_datasets_reads_them(mixed: tuple[Path, list[Record]]) -> None:
    folder, records = mixed
    try:
        import datasets  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ValueError, match="pip install datasets"):
            load_with_datasets(folder)
    else:
        assert [Record.from_json(row) for row in load_with_datasets(folder)] == records
