"""Stage align on records: Embodied-former and mapping learn to show the frozen model what is seen.

Captions, places of things and answers are spoken by the language model, which stays as it is, its
adapter included: only what it is shown is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from embodied.cli.finetune_plan import Speech
from embodied.egocot.conversations import Turns
from embodied.egocot.former_batches import AlignmentBatch
from embodied.model import llm as llm_parts
from embodied.model.alignment import Alignment
from embodied.model.planner import Planner
from embodied.sharing import Fractions

_OF_RECORDS = "record_"
_RECORD_WEIGHT = 0.2
"""Against the imitation of actions; as verdicts and answers of episodes are weighed."""


@dataclass(frozen=True)
class BothBatch:
    """What is learnt from episodes, and what from records, in one step."""

    episodes: AlignmentBatch
    records: list[Turns]


class Both(nn.Module):
    """Alignment on episodes and speech about records, by one Embodied-former."""

    def __init__(self, alignment: Alignment, speech: Speech) -> None:
        super().__init__()
        self.alignment, self.mapping, self.llm = alignment, speech.mapping, speech.llm
        self._speech = [speech]  # in a list, so that the former is not a sub-module twice

    def counts(self, batch: BothBatch) -> dict[str, float]:
        """Over how many things each part of the loss is a mean."""
        spoken = self._speech[0].counts(batch.records)
        return self.alignment.counts(batch.episodes) | _named(spoken)

    def loss(
        self, batch: BothBatch, fractions: Fractions | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """The sum of both losses, and the figures of both.

        Args:
            fractions: each part's, when the batch is a share, see `embodied.sharing`.
        """
        spoken = None if fractions is None else _unnamed(fractions)
        total, figures = self.alignment.loss(batch.episodes, fractions)
        said, parts = self._speech[0].loss(batch.records, spoken)
        return total + _RECORD_WEIGHT * said, figures | _named(parts)


def _named(figures: dict[str, float]) -> dict[str, float]:
    return {_OF_RECORDS + name: value for name, value in figures.items()}


def _unnamed(fractions: Fractions) -> Fractions:
    spoken = {k: v for k, v in fractions.items() if k.startswith(_OF_RECORDS)}
    return {k.removeprefix(_OF_RECORDS): v for k, v in spoken.items()}


def speech_of_the_former(planner: Planner, gradient_checkpointing: bool = False) -> Speech:
    """What is trained on records: Embodied-former and mapping, through the frozen model."""
    planner.llm.requires_grad_(False)
    if gradient_checkpointing:
        llm_parts.use_gradient_checkpointing(planner.llm)
    return Speech(planner, train_former=True)


def of_both(
    episodes: Callable[[int], AlignmentBatch], records: Callable[[int], list[Turns]]
) -> Callable[[int], Any]:
    """Batches by step number of both kinds."""
    return lambda step: BothBatch(episodes(step), records(step))
