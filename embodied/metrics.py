"""How good it was: rates with intervals, paired comparisons, plan and verdict scores, latency.

Every success rate is k of n with a Wilson interval; two methods are compared on the same layouts
by McNemar's exact test, beside the smallest difference that so many pairs can show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embodied.types import STATUSES, Status, Subgoal

_Z95 = 1.959963984540054  # of the normal distribution, two-sided


@dataclass(frozen=True)
class Rate:
    """`k` successes of `n` trials."""

    k: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.k <= self.n:
            raise ValueError(f"a rate is k of n with 0 <= k <= n, got {self.k} of {self.n}")

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Rate:
        """The rate of true ones."""
        outcomes = [bool(outcome) for outcome in outcomes]
        return cls(sum(outcomes), len(outcomes))

    @property
    def value(self) -> float | None:
        """k / n; None when there was no trial."""
        return self.k / self.n if self.n else None

    @property
    def percent(self) -> float | None:
        return 100.0 * self.k / self.n if self.n else None

    @property
    def wilson95(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval within 0..1; None when there was no trial."""
        if not self.n:
            return None
        from scipy.stats import binomtest  # here: it takes a second to import

        interval = binomtest(self.k, self.n).proportion_ci(0.95, method="wilson")
        return float(interval.low), float(interval.high)

    def __str__(self) -> str:
        if self.wilson95 is None:
            return "0/0"
        low, high = self.wilson95
        return f"{self.k}/{self.n} = {self.percent:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def macro(rates: Iterable[Rate]) -> float | None:
    """The mean of the tasks' rates, each counting alike; None when no task has a trial."""
    values = [rate.value for rate in rates if rate.value is not None]
    return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class OverSeeds:
    """The mean of several training seeds' rates, with Student's 95 % interval for it.

    Args:
        mean, low, high: within 0..1; the bounds are None for one seed, which tells nothing of it.
    """

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, rates: Sequence[float]) -> OverSeeds:
        """From one rate a training seed. Seeds are the replicates, episodes are not.

        Raises:
            ValueError: there is none, or one is no rate.
        """
        values = np.asarray(rates, np.float64)
        if not len(values) or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"expected one rate within 0..1 a training seed, got {list(rates)}")
        mean = float(values.mean())
        if len(values) == 1:
            return cls(mean, None, None)
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        return cls(mean, max(0.0, mean - half), min(1.0, mean + half))

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{100 * self.mean:.1f} % (one seed)"
        return f"{100 * self.mean:.1f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


@dataclass(frozen=True)
class Paired:
    """Two methods on the same `n` layouts: how often only one of them succeeded."""

    n: int
    only_a: int
    only_b: int

    def __post_init__(self) -> None:
        if min(self.only_a, self.only_b) < 0 or self.only_a + self.only_b > self.n:
            raise ValueError(f"of {self.n} pairs, {self.only_a} and {self.only_b} cannot differ")

    @classmethod
    def of(cls, a: Sequence[bool], b: Sequence[bool]) -> Paired:
        """From the successes of both, in the same order of layouts."""
        if len(a) != len(b):
            raise ValueError(f"pairs need as many of each, got {len(a)} and {len(b)}")
        pairs = Counter((bool(x), bool(y)) for x, y in zip(a, b, strict=True))
        return cls(pairs.total(), pairs[True, False], pairs[False, True])

    @property
    def difference(self) -> float | None:
        """Rate of b minus rate of a, within -1..1."""
        return (self.only_b - self.only_a) / self.n if self.n else None

    @property
    def interval95(self) -> tuple[float, float] | None:
        """Tango's 95 % score interval for the difference; None without pairs.

        Statistics in Medicine 17:891, 1998. It holds the differences that the pairs do not
        contradict, and has a width even where no pair disagrees.
        """
        if not self.n:
            return None
        difference = (self.only_b - self.only_a) / self.n
        return self._bound(difference, -1.0), self._bound(difference, 1.0)

    def _bound(self, inside: float, outside: float) -> float:
        """Where the interval ends on the way from its middle to -1 or 1."""
        if self._agrees_with(outside):
            return outside
        while abs(outside - inside) > 1e-9:
            middle = (inside + outside) / 2
            if self._agrees_with(middle):
                inside = middle
            else:
                outside = middle
        return inside

    def _agrees_with(self, difference: float) -> bool:
        """Whether a true `difference` would not be rejected at 5 % by Tango's score test."""
        n, b, a, d = self.n, self.only_b, self.only_a, difference
        half = (b + a - (2 * n - b + a) * d) / (4 * n)
        share = half + np.sqrt(half**2 + a * d * (1 - d) / (2 * n))  # likeliest, of `only_a`
        variance = n * (2 * share + d * (1 - d))
        return bool((b - a - n * d) ** 2 <= _Z95**2 * max(variance, 0.0))

    @property
    def p(self) -> float:
        """McNemar's exact two-sided p."""
        return _sign_test(self.only_a, self.only_b)

    def smallest_difference(self, alpha: float = 0.05) -> float | None:
        """The smallest |difference| that this comparison could have called significant.

        It holds for as many disagreeing pairs as were seen, or for the fewest that can be
        significant at all (6 at 0.05) when fewer were. None when `n` is below even that.
        """
        for discordant in range(self.only_a + self.only_b, self.n + 1):
            for more in range((discordant + 1) // 2, discordant + 1):
                if _sign_test(discordant - more, more) <= alpha:
                    return (2 * more - discordant) / self.n
        return None

    def detectable_difference(self, power: float = 0.8, alpha: float = 0.05) -> float | None:
        """The smallest true |difference| that `n` such pairs would find with this power.

        "Find" is to be significant at `alpha`, two-sided, by the exact test. The power is the
        unconditional one of McNemar's test (Connor, Biometrics 43:207, 1987), enumerated instead
        of approximated: of n pairs, Binomial(n, q) disagree, and of those
        Binomial(·, (1 + difference / q) / 2) favour the better method. q is the share of
        disagreeing pairs that was seen, or the difference itself where that is larger: a
        difference needs as many disagreeing pairs. Other layouts may disagree more or less often.

        Returns:
            Within 0..1, to 1e-4; None when not even a difference of 1 would be found.
        """
        if not self.n or _mcnemar_power(self.n, 1.0, 1.0, alpha) < power:
            return None
        seen = (self.only_a + self.only_b) / self.n
        low, high = 0.0, 1.0  # not found, found
        while high - low > 1e-4:
            middle = (low + high) / 2
            found = _mcnemar_power(self.n, max(seen, middle), middle, alpha) >= power
            low, high = (low, middle) if found else (middle, high)
        return high


def _mcnemar_power(n: int, discordance: float, difference: float, alpha: float) -> float:
    """Chance that the exact test on `n` pairs is significant at `alpha`."""
    from scipy.stats import binom

    count = np.arange(n + 1)  # of disagreeing pairs
    needed = binom.isf(alpha / 2, count, 0.5) + 1  # of them on one side; more than all: never
    chance = (1 + difference / discordance) / 2
    significant = binom.sf(needed - 1, count, chance) + binom.sf(needed - 1, count, 1 - chance)
    return float((binom.pmf(count, n, discordance) * significant).sum())


def _sign_test(a: int, b: int) -> float:
    if a + b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(a, a + b, 0.5).pvalue)


@dataclass(frozen=True)
class Score:
    """Hits, false alarms and misses of one class."""

    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float | None:
        """None when the class was never predicted."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else None

    @property
    def recall(self) -> float | None:
        """None when the class never occurred."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else None

    @property
    def f1(self) -> float | None:
        """None when the class neither occurred nor was predicted."""
        both = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / both if both else None


def verdict_scores(truth: Sequence[Status], predicted: Sequence[Status]) -> dict[Status, Score]:
    """One score a status, in the same order of clips.

    Raises:
        ValueError: unequal lengths, or a status that there is not.
    """
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} true verdicts but {len(predicted)} predicted ones")
    if unknown := {*truth, *predicted} - set(STATUSES):
        raise ValueError(f"a verdict is one of {STATUSES}, got {sorted(unknown)}")
    pairs = Counter(zip(truth, predicted, strict=True))

    def count(status: Status) -> Score:
        tp = pairs[status, status]
        fp = sum(n for (t, p), n in pairs.items() if p == status != t)
        fn = sum(n for (t, p), n in pairs.items() if t == status != p)
        return Score(tp, fp, fn)

    return {status: count(status) for status in STATUSES}


def macro_f1(scores: Mapping[Status, Score]) -> float | None:
    """Mean F1 over the statuses that occurred or were predicted."""
    values = [score.f1 for score in scores.values() if score.f1 is not None]
    return float(np.mean(values)) if values else None


def step_f1(predicted: Sequence[Subgoal], reference: Sequence[Subgoal]) -> float:
    """F1 of a plan's steps as a bag, order left aside; two empty plans agree."""
    if not predicted and not reference:
        return 1.0
    shared = (Counter(predicted) & Counter(reference)).total()
    return 2 * shared / (len(predicted) + len(reference))


@dataclass(frozen=True)
class PlanScores:
    """How well plans match their references.

    Args:
        exact: plans whose list of steps is the reference's, order included.
        step_f1: mean over plans; None when there is none.
    """

    exact: Rate
    step_f1: float | None


def plan_scores(
    predicted: Sequence[Sequence[Subgoal]], reference: Sequence[Sequence[Subgoal]]
) -> PlanScores:
    """Score plans against references in the same order; a refused plan is one without steps."""
    if len(predicted) != len(reference):
        raise ValueError(f"{len(predicted)} plans but {len(reference)} references")
    pairs = list(zip(predicted, reference, strict=True))
    exact = Rate.of(tuple(p) == tuple(r) for p, r in pairs)
    f1 = [step_f1(p, r) for p, r in pairs]
    return PlanScores(exact, float(np.mean(f1)) if f1 else None)


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """How long it took: n, mean, median, 95th percentile and longest, seconds; empty for none.

    Raises:
        ValueError: a time is negative or not finite.
    """
    times = np.asarray(seconds, np.float64)
    if not np.isfinite(times).all() or (times < 0).any():
        raise ValueError(f"times are finite and not negative, got {seconds}")
    if not len(times):
        return {}
    p50, p95 = np.percentile(times, [50, 95])
    return {
        "n": len(times),
        "mean": float(times.mean()),
        "p50": float(p50),
        "p95": float(p95),
        "max": float(times.max()),
    }
