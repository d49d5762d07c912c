"""Merging: data sets that were recorded in parallel become one, without encoding again."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from embodied.episodes.files import DatasetError
from embodied.episodes.info import Info, set_nouns, union
from embodied.episodes.meta import read_rows, read_tasks, write_meta
from embodied.episodes.places import (
    Row,
    assign,
    count_up,
    next_number,
    number_of,
    numbers_of,
    path_of,
    video_kind,
)
from embodied.episodes.reader import DatasetReader
from embodied.episodes.rows import Key
from embodied.episodes.tables import rewrite


def merge(roots: Sequence[str | Path], out: str | Path) -> None:
    """Put closed data sets together, in the order given, into a new one, in whole or not at all.

    Nothing is encoded again. A merge that fails or is interrupted takes away what it has written.

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
    info = copy.deepcopy(readers[0].info)
    info["embodied"]["next_shard"] = 0
    set_nouns(info, union(reader.nouns for reader in readers))
    tasks = union(read_tasks(reader.root) for reader in readers)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(  # of a name that nobody else has
        prefix=f".{out.name}.", suffix=".partial", dir=out.parent, ignore_cleanup_errors=True
    ) as scratch:
        partial = Path(scratch) / out.name  # one level down: the scratch folder is for us alone
        merged: list[Row] = []
        for reader in readers:
            merged += _copy_into(partial, info, reader, merged, tasks)
        write_meta(partial, info, [], merged, tasks)
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
    root: Path, info: Info, reader: DatasetReader, before: Sequence[Row], tasks: Sequence[str]
) -> list[Row]:
    """Copy a data set's files behind those in `root`.

    Returns:
        Its rows, renumbered accordingly.
    """
    rows = read_rows(reader.root, reader.info)
    shift = len(before), sum(row["length"] for row in before)
    task_numbers = [tasks.index(task) for task in read_tasks(reader.root)]
    for kind in ("data", *map(video_kind, reader.cameras)):
        first = next_number(before, kind)
        files = {old: new for new, old in enumerate(numbers_of(rows, kind), first)}
        for old, new in files.items():
            source = reader.root / path_of(reader.info, kind, old)
            target = root / path_of(info, kind, new)
            if kind == "data":
                rewrite(source, target, info, shift, task_numbers)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        for row in rows:
            assign(row, kind, files[number_of(row, kind)])
    count_up(rows, before)
    return rows
