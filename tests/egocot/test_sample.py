"""The sample in the repository: small, whole, of both simulators and of every verdict."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from embodied.cli.build_egocot import load_encoder
from embodied.egocot.clips import read_clip
from embodied.egocot.filter import Encoder, calibrate
from embodied.egocot.records import read_records
from embodied.types import STATUSES

SAMPLE = Path(__file__).parents[2] / "data" / "egocot" / "sample"


def test_the_sample_is_good_and_shows_everything() -> None:
    records = list(read_records(SAMPLE))  # strict: the first bad one raises
    assert len(records) >= 64
    assert {r.provenance.episode.partition("/")[0] for r in records} == {"kitchen", "metaworld"}
    assert {r.verdict.status for r in records if r.verdict} == set(STATUSES)
    assert any(re.search("[\u4e00-\u9fff]", r.instruction) for r in records)
    assert {r.provenance.licence for r in records} == {"Apache-2.0"}
    clip = read_clip(SAMPLE, records[0].clip)
    assert clip.frames.shape == (8, 224, 224, 3) and clip.frames.std() > 10


class Remembered:
    """An encoder that looks at every picture once."""

    def __init__(self, encoder: Encoder) -> None:
        self.name, self.texts = encoder.name, encoder.texts
        self._encoder, self._seen = encoder, {}  # type: ignore[var-annotated]

    def images(self, frames: np.ndarray) -> np.ndarray:
        key = frames.tobytes()
        if key not in self._seen:
            self._seen[key] = self._encoder.images(frames)
        return self._seen[key]


@pytest.mark.slow
def test_the_samples_scores_are_those_of_the_shipped_clip() -> None:
    records = list(read_records(SAMPLE))
    encoder = Remembered(load_encoder("small"))
    clips = [read_clip(SAMPLE, record.clip) for record in records]
    captions = [record.caption for record in records]
    found = calibrate(encoder, clips, captions, np.random.default_rng(0))
    scores = np.array([record.score for record in records], float)
    np.testing.assert_allclose(found.own, scores, atol=0.02)
    assert found.auc > 0.9
    others = captions[32:] + captions[:32]  # known-bad: every clip with another's caption
    wrong = calibrate(encoder, clips, others, np.random.default_rng(0))
    assert wrong.auc < 0.6 and wrong.own.mean() < scores.mean() - 0.3


def test_the_sample_is_small_and_has_no_clip_too_many() -> None:
    files = [path for path in SAMPLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6_000_000
    named = {record.clip for record in read_records(SAMPLE, clips=False)}
    assert {path.relative_to(SAMPLE).as_posix() for path in files} == {"records.jsonl", *named}
