"""Which file holds an episode's rows, frames and meta, and which steps of the data set are its.

Files are numbered within their kind: "data", "meta/episodes" or, of each camera, `video_kind`.
LeRobot stores a number in two columns of an episode's row, the folder's and the file's within it.
Up to v2.1 each episode had files of its own, with its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from embodied.episodes.info import FILES_PER_FOLDER, IMAGES, Info

Row = dict[str, Any]  # a row of meta/episodes


def video_kind(camera: str) -> str:
    """The kind of a camera's video files."""
    return f"videos/{IMAGES}{camera}"


def path_of(info: Info, kind: str, number: int) -> str:
    """Path of a file within the data set."""
    chunk, file = divmod(number, FILES_PER_FOLDER)
    if kind == "meta/episodes":
        return f"{kind}/chunk-{chunk:03d}/file-{file:03d}.parquet"
    pattern = info["data_path"] if kind == "data" else info["video_path"]
    key = kind.removeprefix("videos/")
    old = {"episode_chunk": chunk, "episode_index": number}  # the names that v2.1 has for both
    return cast(str, pattern.format(video_key=key, chunk_index=chunk, file_index=file, **old))


def number_of(row: Row, kind: str) -> int:
    """The number of the file that holds an episode."""
    return int(row[f"{kind}/chunk_index"] * FILES_PER_FOLDER + row[f"{kind}/file_index"])


def numbers_of(rows: Sequence[Row], kind: str) -> list[int]:
    """The numbers of the files that hold these episodes, in order."""
    return sorted({number_of(row, kind) for row in rows})


def next_number(rows: Sequence[Row], kind: str) -> int:
    """The number of the file after those that hold these episodes."""
    return max((number_of(row, kind) for row in rows), default=-1) + 1


def assign(row: Row, kind: str, number: int) -> None:
    """Note that a file holds an episode."""
    chunk, file = divmod(number, FILES_PER_FOLDER)
    row |= {f"{kind}/chunk_index": chunk, f"{kind}/file_index": file}


def count_up(new: Sequence[Row], before: Sequence[Row]) -> None:
    """Give episodes their numbers, and the numbers of their steps."""
    start = sum(row["length"] for row in before)
    for number, row in enumerate(new, len(before)):
        row |= {"episode_index": number, "tasks": [row["instruction"]]}
        row |= {"dataset_from_index": start, "dataset_to_index": start + row["length"]}
        start += row["length"]


def groups(sizes: Sequence[int], limit_mb: float) -> list[list[int]]:
    """Split 0..n-1, in order, into groups that stay within the limit or have one member.

    Args:
        sizes: n sizes in bytes.
        limit_mb: what a group may have, in MiB.
    """
    found: list[list[int]] = []
    total = 0.0
    for i, size in enumerate(sizes):
        if not found or total + size > limit_mb * 2**20:
            found.append([])
            total = 0
        found[-1].append(i)
        total += size
    return found
