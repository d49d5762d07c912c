"""Dataclasses ↔ JSON by their type hints (see `embodied.egocot.fields`), a line each."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, TypeVar, get_origin

from embodied.egocot.fields import (
    Hint,
    RecordError,
    check_text,
    hints,
    of_type,
    parse_subgoal,
    short,
)
from embodied.types import Subgoal

T = TypeVar("T")


def from_json(cls: type[T], value: Any, at: str = "") -> T:
    """The dataclass that a JSON object stands for: every field there, and no other.

    Raises:
        RecordError: for the first field that is not as its hint says.
    """
    if not isinstance(value, dict):
        raise RecordError(at or "record", "must be an object", short.repr(value))
    expected = hints(cls)
    if unknown := [name for name in value if name not in expected]:
        raise RecordError(at or "record", "has an unknown field", short.repr(unknown[0]))
    if missing := [name for name in expected if name not in value]:
        raise RecordError(_join(at, missing[0]), "is missing")
    built = {name: _build(value[name], hint, _join(at, name)) for name, hint in expected.items()}
    try:
        return cls(**built)
    except RecordError as error:
        raise error.within(at) from None


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _build(value: Any, hint: Hint, at: str) -> Any:
    """From JSON's types to those of the hint; what does not fit is for `check` to find."""
    base = hint.base
    if value is None:
        return None
    if get_origin(base) is tuple:
        of_type(value, list, "a list", at)
        return tuple(_build(entry, hint.entry, f"{at}[{i}]") for i, entry in enumerate(value))
    if base is Subgoal:
        check_text(value, hint.rule, at)
        return parse_subgoal(value, at)
    if dataclasses.is_dataclass(base):
        return from_json(base, value, at)  # type: ignore[arg-type]
    if base is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if base is int and isinstance(value, float) and value.is_integer():
        return int(value)  # JSON knows one kind of number only
    return value


def to_json(value: Any) -> Any:
    """The JSON value that a dataclass of this module's kind stands for."""
    if isinstance(value, Subgoal):
        return value.text
    if isinstance(value, tuple):
        return [to_json(entry) for entry in value]
    if dataclasses.is_dataclass(value):
        return {name: to_json(getattr(value, name)) for name in hints(type(value))}
    return value


def parse_line(line: bytes) -> Any:
    """What a line holds. RecordError for all that is no JSON, or means two things."""
    if not line.strip():
        raise RecordError("line", "is empty")
    try:
        text = line.decode("utf-8")
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_twice)
    except UnicodeDecodeError as error:
        raise RecordError("line", "is not UTF-8", error.reason) from None
    except RecordError:
        raise
    except (ValueError, RecursionError) as error:
        raise RecordError("line", "is not JSON", str(error)) from None


def _no_constant(name: str) -> Any:
    raise RecordError("line", "is not JSON", name)


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RecordError("line", "has a field twice in one object")
    return found


def jsonl_files(where: Path) -> list[Path]:
    """The file itself, or all `*.jsonl` of a folder but those named `quarantine…`.

    Raises:
        ValueError: if there is none.
    """
    if where.is_file():
        return [where]
    if not where.is_dir():
        raise FileNotFoundError(f"no file or folder at '{where}'")
    found = [p for p in sorted(where.glob("*.jsonl")) if not p.name.startswith("quarantine")]
    if not found:
        raise ValueError(f"no *.jsonl in '{where}': give a folder of records, or one file of them")
    return found
