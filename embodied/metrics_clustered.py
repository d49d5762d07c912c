"""Paired comparisons of several policies on the same layouts, whose pairs are not independent.

A hard layout is hard for every training seed, so McNemar's test over all pairs takes five seeds on
twenty layouts for a hundred layouts. Here the replicates are the layouts, with the policies as
given (`Layouts`), or the training seeds, with the layouts as given (`student95`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000

Interval = tuple[float, float]


@dataclass(frozen=True)
class Layouts:
    """What all pairs of each layout say together.

    Args:
        tasks: the task of each layout.
        sums: how many more of its pairs B alone won than A alone.
        sizes: how many pairs it has.
    """

    tasks: tuple[str, ...]
    sums: tuple[int, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.tasks) == len(self.sums) == len(self.sizes):
            raise ValueError(
                "every layout has a task, a sum and a size, got "
                f"{len(self.tasks)}, {len(self.sums)} and {len(self.sizes)}"
            )
        if odd := [(s, n) for s, n in zip(self.sums, self.sizes, strict=True) if abs(s) > n]:
            raise ValueError(f"a layout of {odd[0][1]} pairs cannot differ by {odd[0][0]}")

    @property
    def p(self) -> float:
        """Two-sided p of the exact sign-flip test: A and B trade places, a layout at a time.

        With one pair a layout it is McNemar's exact p.
        """
        chance = np.ones(1)  # of each total from -(the steps so far) to + that
        for step in map(abs, self.sums):
            chance = (np.pad(chance, (0, 2 * step)) + np.pad(chance, (2 * step, 0))) / 2
        total = np.arange(len(chance)) - len(chance) // 2
        return min(1.0, float(chance[np.abs(total) >= abs(sum(self.sums))].sum()))

    def bootstrap95(self, seed: int = 0) -> Interval | None:
        """95 % percentile interval of B - A, layouts drawn anew within each task.

        None when no task has two layouts.
        """
        if len(set(self.tasks)) == len(self.tasks):
            return None
        rng, tasks = np.random.default_rng(seed), np.asarray(self.tasks)
        sums, sizes = np.asarray(self.sums), np.asarray(self.sizes)
        of_sums, of_sizes = np.zeros((2, _RESAMPLES))
        for task in dict.fromkeys(self.tasks):
            of_task = np.flatnonzero(tasks == task)
            drawn = rng.choice(of_task, (_RESAMPLES, len(of_task)))  # (resamples, layouts)
            of_sums += sums[drawn].sum(1)
            of_sizes += sizes[drawn].sum(1)
        low, high = np.percentile(of_sums / of_sizes, [2.5, 97.5])
        return float(low), float(high)


def student95(groups: Sequence[Sequence[float]], weights: Sequence[float]) -> Interval | None:
    """Student's 95 % interval of a weighted sum of means, with Welch and Satterthwaite's freedom.

    Args:
        groups: the replicates of each mean: differences of policies that differ in their training
            seed only.
        weights: one for each group, 1 in all.

    Returns:
        None when a group has less than two replicates, which say nothing of others.
    """
    if not groups or min(map(len, groups)) < 2:
        return None
    from scipy.stats import t  # here: it takes a second to import

    n = np.array([len(group) for group in groups])
    mean = sum(w * float(np.mean(g)) for w, g in zip(weights, groups, strict=True))
    parts = np.square(weights) * [np.var(group, ddof=1) for group in groups] / n
    if not parts.sum():
        return mean, mean
    freedom = parts.sum() ** 2 / (parts**2 / (n - 1)).sum()
    half = float(t.ppf(0.975, freedom) * np.sqrt(parts.sum()))
    return mean - half, mean + half
