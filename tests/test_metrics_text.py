"""Scores of words, against what is computed by hand."""

from __future__ import annotations

import pytest

from embodied.metrics import step_f1
from embodied.metrics_text import Mean, bleu4, cider, is_right, order_score, rouge_l

DRAWER = "the robot pulls the drawer"


def test_bleu_by_hand() -> None:
    """Of 6, 5, 4 and 3 n-grams one is too many; what is said is not shorter."""
    by_hand = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert bleu4([DRAWER + " handle"], [DRAWER]).value == pytest.approx(by_hand)
    perfect = bleu4([DRAWER, "it has come undone now"], [DRAWER, "it has come undone now"])
    assert perfect.value == pytest.approx(100) and perfect.n == 2
    assert perfect.bootstrap95 == pytest.approx((100, 100))


def test_rouge_by_hand() -> None:
    assert rouge_l(["a b c"], ["a c d"]).value == pytest.approx(2 / 3)
    assert rouge_l(["a b c", "x"], ["a c d", "y"]).value == pytest.approx(1 / 3)


def test_cider_by_hand() -> None:
    """Two words in each of two references, each word in one: n-grams of 3 and 4 words are absent.

    "a x" for "a b": half of what its words weigh, none of its pairs.
    """
    assert cider(["a b", "c d"], ["a b", "c d"]).value == pytest.approx(10 * 2 / 4)
    assert cider(["A x.", "c d"], ["a b", "c d"]).value == pytest.approx((10 * 0.5 / 4 + 5) / 2)


@pytest.mark.parametrize("score", [bleu4, rouge_l, cider])
def test_words_that_have_nothing_in_common_score_nothing(score: object) -> None:
    assert callable(score)
    texts = [DRAWER, "a kettle stands on the stove", "turn the knob to the left"]
    shifted = ["xx yy zz", "qq ww ee rr", "uu ii oo"]
    assert score(shifted, texts).value == pytest.approx(0, abs=0.1)
    assert score(texts, texts).value > 0.9
    assert score([], []) == Mean(None, 0, None)
    with pytest.raises(ValueError, match="1 texts but 2 references|zip"):
        score(["a"], ["a", "b"])


def test_order_is_what_the_bag_of_steps_leaves_aside() -> None:
    assert order_score("abc", "abc") == order_score("", "") == 1
    assert order_score("ba", "ab") == 0.5 and step_f1("ba", "ab") == 1  # type: ignore[arg-type]
    assert order_score("ac", "abc") == pytest.approx(0.8)  # what is there is in order
    assert order_score("xyz", "abc") == order_score("", "abc") == 0


def test_a_mean_has_an_interval_that_shrinks_with_n() -> None:
    few, many = Mean.of([0, 1] * 5), Mean.of([0, 1] * 200)
    assert few.value == many.value == 0.5
    assert few.bootstrap95 is not None and many.bootstrap95 is not None
    assert few.bootstrap95[0] < many.bootstrap95[0] < 0.5 < many.bootstrap95[1]
    assert many.bootstrap95 == pytest.approx((0.45, 0.55), abs=0.01)
    assert Mean.of([0.25]) == Mean(0.25, 1, None) and Mean.of([]) == Mean(None, 0, None)


@pytest.mark.parametrize(
    ("said", "true", "right"),
    [
        ("The block.", "the block", True),
        ("block", "the block", True),
        ("a box", "the block", False),
        ("yes, it is", "yes", False),
        ("", "no", False),
        ("at (100, 50)", "at (106, 58)", True),
        ("at (100, 50)", "at (107, 58)", False),
        ("somewhere", "at (100, 50)", False),
        ("at (100, 50)", "out of view", False),
    ],
)
def test_answers(said: str, true: str, right: bool) -> None:
    assert is_right(said, true) == right
