"""The stage of `embodied finetune` that trains the place head: places.

The Embodied-former is frozen, and one pass through it takes twenty times as long as a step of the
head. So scenes are looked at once, before training, and drawn from ever after.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from embodied.cli.finetune_heads import recorded, save_heads
from embodied.cli.training import run_training
from embodied.egocot.dataset import Recorded, nouns_at_hand
from embodied.egocot.former_batches import AlignmentSampler, FormerBatch
from embodied.egocot.wordings import CHINESE, Kind
from embodied.model.alignment import place_loss
from embodied.model.former import text_states
from embodied.model.place_head import PlaceHead
from embodied.model.plan import GRIPPER
from embodied.model.planner import Planner
from embodied.sharing import Fractions
from sims import language

if TYPE_CHECKING:
    from embodied.cli.finetune import FinetuneOptions

_BATCH = 64
_SCENES, _QUESTIONS = 40, 40
"""Drawn at a time: scenes with a request, and questions about the places of things."""
_ASKED_FOR: Mapping[Kind, float] = {"where": 3.0, "side": 1.0}
"""How often each kind of question is asked, against the other."""
_MOST = 30_000
"""Scenes and questions that are kept, some 65 kB each."""


@dataclass(frozen=True)
class PlacesBatch:
    """What was seen, and where things were.

    Args:
        queries: (B, Q, D), embodied tokens.
        vision: (B, 1, 1, N, W), vision tokens of the first camera's newest picture.
        places: (B, N_PLACES, 2) in that picture, NaN where unknown.
    """

    queries: Tensor
    vision: Tensor
    places: Tensor


class PlacesSampler:
    """Batches by step number, of scenes that are looked at once.

    Args:
        planner: who looks.
        episodes: recorded ones.
        n_steps: for which there are to be scenes enough.
        size: samples a batch; 0 for the usual number.
        left_out: tasks that nothing is said of.
    """

    def __init__(
        self,
        planner: Planner,
        episodes: Sequence[Recorded],
        n_steps: int,
        size: int,
        seed: int,
        left_out: tuple[str, ...] = (),
    ) -> None:
        self._size, self._seed = size or _BATCH, seed
        n = min(_MOST, n_steps * self._size)
        phrases = language.Phrases(left_out)
        sizes = (0, _SCENES, 0, _QUESTIONS)
        draw = AlignmentSampler(
            [], episodes, phrases, 1, sizes=sizes, seed=seed, asked_for=_ASKED_FOR
        )
        seen = [*_looked_at(planner, draw, n)]
        self._queries = torch.cat([batch.queries for batch in seen])
        self._vision = torch.cat([batch.vision for batch in seen])
        self._places = torch.cat([batch.places for batch in seen])

    def __call__(self, step: int) -> PlacesBatch:
        rng = np.random.default_rng([self._seed, step])
        rows = torch.from_numpy(rng.integers(len(self._places), size=self._size))
        return PlacesBatch(
            self._queries[rows].float(), self._vision[rows].float(), self._places[rows]
        )


def _looked_at(planner: Planner, draw: AlignmentSampler, n: int) -> Iterator[PlacesBatch]:
    steps = range(-(-n // (_SCENES + _QUESTIONS)))
    for step in tqdm(steps, desc="scenes looked at", file=sys.stderr):
        drawn = draw(step)
        for use in filter(None, (drawn.plan, drawn.ask)):
            yield _seen(planner, use)


@torch.no_grad()
def _seen(planner: Planner, use: FormerBatch) -> PlacesBatch:
    vision = planner.in_sight(use.vision.to(planner.device))
    with torch.autocast(vision.device.type, torch.bfloat16):
        text = text_states(planner.former, planner.embed_texts, use.texts)
        queries = planner.former(vision, text)
    newest = vision[:, :1, -1:]
    return PlacesBatch(queries.bfloat16().cpu(), newest.bfloat16().cpu(), use.places[:, :, 0])


class Places(nn.Module):
    """The place head under training."""

    def __init__(self, head: PlaceHead) -> None:
        super().__init__()
        self.place_head = head

    def counts(self, batch: PlacesBatch) -> dict[str, float]:
        """Over how many things the loss is a mean."""
        return {"place": float(torch.isfinite(batch.places).sum())}

    def loss(
        self, batch: PlacesBatch, fractions: Fractions | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean absolute error of the places, in widths of the picture.

        Args:
            fractions: the part's, when the batch is a share, see `embodied.sharing`.
        """
        of = fractions or {"place": 1.0}
        place = of["place"] * place_loss(self.place_head(batch.queries, batch.vision), batch.places)
        return place, {"place": float(place.detach())}


def finetune_places(
    planner: Planner, options: FinetuneOptions, left_out: tuple[str, ...] = ()
) -> int:
    """Train the place head, a fresh one where there is none. Returns the exit status.

    Raises:
        ValueError: what is left out leaves nothing.
    """
    from embodied.cli.finetune import print_trained

    episodes = recorded(planner, options, left_out)
    sampler = PlacesSampler(
        planner, episodes, options.steps, options.batch_size, options.seed, left_out
    )
    if planner.place_head is None:
        planner.place_head = PlaceHead(planner.config.former).to(planner.device)
    subgoals = {s for episode in episodes for s in episode.meta.plan.subgoals}
    nouns = {GRIPPER}.union(noun for s in subgoals for noun in nouns_at_hand(s))
    placed = nouns.union(planner.config.placed, (CHINESE[n] for n in nouns if n in CHINESE))
    planner.config = replace(planner.config, placed=tuple(sorted(placed)))
    module = Places(planner.place_head)
    print_trained(planner, module)
    figures = run_training("finetune", module, sampler, options)
    return save_heads(planner, options, episodes, figures, left_out)
