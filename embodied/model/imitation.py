"""Trains a policy on demonstrations, with the Embodied-former or on what a baseline leaves of it.

Besides imitating actions, the former learns to place the nouns at hand in every camera's picture,
as in `embodied.model.alignment`; the small head for places exists for this training only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from embodied.egocot.former_batches import AlignmentBatch, FormerBatch
from embodied.model.alignment import Alignment, place_loss
from embodied.model.features import global_feature
from embodied.model.former import EmbedTexts, EmbodiedFormer
from embodied.model.planner import CONTROL_TEXT
from embodied.sharing import Fractions
from embodied.types import Features, Vocabulary

OUT_OF_VIEW = -1.0
"""Where the oracle says a thing is that is not in a picture, x and y."""


@dataclass(frozen=True)
class ImitationBatch:
    """Samples of acting.

    Args:
        control: what is seen, and what is to be done.
        seeds: (B,), of the noise that a policy's loss draws.
    """

    control: FormerBatch
    seeds: Tensor


def oracle_state(state: Tensor, places: Tensor) -> Tensor:
    """State (B, S) and true places (B, N_PLACES, cameras, 2), NaN out of view → one vector each."""
    return torch.cat([state, torch.nan_to_num(places, nan=OUT_OF_VIEW).flatten(1)], dim=1)


def other_tasks_texts(scenes: Sequence[Vocabulary]) -> dict[str, list[str]]:
    """What the former is told for a sub-goal → what it is told for those of other tasks."""
    owners: dict[str, set[str]] = {}
    for scene in scenes:
        for i, subgoal in enumerate(scene.subgoals):
            owner = scene.owners[i] if scene.owners else scene.tasks[0]
            owners.setdefault(CONTROL_TEXT.format(subgoal.text), set()).add(owner)
    return {
        text: [other for other, theirs in owners.items() if not theirs & mine]
        for text, mine in owners.items()
    }


class ImitationSampler:
    """Batches by step number.

    Args:
        draw: step → samples of acting.
        features: what the policy is fed.
        others: to tell the former another task's sub-goal, see `other_tasks_texts`; None to tell
            it the true one.
    """

    def __init__(
        self,
        draw: Callable[[int], AlignmentBatch],
        features: Features,
        seed: int,
        others: Mapping[str, list[str]] | None = None,
    ) -> None:
        self._draw, self._features, self._seed, self._others = draw, features, seed, others

    def __call__(self, step: int) -> ImitationBatch:
        rng = np.random.default_rng([self._seed, step, 1])
        control = self._draw(step).control
        assert control is not None and control.state is not None
        if self._features == "oracle":
            control = replace(control, state=oracle_state(control.state, control.places))
        if self._others is not None:
            texts = [str(rng.choice(self._others[text])) for text in control.texts]
            control = replace(control, texts=texts)
        return ImitationBatch(
            control, torch.from_numpy(rng.integers(2**62, size=len(control.texts)))
        )


class Imitation(Alignment):
    """Former, policy and the head for places.

    Args:
        former: trained in place.
        policy: trained in place, fed what its `fed` says.
        embed_texts: texts → frozen word embeddings and mask.
        n_cameras: cameras of a picture.
        black: vision tokens (1, cameras, 1, N, W) of black pictures, for a policy that is blind.
    """

    def __init__(
        self,
        former: EmbodiedFormer,
        policy: Any,
        embed_texts: EmbedTexts,
        n_cameras: int,
        black: Tensor | None = None,
    ) -> None:
        is_told = policy.fed.ablate != "plan_zeroed"
        super().__init__(former, policy, embed_texts if is_told else _mute(embed_texts), n_cameras)
        self._black = black

    def loss(  # type: ignore[override]
        self, batch: ImitationBatch, fractions: Fractions | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of its parts; each times its fraction when the batch is a share.

        Shares draw noise of their own, so for a policy that draws any they are not exactly parts
        of the whole.
        """
        control = batch.control
        assert control.state is not None and control.done is not None
        z_instance, z_global = self._features(control)
        generator = torch.Generator().manual_seed(int(batch.seeds[0]))
        action, done = self.policy.loss(
            z_instance, z_global, control.state, control.actions, control.valid, generator
        )
        done = F.binary_cross_entropy_with_logits(done, control.done)
        parts = {"action": action, "done": done}
        if self.policy.fed.features == "former":
            parts["place"] = place_loss(self.places(z_instance), control.places)
        of = defaultdict(lambda: 1.0, fractions or {})
        parts = {name: of[name] * value for name, value in parts.items()}
        w = self.weights
        total = parts["action"] + w.done * parts["done"]
        if "place" in parts:
            total = total + w.places * parts["place"]
        return total, {name: float(value.detach()) for name, value in parts.items()}

    def counts(self, batch: ImitationBatch) -> dict[str, float]:  # type: ignore[override]
        """Over how many things each part of the loss is a mean."""
        control = batch.control
        assert control.valid is not None
        known = torch.isfinite(control.places).sum()
        n_valid = control.valid.sum()
        return {"action": float(n_valid), "done": len(control.texts), "place": float(known)}

    def _features(self, control: FormerBatch) -> tuple[Tensor, Tensor]:
        """z_instance (B, Q, D) and z_global (B, C), as `policy_features` gives them to act on."""
        if self._black is not None:
            vision = self._black.expand(len(control.texts), *self._black.shape[1:])
            control = replace(control, vision=vision)
        fed, z_global = self.policy.fed, global_feature(control.vision)
        if fed.reads_words:
            return self.embody(control), z_global
        config = self.former.config
        nothing = z_global.new_zeros(len(z_global), config.n_queries, config.width)
        return nothing, z_global * (fed.features in ("r3m", "global"))


def _mute(embed_texts: EmbedTexts) -> EmbedTexts:
    """Texts as no words at all, as the controller gives them to an agent without a plan."""

    def embed(texts: list[str]) -> tuple[Tensor, Tensor]:
        embedded, mask = embed_texts(texts)
        return embedded * 0, torch.zeros_like(mask)

    return embed
