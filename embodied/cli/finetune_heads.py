"""The stage of `embodied finetune` that trains second opinions on clips and answers: heads.

Two small heads beside the language model, with one small former between them.
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
from embodied.egocot.dataset import Recorded
from embodied.egocot.former_batches import AlignmentSampler, FormerBatch
from embodied.egocot.halting import with_halts
from embodied.egocot.questions import TO_WEIGH, closed_answers
from embodied.egocot.verdict_batches import VerdictBatch, VerdictSampler
from embodied.model.answer_head import AnswerHead
from embodied.model.planner import QUESTION_TEXT, Planner
from embodied.model.verdict_head import VerdictHead
from embodied.processes import Processes
from embodied.sharing import Fractions, scaled
from embodied.types import STATUSES
from sims import language

if TYPE_CHECKING:
    from embodied.cli.finetune import FinetuneOptions

_CLIPS, _QUESTIONS = 48, 64
_HIDDEN_PATCHES = 0.15
"""The share of a clip's patches that are blacked out in training, so that no single one decides."""
_ANSWER_WEIGHT = 0.5
"""The answer head shares the verdict head's former, and verdicts come first."""


@dataclass(frozen=True)
class HeadsBatch:
    """Clips to judge, and questions about clips."""

    judge: VerdictBatch
    ask: FormerBatch


class HeadsSampler:
    """Batches by step number.

    Args:
        episodes: with failures among them.
        size: samples a batch, three of seven of them to judge; 0 for the usual number.
        left_out: tasks that nothing is said of.
    """

    def __init__(
        self, episodes: Sequence[Recorded], size: int, seed: int, left_out: tuple[str, ...] = ()
    ) -> None:
        n_clips, n_questions = scaled((_CLIPS, _QUESTIONS), size)
        self._judge = VerdictSampler(episodes, n_clips, seed)
        phrases = language.Phrases(left_out)
        sizes = (0, 0, 0, n_questions)
        self._ask = AlignmentSampler(
            [], episodes, phrases, 1, sizes=sizes, seed=seed, asked_for=TO_WEIGH
        )

    def __call__(self, step: int) -> HeadsBatch:
        ask = self._ask(step).ask
        assert ask is not None
        return HeadsBatch(self._judge(step), ask)


class Heads(nn.Module):
    """The heads under training; all else of the planner stays as it is."""

    def __init__(self, planner: Planner) -> None:
        super().__init__()
        self._planner = [planner]  # in a list, so that the rest is no sub-module
        assert planner.verdict_head is not None and planner.answer_head is not None
        self.verdict_head: VerdictHead = planner.verdict_head
        self.answer_head: AnswerHead = planner.answer_head

    def counts(self, batch: HeadsBatch) -> dict[str, float]:
        """Over how many things each part of the loss is a mean."""
        return {"verdict": len(batch.judge.subgoals), "answer": len(self._told(batch.ask))}

    def loss(
        self, batch: HeadsBatch, fractions: Fractions | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of verdicts and of answers, each times its weight.

        Args:
            fractions: each part's, when the batch is a share, see `embodied.sharing`.
        """
        of = fractions or {"verdict": 1.0, "answer": 1.0}
        told = self._judged(batch.judge)
        verdict = of["verdict"] * verdict_loss(told, batch.judge.verdict, batch.judge.is_sure)
        right = of["verdict"] * told.argmax(1).eq(batch.judge.verdict).float().mean()
        answer, known = (of["answer"] * part for part in self._answered(batch.ask))
        figures = {"verdict": verdict, "verdict_acc": right}
        figures |= {"answer": answer, "answer_acc": known}
        total = verdict + _ANSWER_WEIGHT * answer
        return total, {name: float(value.detach()) for name, value in figures.items()}

    def _judged(self, batch: VerdictBatch) -> Tensor:
        vision = _partly_hidden(batch.vision)
        with torch.autocast(vision.device.type, torch.bfloat16):
            return self._planner[0].second_opinion(vision, batch.subgoals, batch.motions)

    def _told(self, batch: FormerBatch) -> list[int]:
        """The rows whose answer the head weighs: captions and places it does not."""
        known = set(self._planner[0].config.answers)
        return [i for i, answer in enumerate(batch.answers or []) if answer in known]

    def _answered(self, batch: FormerBatch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the answers, and the share of them that are right."""
        planner, rows = self._planner[0], self._told(batch)
        if not rows or batch.answers is None:
            nothing = self.answer_head.ask.weight.sum() * 0.0  # with a gradient, as processes share
            return nothing, nothing.detach()
        vision = _partly_hidden(batch.vision[rows])
        questions = [batch.texts[row].removeprefix(QUESTION_TEXT.format("")) for row in rows]
        with torch.autocast(vision.device.type, torch.bfloat16):
            log_chances = planner.answer_chances(vision, questions)
        numbers = [planner.config.answers.index(batch.answers[row]) for row in rows]
        wanted = torch.tensor(numbers, device=log_chances.device)
        right = log_chances.argmax(1).eq(wanted).float().mean()
        return F.nll_loss(log_chances, wanted), right


def _partly_hidden(vision: Tensor) -> Tensor:
    """Vision tokens with some patches blacked out, the same ones in all of a clip's frames."""
    shown = torch.rand(*vision.shape[:2], 1, vision.shape[3], 1, device=vision.device)
    return vision * (shown >= _HIDDEN_PATCHES)


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
    """Train the heads, fresh ones where there are none. Returns the exit status.

    Raises:
        ValueError: what is left out leaves nothing.
    """
    from embodied.cli.finetune import print_trained

    episodes = recorded(planner, options, left_out)
    judged = with_halts(episodes, options.n_halts, options.seed)
    sampler = HeadsSampler(judged, options.batch_size, options.seed, left_out)
    _give_heads(planner, episodes, options.judge_in)
    module = Heads(planner)
    print_trained(planner, module)
    figures = run_training("finetune", module, sampler, options)
    return save_heads(planner, options, episodes, figures, left_out)


def recorded(
    planner: Planner, options: FinetuneOptions, left_out: tuple[str, ...]
) -> list[Recorded]:
    """All the episodes that are given, but those of tasks that are left out."""
    from embodied.cli.finetune import load_datasets

    names = f"{options.dataset},{options.look_at}"
    return without(load_datasets(planner, names, options.features_dir), left_out)


def save_heads(
    planner: Planner,
    options: FinetuneOptions,
    episodes: Sequence[Recorded],
    figures: dict[str, float],
    left_out: tuple[str, ...],
) -> int:
    """Write the planner with what its heads were trained on. Returns the exit status."""
    if not Processes.here().is_main:
        return 0
    notes: dict[str, Any] = trained_on(options, (options.model, options.adapter_from))
    notes |= {LEFT_OUT: list(left_out), "figures": figures}
    looked_at = [(e.meta.env_id, e.meta.seed) for e in episodes]
    notes |= looked_at_notes(looked_at, (options.model, options.adapter_from))
    planner.save(options.output_dir / "planner", **notes)
    return 0


def _give_heads(planner: Planner, episodes: Sequence[Recorded], judge_in: str) -> None:
    """Heads that are not there yet, and what they will have been trained on.

    Raises:
        ValueError: no episode is of a simulator of `judge_in`.
    """
    robots = {episode.meta.env_id.partition("/")[0] for episode in episodes}
    heard = {name.strip() for name in judge_in.split(",") if name.strip()} or robots
    if unknown := heard - robots:
        raise ValueError(f"--judge_in {judge_in}: no episode is of {sorted(unknown)}")
    judges = (e for e in episodes if e.meta.env_id.partition("/")[0] in heard)
    subgoals = {s for episode in judges for s in episode.meta.plan.subgoals}
    config = with_verdict_head(planner.config)
    assert config.verdict_head is not None
    if planner.verdict_head is None:
        planner.verdict_head = VerdictHead(config.verdict_head).to(planner.device)
    answers = closed_answers(episodes)
    if planner.answer_head is None:
        planner.answer_head = AnswerHead(planner.verdict_head).to(planner.device)
    judged = {s.text for s in subgoals}.union(config.judged)
    planner.config = replace(
        config,
        judged=tuple(sorted(judged)),
        answers=tuple(sorted(answers.union(config.answers))),
    )
