"""Shards: episodes that wait, each whole in a folder of its own, until they are moved in.

A shard holds data.parquet, one mp4 for each camera, and episode.json: the episode's row with its
statistics, and the nouns of its pixel labels in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embodied.episodes.columns import columns_of
from embodied.episodes.files import read_json, write_json
from embodied.episodes.info import (
    DATA_MB,
    IMAGES,
    NUMBERS,
    VIDEO_MB,
    Info,
    cameras_of,
    features_with_stats,
    union,
)
from embodied.episodes.places import Row, assign, groups, next_number, path_of, video_kind
from embodied.episodes.rows import language_of
from embodied.episodes.stats import image_stats, vector_stats
from embodied.episodes.tables import data_schema, fit, to_arrow
from embodied.types import Episode
from embodied.video import join_mp4, replacing, write_mp4


def write_shard(folder: Path, episode: Episode, row: Row, info: Info) -> Row:
    """Write everything of one episode into a folder.

    Returns:
        `row` with statistics, language and "nouns", as in the shard's episode.json.
    """
    nouns = union(step.pixels for step in episode.steps)
    columns = columns_of(episode, info, nouns)
    said = language_of(episode, columns["timestamp"][:, 0])
    row = row | {"nouns": nouns, "language_persistent": said}
    stats = {n: vector_stats(columns[n]) for n in features_with_stats(info) if n in columns}
    for camera in cameras_of(info):
        frames = np.stack([step.observation.images[camera] for step in episode.steps])
        write_mp4(folder / f"{camera}.mp4", frames, info["fps"])
        stats[IMAGES + camera] = image_stats(frames)
    for name, values in stats.items():
        row |= {f"stats/{name}/{stat}": value.tolist() for stat, value in values.items()}
    arrays = {name: to_arrow(values) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), folder / "data.parquet")
    write_json(folder / "episode.json", row)
    return row


def move_data(
    root: Path,
    info: Info,
    shards: Sequence[Path],
    new: Sequence[Row],
    before: Sequence[Row],
    tasks: Sequence[str],
) -> None:
    """Write the shards' steps into data files behind those of the rows before.

    Args:
        root, info: of the data set; `info` knows the nouns of all its episodes.
        shards, new: folders, and their rows, counted up; these learn here where their data is.
        before: rows of the episodes that were there before.
        tasks: all instructions, in the order of their numbers.
    """
    schema = data_schema(info)
    sizes = [(shard / "data.parquet").stat().st_size for shard in shards]
    for number, group in enumerate(groups(sizes, DATA_MB), next_number(before, "data")):
        path = root / path_of(info, "data", number)
        with replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
            for i in group:
                row, table = new[i], pq.read_table(shards[i] / "data.parquet")
                steps = np.arange(row["dataset_from_index"], row["dataset_to_index"])
                task = tasks.index(row["instruction"])
                for name, value in zip(NUMBERS, (row["episode_index"], steps, task), strict=True):
                    column = np.broadcast_to(value, row["length"]).astype(np.int64)
                    table = table.append_column(name, to_arrow(column[:, None]))
                nouns = read_json(shards[i] / "episode.json")["nouns"]
                writer.write_table(fit(table, nouns, info))
                assign(row, "data", number)


def move_videos(
    root: Path,
    info: Info,
    camera: str,
    shards: Sequence[Path],
    new: Sequence[Row],
    before: Sequence[Row],
) -> None:
    """Join the shards' videos of one camera into files; arguments as for `move_data`."""
    kind = video_kind(camera)
    parts = [shard / f"{camera}.mp4" for shard in shards]
    sizes = [part.stat().st_size for part in parts]
    for number, group in enumerate(groups(sizes, VIDEO_MB), next_number(before, kind)):
        join_mp4([parts[i] for i in group], root / path_of(info, kind, number))
        start = 0
        for row in (new[i] for i in group):
            assign(row, kind, number)
            row[f"{kind}/from_timestamp"] = start / info["fps"]
            start += row["length"]
            row[f"{kind}/to_timestamp"] = start / info["fps"]
