"""The stage of `embodied finetune` that gives a planner its second opinion on clips: judge."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embodied.cli.splits import LEFT_OUT, without
from embodied.cli.stages import trained_on
from embodied.cli.training import run_training
from embodied.cli.unseen import looked_at_notes
from embodied.config import with_verdict_head
from embodied.egocot.halting import with_halts
from embodied.egocot.verdict_batches import VerdictBatch, VerdictSampler
from embodied.model.planner import Planner
from embodied.model.verdict_head import VerdictHead
from embodied.processes import Processes
from embodied.sharing import Fractions
from embodied.types import STATUSES

if TYPE_CHECKING:
    from embodied.cli.finetune import FinetuneOptions

_BATCH = 48
_HIDDEN_PATCHES = 0.15
"""The share of a clip's patches that are blacked out in training, so that no single one decides."""


class Judging(nn.Module):
    """The verdict head under training; all else of the planner stays as it is."""

    def __init__(self, planner: Planner) -> None:
        super().__init__()
        self._planner = [planner]  # in a list, so that the rest is no sub-module
        assert planner.verdict_head is not None
        self.verdict_head: VerdictHead = planner.verdict_head

    def counts(self, batch: VerdictBatch) -> dict[str, float]:
        """Over how many clips the loss is a mean."""
        return {"verdict": len(batch.subgoals)}

    def loss(
        self, batch: VerdictBatch, fractions: Fractions | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy of what is true, and how often it is the likeliest.

        Args:
            fractions: of a share of the batch, see `embodied.sharing`.
        """
        part = 1.0 if fractions is None else fractions["verdict"]
        vision = batch.vision
        shown = torch.rand(*vision.shape[:2], 1, vision.shape[3], 1, device=vision.device)
        vision = vision * (shown >= _HIDDEN_PATCHES)
        with torch.autocast(vision.device.type, torch.bfloat16):
            told = self._planner[0].second_opinion(vision, batch.subgoals, batch.motions)
        loss = part * verdict_loss(told, batch.verdict, batch.is_sure)
        right = part * told.argmax(1).eq(batch.verdict).float().mean()
        return loss, {"verdict": float(loss.detach()), "verdict_acc": float(right)}


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


def finetune_judge(
    planner: Planner, options: FinetuneOptions, left_out: tuple[str, ...] = ()
) -> int:
    """Train the verdict head, a fresh one where there is none. Returns the exit status.

    Raises:
        ValueError: what is left out leaves nothing.
    """
    from embodied.cli.finetune import load_datasets, print_trained

    names = f"{options.dataset},{options.look_at}"
    episodes = without(load_datasets(planner, names, options.features_dir), left_out)
    sampler = VerdictSampler(
        with_halts(episodes, options.n_halts, options.seed),
        options.batch_size or _BATCH,
        options.seed,
    )
    _give_head(planner)
    judged = {s.text for episode in episodes for s in episode.meta.plan.subgoals}
    judged |= set(planner.config.judged)
    planner.config = replace(planner.config, judged=tuple(sorted(judged)))
    module = Judging(planner)
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


def _give_head(planner: Planner) -> None:
    if planner.verdict_head is not None:
        return
    planner.config = with_verdict_head(planner.config)
    assert planner.config.verdict_head is not None
    planner.verdict_head = VerdictHead(planner.config.verdict_head).to(planner.device)
