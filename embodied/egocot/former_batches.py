"""Batches that the Embodied-former learns from: to act, to plan, to judge, to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embodied.egocot.dataset import (
    Phrasebook,
    Recorded,
    draw_long,
    draw_verdict,
    group_by_task,
    is_imitable,
    nouns_at_hand,
    one_task,
    places_at,
    serving_subgoals,
    verdict_of,
)
from embodied.egocot.questions import AS_EVALUATED, draw_question
from embodied.egocot.wordings import Kind
from embodied.model.features import IMAGE_EVERY, n_images
from embodied.model.planner import CONTROL_TEXT, JUDGE_TEXT, QUESTION_TEXT, plan_text
from embodied.types import STATUSES

_LAG_STEPS = 12
_LATE, _EARLY = 0.7, 0.12


@dataclass(frozen=True)
class FormerBatch:
    """What one use of the former is trained on.

    Args:
        vision: (B, cameras, T', N, W). texts: the B texts for the former.
        places: (B, N_PLACES, cameras, 2), NaN where unknown.
        state: (B, S). actions: (B, H, A). valid: (B, H). done: (B,). Only for control.
        verdict: (B,) index into STATUSES. Only for verdicts.
        answers: the B answers; "" for a position, which is among `places`. Only for questions.
        choices: the answers that differ in the whole batch, of which this may be a share.
    """

    vision: Tensor
    texts: list[str]
    places: Tensor
    state: Tensor | None = None
    actions: Tensor | None = None
    valid: Tensor | None = None
    done: Tensor | None = None
    verdict: Tensor | None = None
    answers: list[str] | None = None
    choices: frozenset[str] = frozenset()


@dataclass(frozen=True)
class AlignmentBatch:
    """One batch of each use of the Embodied-former, as far as it is trained for that."""

    control: FormerBatch | None
    plan: FormerBatch | None
    judge: FormerBatch | None
    ask: FormerBatch | None = None


class AlignmentSampler:
    """Batches by step number for training the Embodied-former with the policy.

    Args:
        act_on: episodes to imitate, those left out that are no example; none to train no policy.
        look_at: episodes to ground plans and verdicts in.
        phrases: how tasks are asked for.
        horizon: H, actions in a chunk.
        sizes: how many samples of control, plan, verdict and answer a batch has.
        asked_for: how often each kind of question is asked, against the others.
    """

    def __init__(
        self,
        act_on: Sequence[Recorded],
        look_at: Sequence[Recorded],
        phrases: Phrasebook,
        horizon: int,
        sizes: tuple[int, int, int, int] = (48, 12, 16, 0),
        seed: int = 0,
        asked_for: Mapping[Kind, float] = AS_EVALUATED,
    ) -> None:
        self._asked_for = asked_for
        self._act_on = [e for e in act_on if is_imitable(e.meta)]
        if act_on and not self._act_on:
            raise ValueError("no successful episode to imitate among those given")
        self._look_at = list(look_at)
        self._phrases, self._horizon = phrases, horizon
        self._sizes, self._seed = sizes, seed
        lengths = np.array([e.span.length for e in self._act_on], float)
        self._share = lengths / lengths.sum()
        self._all_by_task = group_by_task(self._look_at)
        self._serving = serving_subgoals(self._look_at)

    def __call__(self, step: int) -> AlignmentBatch:
        rng = np.random.default_rng([self._seed, step])
        n_control, n_plan, n_judge, n_ask = self._sizes
        return AlignmentBatch(
            self._control(rng, n_control) if self._act_on and n_control else None,
            self._plan(rng, n_plan) if n_plan else None,
            self._judge(rng, n_judge) if n_judge else None,
            self._ask(rng, n_ask) if n_ask else None,
        )

    def _control(self, rng: np.random.Generator, size: int) -> FormerBatch:
        rows = []
        for _ in range(size):
            episode = self._act_on[int(rng.choice(len(self._act_on), p=self._share))]
            step = int(rng.integers(n_images(episode.span.length))) * IMAGE_EVERY
            rows.append((episode, step, self._working_on(rng, episode, step)))
        chunks = [_chunk(e.action, step, self._horizon) for e, step, _ in rows]
        subgoals = [e.meta.plan.subgoals[g] for e, _, g in rows]
        return FormerBatch(
            vision=_stack([e.picture(step)[:, None] for e, step, _ in rows]),
            texts=[CONTROL_TEXT.format(s.text) for s in subgoals],
            places=_places(
                [(e, nouns_at_hand(s), t) for (e, t, _), s in zip(rows, subgoals, strict=True)]
            ),
            state=torch.from_numpy(np.stack([e.state[step] for e, step, _ in rows])),
            actions=torch.from_numpy(np.stack([a for a, _ in chunks])),
            valid=torch.from_numpy(np.stack([v for _, v in chunks])),
            done=torch.tensor([float(e.met(g, step)) for e, step, g in rows]),
        )

    def _working_on(self, rng: np.random.Generator, episode: Recorded, step: int) -> int:
        """The current sub-goal; sometimes one off, as when the monitor is late or too early."""
        current = int(episode.subgoal[step])
        if rng.random() < _EARLY:
            return min(current + 1, len(episode.meta.plan.subgoals) - 1)
        before = int(episode.subgoal[max(0, step - int(rng.integers(1, _LAG_STEPS + 1)))])
        return before if before < current and rng.random() < _LATE else current

    def _plan(self, rng: np.random.Generator, size: int) -> FormerBatch:
        rows = []
        for _ in range(size):
            episode = draw_long(rng, self._all_by_task)
            step = int(rng.integers(n_images(episode.span.length))) * IMAGE_EVERY
            rows.append((episode, step))
        said = [self._phrases.ask(rng, e.tasks) for e, _ in rows]
        nouns = [self._nouns(rng, e) for e, _ in rows]
        return FormerBatch(
            vision=_stack([e.picture(step)[:, None] for e, step in rows]),
            texts=[plan_text(s, n) for s, n in zip(said, nouns, strict=True)],
            places=_places([(e, n, t) for (e, t), n in zip(rows, nouns, strict=True)]),
        )

    def _nouns(self, rng: np.random.Generator, episode: Recorded) -> list[str]:
        """The things that the plan for one of the episode's tasks is about."""
        _, subgoals = one_task(rng, episode, self._serving)
        return list(dict.fromkeys(noun for s in subgoals for noun in nouns_at_hand(s)))

    def _judge(self, rng: np.random.Generator, size: int) -> FormerBatch:
        rows = [draw_verdict(rng, self._all_by_task) for _ in range(size)]
        subgoals = [e.meta.plan.subgoals[g] for e, _, g in rows]
        verdicts = [STATUSES.index(verdict_of(e, g, step)[0]) for e, step, g in rows]
        return FormerBatch(
            vision=_stack([e.clip(step) for e, step, _ in rows]),
            texts=[JUDGE_TEXT.format(s.text) for s in subgoals],
            places=_places(
                [(e, nouns_at_hand(s), t) for (e, t, _), s in zip(rows, subgoals, strict=True)]
            ),
            verdict=torch.tensor(verdicts),
        )

    def _ask(self, rng: np.random.Generator, size: int) -> FormerBatch:
        asked = [draw_question(rng, self._all_by_task, self._asked_for) for _ in range(size)]
        answers = ["" if a.kind == "where" else a.answer for a in asked]
        return FormerBatch(
            vision=_stack([a.episode.clip(a.step) for a in asked]),
            texts=[QUESTION_TEXT.format(a.question) for a in asked],
            places=_places([(a.episode, [*a.nouns], a.step) for a in asked]),
            answers=answers,
            choices=frozenset(filter(None, answers)),
        )


def _chunk(action: np.ndarray, step: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """The next `horizon` actions (H, A), the last one repeated, and which are real (H,)."""
    steps = step + np.arange(horizon)
    return action[np.minimum(steps, len(action) - 1)], steps < len(action)


def _stack(tokens: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(tokens)).float()


def _places(rows: Sequence[tuple[Recorded, list[str], int]]) -> Tensor:
    return torch.from_numpy(np.stack([places_at(e, nouns, step) for e, nouns, step in rows]))
