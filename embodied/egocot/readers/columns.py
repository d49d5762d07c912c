"""Our own records as columns, for pyarrow and everything that is built on it.

A JSONL of records is a plain table: each line has every field, and each field one type. With
Hugging Face's `datasets`, which is no dependency of ours (`pip install datasets`):

    from datasets import Features, load_dataset
    from embodied.egocot.schema import arrow_schema

    features = Features.from_arrow_schema(arrow_schema())
    load_dataset("json", data_files="FOLDER/*.jsonl", features=features)

The types have to be given, since a column may begin with many nulls.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import json as arrow_json

from embodied.egocot.jsonl import jsonl_files
from embodied.egocot.schema import arrow_schema


def load_columns(where: str | Path) -> pa.Table:
    """A JSONL of records, or all those of a folder, as one table. Nothing is checked but types.

    Raises:
        ValueError: naming the file, if a line has another field or another type.
    """
    schema = arrow_schema()
    options = arrow_json.ParseOptions(schema, unexpected_field_behavior="error")
    tables = []
    for path in jsonl_files(Path(where)):
        try:
            tables.append(arrow_json.read_json(path, parse_options=options))
        except pa.ArrowInvalid as error:
            raise ValueError(f"'{path}' is no table of records ({error})") from error
    return pa.concat_tables(tables)


def load_with_datasets(where: str | Path) -> Any:
    """The same as a `datasets.Dataset`; `clip` stays a path relative to the JSONL's folder.

    Raises:
        ValueError: if the package is not installed.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ValueError("Hugging Face's datasets is not there: pip install datasets") from error
    files = [str(path) for path in jsonl_files(Path(where))]
    features = datasets.Features.from_arrow_schema(arrow_schema())
    return datasets.load_dataset("json", data_files=files, features=features, split="train")
