"""What a few demonstrations say of their tasks, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embodied.egocot.dataset import Phrasebook, Recorded

_OWN = 0.6


@dataclass(frozen=True)
class OwnWords:
    """A `Phrasebook` of the episodes' own instructions.

    Args:
        episodes: the demonstrations.
        others: what people say besides, which is of other tasks, or of none.
    """

    episodes: Sequence[Recorded]
    others: Phrasebook

    def ask(self, rng: np.random.Generator, tasks: Sequence[str]) -> str:
        """What one of the episodes of just these tasks was asked for."""
        said = [e.meta.instruction for e in self.episodes if e.tasks == tuple(tasks)]
        return said[int(rng.integers(len(said)))]

    def request(self, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        """Mostly an episode's instruction, so that it is learnt; else something of the others."""
        if rng.random() >= _OWN:
            return self.others.request(rng)
        episode = self.episodes[int(rng.integers(len(self.episodes)))]
        return episode.meta.instruction, episode.tasks
