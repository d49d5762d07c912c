"""Temporal ensembling against its definition, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from embodied.agent.chunking import Ensemble

H = 6


def _chunk(made_at: int) -> np.ndarray:
    """Says for each of its steps when it was made, and for which step that is."""
    return np.array([[made_at, made_at + k] for k in range(H)], np.float32)


@pytest.mark.parametrize("m", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_every_action_is_the_weighted_mean_of_what_was_said_of_its_step(m: float, n: int) -> None:
    ensemble = Ensemble(m)
    for now in range(0, 20, n):
        actions = ensemble.add(_chunk(now), n)
        assert actions.shape == (n, 2)
        for k in range(n):
            made = [t for t in range(0, now + 1, n) if t + H > now + k]  # oldest first
            weights = [math.exp(-m * i) for i in range(len(made))]
            expected = sum(w * t for w, t in zip(weights, made, strict=True)) / sum(weights)
            assert actions[k] == pytest.approx([expected, now + k], abs=1e-5)


def test_a_chunk_alone_is_taken_as_it_is_and_no_longer_than_it_is() -> None:
    ensemble = Ensemble(0.01)
    assert np.array_equal(ensemble.add(_chunk(0), 9), _chunk(0))
    ensemble.add(_chunk(6), 2)
    ensemble.clear()
    assert np.array_equal(ensemble.add(_chunk(8), 2), _chunk(8)[:2])
