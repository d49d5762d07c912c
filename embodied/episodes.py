"""Episode ↔ LeRobotDataset v3.0, the format that `lerobot` 0.4.4 and newer reads.

What is written, under the data set's root:

    meta/info.json        features, fps, counts; under "embodied" what is ours
    meta/stats.json       per feature min, max, mean, std, count and quantiles
    meta/tasks.parquet    the instructions
    meta/episodes/…       one row an episode: where its rows and frames are, its statistics, and
                          ours: env_id, task, seed, layout_sha, instruction, outcome, tag, plan and
                          info (JSON), and `language_persistent` in LeRobot's own row type
    data/…                one row a control step, one row group an episode
    videos/<camera>/…     H.264, episodes end to end

`language_persistent` is in meta/episodes because lerobot 0.4.4 refuses it as a column of data.
`observation.pixels.<camera>` holds x and y of each noun in 0..1 of the picture, NaN where it was
not given. It has no statistics, and neither have the running numbers.

While recording, whole episodes wait as folders in `.shards`; `close` moves them into the data set
and writes meta/info.json last. Whatever the moment of a crash, nothing half-written is ever seen.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embodied import video
from embodied.types import Episode, Observation, Outcome, Plan, Step, Subgoal

VERSION = "v3.0"
FILES_PER_FOLDER = 1000
DATA_MB, VIDEO_MB = 20, 50  # about the size of one file; small ones open quickly
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATS = ("min", "max", "mean", "std", "count", *QUANTILES)

Key = tuple[str, int, str]  # env_id, seed, tag
Info = dict[str, Any]  # meta/info.json
Row = dict[str, Any]  # a row of meta/episodes

_IMAGES, _PIXELS = "observation.images.", "observation.pixels."
_NUMBERS = ("episode_index", "index", "task_index")  # known only when an episode is moved in
_LANGUAGE = pa.list_(
    pa.struct(
        [
            pa.field("role", pa.string(), nullable=False),
            pa.field("content", pa.string()),
            pa.field("style", pa.string()),
            pa.field("timestamp", pa.float32(), nullable=False),
            pa.field("camera", pa.string()),
            pa.field("tool_calls", pa.list_(pa.string())),
        ]
    )
)
_OWN = {  # our columns of meta/episodes
    "env_id": pa.string(),
    "task": pa.string(),
    "instruction": pa.string(),
    "seed": pa.int64(),
    "layout_sha": pa.string(),
    "outcome": pa.string(),
    "tag": pa.string(),
    "plan": pa.string(),
    "info": pa.string(),
    "language_persistent": _LANGUAGE,
}


class DatasetError(ValueError):
    """A data set, or an episode for it, is not as it must be; the message names what and where."""


@dataclass(frozen=True)
class EpisodeMeta:
    """What is known of an episode without reading its steps.

    Args:
        index: its number in the data set.
        length: control steps.
        tag: `info["tag"]`, a free word that tells apart episodes of one environment and seed.
        info: the episode's own, as JSON gives it back.
    """

    index: int
    env_id: str
    task: str
    instruction: str
    seed: int
    layout_sha: str
    plan: Plan
    outcome: Outcome
    length: int
    tag: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.env_id, self.seed, self.tag

    @property
    def success(self) -> bool:
        return self.outcome == "success"


# ------------------------------------------------------------------------------------- recording


class DatasetWriter:
    """Records episodes into a data set.

    Args:
        root: a folder that does not exist yet, or is empty. One writer a folder: processes that
            record in parallel have one each, and `merge` puts them together.
        fps: control steps a second, whole: LeRobot knows no others. Where the true rate is not
            (12.5 Hz in the kitchen), round it and keep the true one in `extra`.
        cameras: name → (height, width), both even.
        state_names, action_names: one name for each entry of the state and of the action.
        robot_type: such as "sawyer" or "franka".
        extra: anything JSON to keep in meta/info.json: versions, command, render flags …

    Raises:
        DatasetError: if the folder is in use or an argument cannot be stored.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fps: int,
        cameras: Mapping[str, tuple[int, int]],
        state_names: Sequence[str],
        action_names: Sequence[str],
        robot_type: str = "unknown",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        root = Path(root)
        if root.exists() and any(root.iterdir()):
            raise DatasetError(
                f"'{root}' is not empty: give another folder, or continue the data set in it "
                f"with DatasetWriter.resume"
            )
        features = _features(fps, cameras, state_names, action_names)
        info = _new_info(int(fps), features, robot_type, extra or {})
        _write_json(root / "meta/info.json", info)
        self._open(root)

    @classmethod
    def resume(cls, root: str | Path) -> DatasetWriter:
        """Go on recording where a writer stopped, closed or not.

        Raises:
            DatasetError: if `root` is not a data set that a DatasetWriter began.
        """
        writer = cls.__new__(cls)
        writer._open(Path(root))
        return writer

    def _open(self, root: Path) -> None:
        self.root, self._info, self._shards = root, _read_info(root), root / ".shards"
        if "embodied" not in self._info:
            raise DatasetError(f"'{root}' was recorded by other software: record into a new folder")
        first = self._info["embodied"]["next_shard"]
        for folder in list(self._shards.glob("*")):
            if not folder.name.isdigit() or int(folder.name) < first:
                shutil.rmtree(folder)  # half-written, or moved by a close that ended early
        numbers = sorted(int(folder.name) for folder in self._shards.glob("*"))
        self._next = numbers[-1] + 1 if numbers else first
        self._rows = _read_rows(root, self._info)
        self._waiting = {n: _read_json(self._shard(n) / "episode.json") for n in numbers}
        self._recorded = {_key(row) for row in (*self._rows, *self._waiting.values())}

    def _shard(self, number: int) -> Path:
        return self._shards / f"{number:06d}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()

    @property
    def recorded(self) -> set[Key]:
        """(env_id, seed, tag) of every episode that is there, moved in or waiting."""
        return set(self._recorded)

    def add(self, episode: Episode) -> None:
        """Write one episode, in whole or not at all.

        Raises:
            DatasetError: if it has no step, differs from the data set in cameras or sizes, has an
                action that is not finite, or was recorded before.
        """
        _check_episode(episode, self._info)
        row = _own_row(episode)
        if _key(row) in self._recorded:
            raise DatasetError(
                f"the episode {_key(row)} (env_id, seed, tag) is recorded already in "
                f"'{self.root}': leave it out, or tell it apart by info['tag']"
            )
        folder = self._shards / f"{self._next:06d}.partial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._waiting[self._next] = _write_shard(folder, episode, row, self._info)
        os.replace(folder, self._shard(self._next))
        self._next += 1
        self._recorded.add(_key(row))

    def close(self) -> None:
        """Move the waiting episodes into the data set. A later `resume` may add more."""
        if not self._waiting:
            return
        shards = [self._shard(number) for number in self._waiting]
        new = [dict(row) for row in self._waiting.values()]
        nouns = _union([_nouns(self._info), *(row.pop("nouns") for row in new)])
        if nouns != _nouns(self._info):
            _set_nouns(self._info, nouns)
            for number in _numbers(self._rows, "data"):
                path = self.root / _file(self._info, "data", number)
                _rewrite(path, path, self._info)
        _count_up(new, self._rows)
        tasks = _union([_read_tasks(self.root), *(row["tasks"] for row in new)])
        _move_data(self.root, self._info, shards, new, self._rows, tasks)
        for camera in _cameras(self._info):
            _move_videos(self.root, self._info, camera, shards, new, self._rows)
        self._info["embodied"]["next_shard"] = self._next
        self._rows = _write_meta(self.root, self._info, self._rows, new, tasks)
        self._waiting = {}
        shutil.rmtree(self._shards)


def _check_episode(episode: Episode, info: Info) -> None:
    what = f"the episode of '{episode.env_id}', seed {episode.seed},"
    if not episode.steps:
        raise DatasetError(f"{what} has no step: there is nothing to record")
    cameras = _cameras(info)
    sizes = {"state": len(_names(info, "observation.state")), "action": len(_names(info, "action"))}
    for t, step in enumerate(episode.steps):
        images = {name: image.shape[:2] for name, image in step.observation.images.items()}
        if images != cameras:
            raise DatasetError(f"{what} has pictures {images} at step {t}, expected {cameras}")
        for name, vector in (("state", step.observation.state), ("action", step.action)):
            if np.shape(vector) != (sizes[name],):
                raise DatasetError(
                    f"{what} has a {name} of shape {np.shape(vector)} at step {t}, "
                    f"expected ({sizes[name]},)"
                )
        if not np.isfinite(step.action).all():
            raise DatasetError(
                f"{what} has the action {step.action} at step {t}: it must be finite"
            )
        if not 0 <= step.subgoal < max(1, len(episode.plan.subgoals)):
            count = len(episode.plan.subgoals)
            raise DatasetError(f"{what} is at sub-goal {step.subgoal} at step {t}, of {count}")
        unknown = {camera for places in step.pixels.values() for camera in places} - set(cameras)
        if unknown:
            raise DatasetError(
                f"{what} has pixel labels for {sorted(unknown)} at step {t}, which is not among "
                f"the cameras {sorted(cameras)}"
            )


def _own_row(episode: Episode) -> Row:
    """The episode's row of meta/episodes, as far as it is ours."""
    plan = episode.plan
    row = {name: getattr(episode, name) for name in ("env_id", "task", "instruction", "outcome")}
    row |= {"seed": int(episode.seed), "layout_sha": episode.layout_sha}
    row |= {"tag": str(episode.info.get("tag", "")), "length": len(episode.steps)}
    fields = {"instruction": plan.instruction, "thought": plan.thought, "tasks": plan.tasks}
    subgoals = [[subgoal.verb, *subgoal.args] for subgoal in plan.subgoals]
    row["plan"] = _dumps({**fields, "subgoals": subgoals, "refused": plan.refused})
    row["info"] = _dumps(dict(episode.info))
    return row


def _language(episode: Episode, timestamps: np.ndarray) -> list[Row]:
    """The plan, and each sub-goal from the moment that it became the current one."""

    def say(style: str, content: str, t: int) -> Row:
        row = {"role": "assistant", "content": content, "style": style}
        return row | {"timestamp": float(timestamps[t]), "camera": None, "tool_calls": None}

    plan, current = episode.plan, -1
    rows = [say("plan", plan.text if plan.refused is None else plan.refused, 0)]
    for t, step in enumerate(episode.steps):
        if plan.subgoals and step.subgoal != current:
            current = step.subgoal
            rows.append(say("subtask", plan.subgoals[current].text, t))
    return rows


def _columns(episode: Episode, info: Info, nouns: Sequence[str]) -> dict[str, np.ndarray]:
    """Feature → (T, D), but for videos and running numbers."""
    steps, length = episode.steps, len(episode.steps)
    frame = np.arange(length)
    columns = {
        "observation.state": np.stack([step.observation.state for step in steps]),
        "action": np.stack([step.action for step in steps]),
        "next.reward": np.array([step.reward for step in steps]),
        "next.done": frame == length - 1,
        "next.success": np.array([step.success for step in steps]),
        "subgoal_index": np.array([step.subgoal for step in steps]),
        "subgoal.done": np.array([step.done for step in steps]),
        "timestamp": frame / info["fps"],
        "frame_index": frame,
    }
    for camera in _cameras(info) if nouns else ():
        pixels = np.full((length, len(nouns), 2), np.nan)
        for t, step in enumerate(steps):
            for noun, places in step.pixels.items():
                pixels[t, nouns.index(noun)] = places.get(camera, np.nan)
        columns[_PIXELS + camera] = pixels
    dtypes = {name: feature["dtype"] for name, feature in info["features"].items()}
    return {
        name: values.reshape(length, -1).astype(dtypes.get(name, "float32"))
        for name, values in columns.items()
    }


def _write_shard(folder: Path, episode: Episode, row: Row, info: Info) -> Row:
    """Everything of one episode into a folder; its row with statistics and the nouns in order."""
    nouns = _union([tuple(step.pixels) for step in episode.steps])
    columns = _columns(episode, info, nouns)
    said = _language(episode, columns["timestamp"][:, 0])
    row = row | {"nouns": nouns, "language_persistent": said}
    stats = {name: _vector_stats(columns[name]) for name in _with_stats(info) if name in columns}
    for camera in _cameras(info):
        frames = np.stack([step.observation.images[camera] for step in episode.steps])
        video.write_mp4(folder / f"{camera}.mp4", frames, info["fps"])
        stats[_IMAGES + camera] = _image_stats(frames)
    for name, values in stats.items():
        row |= {f"stats/{name}/{stat}": value.tolist() for stat, value in values.items()}
    arrays = {name: _to_arrow(values) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), folder / "data.parquet")
    _write_json(folder / "episode.json", row)
    return row


def _count_up(new: list[Row], before: list[Row]) -> None:
    """Give episodes their numbers, and the numbers of their steps."""
    start = sum(row["length"] for row in before)
    for number, row in enumerate(new, len(before)):
        row |= {"episode_index": number, "tasks": [row["instruction"]]}
        row |= {"dataset_from_index": start, "dataset_to_index": start + row["length"]}
        start += row["length"]


def _move_data(
    root: Path, info: Info, shards: list[Path], new: list[Row], before: list[Row], tasks: list[str]
) -> None:
    sizes = [(shard / "data.parquet").stat().st_size for shard in shards]
    for number, group in enumerate(_groups(sizes, DATA_MB), _next_file(before, "data")):
        path = root / _file(info, "data", number)
        schema = _data_schema(info)
        with video.replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
            for i in group:
                row, table = new[i], pq.read_table(shards[i] / "data.parquet")
                steps = np.arange(row["dataset_from_index"], row["dataset_to_index"])
                task = tasks.index(row["instruction"])
                for name, value in zip(_NUMBERS, (row["episode_index"], steps, task), strict=True):
                    column = np.broadcast_to(value, row["length"]).astype(np.int64)
                    table = table.append_column(name, _to_arrow(column[:, None]))
                nouns = _read_json(shards[i] / "episode.json")["nouns"]
                writer.write_table(_fit(table, nouns, info))
                _assign(row, "data", number)


def _move_videos(
    root: Path, info: Info, camera: str, shards: list[Path], new: list[Row], before: list[Row]
) -> None:
    kind = f"videos/{_IMAGES}{camera}"
    parts = [shard / f"{camera}.mp4" for shard in shards]
    groups = _groups([part.stat().st_size for part in parts], VIDEO_MB)
    for number, group in enumerate(groups, _next_file(before, kind)):
        video.join_mp4([parts[i] for i in group], root / _file(info, kind, number))
        start = 0
        for row in (new[i] for i in group):
            _assign(row, kind, number)
            row[f"{kind}/from_timestamp"] = start / info["fps"]
            start += row["length"]
            row[f"{kind}/to_timestamp"] = start / info["fps"]


# --------------------------------------------------------------------------------------- merging


def merge(roots: Sequence[str | Path], out: str | Path) -> None:
    """Put closed data sets together, in the order given, into a new one. Nothing is encoded again.

    Args:
        roots: data sets of equal fps, cameras, state and action.
        out: a folder that does not exist yet.

    Raises:
        DatasetError: if a data set is damaged, unfinished or differs from the first, two hold the
            same episode, or `out` exists.
    """
    out = Path(out)
    if not roots:
        raise DatasetError("no data sets to merge: give at least one folder")
    if out.exists():
        raise DatasetError(f"'{out}' exists: merge into a new folder")
    readers = [DatasetReader(root) for root in roots]
    _check_mergeable(readers)
    info = json.loads(_dumps(readers[0].info))
    info["embodied"]["next_shard"] = 0
    _set_nouns(info, _union([reader.nouns for reader in readers]))
    copies = [(reader, _read_rows(reader.root, reader.info)) for reader in readers]
    tasks = _union([_read_tasks(reader.root) for reader in readers])
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    merged: list[Row] = []
    for reader, rows in copies:
        _copy_into(partial, info, reader, rows, merged, tasks)
        merged += rows
    _write_meta(partial, info, [], merged, tasks)
    os.replace(partial, out)


def _check_mergeable(readers: Sequence[DatasetReader]) -> None:
    first = readers[0]
    owner: dict[Key, Path] = {}
    for reader in readers:
        if "embodied" not in reader.info:
            raise DatasetError(f"cannot merge '{reader.root}': it was recorded by other software")
        for name in ("fps", "cameras", "state_names", "action_names"):
            ours, theirs = getattr(first, name), getattr(reader, name)
            if ours != theirs:
                raise DatasetError(
                    f"cannot merge: '{first.root}' has {name} {ours}, '{reader.root}' has {theirs}"
                )
        for episode in reader.episodes:
            if episode.key in owner:
                raise DatasetError(
                    f"cannot merge: the episode {episode.key} (env_id, seed, tag) is both in "
                    f"'{owner[episode.key]}' and in '{reader.root}': record disjoint seeds"
                )
            owner[episode.key] = reader.root


def _copy_into(
    root: Path,
    info: Info,
    reader: DatasetReader,
    rows: list[Row],
    before: list[Row],
    tasks: list[str],
) -> None:
    """Copy a data set's files behind those in `root`, and renumber its rows accordingly."""
    steps = sum(row["length"] for row in before)
    task_numbers = [tasks.index(task) for task in _read_tasks(reader.root)]
    for kind in ("data", *(f"videos/{_IMAGES}{camera}" for camera in reader.cameras)):
        first = _next_file(before, kind)
        files = {old: new for new, old in enumerate(_numbers(rows, kind), first)}
        for old, new in files.items():
            source, target = (
                reader.root / _file(reader.info, kind, old),
                root / _file(info, kind, new),
            )
            if kind == "data":
                _rewrite(source, target, info, (len(before), steps), task_numbers)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        for row in rows:
            _assign(row, kind, files[_number(row, kind)])
    _count_up(rows, before)


# --------------------------------------------------------------------------------------- reading


class DatasetReader:
    """Reads a data set. Opening it checks it; pictures are decoded only when asked for.

    Data sets that other software recorded are read too, if their pictures are videos: they come
    without plans, and without `next.success` each episode counts as a success.

    Args:
        root: the data set's folder.

    Attributes:
        episodes: what is known of each episode, in order.
        fps, cameras, state_names, action_names, nouns, info: as recorded.

    Raises:
        DatasetError: naming the file and the remedy, if one is missing, cut short or damaged, if
            the steps of data, meta and videos differ in number, or a state or action is not finite.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.info = _read_info(self.root)
        self.fps: int = self.info["fps"]
        self.cameras = _cameras(self.info)
        self.state_names = _names(self.info, "observation.state")
        self.action_names = _names(self.info, "action")
        self.nouns = _nouns(self.info)
        if not self.info["total_episodes"]:
            raise DatasetError(
                f"'{self.root}' has no finished episode: finish recording with "
                f"DatasetWriter.resume('{self.root}').close()"
            )
        self._rows = _read_rows(self.root, self.info, stats=False)
        self._check_data()
        for camera in self.cameras:
            self._check_videos(camera)
        self.episodes = [_to_meta(row | {"outcome": self._outcome(row)}) for row in self._rows]

    def __len__(self) -> int:
        return len(self.episodes)

    def __iter__(self) -> Iterator[Episode]:
        return (self.load(i) for i in range(len(self)))

    def arrays(self, i: int) -> dict[str, np.ndarray]:
        """Every column of an episode but its videos.

        Returns:
            name → (T,), or (T, D) for the state, the action and the pixels: float32, int64, bool.
        """
        row = self._row(i)
        table = self._table(row)
        if set(table["episode_index"].to_pylist()) != {i}:
            path = self._path(row, "data")
            raise DatasetError(f"'{path}' has rows of other episodes in place of episode {i}'s")
        vectors = ("observation.state", "action", *(_PIXELS + camera for camera in self.cameras))
        return {
            name: values if name in vectors or values.shape[1] > 1 else values[:, 0]
            for name, values in ((n, _to_numpy(table[n])) for n in table.column_names)
        }

    def frames(
        self, i: int, camera: str, indices: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """Pictures of an episode, uint8 (T, H, W, 3): of all its steps, or of those asked for.

        Raises:
            DatasetError: if there is no such camera or step.
        """
        if camera not in self.cameras:
            raise DatasetError(f"no camera '{camera}' in '{self.root}': it has {[*self.cameras]}")
        row, kind = self._row(i), f"videos/{_IMAGES}{camera}"
        steps = np.arange(row["length"]) if indices is None else np.asarray(indices)
        if not len(steps) or steps.min() < 0 or steps.max() >= row["length"]:
            raise DatasetError(f"episode {i} has the steps 0 to {row['length'] - 1}, got {indices}")
        first = round(row[f"{kind}/from_timestamp"] * self.fps)
        return video.read_mp4(self._path(row, kind), first + steps)

    def load(self, i: int, cameras: Collection[str] | None = None, frames: bool = True) -> Episode:
        """The whole episode, as it was recorded but for what compression loses of the pictures.

        Args:
            i: its number.
            cameras: those wanted; all when None.
            frames: whether to decode pictures at all; without, observations hold the state only.
        """
        meta, columns = self.episodes[self._row(i)["episode_index"]], self.arrays(i)
        wanted = (self.cameras if cameras is None else cameras) if frames else ()
        clips = {camera: self.frames(i, camera) for camera in wanted}
        pixels = _to_pixels(columns, self.cameras, self.nouns)
        nothing = np.zeros(meta.length)
        labels = [
            columns.get(name, nothing)
            for name in ("subgoal_index", "subgoal.done", "next.reward", "next.success")
        ]
        steps = []
        for t, (subgoal, done, reward, success) in enumerate(zip(*labels, strict=True)):
            images = {camera: clip[t] for camera, clip in clips.items()}
            seen, action = (
                Observation(images, columns["observation.state"][t]),
                columns["action"][t],
            )
            labelled = (int(subgoal), bool(done), float(reward), bool(success), pixels[t])
            steps.append(Step(seen, action, *labelled))
        m = meta
        return Episode(
            m.env_id, m.task, m.instruction, m.seed, m.layout_sha, m.plan, steps, m.outcome, m.info
        )

    def _row(self, i: int) -> Row:
        if not 0 <= i < len(self._rows):
            raise DatasetError(
                f"'{self.root}' has the episodes 0 to {len(self._rows) - 1}, got {i}"
            )
        return self._rows[i]

    def _path(self, row: Row, kind: str) -> Path:
        return self.root / _file(self.info, kind, _number(row, kind))

    def _table(self, row: Row) -> pa.Table:
        """An episode's rows; only the row groups that hold them are read."""
        same = [r for r in self._rows if _number(r, "data") == _number(row, "data")]
        start = row["dataset_from_index"] - min(r["dataset_from_index"] for r in same)
        with _open_parquet(self._path(row, "data")) as file:
            groups = range(file.num_row_groups)
            ends = np.cumsum([file.metadata.row_group(g).num_rows for g in groups])
            stop = start + row["length"]
            first, last = np.searchsorted(ends, [start, stop - 1], side="right")
            table = file.read_row_groups(
                [*range(first, last + 1)], columns=list(_stored(self.info))
            )
            nouns = _own_nouns(file)
        table = table.slice(start - (int(ends[first - 1]) if first else 0), row["length"])
        # A close that ended early may have given the file more nouns than info.json knows of.
        return table if nouns in (None, self.nouns) else _fit(table, nouns or [], self.info)

    def _check_data(self) -> None:
        missing = {"timestamp", "episode_index", "index", "task_index"} - set(self.info["features"])
        if missing:
            raise DatasetError(f"'{self.root}/meta/info.json' lacks the features {sorted(missing)}")
        for number in _numbers(self._rows, "data"):
            path = self.root / _file(self.info, "data", number)
            promised = sum(r["length"] for r in self._rows if _number(r, "data") == number)
            with _open_parquet(path) as file:
                absent = set(_stored(self.info)) - set(file.schema_arrow.names)
                if absent:
                    raise DatasetError(
                        f"'{path}' lacks the columns {sorted(absent)}: record it again"
                    )
                if file.metadata.num_rows != promised:
                    raise DatasetError(
                        f"'{path}' has {file.metadata.num_rows} rows, meta/episodes promises "
                        f"{promised}: copy the data set again, or record it again"
                    )
                table = file.read(columns=["episode_index", "observation.state", "action"])
            for name in ("observation.state", "action"):
                _check_finite(table, name, path)

    def _outcome(self, row: Row) -> str:
        """As recorded; else whether the environment ever reported success, if it did report."""
        if row.get("outcome"):
            return str(row["outcome"])
        reported = self.arrays(row["episode_index"]).get("next.success", np.True_)
        return "success" if np.any(reported) else "failure"

    def _check_videos(self, camera: str) -> None:
        kind = f"videos/{_IMAGES}{camera}"
        promised: dict[int, int] = {}
        for row in self._rows:
            span = [round(row[f"{kind}/{end}_timestamp"] * self.fps) for end in ("from", "to")]
            if span[1] - span[0] != row["length"]:
                raise DatasetError(
                    f"episode {row['episode_index']} of '{self.root}' has {row['length']} steps "
                    f"and {span[1] - span[0]} frames of '{camera}': record it again"
                )
            number = _number(row, kind)
            promised[number] = max(promised.get(number, 0), span[1])
        for number, count in promised.items():
            path = self.root / _file(self.info, kind, number)
            try:
                found = video.count_frames(path)
            except (FileNotFoundError, ValueError) as error:
                raise DatasetError(f"{error} ('{camera}' of '{self.root}')") from error
            if found != count:
                raise DatasetError(
                    f"'{path}' has {found} frames, meta/episodes promises {count}: copy the data "
                    f"set again, or record it again"
                )


def _check_finite(table: pa.Table, name: str, path: Path) -> None:
    bad = np.flatnonzero(~np.isfinite(_to_numpy(table[name])).all(axis=1))
    if len(bad):
        episode = table["episode_index"][int(bad[0])].as_py()
        raise DatasetError(
            f"'{path}' has NaN or infinity in '{name}' of episode {episode} ({len(bad)} rows in "
            f"all): leave that episode out, or record it again"
        )


def _to_meta(row: Row) -> EpisodeMeta:
    instruction = row.get("instruction") or "; ".join(row["tasks"])
    if row.get("plan"):
        saved = json.loads(row["plan"])
        subgoals = tuple(Subgoal(verb, tuple(args)) for verb, *args in saved["subgoals"])
        tasks, refused = tuple(saved["tasks"]), saved["refused"]
        plan = Plan(saved["instruction"], saved["thought"], subgoals, tasks, refused)
    else:
        plan = Plan(instruction, "", (), refused="the data set records no plan")
    return EpisodeMeta(
        index=row["episode_index"],
        env_id=row.get("env_id") or "",
        task=row.get("task") or "",
        instruction=instruction,
        seed=row.get("seed") or 0,
        layout_sha=row.get("layout_sha") or "",
        plan=plan,
        outcome=cast(Outcome, row["outcome"]),
        length=row["length"],
        tag=row.get("tag") or "",
        info=json.loads(row.get("info") or "{}"),
    )


def _to_pixels(
    columns: Mapping[str, np.ndarray], cameras: Collection[str], nouns: Sequence[str]
) -> list[dict[str, dict[str, tuple[float, float]]]]:
    """A mapping noun → (camera → (x, y)) for each step, without those that were not given."""
    steps: list[dict[str, dict[str, tuple[float, float]]]] = [{} for _ in columns["timestamp"]]
    for camera in cameras if nouns else ():
        pixels = columns[_PIXELS + camera].reshape(len(steps), len(nouns), 2)
        for t, n in np.argwhere(np.isfinite(pixels).all(axis=2)):
            x, y = pixels[t, n]
            steps[t].setdefault(nouns[n], {})[camera] = (float(x), float(y))
    return steps


# ---------------------------------------------------------------------------- the format itself


def _features(
    fps: int,
    cameras: Mapping[str, tuple[int, int]],
    state_names: Sequence[str],
    action_names: Sequence[str],
) -> dict[str, Any]:
    if fps != int(fps) or fps < 1:
        raise DatasetError(f"LeRobot stores whole frames per second, got fps={fps!r}: round it")
    for name, (height, width) in cameras.items():
        if height % 2 or width % 2 or "/" in name:
            raise DatasetError(
                f"camera '{name}' of {height}x{width}: sides must be even, and its name without '/'"
            )
    features: dict[str, Any] = {}
    for name, (height, width) in cameras.items():
        size = {"video.height": height, "video.width": width, "video.channels": 3}
        codec = {"video.codec": "h264", "video.pix_fmt": "yuv420p", "video.is_depth_map": False}
        features[_IMAGES + name] = _feature("video", ("height", "width", "channels")) | {
            "shape": [height, width, 3],
            "info": {**size, **codec, "video.fps": int(fps), "has_audio": False},
        }
    features["observation.state"] = _feature("float32", state_names)
    features["action"] = _feature("float32", action_names)
    for name, dtype in (
        ("next.reward", "float32"),
        ("next.done", "bool"),
        ("next.success", "bool"),
        ("subgoal_index", "int64"),
        ("subgoal.done", "bool"),
        ("timestamp", "float32"),
        ("frame_index", "int64"),
        *((number, "int64") for number in _NUMBERS),
    ):
        features[name] = _feature(dtype)
    return features


def _feature(dtype: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    shape = [1] if names is None else [len(names)]
    return {"dtype": dtype, "shape": shape, "names": None if names is None else list(names)}


def _new_info(
    fps: int, features: dict[str, Any], robot_type: str, extra: Mapping[str, Any]
) -> Info:
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    return {
        "codebase_version": VERSION,
        "robot_type": robot_type,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": FILES_PER_FOLDER,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": fps,
        "splits": {},
        "data_path": f"data/{place}.parquet",
        "video_path": f"videos/{{video_key}}/{place}.mp4",
        "features": features,
        "embodied": {"next_shard": 0, "extra": dict(extra)},
    }


def _cameras(info: Info) -> dict[str, tuple[int, int]]:
    """Camera → (height, width)."""
    cameras = {}
    for name, feature in info["features"].items():
        if feature["dtype"] == "image" or (
            feature["dtype"] == "video" and not name.startswith(_IMAGES)
        ):
            raise DatasetError(
                f"the feature '{name}' is not a video named '{_IMAGES}<camera>', the only pictures "
                f"that can be read: convert the data set with lerobot's tools"
            )
        if feature["dtype"] == "video":
            cameras[name.removeprefix(_IMAGES)] = (feature["shape"][0], feature["shape"][1])
    return cameras


def _names(info: Info, feature: str) -> list[str]:
    if feature not in info["features"]:
        raise DatasetError(f"meta/info.json lacks the feature '{feature}': {[*info['features']]}")
    names = info["features"][feature]["names"]
    if isinstance(names, dict):  # some group them: {"motors": [...]}
        names = [name for group in names.values() for name in group]
    return list(names or map(str, range(info["features"][feature]["shape"][0])))


def _nouns(info: Info) -> list[str]:
    for name, feature in info["features"].items():
        if name.startswith(_PIXELS):
            return [entry.removesuffix(".x") for entry in feature["names"][::2]]
    return []


def _set_nouns(info: Info, nouns: Sequence[str]) -> None:
    if nouns:
        names = [f"{noun}.{axis}" for noun in nouns for axis in "xy"]
        for camera in _cameras(info):
            info["features"][_PIXELS + camera] = _feature("float32", names)


def _stored(info: Info) -> dict[str, dict[str, Any]]:
    """The features that are columns of data files."""
    return {name: f for name, f in info["features"].items() if f["dtype"] != "video"}


def _with_stats(info: Info) -> list[str]:
    return [n for n in info["features"] if n not in _NUMBERS and not n.startswith(_PIXELS)]


def _data_schema(info: Info) -> pa.Schema:
    """Carries its own list of nouns, so that a file can be widened whenever it was written."""
    fields = []
    for name, feature in _stored(info).items():
        scalar = pa.bool_() if feature["dtype"] == "bool" else pa.from_numpy_dtype(feature["dtype"])
        size = feature["shape"][0]
        fields.append(pa.field(name, scalar if size == 1 else pa.list_(scalar, size)))
    return pa.schema(fields, metadata={"nouns": _dumps(_nouns(info))})


def _episode_schema(info: Info) -> pa.Schema:
    integers = ["length", "data/chunk_index", "data/file_index"]
    integers += ["dataset_from_index", "dataset_to_index"]
    columns: dict[str, pa.DataType] = {"episode_index": pa.int64(), "tasks": pa.list_(pa.string())}
    columns |= {name: pa.int64() for name in integers}
    for camera in _cameras(info):
        kind = f"videos/{_IMAGES}{camera}"
        columns |= {f"{kind}/{name}_index": pa.int64() for name in ("chunk", "file")}
        columns |= {f"{kind}/{name}_timestamp": pa.float64() for name in ("from", "to")}
    columns |= _OWN
    for name in _with_stats(info):
        depth = 3 if name.startswith(_IMAGES) else 1
        for stat in STATS:
            column = pa.int64() if stat == "count" else pa.float64()
            for _ in range(1 if stat == "count" else depth):
                column = pa.list_(column)
            columns[f"stats/{name}/{stat}"] = column
    columns |= {f"meta/episodes/{name}_index": pa.int64() for name in ("chunk", "file")}
    return pa.schema(columns.items())


def _file(info: Info, kind: str, number: int) -> str:
    """Path of a file within the data set; kind: data, meta/episodes or videos/<feature>."""
    chunk, file = divmod(number, FILES_PER_FOLDER)
    if kind == "meta/episodes":
        return f"{kind}/chunk-{chunk:03d}/file-{file:03d}.parquet"
    pattern = info["data_path"] if kind == "data" else info["video_path"]
    key = kind.removeprefix("videos/")
    return cast(str, pattern.format(video_key=key, chunk_index=chunk, file_index=file))


def _number(row: Row, kind: str) -> int:
    return int(row[f"{kind}/chunk_index"] * FILES_PER_FOLDER + row[f"{kind}/file_index"])


def _numbers(rows: Sequence[Row], kind: str) -> list[int]:
    return sorted({_number(row, kind) for row in rows})


def _assign(row: Row, kind: str, number: int) -> None:
    chunk, file = divmod(number, FILES_PER_FOLDER)
    row |= {f"{kind}/chunk_index": chunk, f"{kind}/file_index": file}


def _next_file(rows: Sequence[Row], kind: str) -> int:
    return max((_number(row, kind) for row in rows), default=-1) + 1


def _groups(sizes: Sequence[int], limit_mb: float) -> list[list[int]]:
    """Split 0..n-1, in order, into groups that stay within the limit or have one member."""
    groups: list[list[int]] = []
    total = 0.0
    for i, size in enumerate(sizes):
        if not groups or total + size > limit_mb * 2**20:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += size
    return groups


def _rewrite(
    source: Path,
    target: Path,
    info: Info,
    shift: tuple[int, int] = (0, 0),
    tasks: Sequence[int] | None = None,
) -> None:
    """Copy a data file with the nouns of `info`, episodes and steps shifted, tasks renumbered."""
    with video.replacing(target) as partial, _open_parquet(source) as file:
        nouns = _own_nouns(file) or []
        with pq.ParquetWriter(partial, _data_schema(info)) as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                values = {name: _to_numpy(table[name]) for name in _NUMBERS}
                values["episode_index"] += shift[0]
                values["index"] += shift[1]
                if tasks is not None:
                    values["task_index"] = np.asarray(tasks)[values["task_index"]]
                for name in _NUMBERS:
                    place = table.column_names.index(name)
                    table = table.set_column(place, name, _to_arrow(values[name]))
                writer.write_table(_fit(table, nouns, info))


def _own_nouns(file: pq.ParquetFile) -> list[str] | None:
    """The nouns that a data file was written with; None when other software wrote it."""
    saved = (file.schema_arrow.metadata or {}).get(b"nouns")
    return None if saved is None else cast(list[str], json.loads(saved))


def _fit(table: pa.Table, nouns: Sequence[str], info: Info) -> pa.Table:
    """Columns in the features' order, and pixels of `nouns` spread over the data set's nouns."""
    schema, all_nouns = _data_schema(info), _nouns(info)
    columns = []
    for name in schema.names:
        if name.startswith(_PIXELS):
            pixels = np.full((len(table), len(all_nouns), 2), np.nan, np.float32)
            if nouns:
                old = _to_numpy(table[name]).reshape(len(table), len(nouns), 2)
                kept = [noun for noun in nouns if noun in all_nouns]
                places = [nouns.index(noun) for noun in kept]
                pixels[:, [all_nouns.index(noun) for noun in kept]] = old[:, places]
            columns.append(_to_arrow(pixels.reshape(len(table), -1)))
        else:
            columns.append(table[name])
    return pa.Table.from_arrays(columns, schema=schema)


def _to_arrow(values: np.ndarray) -> pa.Array:
    """(T, D) → vectors of fixed size; (T, 1) → plain values, as LeRobot has them."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    size = values.shape[1]
    return flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """→ (T, D), writable."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    length = len(array)
    while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    return np.array(array.to_numpy(zero_copy_only=False)).reshape(length, -1)


def _vector_stats(values: np.ndarray) -> dict[str, np.ndarray]:
    """(T, D) → statistic → (D,); count (1,)."""
    x = values.astype(np.float64)
    stats = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    stats |= dict(zip(QUANTILES, np.quantile(x, list(QUANTILES.values()), axis=0), strict=True))
    return stats | {"count": np.array([len(x)])}


def _image_stats(frames: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 (T, H, W, 3) → statistic → (3, 1, 1) in 0..1, of at most 100 frames; count (1,)."""
    t, h, w, _ = frames.shape
    sample = frames[video.sample_indices(t, min(t, 100)), :: 1 + h // 150, :: 1 + w // 150]
    levels = np.arange(256) / 255
    stats: dict[str, list[float]] = {stat: [] for stat in STATS if stat != "count"}
    for channel in range(3):
        counts = np.bincount(sample[..., channel].reshape(-1), minlength=256)
        share, present = counts / counts.sum(), levels[counts > 0]
        mean = float(share @ levels)
        stats["min"].append(present[0])
        stats["max"].append(present[-1])
        stats["mean"].append(mean)
        stats["std"].append(float(np.sqrt(share @ (levels - mean) ** 2)))
        for name, q in QUANTILES.items():
            stats[name].append(levels[min(255, int(np.searchsorted(share.cumsum(), q)))])
    arrays = {name: np.reshape(values, (3, 1, 1)) for name, values in stats.items()}
    return arrays | {"count": np.array([len(sample)])}


def _total_stats(rows: Sequence[Row], feature: str) -> dict[str, list[Any]]:
    """All episodes' statistics from those of each; quantiles by weighted mean, as LeRobot does."""
    x = {stat: np.array([row[f"stats/{feature}/{stat}"] for row in rows]) for stat in STATS}
    count = x.pop("count").reshape(len(rows), *[1] * (x["mean"].ndim - 1))
    share = count / count.sum()
    total = {name: (x[name] * share).sum(0) for name in ("mean", *QUANTILES)}
    spread = ((x["std"] ** 2 + (x["mean"] - total["mean"]) ** 2) * share).sum(0)
    total |= {"min": x["min"].min(0), "max": x["max"].max(0), "std": np.sqrt(spread)}
    return {stat: total[stat].tolist() for stat in total} | {"count": [int(count.sum())]}


def _union(lists: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(entry for entries in lists for entry in entries))


def _key(row: Row) -> Key:
    return row["env_id"], row["seed"], row["tag"]


def _write_meta(
    root: Path, info: Info, before: list[Row], new: list[Row], tasks: list[str]
) -> list[Row]:
    """Episodes, tasks, statistics, and info last: from then on the new episodes are visible."""
    number = _next_file(before, "meta/episodes")
    for row in new:
        _assign(row, "meta/episodes", number)
    with video.replacing(root / _file(info, "meta/episodes", number)) as partial:
        pq.write_table(pa.Table.from_pylist(new, schema=_episode_schema(info)), partial)
    rows = [*before, *new]
    with video.replacing(root / "meta/tasks.parquet") as partial:
        pq.write_table(_task_table(tasks), partial)
    stats = {feature: _total_stats(rows, feature) for feature in _with_stats(info)}
    _write_json(root / "meta/stats.json", stats)
    info |= {"total_episodes": len(rows), "total_tasks": len(tasks)}
    info |= {"total_frames": sum(r["length"] for r in rows), "splits": {"train": f"0:{len(rows)}"}}
    _write_json(root / "meta/info.json", info)
    return rows


def _read_info(root: Path) -> Info:
    path = root / "meta/info.json"
    if not path.is_file():
        raise DatasetError(
            f"no data set at '{root}' ('{path}' is missing): give the folder of a LeRobotDataset"
        )
    info = cast(Info, _read_json(path))
    if not str(info.get("codebase_version")).startswith("v3."):
        raise DatasetError(
            f"'{root}' is a LeRobotDataset {info.get('codebase_version')}, {VERSION} is needed: "
            f"convert it with lerobot's convert_dataset_v21_to_v30"
        )
    return info


def _task_table(tasks: Sequence[str]) -> pa.Table:
    """Pandas, with which LeRobot reads it, takes the instructions for the index."""
    kinds = (("task", "unicode", "object"), ("task_index", "int64", "int64"))
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype}
        for name, kind, dtype in kinds
    ]
    layout = {"index_columns": ["task"], "column_indexes": [], "columns": columns}
    table = pa.table({"task_index": range(len(tasks)), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": _dumps(layout)})


def _read_tasks(root: Path) -> list[str]:
    """The instructions in the order of their numbers."""
    path = root / "meta/tasks.parquet"
    if not path.is_file():
        return []
    table = pq.read_table(path).sort_by("task_index").drop_columns("task_index")
    return [str(task) for task in table.column(0).to_pylist()]


def _read_rows(root: Path, info: Info, stats: bool = True) -> list[Row]:
    """meta/episodes, without what an interrupted close left behind."""
    rows: list[Row] = []
    if info["total_episodes"]:
        for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
            with _open_parquet(path) as file:
                names = [n for n in file.schema_arrow.names if stats or not n.startswith("stats/")]
                rows += file.read(columns=names).to_pylist()
    rows = [row for row in rows if row["episode_index"] < info["total_episodes"]]
    if [row["episode_index"] for row in rows] != list(range(info["total_episodes"])):
        raise DatasetError(
            f"'{root}/meta/episodes' has {len(rows)} episodes, meta/info.json promises "
            f"{info['total_episodes']}: copy the data set again"
        )
    return rows


def _open_parquet(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DatasetError(f"'{path}' is missing: copy the data set again, or record it again")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"'{path}' is damaged ({error}): copy the data set again") from error


def _dumps(value: Any) -> str:
    """JSON; NumPy values become plain ones. DatasetError for what JSON cannot hold."""

    def plain(other: Any) -> Any:
        if isinstance(other, np.ndarray | np.generic):
            return other.tolist()
        raise DatasetError(f"cannot store {type(other).__name__} {other!r}: give JSON values only")

    return json.dumps(value, default=plain, ensure_ascii=False)


def _write_json(path: Path, value: Any) -> None:
    with video.replacing(path) as partial:
        text = json.dumps(json.loads(_dumps(value)), indent=2, ensure_ascii=False)
        partial.write_text(text, encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DatasetError(f"cannot read '{path}' ({error}): copy the data set again") from error
