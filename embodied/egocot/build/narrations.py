"""Ego4D's narration.json → what the wearer of the camera does, and when.

The file maps a video's id to `narration_pass_1` and `narration_pass_2`, each with `narrations`:
`timestamp_sec`, and a `narration_text` such as `#C C opens a drawer`. `#C` is the wearer, who is
called C; `#O` is somebody else, and `#unsure` stands for what the narrator could not tell.
Sentences without marks, as people write them about their own videos, are taken as they are.

None of that data is here: Ego4D is licensed to each user personally.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embodied.egocot.fields import RecordError, short

PASSES = ("narration_pass_1", "narration_pass_2")
_WEARER = re.compile(r"^\s*#\s*C\b\s*", re.IGNORECASE)
_OTHER = re.compile(r"^\s*#\s*(O|Summary)\b", re.IGNORECASE)
_UNSURE = re.compile(r"#\s*unsure", re.IGNORECASE)
_C = re.compile(r"\bC\b")
_LEAST_S = 1.0
UNKNOWN = "(not told)"


@dataclass(frozen=True)
class Entry:
    """One narration as it came.

    Args:
        video: its id.
        name: pass and number, which tell it from the video's others.
        line: its number in the file, counted through.
        raw: the JSON value.
        near: those before and after it in its pass.
    """

    video: str
    name: str
    line: int
    raw: Any
    near: tuple[Any, Any]


@dataclass(frozen=True)
class Narration:
    """What the wearer does.

    Args:
        video: its id.
        first_s, last_s: the part of the video that shows it.
        text: a sentence.
        before, after: those before and after it, or `UNKNOWN`.
    """

    video: str
    first_s: float
    last_s: float
    text: str
    before: str
    after: str


def read_entries(path: Path) -> list[Entry]:
    """Every narration of a file, in its order.

    Raises:
        ValueError: it is not JSON, or of another form.
    """
    try:
        videos = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not JSON ({error}): download it again") from None
    if not isinstance(videos, dict):
        raise ValueError(f"'{path}' must hold an object by video id, got {short.repr(videos)}")
    found: list[Entry] = []
    for video, passes in videos.items():
        for name, rows in _passes(path, video, passes):
            near = [None, *rows, None]
            for i, raw in enumerate(rows):
                entry = Entry(video, f"{name[-1]}.{i}", len(found) + 1, raw, (near[i], near[i + 2]))
                found.append(entry)
    if not found:
        raise ValueError(f"'{path}' has no narrations in {' or '.join(PASSES)} of any video")
    return found


def _passes(path: Path, video: str, passes: Any) -> Iterator[tuple[str, list[Any]]]:
    if not isinstance(passes, dict):
        raise ValueError(f"'{path}', video '{video}': must be an object, got {short.repr(passes)}")
    for name in PASSES:
        if name in passes:
            rows = passes[name].get("narrations") if isinstance(passes[name], dict) else None
            if not isinstance(rows, list):
                raise ValueError(f"'{path}', video '{video}': {name} has no list of narrations")
            yield name, sorted(rows, key=_order)


def _order(row: Any) -> float:
    """By time; what has none comes first, and is refused later."""
    try:
        return _time_s(row)
    except RecordError:
        return -math.inf


def understand(entry: Entry, longest_s: float) -> Narration:
    """What an entry says of the wearer.

    Args:
        longest_s: of the video's part that shows it; it reaches half-way to its neighbours at
            most, and is at least a second.

    Raises:
        RecordError: it is about somebody else, not certain, or of another form.
    """
    at_s, text = _time_s(entry.raw), sentence(entry.raw)
    first_s, last_s = at_s - longest_s / 2, at_s + longest_s / 2
    before, after = (_quietly(row) for row in entry.near)
    if before is not None:
        first_s = max(first_s, (before[0] + at_s) / 2)
    if after is not None:
        last_s = min(last_s, (after[0] + at_s) / 2)
    first_s, last_s = min(first_s, at_s - _LEAST_S / 2), max(last_s, at_s + _LEAST_S / 2)
    told = [UNKNOWN if row is None or row[1] is None else row[1] for row in (before, after)]
    return Narration(entry.video, max(0.0, first_s), last_s, text, *told)


def _quietly(row: Any) -> tuple[float, str | None] | None:
    """A neighbour's time and sentence; None without a time, no sentence where it says nothing."""
    try:
        at_s = _time_s(row)
    except RecordError:
        return None
    try:
        return at_s, sentence(row)
    except RecordError:
        return at_s, None


def _time_s(row: Any) -> float:
    value = row.get("timestamp_sec") if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError("timestamp_sec", "must be a number", short.repr(value))
    if not (math.isfinite(value) and value >= 0):
        raise RecordError("timestamp_sec", "must be at least 0", short.repr(value))
    return float(value)


def sentence(row: Any) -> str:
    """`#C C picks up C's mug.` → The person picks up the person's mug.

    Raises:
        RecordError: it says nothing certain of the wearer.
    """
    text = row.get("narration_text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise RecordError("narration_text", "must be text", short.repr(text))
    if _OTHER.match(text):
        raise RecordError("narration_text", "is not about the wearer", short.repr(text))
    if _UNSURE.search(text):
        raise RecordError("narration_text", "is not certain", short.repr(text))
    said = _C.sub("the person", _WEARER.sub("", text))
    said = " ".join(re.sub(r"#\w*", "", said).split()).rstrip(". ")
    if not said:
        raise RecordError("narration_text", "is empty without its marks", short.repr(text))
    return f"{said[:1].upper()}{said[1:]}."
