"""4. A second opinion on answers, beside the language model's.

What the robot is doing, what it holds, which step is next: such answers are a few words of a set
that training shows whole, and the language model tends to say them without looking. This head
shares the small former of the verdict head (`verdict_head.py`), which looks for itself, and weighs
the answers that it was trained on against each other (a classifier over answers, as in visual
question answering, arXiv 1505.00468; by the answers' own words, as in InfoNCE, arXiv 1807.03748).
It is heard only where the language model's own answer is one of these, and dropped when the
language model is taught further answers. Trained by `embodied finetune --stage heads`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embodied.model.former import TextState
from embodied.model.verdict_head import VerdictHead

ANSWER_SHARE = 2 / 3
"""What the head's opinion weighs against the language model's, which has the rest."""
N_WEIGHED = 4
"""How many of its likeliest answers the language model is asked about."""


class AnswerHead(nn.Module):
    """What the verdict head's former has seen → logits of answers.

    Args:
        head: whose former looks.
    """

    def __init__(self, head: VerdictHead) -> None:
        super().__init__()
        self.ask = nn.Linear(head.seen_width, head.former.config.width)

    def forward(self, seen: Tensor, answers: TextState) -> Tensor:
        """(B, seen_width) → (B, answers), float32.

        Args:
            seen: `VerdictHead.look` at B clips with their questions in mind.
            answers: of the answers, in the verdict head's former.
        """
        values = answers.values[-1].transpose(1, 2).flatten(2).float()  # (answers, L, D)
        mask = answers.mask[..., None]
        means = (values * mask).sum(1) / mask.sum(1)
        said = F.layer_norm(means, means.shape[-1:])
        logits: Tensor = self.ask(seen.float()) @ said.T * said.shape[-1] ** -0.5
        return logits.float()


def weighed(head: Tensor, language: Tensor, answers: Sequence[str], chosen: Sequence[int]) -> str:
    """The likeliest answer by both opinions, in a logarithmic pool.

    Args:
        head: the head's log-probabilities of all `answers`.
        language: the language model's of those of them that are `chosen`.
    """
    both = ANSWER_SHARE * head[list(chosen)] + (1 - ANSWER_SHARE) * language.log_softmax(0)
    return answers[chosen[int(torch.argmax(both))]]
