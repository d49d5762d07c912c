"""Does a caption fit its clip? CLIP similarity, with a threshold that the data itself calibrates.

The score is the cosine of the clip's mean frame feature and its caption's feature. What score is
good enough depends on encoder and data, so no number is taken from elsewhere: every clip is also
scored against captions of other clips of the same set, and the threshold is the one that lets no
more than a chosen share of those through. EgoCOT's own bare 0.2 is a point on such a curve that
nobody published. Captions that say nearly the same count as wrong ones when they are another's, so
the true curve is rather better than the printed one.

An encoder is a CLIP of open_clip (`embodied.weights.clip`) or, for our own rollouts and without a
model hub, a small text tower aligned with the planner's locked image tower
(`embodied.model.locked_clip`). To filter with another, give `Encoder`'s three members to
`calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.stats import rankdata

from embodied.egocot.fields import RecordError
from embodied.types import Clip

N_SHUFFLES = 20
LEAST_AUC = 0.6
_LEAST_SHUFFLED = 20
_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


class Encoder(Protocol):
    """Pictures and words into one space; the lengths of its vectors do not matter."""

    @property
    def name(self) -> str: ...

    def images(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) → (N, D)."""
        ...

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """N texts → (N, D)."""
        ...


@dataclass(frozen=True)
class Calibration:
    """Scores of clips with their own captions, and with those of others.

    Args:
        encoder: its name.
        own: (N,). shuffled: (M,).
    """

    encoder: str
    own: np.ndarray
    shuffled: np.ndarray

    @property
    def auc(self) -> float:
        """The chance that a right caption scores above a wrong one; a tie is half."""
        n, m = len(self.own), len(self.shuffled)
        ranks = rankdata(np.concatenate([self.own, self.shuffled]))  # ties share their mean rank
        return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))

    def threshold(self, false_positive_rate: float) -> float:
        """The least score that at most so large a share of wrong captions reaches."""
        falling = np.sort(self.shuffled)[::-1]
        allowed = int(np.floor(false_positive_rate * len(falling)))
        return float(np.nextafter(falling[allowed], np.inf)) if allowed < len(falling) else -1.0

    def kept(self, threshold: float) -> float:
        """The share of right captions that reach `threshold`."""
        return float((self.own >= threshold).mean())

    def roc(self, chosen: float) -> str:
        """The curve as a table, the chosen rate marked."""
        head = (
            f"{self.encoder}: {len(self.own)} captions against {len(self.shuffled)} shuffled ones,"
            f" AUC {self.auc:.3f}\n  false positives  threshold    kept"
        )
        rows = []
        for rate in sorted({*_RATES, chosen}):
            at = self.threshold(rate)
            mark = "  <- chosen" if rate == chosen else ""
            rows.append(f"  {rate:15.1%}  {at:9.4f}  {self.kept(at):6.1%}{mark}")
        return "\n".join([head, *rows])


def calibrate(
    encoder: Encoder,
    clips: Iterable[Clip],
    captions: Sequence[str],
    rng: np.random.Generator,
) -> Calibration:
    """Score every clip with its own caption and with up to `N_SHUFFLES` captions of others.

    Args:
        clips: as many as captions; read one by one.

    Raises:
        ValueError: there are too few captions that differ.
    """
    _different(captions)  # first: pictures take their time
    seen = np.stack([_unit(_unit(encoder.images(clip.frames)).mean(0)) for clip in clips])  # (N, D)
    return compare(encoder.name, seen, captions, encoder.texts, rng)


def compare(
    name: str,
    seen: np.ndarray,
    captions: Sequence[str],
    texts: Callable[[Sequence[str]], np.ndarray],
    rng: np.random.Generator,
) -> Calibration:
    """The same for clips that were looked at before.

    Args:
        name: the encoder's.
        seen: (N, D), a unit vector of each clip.
        texts: the encoder's.

    Raises:
        ValueError: there are too few captions that differ.
    """
    different = _different(captions)
    said = _unit(texts(different))  # (U, D)
    if seen.shape != (len(captions), said.shape[1]):
        raise ValueError(
            f"{name} gives pictures {seen.shape} for {len(captions)} clips, words "
            f"{said.shape}: they must be of one width"
        )
    row_of = {caption: row for row, caption in enumerate(different)}
    rows = np.array([row_of[caption] for caption in captions])
    own = np.einsum("nd,nd->n", seen, said[rows])
    shuffled = [seen[i] @ said[_others(rng, row, len(different))].T for i, row in enumerate(rows)]
    return Calibration(name, own, np.concatenate(shuffled))


def _different(captions: Sequence[str]) -> list[str]:
    """Every caption once. Raises ValueError if there are too few."""
    different = list(dict.fromkeys(captions))
    if len(different) < 2 or len(captions) * (len(different) - 1) < _LEAST_SHUFFLED:
        raise ValueError(
            f"{len(captions)} records with {len(different)} captions that differ are too few to "
            "calibrate a threshold: build more records, or leave --clip out"
        )
    return different


def _others(rng: np.random.Generator, row: int, n: int) -> np.ndarray:
    """Up to `N_SHUFFLES` of 0..n-1 without `row`."""
    drawn = rng.permutation(n - 1)[:N_SHUFFLES]
    return drawn + (drawn >= row)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def threshold_of(
    calibration: Calibration, rate: float, report: Callable[[str], object] = print
) -> float:
    """The threshold at a false-positive rate, after the curve was reported.

    Raises:
        ValueError: the encoder hardly tells right captions from wrong ones.
    """
    report(calibration.roc(rate))
    if not calibration.auc >= LEAST_AUC:
        raise ValueError(
            f"{calibration.encoder} tells captions from shuffled ones with an AUC of "
            f"{calibration.auc:.2f}, below {LEAST_AUC:g}: no threshold of it means anything; take "
            "another encoder, or leave --clip out"
        )
    return calibration.threshold(rate)


def check_score(score: float, threshold: float, rate: float) -> float:
    """The score as a record has it. Raises RecordError below the threshold."""
    score = min(1.0, max(-1.0, float(score)))
    if score < threshold:
        problem = f"is below {threshold:.4f}, which {rate:.1%} of shuffled captions reach"
        raise RecordError("score", problem, f"{score:.4f}")
    return score
