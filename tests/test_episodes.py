"""Episode ↔ LeRobotDataset: what is written comes back, and what is broken is named."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from embodied import video
from embodied.episodes import DatasetError, DatasetReader, DatasetWriter, merge, merging
from embodied.episodes import writer as recording
from embodied.episodes.rows import OWN
from embodied.episodes.tables import to_arrow, to_numpy
from embodied.types import Episode, Observation, Plan, Step, Subgoal

CAMERAS = {"corner": (32, 48), "gripper": (32, 32)}
NOUNS = ("drawer handle", "gripper")
PLAN = Plan(
    "open the drawer",
    "The drawer handle is at (12, 30).",
    (Subgoal("reach", ("drawer handle",)), Subgoal("grasp", ("drawer handle", "gripper"))),
    tasks=("drawer-open",),
)


def make_episode(seed: int = 0, n: int = 12, **changes: Any) -> Episode:
    """Random states, pictures of smooth colours, and labels of every kind."""
    rng = np.random.default_rng(seed)
    steps = []
    for t in range(n):
        images = {
            name: np.full((*size, 3), (40 + 3 * t, 90, 10 * (seed % 20)), np.uint8)
            for name, size in CAMERAS.items()
        }
        state, action = rng.normal(size=(2, 4)).astype(np.float32)
        pixels = {"drawer handle": {"corner": (0.25, t / n)}} if t % 3 else {}
        pixels |= {f"thing {seed}": {"gripper": (0.5, 0.5), "corner": (0.0, 1.0)}}
        half = int(t >= n / 2)
        observation = Observation(images, state)
        steps.append(
            Step(observation, action, half, t == n // 2, float(t), t == n - 1, pixels, met=t % 4)
        )
    episode = Episode(
        "metaworld/drawer-open-v3",
        "drawer-open",
        PLAN.instruction,
        seed,
        f"sha{seed}",
        PLAN,
        steps,
        "success",
        {"noise": 0.1, "values": np.float32([1, 2])},
    )
    return dataclasses.replace(episode, **changes)


def new_writer(root: Path, **changes: Any) -> DatasetWriter:
    arguments: dict[str, Any] = {
        "fps": 20,
        "cameras": CAMERAS,
        "state_names": ["x", "y", "z", "gripper"],
        "action_names": ["dx", "dy", "dz", "dgripper"],
        "robot_type": "sawyer",
        "extra": {"note": "抽屉"},
    }
    return DatasetWriter(root, **{**arguments, **changes})


def record(root: Path, seeds: range, n: int = 12) -> Path:
    with new_writer(root) as writer:
        for seed in seeds:
            writer.add(make_episode(seed, n))
    return root


def assert_same(got: Episode, expected: Episode, pictures: bool = True) -> None:
    for name in ("env_id", "task", "instruction", "seed", "layout_sha", "plan", "outcome"):
        assert getattr(got, name) == getattr(expected, name), name
    assert got.info == {**expected.info, "values": [1.0, 2.0]}
    assert len(got.steps) == len(expected.steps)
    for ours, theirs in zip(got.steps, expected.steps, strict=True):
        for name in ("subgoal", "done", "met", "reward", "success"):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert np.array_equal(ours.action, theirs.action)
        assert np.array_equal(ours.observation.state, theirs.observation.state)
        assert {n: {*p} for n, p in ours.pixels.items()} == {
            n: {*p} for n, p in theirs.pixels.items()
        }
        for noun, places in theirs.pixels.items():
            for camera, place in places.items():
                assert ours.pixels[noun][camera] == pytest.approx(place, abs=1e-6)
        for camera in CAMERAS if pictures else ():
            a, b = ours.observation.images[camera], theirs.observation.images[camera]
            assert a.shape == b.shape and np.abs(a.astype(int) - b).mean() < 3


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "set", range(3))


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "copy"))


def test_what_is_recorded_comes_back(recorded: Path) -> None:
    reader = DatasetReader(recorded)
    assert len(reader) == 3 and reader.fps == 20 and reader.cameras == CAMERAS
    assert reader.state_names == ["x", "y", "z", "gripper"]
    assert reader.nouns == ["thing 0", "drawer handle", "thing 1", "thing 2"]
    assert reader.info["embodied"]["extra"] == {"note": "抽屉"}
    for seed, episode in enumerate(reader):
        assert_same(episode, make_episode(seed))
        meta = reader.episodes[seed]
        assert meta.key == (episode.env_id, seed, "") and meta.success
        assert (meta.index, meta.length, meta.plan) == (seed, 12, PLAN)


def test_arrays_and_single_frames(recorded: Path) -> None:
    reader = DatasetReader(recorded)
    arrays, episode = reader.arrays(1), make_episode(1)
    assert arrays["observation.state"].shape == (12, 4)
    assert arrays["observation.pixels.corner"].shape == (12, 8)
    assert np.isnan(arrays["observation.pixels.corner"][0, 2:4]).all()
    assert arrays["index"].tolist() == list(range(12, 24))
    assert set(arrays["episode_index"]) == {1}
    assert arrays["next.done"].tolist() == [False] * 11 + [True]
    assert arrays["timestamp"].dtype == np.float32
    dtypes = {name: f["dtype"] for name, f in reader.info["features"].items()}
    assert {n: a.dtype.name for n, a in arrays.items()} == {
        n: d for n, d in dtypes.items() if d != "video"
    }
    frames = reader.frames(1, "corner")
    assert frames.shape == (12, 32, 48, 3)
    assert np.array_equal(reader.frames(1, "corner", [11, 3]), frames[[11, 3]])
    only = reader.load(1, cameras=["gripper"])
    assert set(only.steps[0].observation.images) == {"gripper"}
    assert_same(reader.load(1, frames=False), episode, pictures=False)
    assert reader.load(1, frames=False).steps[0].observation.images == {}
    with pytest.raises(DatasetError, match="no camera 'top'"):
        reader.frames(1, "top")
    for indices in ([12], [-1], []):
        with pytest.raises(DatasetError, match="steps 0 to 11"):
            reader.frames(1, "corner", indices)
    with pytest.raises(DatasetError, match="episodes 0 to 2, got 3"):
        reader.load(3)


def test_the_files_are_what_lerobot_expects(recorded: Path) -> None:
    info = json.loads((recorded / "meta/info.json").read_text(encoding="utf-8"))
    assert info["codebase_version"] == "v3.0" and info["splits"] == {"train": "0:3"}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 36, 1)
    tasks = pq.read_table(recorded / "meta/tasks.parquet")
    assert tasks.to_pylist() == [{"task_index": 0, "task": "open the drawer"}]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    rows = pq.read_table(recorded / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    key = "videos/observation.images.corner"
    assert rows[1][f"{key}/from_timestamp"] == 12 / 20
    assert rows[1]["tasks"] == ["open the drawer"] and rows[1]["dataset_from_index"] == 12
    said = [(row["style"], row["content"]) for row in rows[1]["language_persistent"]]
    assert said == [("plan", PLAN.text), *(("subtask", s.text) for s in PLAN.subgoals)]
    times = [row["timestamp"] for row in rows[1]["language_persistent"]]
    assert times == pytest.approx([0, 0, 6 / 20])
    assert set(rows[1]["language_persistent"][0]) == {
        "role", "content", "style", "timestamp", "camera", "tool_calls"
    }  # fmt: skip
    data = pq.ParquetFile(recorded / "data/chunk-000/file-000.parquet")
    assert set(data.schema_arrow.names) == {
        name for name, f in info["features"].items() if f["dtype"] != "video"
    }
    assert data.num_row_groups == 3
    assert sorted(p.name for p in recorded.iterdir()) == ["data", "meta", "videos"]


def test_statistics_are_those_of_all_steps(recorded: Path) -> None:
    stats = json.loads((recorded / "meta/stats.json").read_text())
    reader = DatasetReader(recorded)
    states = np.concatenate([reader.arrays(i)["observation.state"] for i in range(3)])
    ours = {name: np.array(values) for name, values in stats["observation.state"].items()}
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(ours[name], getattr(states, name)(0), rtol=1e-5)
    assert ours["count"].tolist() == [36]
    pictures = np.concatenate(
        [[s.observation.images["corner"] for s in make_episode(i).steps] for i in range(3)]
    )
    for name in ("min", "max", "mean", "std"):
        values = np.array(stats["observation.images.corner"][name])
        assert values.shape == (3, 1, 1)
        expected = getattr(pictures / 255, name)((0, 1, 2))
        np.testing.assert_allclose(values[:, 0, 0], expected, atol=1e-9)
    assert "observation.pixels.corner" not in stats
    assert np.isfinite([v for s in stats.values() for v in np.ravel(s["std"])]).all()


def test_sizes_of_one_are_plain_values_and_no_nouns_no_column(tmp_path: Path) -> None:
    episode = make_episode()
    steps = [
        dataclasses.replace(
            step,
            action=step.action[:1],
            observation=Observation({}, step.observation.state[:1]),
            pixels={},
        )
        for step in episode.steps[:1]
    ]
    with new_writer(tmp_path / "d", cameras={}, state_names=["x"], action_names=["a"]) as writer:
        writer.add(dataclasses.replace(episode, steps=steps))
    table = pq.read_table(tmp_path / "d/data/chunk-000/file-000.parquet")
    assert str(table.schema.field("action").type) == "float"
    reader = DatasetReader(tmp_path / "d")
    assert reader.arrays(0)["action"].shape == (1, 1) and reader.nouns == []
    assert np.array_equal(reader.load(0).steps[0].action, steps[0].action)


def test_a_refused_plan_comes_back(tmp_path: Path) -> None:
    refused = Plan("fly", "There is nothing that flies.", (), refused="the scene offers no flying")
    episode = make_episode(instruction="fly", plan=refused, outcome="failure")
    steps = [dataclasses.replace(step, subgoal=0) for step in episode.steps]
    with new_writer(tmp_path / "d") as writer:
        writer.add(dataclasses.replace(episode, steps=steps))
    meta = DatasetReader(tmp_path / "d").episodes[0]
    assert meta.plan == refused and not meta.success and meta.instruction == "fly"


# --------------------------------------------------------------------------- resuming and crashes


def test_resume_before_and_after_closing(tmp_path: Path) -> None:
    root = tmp_path / "d"
    new_writer(root).add(make_episode(0))  # never closed
    with pytest.raises(DatasetError, match=r"no finished episode: .*resume"):
        DatasetReader(root)
    writer = DatasetWriter.resume(root)
    assert writer.recorded == {("metaworld/drawer-open-v3", 0, "")}
    writer.add(make_episode(1, instruction="pull the drawer open"))
    writer.close()
    with DatasetWriter.resume(root) as writer:
        assert len(writer.recorded) == 2
        writer.add(make_episode(2))
        writer.add(make_episode(2, info={"tag": "noisy"}))
        assert ("metaworld/drawer-open-v3", 2, "noisy") in writer.recorded
    reader = DatasetReader(root)
    assert [meta.seed for meta in reader.episodes] == [0, 1, 2, 2]
    for i in (0, 2):  # the first was widened to the nouns that came later
        assert_same(reader.load(i), make_episode(i))
    assert [set(reader.arrays(i)["task_index"]) for i in range(4)] == [{0}, {1}, {0}, {0}]
    assert reader.arrays(3)["index"].tolist() == list(range(36, 48))
    stats = json.loads((root / "meta/stats.json").read_text())
    assert stats["action"]["count"] == [48]


def test_a_half_written_episode_is_forgotten(tmp_path: Path) -> None:
    root = tmp_path / "d"
    writer = new_writer(root)
    writer.add(make_episode(0))
    shutil.copytree(root / ".shards/000000", root / ".shards/000001.partial")
    writer = DatasetWriter.resume(root)
    assert len(writer.recorded) == 1 and not (root / ".shards/000001.partial").exists()
    writer.add(make_episode(1))
    writer.close()
    assert len(DatasetReader(root)) == 2


@pytest.mark.parametrize("step", ["move_data", "move_videos", "write_meta", "rmtree"])
def test_a_crash_while_closing_loses_and_doubles_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = record(tmp_path / "d", range(1))
    writer = DatasetWriter.resume(root)
    writer.add(make_episode(1))
    owner: Any = shutil if step == "rmtree" else recording
    original: Callable[..., Any] = getattr(owner, step)

    def crash(*args: Any, **kwargs: Any) -> None:
        if step != "rmtree":
            original(*args, **kwargs) if step != "write_meta" else None
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, crash)
        with pytest.raises(KeyboardInterrupt):
            writer.close()
    expected = 2 if step == "rmtree" else 1
    reader = DatasetReader(root)
    assert len(reader) == expected
    assert_same(reader.load(0), make_episode(0))
    with DatasetWriter.resume(root) as writer:
        writer.add(make_episode(2))
    for seed, episode in enumerate(DatasetReader(root)):
        assert_same(episode, make_episode(seed))
    assert len(DatasetReader(root)) == 3


def test_an_exception_leaves_the_episodes_waiting(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_writer(tmp_path / "d") as writer:
        writer.add(make_episode(0))
        raise RuntimeError
    assert len(DatasetWriter.resume(tmp_path / "d").recorded) == 1


def test_files_are_split_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embodied.episodes.shards.VIDEO_MB", 1e-6)
    monkeypatch.setattr("embodied.episodes.shards.DATA_MB", 1e-6)
    monkeypatch.setattr("embodied.episodes.places.FILES_PER_FOLDER", 2)
    root = record(tmp_path / "d", range(3))
    assert (root / "data/chunk-001/file-000.parquet").is_file()
    assert (root / "videos/observation.images.corner/chunk-001/file-000.mp4").is_file()
    for seed, episode in enumerate(DatasetReader(root)):
        assert_same(episode, make_episode(seed))


# ------------------------------------------------------------------------------------- merging


def test_merge_equals_one_recording(tmp_path: Path) -> None:
    parts = [record(tmp_path / "a", range(2)), record(tmp_path / "b", range(2, 4), n=7)]
    merge(parts, tmp_path / "all")
    reader = DatasetReader(tmp_path / "all")
    assert reader.nouns == ["thing 0", "drawer handle", "thing 1", "thing 2", "thing 3"]
    for seed, episode in enumerate(reader):
        assert_same(episode, make_episode(seed, 12 if seed < 2 else 7))
    assert np.concatenate([reader.arrays(i)["index"] for i in range(4)]).tolist() == [*range(38)]
    with new_writer(tmp_path / "one") as writer:
        for seed in range(4):
            writer.add(make_episode(seed, 12 if seed < 2 else 7))
    ours, theirs = (
        json.loads((tmp_path / name / "meta/stats.json").read_text()) for name in ("all", "one")
    )
    assert ours == theirs
    with DatasetWriter.resume(tmp_path / "all") as writer:
        writer.add(make_episode(4))
    assert len(DatasetReader(tmp_path / "all")) == 5


def test_merge_renumbers_tasks(tmp_path: Path) -> None:
    roots = []
    for i, words in enumerate((("a", "b"), ("b", "c", "a"))):
        roots.append(tmp_path / str(i))
        with new_writer(roots[-1]) as writer:
            for j, word in enumerate(words):
                writer.add(make_episode(10 * i + j, 3, instruction=word))
    merge(roots, tmp_path / "all")
    reader = DatasetReader(tmp_path / "all")
    tasks = pq.read_table(tmp_path / "all/meta/tasks.parquet")["task"].to_pylist()
    assert tasks == ["a", "b", "c"]
    for meta in reader.episodes:
        expected = tasks.index(meta.instruction)
        assert set(reader.arrays(meta.index)["task_index"]) == {expected}


def test_merge_refuses_what_does_not_fit(tmp_path: Path, recorded: Path) -> None:
    with pytest.raises(DatasetError, match=r"is both in .*disjoint seeds"):
        merge([recorded, recorded], tmp_path / "all")
    with new_writer(tmp_path / "slow", fps=10) as writer:
        writer.add(make_episode(9))
    with pytest.raises(DatasetError, match=r"has fps 20, .* has 10"):
        merge([recorded, tmp_path / "slow"], tmp_path / "all")
    with pytest.raises(DatasetError, match="at least one folder"):
        merge([], tmp_path / "all")
    with pytest.raises(DatasetError, match="merge into a new folder"):
        merge([recorded], tmp_path / "slow")
    new_writer(tmp_path / "open").add(make_episode(8))
    with pytest.raises(DatasetError, match="finish recording"):
        merge([recorded, tmp_path / "open"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), OSError("disk full"), DatasetError("x")])
@pytest.mark.parametrize("place", ["rewrite", "write_meta"])
def test_a_merge_that_fails_takes_away_its_own_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: BaseException, place: str
) -> None:
    parts = [record(tmp_path / "a", range(1), n=3), record(tmp_path / "b", range(1, 2), n=3)]
    others = [tmp_path / f".all.{name}.partial" for name in (os.getpid(), "x")]
    for other in others:  # of another process, maybe one with our number
        (other / "data").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    do, n_calls = getattr(merging, place), 0

    def fail(*args: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        do(*args)
        if n_calls == (2 if place == "rewrite" else 1):  # once something is written
            assert sorted(tmp_path.rglob("*")) != before
            raise trouble

    with monkeypatch.context() as patch:
        patch.setattr(merging, place, fail)
        with pytest.raises(type(trouble)):
            merge(parts, tmp_path / "all")
    assert sorted(tmp_path.rglob("*")) == before
    merge(parts, tmp_path / "all")
    assert len(DatasetReader(tmp_path / "all")) == 2
    assert all((other / "data").is_dir() for other in others)
    assert len(list(tmp_path.glob(".*"))) == len(others)
    assert (tmp_path / "all").stat().st_mode == (tmp_path / "a").stat().st_mode


def test_merge_makes_the_folders_above(tmp_path: Path, recorded: Path) -> None:
    merge([recorded], tmp_path / "made" / "all")
    assert len(DatasetReader(tmp_path / "made" / "all")) == 3
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["all"]


# -------------------------------------------------------------------------------------- errors


def spoil_step(episode: Episode, **changes: Any) -> Episode:
    steps = list(episode.steps)
    steps[3] = dataclasses.replace(steps[3], **changes)
    return dataclasses.replace(episode, steps=steps)


def test_bad_episodes_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    writer, good = new_writer(tmp_path / "d"), make_episode(5)
    state = good.steps[0].observation.state
    bad = {
        "seed 5, has no step": dataclasses.replace(good, steps=[]),
        r"has the action \[.*nan.*at step 3: it must be finite": spoil_step(
            good, action=np.float32([0, np.nan, 0, 0])
        ),
        r"action of shape \(3,\) at step 3, expected \(4,\)": spoil_step(
            good, action=np.zeros(3, np.float32)
        ),
        r"has pictures \{\} at step 3, expected": spoil_step(
            good, observation=Observation({}, state)
        ),
        "is at sub-goal 2 at step 3, of 2": spoil_step(good, subgoal=2),
        r"pixel labels for \['top'\]": spoil_step(good, pixels={"x": {"top": (0.0, 0.0)}}),
        "cannot store object": dataclasses.replace(good, info={"x": object()}),
    }
    for message, episode in bad.items():
        with pytest.raises(DatasetError, match=message):
            writer.add(episode)
    writer.add(good)
    with pytest.raises(DatasetError, match=r"recorded already in .*info\['tag'\]"):
        writer.add(good)
    writer.close()
    assert len(DatasetReader(tmp_path / "d")) == 1


def test_bad_writers_are_refused(tmp_path: Path, recorded: Path) -> None:
    with pytest.raises(DatasetError, match="is not empty: give another folder"):
        new_writer(recorded)
    with pytest.raises(DatasetError, match="fps=12.5: round it"):
        new_writer(tmp_path / "a", fps=12.5)
    with pytest.raises(DatasetError, match="camera 'odd' of 31x32"):
        new_writer(tmp_path / "a", cameras={"odd": (31, 32)})
    with pytest.raises(DatasetError, match=r"no data set at .*info.json' is missing"):
        DatasetWriter.resume(tmp_path / "nothing")


def test_missing_and_cut_files_are_named(copy: Path) -> None:
    film = copy / "videos/observation.images.gripper/chunk-000/file-000.mp4"
    saved = film.read_bytes()
    film.write_bytes(saved[:900])
    with pytest.raises(DatasetError, match=r"cannot decode '.*gripper/chunk-000/file-000.mp4'"):
        DatasetReader(copy)
    film.unlink()
    with pytest.raises(DatasetError, match=r"no video at '.*file-000.mp4'"):
        DatasetReader(copy)
    video.write_mp4(film, np.zeros((30, 32, 32, 3), np.uint8), 20)
    with pytest.raises(DatasetError, match="has 30 frames, meta/episodes promises 36"):
        DatasetReader(copy)
    film.write_bytes(saved)
    DatasetReader(copy)
    data = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(data)
    pq.write_table(table.slice(0, 30), data)
    with pytest.raises(DatasetError, match=r"'.*file-000.parquet' has 30 rows.*promises 36"):
        DatasetReader(copy)
    pq.write_table(table.drop_columns(["next.done"]), data)
    with pytest.raises(DatasetError, match=r"lacks the columns \['next.done'\]"):
        DatasetReader(copy)
    data.write_bytes(data.read_bytes()[:500])
    with pytest.raises(DatasetError, match="is damaged"):
        DatasetReader(copy)
    data.unlink()
    with pytest.raises(DatasetError, match="file-000.parquet' is missing"):
        DatasetReader(copy)


def test_nan_actions_are_named(copy: Path) -> None:
    data = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(data)
    actions = to_numpy(table["action"])
    actions[[13, 20], 2] = np.nan
    place = table.column_names.index("action")
    pq.write_table(table.set_column(place, "action", to_arrow(actions)), data)
    with pytest.raises(DatasetError, match=r"in 'action' of episode 1 \(2 rows in all\)"):
        DatasetReader(copy)


def test_wrong_meta_is_named(copy: Path, tmp_path: Path) -> None:
    path = copy / "meta/info.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**info, "total_episodes": 4}))
    with pytest.raises(DatasetError, match=r"has 3 episodes, meta/info.json promises 4"):
        DatasetReader(copy)
    path.write_text(json.dumps({**info, "codebase_version": "v2.0"}))
    with pytest.raises(DatasetError, match=r"LeRobotDataset v2.0, v3.0 or v2.1 is needed: conv"):
        DatasetReader(copy)
    path.write_text(json.dumps({**info, "codebase_version": "v2.1", "chunks_size": 500}))
    with pytest.raises(DatasetError, match="500 episodes a folder, 1000 are expected: convert"):
        DatasetReader(copy)
    path.write_text(json.dumps({**info, "codebase_version": "v2.1"}))
    with pytest.raises(DatasetError, match=r"cannot read '.*episodes.jsonl' \(FileNotFoundError"):
        DatasetReader(copy)
    path.write_text("{")
    with pytest.raises(DatasetError, match=r"cannot read '.*info.json'"):
        DatasetReader(copy)
    with pytest.raises(DatasetError, match="no data set at"):
        DatasetReader(tmp_path)


def test_sets_of_other_software_are_read_but_not_continued(copy: Path) -> None:
    info = json.loads((copy / "meta/info.json").read_text(encoding="utf-8"))
    del info["embodied"]
    (copy / "meta/info.json").write_text(json.dumps(info))
    path = copy / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(list(OWN)), path)
    reader = DatasetReader(copy)
    assert reader.episodes[2].instruction == "open the drawer"
    assert reader.episodes[2].plan.refused == "the data set records no plan"
    assert [meta.outcome for meta in reader.episodes] == ["success"] * 3  # from next.success
    assert reader.load(2).steps[5].observation.images["corner"].shape == (32, 48, 3)
    with pytest.raises(DatasetError, match="recorded by other software"):
        DatasetWriter.resume(copy)
    with pytest.raises(DatasetError, match="recorded by other software"):
        merge([copy], copy.parent / "all")
