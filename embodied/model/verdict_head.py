"""4. A second opinion on a clip, beside the language model's: done, in progress or failed.

The language model judges from the Embodied-former's tokens, which serve plans and answers too.
This head looks at the vision tokens itself, through a small former of its own with the sub-goal's
words as text, and is trained on verdicts alone (`embodied finetune --stage heads`). The two are
pooled by a weighted geometric mean (Genest and Zidek, Statistical Science 1(1), 1986); the reason
stays the language model's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from embodied.model.former import EmbodiedFormer, FormerConfig, TextState
from embodied.model.motion import MOTIONS
from embodied.model.plan import status_of
from embodied.types import STATUSES

HEAD_SHARE = 2 / 3
"""What the head's opinion weighs in the pool; the language model's has the rest."""

_SQUEEZED, _HIDDEN = 24, 96
_NEVER = 1e-30
"""The least that a status is given, so that its logarithm is finite."""


class VerdictHead(nn.Module):
    """A clip's vision tokens, a sub-goal and the robot's own motion → logits of the statuses.

    Args:
        config: of its own former.
    """

    def __init__(self, config: FormerConfig) -> None:
        super().__init__()
        self.former = EmbodiedFormer(config)
        self.motion = nn.Embedding(len(MOTIONS), config.width)
        self.squeeze = nn.Linear(config.width, _SQUEEZED)
        self.out = nn.Sequential(
            nn.Linear(self.seen_width + config.width, _HIDDEN),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(_HIDDEN, len(STATUSES)),
        )

    @property
    def seen_width(self) -> int:
        """Width of what `look` gives."""
        return _SQUEEZED * self.former.config.n_queries

    def look(self, vision: Tensor, text: TextState) -> Tensor:
        """Vision tokens (B, cameras, T', N, W) and B texts → (B, seen_width)."""
        return self.squeeze(self.former(vision, text)).flatten(1)

    def forward(self, vision: Tensor, text: TextState, motions: Sequence[str]) -> Tensor:
        """Vision tokens (B, cameras, T', N, W) → (B, statuses), float32.

        Args:
            text: of the sub-goals, B of them.
            motions: B of `embodied.model.motion.MOTIONS`.

        Raises:
            ValueError: a motion is none of them.
        """
        seen = self.look(vision, text)
        felt = self.motion(torch.tensor([MOTIONS.index(m) for m in motions], device=vision.device))
        logits: Tensor = self.out(torch.cat([seen.float(), felt.float()], 1))
        return logits.float()


def pooled(chances: Mapping[str, float], log_chances: Sequence[float]) -> dict[str, float]:
    """Both opinions in a logarithmic pool; within a status nothing is shifted.

    Args:
        chances: text of `embodied.model.plan.verdict_texts` → the language model's probability.
        log_chances: the head's log-probability of each status.
    """
    said = dict.fromkeys(STATUSES, _NEVER)
    for text, chance in chances.items():
        said[status_of(text)] += chance
    seen = dict(zip(STATUSES, log_chances, strict=True))
    logs = {s: HEAD_SHARE * (seen[s] - math.log(said[s])) for s in STATUSES}
    largest = max(logs[s] + math.log(said[s]) for s in STATUSES)
    products = {t: c * math.exp(logs[status_of(t)] - largest) for t, c in chances.items()}
    total = sum(products.values())
    return {text: product / total for text, product in products.items()}
