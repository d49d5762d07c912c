"""Recorded episodes → clips with captions, from cached vision features, and batches of them.

Moments and captions are those of `embodied build-egocot`. Captions are few and some are frequent,
so a batch draws captions first, no caption twice, and for each of them one of its clips.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from embodied.egocot.build import rollouts
from embodied.egocot.build.cutting import N_FRAMES
from embodied.egocot.quarantine import Quarantine
from embodied.episodes import DatasetReader
from embodied.model.features import FeatureCache, n_images
from embodied.model.locked_clip import CaptionBatch, fields
from embodied.model.planner import Planner
from embodied.video import sample_indices

_ROWS = 512


@dataclass(frozen=True)
class Captioned:
    """The clips of one data set.

    Args:
        pictures: (P, C), every cached picture as `embodied.model.locked_clip.fields` gives it.
        clips: caption → (n, T) rows of `pictures`.
    """

    pictures: Tensor
    clips: dict[str, np.ndarray]


def load_captioned(
    planner: Planner,
    root: Path,
    features_dir: Path,
    settings: rollouts.Settings,
    n_fields: int,
    quarantine: Quarantine,
) -> Captioned:
    """The clips of a data set in one camera, with features that are computed where there are none.

    Raises:
        DatasetError: the data set is damaged, or has no such camera.
    """
    found, _ = rollouts.candidates([root], settings, quarantine)
    reader = DatasetReader(root)
    camera = settings.camera or next(iter(reader.cameras))
    every = range(len(reader.episodes))
    cache = FeatureCache.build_part(planner, reader, features_dir, [camera], every)
    clips: dict[str, list[np.ndarray]] = defaultdict(list)
    for candidate in found:
        rollout, moment = candidate.rollout, candidate.moment
        index = rollout.recorded.meta.index
        record = quarantine.admit(partial(rollout.record, moment), root, index, moment.name)
        if record is not None:
            rows = np.array([cache.spans[index].image(step) for step in moment.steps])
            clips[record.caption].append(rows[sample_indices(len(rows), N_FRAMES)])
    n_pictures = sum(n_images(episode.length) for episode in reader.episodes)
    return Captioned(
        _pictures(cache, n_pictures, n_fields),
        {caption: np.stack(rows) for caption, rows in clips.items()},
    )


def _pictures(cache: FeatureCache, n: int, n_fields: int) -> Tensor:
    """(P, C) in half precision."""
    parts = []
    for first in range(0, n, _ROWS):
        tokens = np.array(cache.images[first : first + _ROWS][:, 0])  # (R, N, W)
        parts.append(fields(torch.from_numpy(tokens), n_fields).half())
    return torch.cat(parts)


class CaptionSampler:
    """Batches of clips whose captions all differ; a function of the step's number and the seed.

    Args:
        sets: one or more.
        batch_size: at most; no more than there are captions.
        seed: of the batches.

    Raises:
        ValueError: there are fewer than two captions.
    """

    def __init__(self, sets: Sequence[Captioned], batch_size: int, seed: int) -> None:
        self._sets, self._seed = sets, seed
        places: dict[str, list[tuple[int, np.ndarray]]] = defaultdict(list)
        for k, one in enumerate(sets):
            for caption, rows in one.clips.items():
                places[caption] += [(k, row) for row in rows]
        self._places = dict(places)
        self.captions = list(places)
        if len(self.captions) < 2:
            raise ValueError(
                f"{len(self.captions)} captions are too few to tell apart: give more episodes"
            )
        self._size = min(batch_size, len(self.captions))

    @property
    def n_clips(self) -> int:
        """Of all captions together."""
        return sum(map(len, self._places.values()))

    def __call__(self, step: int) -> CaptionBatch:
        rng = np.random.default_rng([self._seed, step])
        drawn = [self.captions[i] for i in rng.permutation(len(self.captions))[: self._size]]
        clips = []
        for caption in drawn:
            of = self._places[caption]
            k, rows = of[rng.integers(len(of))]
            clips.append(self._sets[k].pictures[rows].float())
        return CaptionBatch(torch.stack(clips), drawn)
