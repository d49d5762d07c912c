"""Planners to compare with: the language model untrained, and the nearest training episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from embodied.config import ModelConfig
from embodied.egocot.dataset import Recorded
from embodied.model.llm import AdapterConfig
from embodied.model.plan import thought_text
from embodied.model.planner import Planner
from embodied.types import Plan, Vocabulary


class ZeroShot(Planner):
    """The language model as it comes, with the same prompts and under the same grammar.

    It sees nothing: only training could tell it what visual tokens mean.
    """

    @classmethod
    def of(cls, config: ModelConfig, device: torch.device) -> ZeroShot:
        """The one that a planner of `config` started from."""
        planner = cls.build(replace(config, adapter=AdapterConfig("none")), device)
        assert isinstance(planner, ZeroShot)
        return planner

    def visual_tokens(self, vision: Tensor, text: str) -> Tensor:
        """No tokens, (1, 0, W)."""
        return torch.zeros(1, 0, self.mapping.out_features, device=self.device)


class NearestNeighbour:
    """Says the plan of that episode whose instruction is nearest by its frozen word embeddings.

    Args:
        planner: whose word embeddings are taken.
        episodes: that were trained on.

    Raises:
        ValueError: none of the episodes has an instruction.
    """

    def __init__(self, planner: Planner, episodes: Sequence[Recorded]) -> None:
        self._planner = planner
        self._episodes = [episode for episode in episodes if episode.meta.instruction]
        if not self._episodes:
            raise ValueError("nearest_neighbour needs the episodes trained on: give --trained_on")
        said = [episode.meta.instruction for episode in self._episodes]
        self._known = torch.cat([self._embed(text) for text in said])  # (episodes, W)

    def _embed(self, text: str) -> Tensor:
        """The mean of its words' embeddings, (1, W), of length one."""
        words, mask = self._planner.embed_texts([text])
        mean = (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(mean.float())

    def plan_tokens(
        self,
        vision: Tensor,
        instruction: str,
        vocabulary: Vocabulary,
        experience: str = "",
        tasks: Sequence[str] = (),
    ) -> Plan:
        """The nearest episode's plan and places; whatever is seen, or offered here."""
        best = int((self._known @ self._embed(instruction)[0]).argmax())
        episode = self._episodes[best]
        places = {
            noun: (float(xy[0, 0, 0]), float(xy[0, 0, 1])) for noun, xy in episode.places.items()
        }
        return Plan(instruction, thought_text(places), episode.meta.plan.subgoals, tuple(tasks))
