"""meta/ for all episodes together: their rows and instructions, and the moment they are visible."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embodied.episodes.files import DatasetError, dumps, open_parquet, write_json
from embodied.episodes.info import Info, cameras_of, features_with_stats, is_v21
from embodied.episodes.places import Row, assign, next_number, path_of, video_kind
from embodied.episodes.rows import episode_schema
from embodied.episodes.stats import total_stats
from embodied.video import replacing


def read_rows(root: Path, info: Info, stats: bool = True) -> list[Row]:
    """meta/episodes, without what an interrupted close left behind.

    Raises:
        DatasetError: if there are fewer or more than `info` promises.
    """
    rows: list[Row] = []
    if is_v21(info):
        rows = _rows_v21(root, info)
    elif info["total_episodes"]:
        for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
            with open_parquet(path) as file:
                names = [n for n in file.schema_arrow.names if stats or not n.startswith("stats/")]
                rows += file.read(columns=names).to_pylist()
    rows = [row for row in rows if row["episode_index"] < info["total_episodes"]]
    if [row["episode_index"] for row in rows] != list(range(info["total_episodes"])):
        raise DatasetError(
            f"'{root}/meta/episodes' has {len(rows)} episodes, meta/info.json promises "
            f"{info['total_episodes']}: copy the data set again"
        )
    return rows


def _rows_v21(root: Path, info: Info) -> list[Row]:
    """meta/episodes.jsonl as v3.0 would have it: the n-th file of each kind is the n-th episode's.

    Raises:
        DatasetError: if it is missing, or a line is no episode.
    """
    path = root / "meta/episodes.jsonl"
    rows: list[Row] = []
    start = 0
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            number, length = int(told["episode_index"]), int(told["length"])
            row: Row = {"episode_index": number, "tasks": list(told["tasks"]), "length": length}
            row |= {"dataset_from_index": start, "dataset_to_index": start + length}
            assign(row, "data", number)
            for camera in cameras_of(info):
                kind = video_kind(camera)
                assign(row, kind, number)
                row |= {f"{kind}/from_timestamp": 0.0}
                row |= {f"{kind}/to_timestamp": length / info["fps"]}
            rows.append(row)
            start += length
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DatasetError(f"cannot read '{path}' ({reason}): copy the data set again") from error
    return rows


def read_tasks(root: Path) -> list[str]:
    """The instructions in the order of their numbers."""
    path = root / "meta/tasks.parquet"
    if not path.is_file():
        return []
    table = pq.read_table(path).sort_by("task_index").drop_columns("task_index")
    return [str(task) for task in table.column(0).to_pylist()]


def write_meta(
    root: Path, info: Info, before: list[Row], new: list[Row], tasks: list[str]
) -> list[Row]:
    """Episodes, tasks, statistics, and info last: from then on the new episodes are visible.

    Returns:
        The rows of all episodes.
    """
    number = next_number(before, "meta/episodes")
    for row in new:
        assign(row, "meta/episodes", number)
    with replacing(root / path_of(info, "meta/episodes", number)) as partial:
        pq.write_table(pa.Table.from_pylist(new, schema=episode_schema(info)), partial)
    rows = [*before, *new]
    with replacing(root / "meta/tasks.parquet") as partial:
        pq.write_table(_task_table(tasks), partial)
    stats = {feature: total_stats(rows, feature) for feature in features_with_stats(info)}
    write_json(root / "meta/stats.json", stats)
    info |= {"total_episodes": len(rows), "total_tasks": len(tasks)}
    info |= {"total_frames": sum(r["length"] for r in rows), "splits": {"train": f"0:{len(rows)}"}}
    write_json(root / "meta/info.json", info)
    return rows


def _task_table(tasks: Sequence[str]) -> pa.Table:
    """Pandas, with which LeRobot reads it, takes the instructions for the index."""
    kinds = (("task", "unicode", "object"), ("task_index", "int64", "int64"))
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype}
        for name, kind, dtype in kinds
    ]
    layout = {"index_columns": ["task"], "column_indexes": [], "columns": columns}
    table = pa.table({"task_index": range(len(tasks)), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": dumps(layout)})
