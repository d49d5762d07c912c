"""Recording: episodes wait as shards, and closing moves them into the data set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from embodied.episodes.checks import check_episode
from embodied.episodes.files import DatasetError, read_json, write_json
from embodied.episodes.info import (
    cameras_of,
    new_features,
    new_info,
    nouns_of,
    read_info,
    set_nouns,
    union,
)
from embodied.episodes.meta import read_rows, read_tasks, write_meta
from embodied.episodes.places import count_up, numbers_of, path_of
from embodied.episodes.rows import Key, key_of, row_of
from embodied.episodes.shards import move_data, move_videos, write_shard
from embodied.episodes.tables import rewrite
from embodied.types import Episode


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
        features = new_features(fps, cameras, state_names, action_names)
        info = new_info(int(fps), features, robot_type, extra or {})
        write_json(root / "meta/info.json", info)
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
        self.root, self._info, self._shards = root, read_info(root), root / ".shards"
        if "embodied" not in self._info:
            raise DatasetError(f"'{root}' was recorded by other software: record into a new folder")
        first = self._info["embodied"]["next_shard"]
        for folder in list(self._shards.glob("*")):
            if not folder.name.isdigit() or int(folder.name) < first:
                shutil.rmtree(folder)  # half-written, or moved by a close that ended early
        numbers = sorted(int(folder.name) for folder in self._shards.glob("*"))
        self._next = numbers[-1] + 1 if numbers else first
        self._rows = read_rows(root, self._info)
        self._waiting = {n: read_json(self._shard(n) / "episode.json") for n in numbers}
        self._recorded = {key_of(row) for row in (*self._rows, *self._waiting.values())}

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
        check_episode(episode, self._info)
        row = row_of(episode)
        key = key_of(row)
        if key in self._recorded:
            raise DatasetError(
                f"the episode {key} (env_id, seed, tag) is recorded already in "
                f"'{self.root}': leave it out, or tell it apart by info['tag']"
            )
        shard = self._shard(self._next)
        folder = shard.with_suffix(".partial")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._waiting[self._next] = write_shard(folder, episode, row, self._info)
        os.replace(folder, shard)
        self._next += 1
        self._recorded.add(key)

    def close(self) -> None:
        """Move the waiting episodes into the data set. A later `resume` may add more."""
        if not self._waiting:
            return
        root, info, rows = self.root, self._info, self._rows
        shards = [self._shard(number) for number in self._waiting]
        new = [dict(row) for row in self._waiting.values()]
        self._widen([row.pop("nouns") for row in new])
        count_up(new, rows)
        tasks = union([read_tasks(root), *(row["tasks"] for row in new)])
        move_data(root, info, shards, new, rows, tasks)
        for camera in cameras_of(info):
            move_videos(root, info, camera, shards, new, rows)
        info["embodied"]["next_shard"] = self._next
        self._rows = write_meta(root, info, rows, new, tasks)
        self._waiting = {}
        shutil.rmtree(self._shards)

    def _widen(self, new: Sequence[Sequence[str]]) -> None:
        """Make room in features and data files for things that had no pixel labels before."""
        nouns = union([nouns_of(self._info), *new])
        if nouns == nouns_of(self._info):
            return
        set_nouns(self._info, nouns)
        for number in numbers_of(self._rows, "data"):
            path = self.root / path_of(self._info, "data", number)
            rewrite(path, path, self._info)
