"""Metrics against closed forms and other libraries, and against methods known to be bad."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import chi2_contingency, multinomial, norm, sem
from scipy.stats import t as scipy_t

from embodied.metrics import (
    OverSeeds,
    Paired,
    Rate,
    Score,
    latency,
    macro,
    macro_f1,
    plan_scores,
    step_f1,
    verdict_scores,
)
from embodied.types import Subgoal

REACH, GRASP, PULL = (Subgoal.parse(f"{verb}(handle)") for verb in ("reach", "grasp", "pull"))


def _wilson(k: int, n: int) -> tuple[float, float]:
    z = norm.ppf(0.975)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return centre - half, centre + half


@pytest.mark.parametrize(("k", "n"), [(0, 20), (20, 20), (1, 1), (7, 20), (250, 500)])
def test_wilson_interval_is_the_closed_form(k: int, n: int) -> None:
    assert Rate(k, n).wilson95 == pytest.approx(_wilson(k, n), abs=1e-12)


@pytest.mark.parametrize(("n", "points"), [(20, 20), (50, 13), (100, 9.6), (500, 4.4)])
def test_half_width_at_one_half(n: int, points: float) -> None:
    low, high = Rate(n // 2, n).wilson95 or (0, 0)
    assert 50 * (high - low) == pytest.approx(points, abs=0.7)


def test_rate_of_nothing_is_unknown_not_zero() -> None:
    rate = Rate(0, 0)
    assert (rate.value, rate.percent, rate.wilson95, str(rate)) == (None, None, None, "0/0")


def test_rate_reads_well() -> None:
    assert str(Rate(17, 20)) == "17/20 = 85 % [64, 95]"


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3)])
def test_impossible_rate_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{k} of {n}"):
        Rate(k, n)


def test_expert_is_near_one_and_broken_policy_is_zero() -> None:
    assert Rate.of([True] * 49 + [False]).value == 0.98
    assert Rate.of([False] * 50).value == 0.0


def test_macro_counts_tasks_alike_and_skips_those_without_trials() -> None:
    assert macro([Rate(10, 10), Rate(0, 90), Rate(0, 0)]) == 0.5
    assert macro([Rate(0, 0)]) is None


def _exact_p(b: int, c: int) -> float:
    """Twice the smaller tail of the fair coin, at most 1."""
    n = b + c
    tail = sum(math.comb(n, i) for i in range(min(b, c) + 1)) / 2**n
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (0, 6), (3, 9), (7, 7), (21, 9)])
def test_mcnemar_is_twice_the_binomial_tail(b: int, c: int) -> None:
    assert Paired(60, b, c).p == pytest.approx(_exact_p(b, c))
    assert Paired(60, c, b).p == Paired(60, b, c).p


def _simulated_power(n: int, discordance: float, difference: float) -> float:
    """How often 4,000 drawn comparisons are significant at 5 %."""
    shares = [(discordance - difference) / 2, (discordance + difference) / 2, 1 - discordance]
    drawn = np.random.default_rng(0).multinomial(n, shares, size=4000)
    return float(np.mean([_exact_p(int(b), int(c)) <= 0.05 for b, c, _ in drawn]))


@pytest.mark.parametrize(("n", "b", "c"), [(50, 5, 10), (100, 5, 15), (60, 0, 0)])
def test_detectable_difference_is_found_in_four_of_five_draws(n: int, b: int, c: int) -> None:
    found = Paired(n, b, c).detectable_difference()
    assert found is not None
    discordance = max((b + c) / n, found)
    assert _simulated_power(n, discordance, found) == pytest.approx(0.8, abs=0.03)
    assert _simulated_power(n, discordance, found * 0.7) < 0.7


def test_detectable_difference_nears_connor_s_formula() -> None:
    """Biometrics 43:207: n d² = (z(97.5 %) √q + z(80 %) √(q - d²))²."""
    n, q = 20_000, 0.3
    found = Paired(n, 3000, 3000).detectable_difference() or 0.0
    needed = (norm.ppf(0.975) * q**0.5 + norm.ppf(0.8) * (q - found**2) ** 0.5) ** 2 / found**2
    assert needed == pytest.approx(n, rel=0.03)


def test_five_pairs_can_detect_nothing() -> None:
    assert Paired(5, 0, 5).detectable_difference() is None
    assert Paired(0, 0, 0).detectable_difference() is None


def test_interval_over_training_seeds_is_student_s() -> None:
    rates = [0.7, 0.8, 0.95]
    expected = scipy_t.interval(0.95, 2, np.mean(rates), sem(rates))
    over = OverSeeds.of(rates)
    assert over.mean == pytest.approx(np.mean(rates))
    assert (over.low, over.high) == (pytest.approx(expected[0]), 1.0)  # cut at 1
    assert expected[1] > 1
    assert str(OverSeeds.of([0.5])) == "50.0 % (one seed)"
    assert str(OverSeeds.of([0.5, 0.5])) == "50.0 % [50, 50]"
    for wrong in ([], [50.0]):
        with pytest.raises(ValueError, match=r"one rate within 0\.\.1 a training seed"):
            OverSeeds.of(wrong)


def test_pairs_are_counted_in_order() -> None:
    a = [True, True, False, False, True]
    b = [True, False, True, False, False]
    paired = Paired.of(a, b)
    assert (paired.n, paired.only_a, paired.only_b) == (5, 2, 1)
    assert paired.difference == pytest.approx(-0.2)


def test_pairing_sees_what_an_unpaired_test_does_not() -> None:
    paired = Paired(100, 0, 8)  # 50 and 58 of 100
    unpaired = chi2_contingency([[50, 50], [58, 42]]).pvalue
    assert paired.p < 0.01 < 0.2 < unpaired


def _score_test(n: int, b: int, a: int, difference: float) -> float:
    """z of b - a against a true difference, by the multinomial likelihood's own maximum there."""

    def unlikely(share: float) -> float:
        chances = (share + difference, share, 1 - 2 * share - difference)
        return -sum(xlogy(k, p) for k, p in zip((b, a, n - b - a), chances, strict=True))

    low, high = max(0.0, -difference), (1 - difference) / 2
    found = minimize_scalar(unlikely, bounds=(low, high), options={"xatol": 1e-12})
    share = found.x
    return (b - a - n * difference) / math.sqrt(n * (2 * share + difference * (1 - difference)))


@pytest.mark.parametrize(
    ("n", "a", "b"), [(21, 7, 1), (50, 12, 2), (40, 3, 20), (30, 0, 9), (12, 5, 5)]
)
def test_interval_of_pairs_ends_where_the_score_test_rejects(n: int, a: int, b: int) -> None:
    low, high = Paired(n, a, b).interval95 or (0.0, 0.0)
    assert low < (b - a) / n < high
    assert _score_test(n, b, a, low) == pytest.approx(norm.ppf(0.975), abs=1e-3)
    assert _score_test(n, b, a, high) == pytest.approx(-norm.ppf(0.975), abs=1e-3)
    mirrored = Paired(n, b, a).interval95
    assert mirrored == (pytest.approx(-high, abs=1e-8), pytest.approx(-low, abs=1e-8))


@pytest.mark.parametrize(("n", "discordance", "difference"), [(30, 0.3, 0.2), (45, 0.1, 0.0)])
def test_interval_of_pairs_holds_the_truth_in_95_of_100(
    n: int, discordance: float, difference: float
) -> None:
    """Over every outcome that there is, each as likely as it is."""
    p = [(discordance - difference) / 2, (discordance + difference) / 2, 1 - discordance]
    covered = 0.0
    for a, b in itertools.product(range(n + 1), repeat=2):
        chance = multinomial.pmf([a, b, n - a - b], n, p) if a + b <= n else 0.0
        if chance > 1e-9:
            low, high = Paired(n, a, b).interval95 or (1.0, -1.0)
            covered += chance * (low <= difference <= high)
    assert 0.94 < covered < 0.98


def test_interval_of_pairs_at_the_edges() -> None:
    assert Paired(0, 0, 0).interval95 is None
    low, high = Paired(20, 0, 0).interval95 or (0.0, 0.0)
    assert high == pytest.approx(-low) and 0.1 < high < 0.2  # nothing differed, of so few
    assert (Paired(10, 0, 10).interval95 or (0.0, 0.0))[1] == 1.0
    assert (Paired(10, 10, 0).interval95 or (0.0, 0.0))[0] == -1.0


def test_identical_methods_do_not_differ() -> None:
    same = [True, False] * 10
    assert Paired.of(same, same).p == 1.0


def test_unequal_or_impossible_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        Paired.of([True], [True, False])
    with pytest.raises(ValueError, match="of 3 pairs"):
        Paired(3, 2, 2)


@pytest.mark.parametrize(
    ("paired", "expected"),
    [
        (Paired(5, 0, 0), None),  # no result of five pairs is significant
        (Paired(20, 0, 0), 6 / 20),
        (Paired(20, 1, 2), 6 / 20),
        (Paired(100, 5, 5), 8 / 100),  # 1 against 9 is
    ],
)
def test_smallest_difference(paired: Paired, expected: float | None) -> None:
    assert paired.smallest_difference() == expected


@pytest.mark.parametrize("discordant", range(6, 30))
def test_smallest_difference_is_just_significant(discordant: int) -> None:
    smallest = Paired(100, discordant, 0).smallest_difference()
    assert smallest is not None
    more = round((100 * smallest + discordant) / 2)
    assert _exact_p(discordant - more, more) <= 0.05 < _exact_p(discordant - more + 1, more - 1)


def test_verdict_scores_by_hand() -> None:
    truth = ["done", "done", "failed", "progressing", "failed"]
    said = ["done", "failed", "failed", "progressing", "done"]
    scores = verdict_scores(truth, said)  # type: ignore[arg-type]
    assert scores["done"] == Score(tp=1, fp=1, fn=1)
    assert scores["failed"] == Score(tp=1, fp=1, fn=1)
    assert scores["progressing"] == Score(tp=1, fp=0, fn=0)
    assert macro_f1(scores) == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_verdict_scores_add_up_to_accuracy() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(["done", "progressing", "failed"], 200).tolist()
    said = rng.choice(["done", "progressing", "failed"], 200).tolist()
    scores = verdict_scores(truth, said).values()
    hits = sum(t == s for t, s in zip(truth, said, strict=True))
    assert sum(score.tp for score in scores) == hits
    assert sum(score.fp for score in scores) == sum(score.fn for score in scores) == 200 - hits
    for score in scores:
        assert score.precision and score.recall and score.f1
        harmonic = 2 / (1 / score.precision + 1 / score.recall)
        assert score.f1 == pytest.approx(harmonic)


def test_judge_that_always_says_done_is_seen_through() -> None:
    scores = verdict_scores(["done"] * 5 + ["failed"] * 5, ["done"] * 10)
    assert scores["done"].recall == 1.0 and scores["done"].precision == 0.5
    assert scores["failed"].f1 == 0.0 and scores["failed"].precision is None
    assert scores["progressing"].f1 is None
    assert macro_f1(scores) == pytest.approx((2 / 3 + 0) / 2)


def test_bad_verdicts_are_refused() -> None:
    with pytest.raises(ValueError, match="1 true verdicts but 0"):
        verdict_scores(["done"], [])
    with pytest.raises(ValueError, match="'maybe'"):
        verdict_scores(["done"], ["maybe"])  # type: ignore[list-item]


def test_step_f1_by_hand() -> None:
    assert step_f1([REACH, PULL], [REACH, PULL]) == 1.0
    assert step_f1([PULL, REACH], [REACH, PULL]) == 1.0  # a bag
    assert step_f1([REACH], [REACH, GRASP, PULL]) == 0.5
    assert step_f1([REACH, REACH], [REACH]) == pytest.approx(2 / 3)  # repeats do not count twice
    assert step_f1([], [REACH]) == 0.0
    assert step_f1([], []) == 1.0


def test_step_f1_is_symmetric_and_bounded() -> None:
    plans = [p for n in range(4) for p in itertools.product([REACH, GRASP, PULL], repeat=n)]
    for a, b in itertools.combinations(plans, 2):
        assert 0 <= step_f1(a, b) == step_f1(b, a) <= 1


def test_plan_scores_know_order() -> None:
    scores = plan_scores([[REACH, PULL], [PULL, REACH], []], [[REACH, PULL]] * 3)
    assert scores.exact == Rate(1, 3)
    assert scores.step_f1 == pytest.approx(2 / 3)
    assert plan_scores([], []).step_f1 is None
    with pytest.raises(ValueError, match="1 plans but 0"):
        plan_scores([[REACH]], [])


def test_latency_summary() -> None:
    summary = latency([*range(1, 101)])
    assert summary == {"n": 100, "mean": 50.5, "p50": 50.5, "p95": 95.05, "max": 100.0}
    assert latency([]) == {}
    with pytest.raises(ValueError, match="finite"):
        latency([1.0, float("nan")])
