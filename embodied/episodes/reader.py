"""Reading: whole episodes, their arrays, or single pictures of a data set that was checked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from embodied.episodes.checks import check_data, check_videos
from embodied.episodes.columns import steps_of
from embodied.episodes.files import DatasetError, open_parquet
from embodied.episodes.info import (
    PIXELS,
    cameras_of,
    names_of,
    nouns_of,
    read_info,
    stored_features,
)
from embodied.episodes.meta import read_rows
from embodied.episodes.places import Row, number_of, path_of, video_kind
from embodied.episodes.rows import meta_of
from embodied.episodes.tables import fit, own_nouns, to_numpy
from embodied.types import Episode
from embodied.video import read_mp4


class DatasetReader:
    """Reads a data set. Opening it checks it; pictures are decoded only when asked for.

    Data sets that other software recorded are read too, in v3.0 or v2.1, if their pictures are
    videos: they come without plans, and without `next.success` each episode counts as a success.

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
        self.info = read_info(self.root)
        self.fps: int = self.info["fps"]
        self.cameras = cameras_of(self.info)
        self.state_names = names_of(self.info, "observation.state")
        self.action_names = names_of(self.info, "action")
        self.nouns = nouns_of(self.info)
        if not self.info["total_episodes"]:
            raise DatasetError(
                f"'{self.root}' has no finished episode: finish recording with "
                f"DatasetWriter.resume('{self.root}').close()"
            )
        self._rows = read_rows(self.root, self.info, stats=False)
        check_data(self.root, self.info, self._rows)
        for camera in self.cameras:
            check_videos(self.root, self.info, self._rows, camera)
        self.episodes = [meta_of(row | {"outcome": self._outcome(row)}) for row in self._rows]

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
        vectors = ("observation.state", "action", *(PIXELS + camera for camera in self.cameras))
        return {
            name: values if name in vectors or values.shape[1] > 1 else values[:, 0]
            for name, values in ((n, to_numpy(table[n])) for n in table.column_names)
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
        row, kind = self._row(i), video_kind(camera)
        steps = np.arange(row["length"]) if indices is None else np.asarray(indices)
        if not len(steps) or steps.min() < 0 or steps.max() >= row["length"]:
            raise DatasetError(f"episode {i} has the steps 0 to {row['length'] - 1}, got {indices}")
        first = round(row[f"{kind}/from_timestamp"] * self.fps)
        return read_mp4(self._path(row, kind), first + steps)

    def load(self, i: int, cameras: Collection[str] | None = None, frames: bool = True) -> Episode:
        """The whole episode, as it was recorded but for what compression loses of the pictures.

        Args:
            i: its number.
            cameras: those wanted; all when None.
            frames: whether to decode pictures at all; without, observations hold the state only.
        """
        columns = self.arrays(i)
        wanted = (self.cameras if cameras is None else cameras) if frames else ()
        clips = {camera: self.frames(i, camera) for camera in wanted}
        steps = steps_of(columns, clips, self.cameras, self.nouns)
        m = self.episodes[i]
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
        return self.root / path_of(self.info, kind, number_of(row, kind))

    def _table(self, row: Row) -> pa.Table:
        """An episode's rows; only the row groups that hold them are read."""
        same = [r for r in self._rows if number_of(r, "data") == number_of(row, "data")]
        start = row["dataset_from_index"] - min(r["dataset_from_index"] for r in same)
        with open_parquet(self._path(row, "data")) as file:
            groups = range(file.num_row_groups)
            ends = np.cumsum([file.metadata.row_group(g).num_rows for g in groups])
            stop = start + row["length"]
            first, last = np.searchsorted(ends, [start, stop - 1], side="right")
            columns = list(stored_features(self.info))
            table = file.read_row_groups([*range(first, last + 1)], columns=columns)
            nouns = own_nouns(file)
        table = table.slice(start - (int(ends[first - 1]) if first else 0), row["length"])
        # A close that ended early may have given the file more nouns than info.json knows of.
        return table if nouns in (None, self.nouns) else fit(table, nouns or [], self.info)

    def _outcome(self, row: Row) -> str:
        """As recorded; else whether the environment ever reported success, if it did report."""
        if row.get("outcome"):
            return str(row["outcome"])
        reported = self.arrays(row["episode_index"]).get("next.success", np.True_)
        return "success" if np.any(reported) else "failure"
