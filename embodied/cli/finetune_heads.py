"""The stage of `embodied finetune` that trains small heads beside the language model: heads.

One gives a second opinion on clips, the other places things in a plan's thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embodied.cli.splits import LEFT_OUT, without
from embodied.cli.stages import trained_on
from embodied.cli.training import run_training
from embodied.cli.unseen import looked_at_notes
from embodied.config import with_verdict_head
from embodied.egocot.dataset import Recorded, nouns_at_hand
from embodied.egocot.former_batches import AlignmentSampler, FormerBatch
from embodied.egocot.halting import with_halts
from embodied.egocot.verdict_batches import VerdictBatch, VerdictSampler
from embodied.model.alignment import place_loss
from embodied.model.former import text_states
from embodied.model.place_head import PlaceHead
from embodied.model.planner import Planner
from embodied.model.verdict_head import VerdictHead
from embodied.processes import Processes
from embodied.sharing import Fractions, scaled
from embodied.types import STATUSES
from sims import language

if TYPE_CHECKING:
    from embodied.cli.finetune import FinetuneOptions

_CLIPS, _SCENES = 48, 32
_HIDDEN_PATCHES = 0.15
"""The share of a clip's patches that are blacked out in training, so that no single one decides."""
_PLACE_WEIGHT = 10.0
"""Places are in 0..1, and their errors small numbers; the heads share no weight."""


@dataclass(frozen=True)
class HeadsBatch:
    """Clips to judge, and scenes in which to find what a plan is about."""

    judge: VerdictBatch
    find: FormerBatch


class HeadsSampler:
    """Batches by step number.

    Args:
        episodes: with failures among them.
        size: samples a batch, three of five of them clips; 0 for the usual number.
        left_out: tasks that nothing is said of.
    """

    def __init__(
        self, episodes: Sequence[Recorded], size: int, seed: int, left_out: tuple[str, ...] = ()
    ) -> None:
        n_clips, n_scenes = scaled((_CLIPS, _SCENES), size)
        self._judge = VerdictSampler(episodes, n_clips, seed)
        phrases = language.Phrases(left_out)
        sizes = (0, n_scenes, 0, 0)
        self._find = AlignmentSampler([], episodes, phrases, 1, sizes=sizes, seed=seed)

    def __call__(self, step: int) -> HeadsBatch:
        find = self._find(step).plan
        assert find is not None
        return HeadsBatch(self._judge(step), find)


class Heads(nn.Module):
    """The heads under training; all else of the planner stays as it is."""

    def __init__(self, planner: Planner) -> None:
        super().__init__()
        self._planner = [planner]  # in a list, so that the rest is no sub-module
        assert planner.verdict_head is not None and planner.place_head is not None
        self.verdict_head: VerdictHead = planner.verdict_head
        self.place_head: PlaceHead = planner.place_head

    def counts(self, batch: HeadsBatch) -> dict[str, float]:
        """Over how many things each part of the loss is a mean."""
        known = float(torch.isfinite(_in_sight(batch.find)).sum())
        return {"verdict": len(batch.judge.subgoals), "place": known}

    def loss(
        self, batch: HeadsBatch, fractions: Fractions | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of verdicts and mean error of places, each times its weight.

        Args:
            fractions: each part's, when the batch is a share, see `embodied.sharing`.
        """
        of = fractions or {"verdict": 1.0, "place": 1.0}
        told = self._judged(batch.judge)
        verdict = of["verdict"] * verdict_loss(told, batch.judge.verdict, batch.judge.is_sure)
        right = of["verdict"] * told.argmax(1).eq(batch.judge.verdict).float().mean()
        place = of["place"] * place_loss(self._placed(batch.find), _in_sight(batch.find))
        figures = {"verdict": verdict, "verdict_acc": right, "place": place}
        total = verdict + _PLACE_WEIGHT * place
        return total, {name: float(value.detach()) for name, value in figures.items()}

    def _judged(self, batch: VerdictBatch) -> Tensor:
        vision = batch.vision
        shown = torch.rand(*vision.shape[:2], 1, vision.shape[3], 1, device=vision.device)
        vision = vision * (shown >= _HIDDEN_PATCHES)
        with torch.autocast(vision.device.type, torch.bfloat16):
            return self._planner[0].second_opinion(vision, batch.subgoals, batch.motions)

    def _placed(self, batch: FormerBatch) -> Tensor:
        planner = self._planner[0]
        former = planner.former.to(batch.vision.device)  # it is no part of this module
        with torch.no_grad(), torch.autocast(batch.vision.device.type, torch.bfloat16):
            text = text_states(former, planner.embed_texts, batch.texts)
            queries = former(planner.in_sight(batch.vision), text)
        return self.place_head(queries)


def _in_sight(batch: FormerBatch) -> Tensor:
    """(B, N_PLACES, 2), the places in the first camera's picture, which a thought tells."""
    return batch.places[:, :, 0]


def verdict_loss(log_chances: Tensor, verdict: Tensor, is_sure: Tensor) -> Tensor:
    """Mean of the negative log-likelihood, of "not done" alone where no more is known.

    Args:
        log_chances: (B, statuses). verdict: (B,), index in `STATUSES`. is_sure: (B,).
    """
    done = STATUSES.index("done")
    others = [i for i in range(len(STATUSES)) if i != done]
    not_done = log_chances[:, others].logsumexp(1)
    exact = F.nll_loss(log_chances, verdict, reduction="none")
    is_open = ~is_sure & (verdict != done)
    return torch.where(is_open, -not_done, exact).mean()


def finetune_heads(
    planner: Planner, options: FinetuneOptions, left_out: tuple[str, ...] = ()
) -> int:
    """Train both heads, fresh ones where there are none. Returns the exit status.

    Raises:
        ValueError: what is left out leaves nothing.
    """
    from embodied.cli.finetune import load_datasets, print_trained

    names = f"{options.dataset},{options.look_at}"
    episodes = without(load_datasets(planner, names, options.features_dir), left_out)
    judged = with_halts(episodes, options.n_halts, options.seed)
    sampler = HeadsSampler(judged, options.batch_size, options.seed, left_out)
    _give_heads(planner, episodes)
    module = Heads(planner)
    print_trained(planner, module)
    figures = run_training("finetune", module, sampler, options)
    if not Processes.here().is_main:
        return 0
    notes: dict[str, Any] = trained_on(options, (options.model, options.adapter_from))
    notes |= {LEFT_OUT: list(left_out), "figures": figures}
    looked_at = [(e.meta.env_id, e.meta.seed) for e in episodes]
    notes |= looked_at_notes(looked_at, (options.model, options.adapter_from))
    planner.save(options.output_dir / "planner", **notes)
    return 0


def _give_heads(planner: Planner, episodes: Sequence[Recorded]) -> None:
    """Heads that are not there yet, and what they will have been trained on."""
    subgoals = {s for episode in episodes for s in episode.meta.plan.subgoals}
    config = with_verdict_head(planner.config)
    assert config.verdict_head is not None
    if planner.verdict_head is None:
        planner.verdict_head = VerdictHead(config.verdict_head).to(planner.device)
    if planner.place_head is None:
        planner.place_head = PlaceHead(config.former).to(planner.device)
    judged = {s.text for s in subgoals}.union(config.judged)
    placed = {noun for s in subgoals for noun in nouns_at_hand(s)}.union(config.placed)
    planner.config = replace(config, judged=tuple(sorted(judged)), placed=tuple(sorted(placed)))
