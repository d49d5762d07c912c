"""What must be right: of an episode before it is written, of a data set before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from embodied.episodes.files import DatasetError, open_parquet
from embodied.episodes.info import Info, cameras_of, names_of, stored_features
from embodied.episodes.places import Row, number_of, numbers_of, path_of, video_kind
from embodied.episodes.tables import to_numpy
from embodied.types import Episode
from embodied.video import count_frames


def check_episode(episode: Episode, info: Info) -> None:
    """DatasetError if the episode cannot be part of the data set, whatever else is in that."""
    what = f"the episode of '{episode.env_id}', seed {episode.seed},"
    if not episode.steps:
        raise DatasetError(f"{what} has no step: there is nothing to record")
    cameras = cameras_of(info)
    n_state, n_action = len(names_of(info, "observation.state")), len(names_of(info, "action"))
    for t, step in enumerate(episode.steps):
        images = {name: image.shape[:2] for name, image in step.observation.images.items()}
        if images != cameras:
            raise DatasetError(f"{what} has pictures {images} at step {t}, expected {cameras}")
        for name, vector, size in (
            ("state", step.observation.state, n_state),
            ("action", step.action, n_action),
        ):
            if np.shape(vector) != (size,):
                raise DatasetError(
                    f"{what} has a {name} of shape {np.shape(vector)} at step {t}, "
                    f"expected ({size},)"
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


def check_data(root: Path, info: Info, rows: Sequence[Row]) -> None:
    """DatasetError if a column or a row of data is missing, or a state or action is not finite."""
    missing = {"timestamp", "episode_index", "index", "task_index"} - set(info["features"])
    if missing:
        raise DatasetError(f"'{root}/meta/info.json' lacks the features {sorted(missing)}")
    for number in numbers_of(rows, "data"):
        path = root / path_of(info, "data", number)
        promised = sum(row["length"] for row in rows if number_of(row, "data") == number)
        with open_parquet(path) as file:
            absent = set(stored_features(info)) - set(file.schema_arrow.names)
            if absent:
                raise DatasetError(f"'{path}' lacks the columns {sorted(absent)}: record it again")
            if file.metadata.num_rows != promised:
                raise DatasetError(
                    f"'{path}' has {file.metadata.num_rows} rows, meta/episodes promises "
                    f"{promised}: copy the data set again, or record it again"
                )
            table = file.read(columns=["episode_index", "observation.state", "action"])
        for name in ("observation.state", "action"):
            _check_finite(table, name, path)


def _check_finite(table: pa.Table, name: str, path: Path) -> None:
    bad = np.flatnonzero(~np.isfinite(to_numpy(table[name])).all(axis=1))
    if len(bad):
        episode = table["episode_index"][int(bad[0])].as_py()
        raise DatasetError(
            f"'{path}' has NaN or infinity in '{name}' of episode {episode} ({len(bad)} rows in "
            f"all): leave that episode out, or record it again"
        )


def check_videos(root: Path, info: Info, rows: Sequence[Row], camera: str) -> None:
    """DatasetError if a camera's video is missing, damaged, or not as long as its episodes."""
    kind = video_kind(camera)
    promised: dict[int, int] = {}
    for row in rows:
        start, stop = (
            round(row[f"{kind}/{end}_timestamp"] * info["fps"]) for end in ("from", "to")
        )
        if stop - start != row["length"]:
            raise DatasetError(
                f"episode {row['episode_index']} of '{root}' has {row['length']} steps "
                f"and {stop - start} frames of '{camera}': record it again"
            )
        number = number_of(row, kind)
        promised[number] = max(promised.get(number, 0), stop)
    for number, count in promised.items():
        path = root / path_of(info, kind, number)
        try:
            found = count_frames(path)
        except (FileNotFoundError, ValueError) as error:
            raise DatasetError(f"{error} ('{camera}' of '{root}')") from error
        if found != count:
            raise DatasetError(
                f"'{path}' has {found} frames, meta/episodes promises {count}: copy the data "
                f"set again, or record it again"
            )
