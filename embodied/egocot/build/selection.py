"""So many records of a data set, of every kind, reason and task in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import TypeVar

import numpy as np

T = TypeVar("T")

TURNS = ("start", "done", "failed", "progressing", "start", "failed", "episode")
"""The order in which kinds take their turns; a step's kind is its verdict."""


def choose(
    rng: np.random.Generator,
    items: Sequence[T],
    n: int,
    traits: Callable[[T], tuple[str, str, str]],
) -> list[T]:
    """`n` of `items` in their order: kinds by `TURNS`; within one, reasons; within those, groups.

    Args:
        traits: of an item, its kind, its reason and its group.

    Raises:
        ValueError: there are fewer.
    """
    if n > len(items):
        raise ValueError(f"--n_records {n}: there are {len(items)}; leave it out to take them all")
    described = [traits(item) for item in items]
    stacks = {kind: _reasons_in_turn(rng, described, kind) for kind in dict.fromkeys(TURNS)}
    chosen: list[int] = []
    for kind in cycle(TURNS):
        if len(chosen) == n:
            break
        if stacks[kind]:
            chosen.append(stacks[kind].pop(0))
    return [items[i] for i in sorted(chosen)]


def _reasons_in_turn(
    rng: np.random.Generator, described: Sequence[tuple[str, str, str]], wanted: str
) -> list[int]:
    """The numbers of the items of one kind."""
    by_reason: dict[str, list[int]] = {}
    for i, (kind, reason, _) in enumerate(described):
        if kind == wanted:
            by_reason.setdefault(reason, []).append(i)
    return _in_turn([_groups_in_turn(rng, described, rows) for rows in by_reason.values()])


def _groups_in_turn(
    rng: np.random.Generator, described: Sequence[tuple[str, str, str]], rows: Sequence[int]
) -> list[int]:
    by_group: dict[str, list[int]] = {}
    for i in rng.permutation(rows).tolist():
        by_group.setdefault(described[i][2], []).append(i)
    return _in_turn(list(by_group.values()))


def _in_turn(lists: Sequence[list[int]]) -> list[int]:
    """The first of each, then the second of each, and so on."""
    longest = max((len(rows) for rows in lists), default=0)
    return [rows[k] for k in range(longest) for rows in lists if k < len(rows)]
