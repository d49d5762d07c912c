"""How good words are: order of steps, BLEU-4, ROUGE-L and CIDEr by their usual packages, answers.

What is a mean comes with n and a bootstrap interval; what is a rate, with Wilson's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RESAMPLES, _RESAMPLES_OF_CORPUS = 2000, 200
_PLACE = re.compile(r"^at \((\d+), (\d+)\)$")
_WORD = re.compile(r"\w+")
_ARTICLES = {"a", "an", "the"}
NEAR_PX = 10


@dataclass(frozen=True)
class Mean:
    """A score over `n` samples.

    Args:
        value: None when there is none.
        bootstrap95: from resampling the samples; None with fewer than two.
    """

    value: float | None
    n: int
    bootstrap95: tuple[float, float] | None

    @classmethod
    def of(cls, values: Sequence[float], seed: int = 0) -> Mean:
        """The mean of `values`."""
        if not len(values):
            return cls(None, 0, None)
        array = np.asarray(values, np.float64)
        rng = np.random.default_rng(seed)
        means = [array[rng.integers(len(array), size=len(array))].mean() for _ in _times(array)]
        return cls(float(array.mean()), len(array), _interval(means))


def _times(array: np.ndarray) -> range:
    return range(_RESAMPLES if len(array) > 1 else 0)


def _interval(scores: Sequence[float]) -> tuple[float, float] | None:
    if not len(scores):
        return None
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def order_score(predicted: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """F1 of the steps that are there in the same order: their longest common subsequence.

    As large as the F1 of the bag of steps where the order is right, and less where it is not.
    """
    if not predicted and not reference:
        return 1.0
    lengths = np.zeros((len(predicted) + 1, len(reference) + 1), int)
    for i, p in enumerate(predicted, 1):
        for j, r in enumerate(reference, 1):
            longest = max(lengths[i - 1, j], lengths[i, j - 1])
            lengths[i, j] = lengths[i - 1, j - 1] + 1 if p == r else longest
    return 2 * int(lengths[-1, -1]) / (len(predicted) + len(reference))


def bleu4(said: Sequence[str], true: Sequence[str], seed: int = 0) -> Mean:
    """sacrebleu's corpus BLEU, 0..100; its interval is from resampled corpora."""
    from sacrebleu.metrics import BLEU  # here: few who import this measure texts

    def corpus(rows: np.ndarray | range) -> float:
        texts, references = [said[i] for i in rows], [true[i] for i in rows]
        return float(BLEU().corpus_score(texts, [references]).score)

    return _of_corpus(corpus, len(_same_number(said, true)), seed)


def _of_corpus(score: Callable[[Any], float], n: int, seed: int) -> Mean:
    if not n:
        return Mean(None, 0, None)
    rng, times = np.random.default_rng(seed), _RESAMPLES_OF_CORPUS if n > 1 else 0
    scores = [score(rng.integers(n, size=n)) for _ in range(times)]
    return Mean(score(range(n)), n, _interval(scores))


def rouge_l(said: Sequence[str], true: Sequence[str], seed: int = 0) -> Mean:
    """rouge-score's ROUGE-L F1, 0..1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = _same_number(said, true)
    return Mean.of([scorer.score(t, s)["rougeL"].fmeasure for s, t in pairs], seed)


def cider(said: Sequence[str], true: Sequence[str], seed: int = 0) -> Mean:
    """pycocoevalcap's CIDEr-D, 0..10, over lower-case words without punctuation.

    How much a word counts depends on how many of the references have it, so it needs several that
    differ.
    """
    pairs = _same_number(said, true)
    if not pairs:
        return Mean(None, 0, None)
    from pycocoevalcap.cider.cider import Cider

    hypotheses = {i: [_plain(s)] for i, (s, _) in enumerate(pairs)}
    references = {i: [_plain(t)] for i, (_, t) in enumerate(pairs)}
    _, scores = Cider().compute_score(references, hypotheses)
    return Mean.of(scores, seed)


def _same_number(said: Sequence[str], true: Sequence[str]) -> list[tuple[str, str]]:
    if len(said) != len(true):
        raise ValueError(f"{len(said)} texts but {len(true)} references")
    return list(zip(said, true, strict=True))


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))


def is_right(said: str, true: str) -> bool:
    """Whether an answer is the true one, but for case, punctuation and articles.

    A place, `at (x, y)`, is right within `NEAR_PX` pixels.
    """
    place, truth = _PLACE.match(said.strip()), _PLACE.match(true)
    if truth is not None:
        if place is None:
            return False
        (x, y), (true_x, true_y) = (map(int, p.groups()) for p in (place, truth))
        return float(np.hypot(x - true_x, y - true_y)) <= NEAR_PX
    return _essence(said) == _essence(true)


def _essence(text: str) -> list[str]:
    return [word for word in _plain(text).split() if word not in _ARTICLES]
