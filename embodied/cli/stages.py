"""What a planner was trained on, stage by stage: kept in config.json, told on the model card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from embodied import checkpoint

TRAINED_ON = "trained_on"
_KINDS = {"dataset": "", "look_at": "", "records": " (records)"}
"""What a stage learns from, and how the card says what that is."""


class StageOptions(Protocol):
    """Which stage, and what it learns from: names, comma-separated."""

    @property
    def stage(self) -> str: ...

    @property
    def dataset(self) -> str: ...

    @property
    def look_at(self) -> str: ...

    @property
    def records(self) -> str: ...


def trained_on(options: StageOptions, starts: Iterable[Path | None]) -> dict[str, Any]:
    """The note to keep: an object for each stage, those that came before this one first.

    Args:
        starts: the planners that training goes on from.

    Raises:
        CheckpointError: one of them is damaged.
    """
    stages: list[Any] = []
    for folder in filter(None, starts):
        before = _stages(checkpoint.load(folder)[1])
        stages += [stage for stage in before if stage not in stages]
    used = ("records",) if options.stage == "words" else _KINDS
    given = {kind: getattr(options, kind) for kind in used if getattr(options, kind)}
    return {TRAINED_ON: [*stages, {"stage": options.stage, **given}]}


def in_words(notes: Mapping[str, Any]) -> str:
    """What a planner was trained on, for people."""
    told = [s if isinstance(s, str) else _told(s) for s in _stages(notes)]
    return "; ".join(told) or "not recorded"


def _stages(notes: Mapping[str, Any]) -> list[Any]:
    """What is kept; of older planners the names of the last stage's data, without a stage."""
    return [entry for entry in (*notes.get(TRAINED_ON, ()), notes.get("records")) if entry]


def _told(stage: Mapping[str, str]) -> str:
    """`align: data/mine, my_videos (records)`."""
    names = [
        name + kind
        for key, kind in _KINDS.items()
        for name in filter(None, stage.get(key, "").split(","))
    ]
    return f"{stage['stage']}: {', '.join(names) or 'requests in words'}"
