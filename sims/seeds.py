"""Three disjoint families of layout seeds: to train on, to select on, to test on."""

from __future__ import annotations

from typing import Literal

Family = Literal["train", "select", "test"]

FAMILY_SIZE = 100_000
FIRST_SEED: dict[Family, int] = {"train": 0, "select": FAMILY_SIZE, "test": 2 * FAMILY_SIZE}


def seeds(family: Family, n: int, offset: int = 0) -> range:
    """The `n` seeds of a family from `offset` on. Raises ValueError past the family's end."""
    if n < 0 or offset < 0 or offset + n > FAMILY_SIZE:
        raise ValueError(f"a family has {FAMILY_SIZE} seeds, asked for {offset}..{offset + n}")
    first = FIRST_SEED[family] + offset
    return range(first, first + n)


def family_of(seed: int) -> Family:
    """The family that `seed` belongs to. Raises ValueError for a seed of none."""
    for family, first in FIRST_SEED.items():
        if first <= seed < first + FAMILY_SIZE:
            return family
    raise ValueError(f"seed {seed} is in no family; they are {FIRST_SEED}, {FAMILY_SIZE} each")
