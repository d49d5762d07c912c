"""Pairs that are not independent: against scipy's resampling and Welch's interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from embodied.metrics import Paired
from embodied.metrics_clustered import Layouts, student95


def _layouts(sums: list[int], size: int = 3) -> Layouts:
    return Layouts(("a",) * len(sums), tuple(sums), (size,) * len(sums))


@pytest.mark.parametrize(("b", "c", "ties"), [(0, 0, 4), (0, 6, 5), (3, 9, 0), (21, 9, 30)])
def test_one_pair_a_layout_is_mcnemar_s_test(b: int, c: int, ties: int) -> None:
    layouts = _layouts([-1] * b + [1] * c + [0] * ties, 1)
    assert layouts.p == pytest.approx(Paired(b + c + ties, b, c).p)


@pytest.mark.parametrize("seed", range(5))
def test_p_is_that_of_all_sign_flips(seed: int) -> None:
    sums = np.random.default_rng(seed).integers(-2, 4, 11).tolist()
    every = stats.permutation_test(
        (np.array(sums),), np.sum, permutation_type="samples", n_resamples=2**12
    )
    assert _layouts(sums).p == pytest.approx(every.pvalue)
    assert _layouts([-s for s in sums]).p == _layouts(sums).p


def test_seeds_that_repeat_each_other_are_no_evidence() -> None:
    """Five equal policies: McNemar's p of all pairs shrinks, that over layouts stays."""
    sums = [1] * 6 + [-1] * 2 + [0] * 12
    once, often = _layouts(sums, 1), _layouts([5 * s for s in sums], 5)
    assert Paired(100, 10, 30).p < 0.01 < 0.05 < Paired(20, 2, 6).p
    assert often.p == pytest.approx(once.p) == pytest.approx(Paired(20, 2, 6).p)
    assert often.bootstrap95() == pytest.approx(once.bootstrap95())


def test_p_under_no_difference_is_not_too_small() -> None:
    """Layouts that decide for all five seeds at once: 5 % of such comparisons may be found."""
    rng = np.random.default_rng(0)
    drawn = [5 * rng.choice([-1, 0, 1], 30, p=[0.2, 0.6, 0.2]) for _ in range(400)]
    found = np.mean([_layouts(sums.tolist(), 5).p <= 0.05 for sums in drawn])
    naive = np.mean(
        [Paired(150, int(-s[s < 0].sum()), int(s[s > 0].sum())).p <= 0.05 for s in drawn]
    )
    assert found <= 0.06 < 0.2 < naive


def test_bootstrap_is_scipy_s() -> None:
    sums = np.random.default_rng(1).integers(-2, 4, 40)
    theirs = stats.bootstrap(
        (sums / 3,), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    ours = _layouts(sums.tolist()).bootstrap95()
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours == _layouts(sums.tolist()).bootstrap95()  # drawn alike each time


def test_bootstrap_keeps_the_tasks() -> None:
    """Tasks that are sure each, one won and one lost, leave nothing to chance."""
    sure = Layouts(("a",) * 8 + ("b",) * 8, (2,) * 8 + (-2,) * 8, (2,) * 16)
    assert sure.bootstrap95() == (0.0, 0.0)
    assert Layouts(("a",) * 16, sure.sums, sure.sizes).bootstrap95() != (0.0, 0.0)
    assert Layouts(("a", "b"), (1, 0), (1, 1)).bootstrap95() is None


def test_layouts_of_several_sizes_count_by_their_pairs() -> None:
    uneven = Layouts(("a",) * 40, (4, 0) * 20, (4, 1) * 20)
    low, high = uneven.bootstrap95() or (0, 0)
    assert low < 80 / 100 < high and low > 0.6


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="of 1 pairs cannot differ by 2"):
        _layouts([2], 1)
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        Layouts(("a",), (0, 0), (1,))


def test_nothing_differs_by_nothing() -> None:
    assert Layouts((), (), ()).p == 1.0 and Layouts((), (), ()).bootstrap95() is None


def test_interval_over_seeds_is_student_s_and_welch_s() -> None:
    x, y = [0.1, 0.25, 0.3], [0.02, 0.1]
    alone = stats.ttest_1samp(x, 0).confidence_interval()
    assert student95([x], [1.0]) == pytest.approx((alone.low, alone.high))
    welch = stats.ttest_ind(x, [-v for v in y], equal_var=False).confidence_interval()
    assert student95([x, y], [0.5, 0.5]) == pytest.approx((welch.low / 2, welch.high / 2))


def test_one_seed_tells_nothing_of_others() -> None:
    assert student95([[0.1, 0.2], [0.3]], [0.5, 0.5]) is None and student95([], []) is None
    assert student95([[0.25, 0.25]], [1.0]) == (0.25, 0.25)
