"""A record's fields for other software: as JSON Schema (2020-12) and as Arrow columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pyarrow as pa

from embodied.egocot.fields import CONTROLS, Hint, Rule, hints
from embodied.egocot.records import Record
from embodied.types import Subgoal
from embodied.video import replacing

_NOUN = r"[^(),\s](?:[^(),]*[^(),\s])?"
_SUBGOAL = rf"^[a-z](?:[a-z ]*[a-z])?\({_NOUN}(?:, {_NOUN})?\)$"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a record: what each field may hold.

    What holds between fields is not in it; the record itself checks that.
    """
    definitions: dict[str, Any] = {}
    root = _object(Record, definitions)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "EgoCOT record"}
    return {**head, **root, "$defs": definitions}


def write_schema(path: str | Path) -> None:
    """Write `json_schema()`, as data/egocot/schema.json has it."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", "utf-8")


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    fields = hints(cls)
    return {
        "description": " ".join((cls.__doc__ or "").partition("\n\n")[0].split()),
        "type": "object",
        "properties": {name: _schema(hint, definitions) for name, hint in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
    }


def _schema(hint: Hint, definitions: dict[str, Any]) -> dict[str, Any]:
    found = _one(hint, definitions)
    if hint.nullable:
        found = {"anyOf": [found, {"type": "null"}]}
    return {"description": hint.doc, **found} if hint.doc else found


def _one(hint: Hint, definitions: dict[str, Any]) -> dict[str, Any]:
    """Of a value that is not null."""
    base, rule = hint.base, hint.rule
    if get_origin(base) is tuple:
        return _kept(type="array", items=_schema(hint.entry, definitions), maxItems=rule.most)
    if get_origin(base) is Literal:
        return {"type": "string", "enum": list(get_args(base))}
    if base is str:
        return _text(rule, rule.pattern and f"^(?:{rule.pattern})$")
    if base is Subgoal:
        return _text(rule, _SUBGOAL)
    if base in (int, float):
        kind = "integer" if base is int else "number"
        bounds = {"minimum": rule.low, "maximum": rule.high, "exclusiveMaximum": rule.below}
        return _kept(type=kind, **bounds)
    definitions.setdefault(base.__name__, _object(base, definitions))
    return {"$ref": f"#/$defs/{base.__name__}"}


def _text(rule: Rule, pattern: str | None) -> dict[str, Any]:
    no_controls = {"not": {"pattern": CONTROLS}}
    return _kept(type="string", maxLength=rule.most, pattern=pattern or r"\S", **no_controls)


def _kept(**entries: Any) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if value is not None}


def arrow_schema() -> pa.Schema:
    """A record's columns for pyarrow, pandas and `datasets`; the same in every file.

    Readers that guess types from the first lines take a column that begins with nulls for one of
    nulls only: give them this.
    """
    return pa.schema([(name, _arrow(hint)) for name, hint in hints(Record).items()])


def _arrow(hint: Hint) -> pa.DataType:
    base = hint.base
    if get_origin(base) is tuple:
        return pa.list_(_arrow(hint.entry))
    if base in (int, float):
        return pa.int64() if base is int else pa.float64()
    if base in (str, Subgoal) or get_origin(base) is Literal:
        return pa.string()
    return pa.struct([(name, _arrow(inner)) for name, inner in hints(base).items()])
