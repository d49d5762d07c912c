"""Writes a data set as other software would: no plans, no labels, one camera with another name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embodied.episodes import DatasetReader
from embodied.episodes.tables import to_arrow
from embodied.video import write_mp4

FILM = "observation.images.top"
PLACES = {
    "v3.0": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
    "v2.1": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
}


def foreign_copy(source: Path, root: Path, version: str) -> Path:
    """The data set at `source`, in LeRobot's own format of that version and nothing more."""
    reader = DatasetReader(source)
    data_path, video_path = PLACES[version]
    rows, start = [], 0
    for i, meta in enumerate(reader.episodes):
        name = {"chunk_index": 0, "file_index": i, "episode_chunk": 0, "episode_index": i}
        table = pa.table(_columns(reader, i, start))
        _write_table(table, root / data_path.format(**name))
        film = root / video_path.format(video_key=FILM, **name)
        film.parent.mkdir(parents=True, exist_ok=True)
        write_mp4(film, reader.frames(i, "workspace"), reader.fps)
        rows.append(_row(i, meta.length, start, reader.fps))
        start += meta.length
    _write_meta(root, version, rows, reader)
    return root


def _columns(reader: DatasetReader, i: int, start: int) -> dict[str, pa.Array]:
    arrays = reader.arrays(i)
    length = len(arrays["action"])
    numbers = {
        "timestamp": (np.arange(length) / reader.fps).astype(np.float32),
        "frame_index": np.arange(length),
        "episode_index": np.full(length, i),
        "index": np.arange(start, start + length),
        "task_index": np.zeros(length, np.int64),
    }
    columns = {name: arrays[name] for name in ("observation.state", "action")}
    columns |= {name: values[:, None] for name, values in numbers.items()}
    return {name: to_arrow(values) for name, values in columns.items()}


def _row(i: int, length: int, start: int, fps: int) -> dict[str, Any]:
    row: dict[str, Any] = {"episode_index": i, "tasks": ["press the button"], "length": length}
    row |= {"dataset_from_index": start, "dataset_to_index": start + length}
    row |= {"data/chunk_index": 0, "data/file_index": i}
    video = {"chunk_index": 0, "file_index": i, "from_timestamp": 0.0}
    video["to_timestamp"] = length / fps
    return row | {f"videos/{FILM}/{name}": value for name, value in video.items()}


def _write_meta(
    root: Path, version: str, rows: list[dict[str, Any]], reader: DatasetReader
) -> None:
    kept = ("observation.state", "action", "timestamp", "frame_index", "episode_index", "index")
    features = {name: reader.info["features"][name] for name in (*kept, "task_index")}
    features[FILM] = reader.info["features"]["observation.images.workspace"]
    info = {
        "codebase_version": version,
        "total_episodes": len(rows),
        "total_frames": sum(row["length"] for row in rows),
        "chunks_size": 1000,
        "fps": reader.fps,
        "features": features,
        "data_path": PLACES[version][0],
        "video_path": PLACES[version][1],
    }
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    if version == "v3.0":
        _write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    else:
        told = ({n: row[n] for n in ("episode_index", "tasks", "length")} for row in rows)
        (root / "meta/episodes.jsonl").write_text("".join(json.dumps(t) + "\n" for t in told))


def _write_table(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
