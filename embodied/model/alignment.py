"""Trains the Embodied-former together with the policy: what to do, where things are, what is done.

Four uses of the former share one set of weights. Besides imitating actions, it learns to place
the nouns at hand in every camera's picture, to tell from a clip whether a sub-goal is done, and to
tell the answer to a question from the other answers of the batch (InfoNCE, arXiv 1807.03748).
The small heads for places, verdicts and answers exist for this training only: at run time the
language model speaks for them, from the same embodied tokens. (The heads that are kept are trained
afterwards, see `place_head.py` and `verdict_head.py`.)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embodied.egocot.former_batches import AlignmentBatch, FormerBatch
from embodied.model.features import global_feature
from embodied.model.former import EmbedTexts, EmbodiedFormer, text_states
from embodied.model.plan import N_PLACES
from embodied.sharing import Fractions
from embodied.types import STATUSES


@dataclass(frozen=True)
class LossWeights:
    """How the parts of the loss are weighed against the imitation of actions."""

    done: float = 0.1
    places: float = 2.0
    verdict: float = 0.2
    answer: float = 0.2


class Alignment(nn.Module):
    """Former, policy and two training heads.

    Args:
        former: trained in place.
        policy: trained in place; its `act` gives actions (B, H, A) and done logits (B,). None to
            learn places and verdicts alone.
        embed_texts: texts → frozen word embeddings and mask.
        n_cameras: cameras of a picture.
    """

    def __init__(
        self,
        former: EmbodiedFormer,
        policy: Any,
        embed_texts: EmbedTexts,
        n_cameras: int,
        weights: LossWeights | None = None,
    ) -> None:
        super().__init__()
        self.former, self.policy = former, policy
        self._embed_texts = embed_texts
        self.weights = weights or LossWeights()
        width, n_queries = former.config.width, former.config.n_queries
        self.n_cameras = n_cameras
        self.place_squeeze = nn.Linear(width, 32)
        self.place_head = nn.Sequential(
            nn.Linear(32 * n_queries, 256), nn.GELU(), nn.Linear(256, N_PLACES * n_cameras * 2)
        )
        self.verdict_squeeze = nn.Linear(width, 16)
        self.verdict_head = nn.Sequential(
            nn.Linear(16 * n_queries, 128), nn.GELU(), nn.Linear(128, len(STATUSES))
        )
        self.answer_squeeze = nn.Linear(width, 16)
        self.answer_head = nn.Linear(16 * n_queries, width)
        self.answer_words = nn.Linear(former.config.text_width, width)

    def embody(self, batch: FormerBatch) -> Tensor:
        """Embodied tokens (B, Q, D) of one use's batch."""
        with torch.autocast(batch.vision.device.type, torch.bfloat16):
            queries = self.former(
                batch.vision, text_states(self.former, self._embed_texts, batch.texts)
            )
        return queries.float()

    def places(self, queries: Tensor) -> Tensor:
        """Embodied tokens → (B, N_PLACES, cameras, 2) positions in 0..1."""
        flat = self.place_head(self.place_squeeze(queries).flatten(1))
        return flat.view(-1, N_PLACES, self.n_cameras, 2) + 0.5

    def verdicts(self, queries: Tensor) -> Tensor:
        """Embodied tokens → (B, statuses) logits."""
        return self.verdict_head(self.verdict_squeeze(queries).flatten(1))

    def answers(self, queries: Tensor, choices: list[str]) -> Tensor:
        """Embodied tokens → (B, choices) logits."""
        words, mask = (part.to(queries.device) for part in self._embed_texts(choices))
        means = (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # (choices, W)
        meant = self.answer_words(F.layer_norm(means, means.shape[-1:]))
        guess = self.answer_head(self.answer_squeeze(queries).flatten(1))
        return guess @ meant.T * queries.shape[-1] ** -0.5

    def counts(self, batch: AlignmentBatch) -> dict[str, float]:
        """Over how many things each part of the loss is a mean."""
        counts = {"place": sum(float(torch.isfinite(b.places).sum()) for b in _uses(batch))}
        if batch.control is not None:
            assert batch.control.valid is not None
            counts["action"] = float(batch.control.valid.sum())
            counts["done"] = len(batch.control.texts)
        if batch.judge is not None:
            counts["verdict"] = len(batch.judge.texts)
        if batch.ask is not None:
            counts["answer"] = len(_told(batch.ask))
        return counts

    def loss(
        self, batch: AlignmentBatch, fractions: Fractions | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum over the uses that the batch has, and its parts.

        Args:
            fractions: each part's, when the batch is a share, see `embodied.sharing`.
        """
        of = defaultdict(lambda: 1.0, fractions or {})
        looked = [(self.embody(b), b) for b in _uses(batch)]
        guesses = torch.cat([self.places(queries) for queries, _ in looked])
        place = of["place"] * place_loss(guesses, torch.cat([b.places for _, b in looked]))
        w = self.weights
        total = w.places * place
        figures = {"place": place}
        for queries, use in looked:
            if use is batch.control:
                action, done = self._control_loss(queries, use)
                action, done = of["action"] * action, of["done"] * done
                total = total + action + w.done * done
                figures |= {"action": action, "done": done}
            elif use is batch.judge:
                verdict, right = self._verdict_loss(queries, use)
                total = total + w.verdict * of["verdict"] * verdict
                figures["verdict_acc"] = of["verdict"] * right
            elif use is batch.ask:
                answer, right = self._answer_loss(queries, use)
                total = total + w.answer * of["answer"] * answer
                figures["answer_acc"] = of["answer"] * right
        return total, {name: float(value.detach()) for name, value in figures.items()}

    def _control_loss(self, queries: Tensor, batch: FormerBatch) -> tuple[Tensor, Tensor]:
        assert batch.actions is not None and batch.valid is not None and batch.done is not None
        actions, done = self.policy.act(queries, global_feature(batch.vision), batch.state)
        error = (actions - batch.actions).abs().mean(-1)  # (B, H)
        return (
            (error * batch.valid).sum() / batch.valid.sum(),
            F.binary_cross_entropy_with_logits(done, batch.done),
        )

    def _verdict_loss(self, queries: Tensor, batch: FormerBatch) -> tuple[Tensor, Tensor]:
        assert batch.verdict is not None
        logits = self.verdicts(queries)
        right = logits.argmax(1).eq(batch.verdict).float().mean()
        return F.cross_entropy(logits, batch.verdict), right

    def _answer_loss(self, queries: Tensor, batch: FormerBatch) -> tuple[Tensor, Tensor]:
        told, choices = _told(batch), sorted(batch.choices)
        if not told:
            return queries.sum() * 0.0, queries.new_zeros(())
        assert batch.answers is not None
        logits = self.answers(queries[told], choices)
        wanted = torch.tensor([choices.index(batch.answers[i]) for i in told]).to(logits.device)
        right = logits.argmax(1).eq(wanted).float().mean()
        return F.cross_entropy(logits, wanted), right


def _uses(batch: AlignmentBatch) -> list[FormerBatch]:
    """What the former is used for in a batch."""
    uses = (batch.control, batch.plan, batch.judge, batch.ask)
    return [use for use in uses if use is not None]


def _told(batch: FormerBatch) -> list[int]:
    """The rows whose answer is no position."""
    return [i for i, answer in enumerate(batch.answers or []) if answer]


def place_loss(guess: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error over the places that are known; 0 when none is."""
    known = torch.isfinite(truth)
    if not known.any():
        return guess.sum() * 0.0
    return (guess - torch.nan_to_num(truth)).abs()[known].mean()
