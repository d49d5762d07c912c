"""A record on its way to the folder, before anything has scored it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embodied.egocot.records import Record


@dataclass(frozen=True)
class Draft:
    """A record, and what the quarantine says of where it comes from.

    Args:
        record: whole but for its score.
        file, line: the source, and the number of its episode or entry.
        text: what came.
    """

    record: Record
    file: Path
    line: int
    text: str
