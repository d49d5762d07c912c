"""data/…: arrays ↔ Parquet, and tables made to fit the things that a data set has labels for.

A data file keeps its own list of nouns. More nouns may come with later episodes, so a table is
always spread over those of the data set, whenever its file was written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embodied.episodes.files import dumps, open_parquet
from embodied.episodes.info import NUMBERS, PIXELS, Info, nouns_of, stored_features
from embodied.video import replacing


def data_schema(info: Info) -> pa.Schema:
    """Carries its own list of nouns, so that a file can be widened whenever it was written."""
    fields = []
    for name, feature in stored_features(info).items():
        scalar = pa.bool_() if feature["dtype"] == "bool" else pa.from_numpy_dtype(feature["dtype"])
        size = feature["shape"][0]
        fields.append(pa.field(name, scalar if size == 1 else pa.list_(scalar, size)))
    return pa.schema(fields, metadata={"nouns": dumps(nouns_of(info))})


def own_nouns(file: pq.ParquetFile) -> list[str] | None:
    """The nouns that a data file was written with; None when other software wrote it."""
    saved = (file.schema_arrow.metadata or {}).get(b"nouns")
    return None if saved is None else cast(list[str], json.loads(saved))


def fit(table: pa.Table, nouns: Sequence[str], info: Info) -> pa.Table:
    """Columns in the features' order, and pixels of `nouns` spread over the data set's nouns."""
    schema, all_nouns = data_schema(info), nouns_of(info)
    columns = []
    for name in schema.names:
        if name.startswith(PIXELS):
            pixels = np.full((len(table), len(all_nouns), 2), np.nan, np.float32)
            if nouns:
                old = to_numpy(table[name]).reshape(len(table), len(nouns), 2)
                kept = [noun for noun in nouns if noun in all_nouns]
                places = [nouns.index(noun) for noun in kept]
                pixels[:, [all_nouns.index(noun) for noun in kept]] = old[:, places]
            columns.append(to_arrow(pixels.reshape(len(table), -1)))
        else:
            columns.append(table[name])
    return pa.Table.from_arrays(columns, schema=schema)


def rewrite(
    source: Path,
    target: Path,
    info: Info,
    shift: tuple[int, int] = (0, 0),
    tasks: Sequence[int] | None = None,
) -> None:
    """Copy a data file with the nouns of `info`, episodes and steps shifted, tasks renumbered.

    Args:
        source, target: may be the same.
        info: of the data set that `target` belongs to.
        shift: what to add to the numbers of episodes and of steps.
        tasks: the new number of each task; None leaves them.
    """
    with replacing(target) as partial, open_parquet(source) as file:
        nouns = own_nouns(file) or []
        with pq.ParquetWriter(partial, data_schema(info)) as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                values = {name: to_numpy(table[name]) for name in NUMBERS}
                values["episode_index"] += shift[0]
                values["index"] += shift[1]
                if tasks is not None:
                    values["task_index"] = np.asarray(tasks)[values["task_index"]]
                for name in NUMBERS:
                    place = table.column_names.index(name)
                    table = table.set_column(place, name, to_arrow(values[name]))
                writer.write_table(fit(table, nouns, info))


def to_arrow(values: np.ndarray) -> pa.Array:
    """(T, D) → vectors of fixed size; (T, 1) → plain values, as LeRobot has them."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    size = values.shape[1]
    return flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """→ (T, D), writable."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    length = len(array)
    while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    return np.array(array.to_numpy(zero_copy_only=False)).reshape(length, -1)
