"""`embodied record`: what is recorded, and that going on changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embodied.cli.assemble import SHIPPED
from embodied.cli.main import main
from embodied.cli.record import CorrectedActor, RecordOptions, record
from embodied.episodes import DatasetError, DatasetReader, DatasetWriter
from embodied.model.plan import parse_thought
from embodied.types import Subgoal
from sims import seeds
from sims.subgoals import TASKS

ENV, TASK = "metaworld/coffee-button-v3", "coffee-button"


def _options(folder: Path, n_episodes: int, **changes: object) -> RecordOptions:
    plain = {"image_size": 32, "horizon": 90, "workers": 1}
    return RecordOptions(ENV, n_episodes, folder, **plain | changes)  # type: ignore[arg-type]


def _pixels(reader: DatasetReader, i: int, camera: str) -> np.ndarray:
    """(T, nouns, 2)"""
    return reader.arrays(i)[f"observation.pixels.{camera}"].reshape(-1, len(reader.nouns), 2)


# --- what is recorded ------------------------------------------------------------------------


def test_the_expert_succeeds_and_all_of_it_is_there(recorded_set: Path) -> None:
    reader = DatasetReader(recorded_set)
    assert [(e.env_id, e.task, e.seed) for e in reader.episodes] == [(ENV, TASK, 0), (ENV, TASK, 1)]
    assert list(reader.cameras) == ["workspace", "wrist"]
    for i, meta in enumerate(reader.episodes):
        assert meta.success and meta.tag == "none" and 20 < meta.length < 90
        assert meta.plan.subgoals == TASKS[TASK].subgoals and meta.plan.tasks == (TASK,)
        assert meta.instruction and meta.plan.instruction == meta.instruction
        for camera in reader.cameras:
            pictures = reader.frames(i, camera)
            assert pictures.shape == (meta.length, 32, 32, 3) and pictures.std() > 1
    shas = {meta.layout_sha for meta in reader.episodes}
    assert len(shas) == 2 and not recorded_set.with_name("set.parts").exists()


def test_labels_follow_the_task(recorded_set: Path) -> None:
    reader = DatasetReader(recorded_set)
    for i, meta in enumerate(reader.episodes):
        columns = reader.arrays(i)
        index, success = columns["subgoal_index"], columns["next.success"]
        assert (np.diff(index) >= 0).all() and set(index) == {0, 1}
        first = int(success.argmax())
        assert success[first] and meta.length == first + 11  # lingers, to show what done looks like
        assert columns["subgoal.done"].tolist() == [False] * (first + 1) + [True] * 10


def test_actions_are_within_bounds_and_finite(recorded_set: Path) -> None:
    reader = DatasetReader(recorded_set)
    for i in range(len(reader)):
        action = reader.arrays(i)["action"]
        assert action.shape[1] == 4 and np.isfinite(action).all()
        assert np.abs(action).max() <= 1 and action.std() > 0.05


def test_places_are_in_the_picture_or_known_to_be_out_of_view(recorded_set: Path) -> None:
    """Both numbers or none; what moves in the world moves in the picture."""
    reader = DatasetReader(recorded_set)
    assert set(reader.nouns) == {"gripper", *(n for s in TASKS[TASK].subgoals for n in s.args)}
    for i, meta in enumerate(reader.episodes):
        for camera in reader.cameras:
            pixels = _pixels(reader, i, camera)
            assert (np.isnan(pixels).any(2) == np.isnan(pixels).all(2)).all()
        seen = _pixels(reader, i, "workspace")
        assert ((seen >= 0) & (seen <= 1)).all()  # nothing here leaves the work space
        gripper, button = (seen[:, reader.nouns.index(n)] for n in ("gripper", "coffee button"))
        far = np.linalg.norm(gripper - button, axis=1)
        assert far[-1] < 0.5 * far[0]
        told = parse_thought(meta.plan.thought)
        assert set(told) == {"coffee button", "gripper"}
        assert np.abs(gripper[0] - told["gripper"]).max() < 1 / 64


# --- again, and on from where it stopped ------------------------------------------------------


def test_recording_again_finds_everything_there(
    recorded_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in recorded_set.rglob("*") if p.is_file()}
    assert record(_options(recorded_set, 2)) == 0
    assert record(_options(recorded_set, 1, seed=1)) == 0
    assert "holds all 2 episodes already" in capfd.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in recorded_set.rglob("*") if p.is_file()}


@pytest.mark.parametrize("changes", [{}, {"family": "test"}, {"seed": 50}])
def test_a_finished_data_set_is_not_added_to(
    recorded_set: Path, changes: dict[str, object]
) -> None:
    n_missing = 3 if changes else 1
    with pytest.raises(DatasetError, match=f"is finished and lacks {n_missing} of the episodes"):
        record(_options(recorded_set, 3, **changes))


def test_a_finished_data_set_is_one_line_to_the_user(
    recorded_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["record", "--env", ENV, "--n_episodes", "3", "--output_dir", str(recorded_set)]
    capfd.readouterr()
    assert main(argv) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "record them into another --output_dir" in err


def _kill_after_first_episode(recorded_set: Path, part: Path) -> None:
    """What a worker that was killed in its second episode leaves behind."""
    reader = DatasetReader(recorded_set)
    writer = DatasetWriter(
        part,
        fps=reader.fps,
        cameras=dict.fromkeys(reader.cameras, (32, 32)),
        state_names=reader.state_names,
        action_names=reader.action_names,
    )
    writer.add(reader.load(0))
    half = part / ".shards" / "000001.partial"
    half.mkdir()
    (half / "episode.json").write_text('{"env_id"')


def test_a_killed_recording_goes_on_to_the_same_end(recorded_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    _kill_after_first_episode(recorded_set, tmp_path / "set.parts" / "00")
    assert record(_options(out, 2)) == 0
    straight, resumed = DatasetReader(recorded_set), DatasetReader(out)
    kept, made = resumed.episodes
    assert kept.info == straight.episodes[0].info  # its duration too: it was not recorded again
    assert (made.seed, made.tag, made.length, made.layout_sha, made.plan) == tuple(
        getattr(straight.episodes[1], n) for n in ("seed", "tag", "length", "layout_sha", "plan")
    )
    for i in range(2):
        mine, theirs = resumed.arrays(i), straight.arrays(i)
        assert all(np.array_equal(mine[k], theirs[k], equal_nan=True) for k in theirs)
    assert np.array_equal(resumed.frames(1, "wrist"), straight.frames(1, "wrist"))
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_what_was_begun_goes_on_with_the_same_episodes_only(tmp_path: Path) -> None:
    out, part = tmp_path / "set", tmp_path / "set.parts" / "00"
    part.mkdir(parents=True)  # whose recording was stopped
    jobs = [["metaworld/drawer-open-v3", seed] for seed in (0, 1, 2)]
    (part.parent / "jobs.json").write_text(json.dumps(jobs))
    with pytest.raises(DatasetError, match=r"set\.parts was begun with other .*--n_episodes"):
        record(_options(out, 2))
    assert list(part.iterdir()) == [] and not out.exists()


# --- what goes wrong on purpose ---------------------------------------------------------------


def test_faults_in_every_episode_and_parts_put_together(tmp_path: Path) -> None:
    """Two processes, another family, and episodes that are too short to succeed."""
    out = tmp_path / "set"
    options = _options(out, 8, workers=2, fault_fraction=1.0, horizon=25, family="select")
    assert record(options) == 0
    reader = DatasetReader(out)
    assert sorted(e.seed for e in reader.episodes) == list(seeds.seeds("select", 8))
    for i, meta in enumerate(reader.episodes):
        assert meta.tag in {"stopped", "missed", "moved", "none"} and meta.info["tag"] == meta.tag
        assert meta.tag == "none" or meta.info["fault_step"] < 25  # else over before it happened
        assert (meta.length, meta.outcome) == (25, "failure")
        assert meta.info["fault_step"] >= 0
        if meta.tag == "stopped":
            assert not reader.arrays(i)["action"][meta.info["fault_step"] :, :3].any()
    assert len({e.tag for e in reader.episodes}) > 1


def test_nothing_goes_wrong_unless_asked_for(recorded_set: Path) -> None:
    assert {e.tag for e in DatasetReader(recorded_set).episodes} == {"none"}


# --- corrections ------------------------------------------------------------------------------


def _corrected(controller: Any, retreat: list[np.ndarray], seed: int) -> CorrectedActor:
    """An actor at the first of two sub-goals, without a simulator."""
    actor = CorrectedActor.__new__(CorrectedActor)
    actor._env = SimpleNamespace(tracker=SimpleNamespace(index=0))
    actor._rng = np.random.default_rng(seed)
    actor._controller, actor._retreat = controller, retreat
    actor._subgoals = (Subgoal.parse("reach(kettle)"), Subgoal.parse("move(kettle)"))
    actor._turn_to(0)
    return actor


def test_who_takes_long_lets_go_and_begins_again() -> None:
    begun: list[tuple[str, int]] = []
    controller = SimpleNamespace(begin=lambda s, first=(): begun.append((s.text, len(first))))
    actor = _corrected(controller, [np.zeros(2)] * 8, 0)
    for _ in range(49):
        actor._turn()
    assert begun == [("reach(kettle)", 0)]
    for _ in range(61):
        actor._turn()
    assert begun[1] == ("reach(kettle)", 8) and len(begun) <= 3


def test_the_next_subgoal_begins_late_half_of_the_time() -> None:
    delays = []
    for seed in range(200):
        begun: list[str] = []
        controller = SimpleNamespace(begin=lambda s, first=(), to=begun: to.append(s.text))
        actor = _corrected(controller, [], seed)
        actor._env.tracker.index = 1
        delays.append(next(k for k in range(50) if actor._turn() or len(begun) == 2))  # type: ignore[func-returns-value]
        assert begun[-1] == "move(kettle)"
    assert 70 < delays.count(0) < 130 and 15 < max(delays) < 25


def test_a_policy_alone_is_fed_by_the_shipped_planner(tmp_path: Path) -> None:
    policy = SHIPPED / "policies" / "metaworld"
    options = _options(tmp_path / "set", 1, image_size=224, horizon=6, policy=policy)
    assert record(options) == 0
    (meta,) = DatasetReader(tmp_path / "set").episodes
    assert meta.length == 6 and meta.info["acted"] == str(policy)
