"""A data set's JSON and Parquet files, and errors that name the file and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embodied.video import replacing


class DatasetError(ValueError):
    """A data set, or an episode for it, is not as it must be; the message names what and where."""


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON; NumPy values become plain ones.

    Raises:
        DatasetError: for what JSON cannot hold.
    """

    def plain(other: Any) -> Any:
        if isinstance(other, np.ndarray | np.generic):
            return other.tolist()
        raise DatasetError(f"cannot store {type(other).__name__} {other!r}: give JSON values only")

    return json.dumps(value, default=plain, ensure_ascii=False, indent=indent)


def write_json(path: Path, value: Any) -> None:
    """Write a file in whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(dumps(value, indent=2), encoding="utf-8")


def read_json(path: Path) -> Any:
    """What the file holds. DatasetError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DatasetError(f"cannot read '{path}' ({error}): copy the data set again") from error


def open_parquet(path: Path) -> pq.ParquetFile:
    """The opened file, of which nothing but the footer is read yet. DatasetError if it is bad."""
    if not path.is_file():
        raise DatasetError(f"'{path}' is missing: copy the data set again, or record it again")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"'{path}' is damaged ({error}): copy the data set again") from error
