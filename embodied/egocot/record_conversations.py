"""What the language model is trained to say of records: plans, verdicts and answers.

The words are the record's own: a user's verbs and nouns need not be those of our scenes. Captions
and plans in sentences are asked for as questions are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from embodied.egocot.conversations import Kind, Turns
from embodied.egocot.record_features import SeenRecord
from embodied.egocot.records import Answer, Record
from embodied.egocot.wordings import CAPTION, PLAN_IN_WORDS
from embodied.model.llm import chat
from embodied.model.plan import steps_text, thought_text
from embodied.model.planner import (
    JUDGE_PROMPT,
    JUDGE_TEXT,
    QUESTION_TEXT,
    plan_prompt,
    plan_text,
    question_prompt,
)
from embodied.types import STATUSES

_T = TypeVar("_T")

_ASIDE = 0.25
"""How often the caption or the plan in sentences is asked for, in place of a record's questions."""


def steps_of(record: Record) -> list[str]:
    """Its actions as `verb(noun)`, or the steps in words where it has none."""
    return [action.text for action in record.actions] or list(record.plan)


def plan_answer(record: Record) -> str:
    """The plan as it stands in the record: its thought, where it has one, and numbered steps."""
    thought = [thought_text(record.places)] if record.thought else []
    numbered = steps_text(record.actions) or "\n".join(
        f"{i}. {step}" for i, step in enumerate(record.plan, 1)
    )
    return "\n".join([*thought, numbered])


def judged(record: Record) -> str:
    """What a record's verdict is about, in words."""
    return ", then ".join(action.text for action in record.actions)


def asked_of(record: Record) -> Iterator[Answer]:
    """Every question that a record answers, the caption and the plan in sentences included."""
    yield from record.questions
    for question in (*CAPTION["en"], *CAPTION["zh"]):
        yield Answer(question, record.caption)
    if record.plan:
        for question in PLAN_IN_WORDS:
            yield Answer(question.format(asked=record.instruction), "; ".join(record.plan))


class RecordSampler:
    """Batches by step number, as `ConversationSampler`.

    Args:
        records: with their tokens.
        sizes: how many of plan, verdict and answer a batch has; none of what no record has.
    """

    def __init__(
        self, records: Sequence[SeenRecord], sizes: tuple[int, int, int], seed: int = 0
    ) -> None:
        self._planned = [r for r in records if steps_of(r.record)]
        judged_as = {s: [r for r in records if _status(r.record) == s] for s in STATUSES}
        self._judged = [group for group in judged_as.values() if group]
        self._all = list(records)
        there = (self._planned, self._judged, self._all)
        self._sizes = [n if some else 0 for n, some in zip(sizes, there, strict=True)]
        self._seed = seed

    def __call__(self, step: int) -> list[Turns]:
        rng = np.random.default_rng([self._seed, step, 1])
        draws: tuple[tuple[Kind, Callable[[np.random.Generator], _Row]], ...] = (
            ("plan", self._plan),
            ("verdict", self._verdict),
            ("answer", self._answer),
        )
        wanted = zip(draws, self._sizes, strict=True)
        return [_turns(kind, [draw(rng) for _ in range(n)]) for (kind, draw), n in wanted if n]

    def _plan(self, rng: np.random.Generator) -> _Row:
        seen = _one(rng, self._planned)
        asked = seen.record.instruction
        return seen, plan_prompt(asked), plan_answer(seen.record), plan_text(asked)

    def _verdict(self, rng: np.random.Generator) -> _Row:
        """Each status as often as the others."""
        seen = _one(rng, _one(rng, self._judged))
        verdict, about = seen.record.verdict, judged(seen.record)
        assert verdict is not None
        prompt = verdict_prompt(about)
        return seen, prompt, f"{verdict.status}: {verdict.reason}", JUDGE_TEXT.format(about)

    def _answer(self, rng: np.random.Generator) -> _Row:
        seen = _one(rng, self._all)
        n_own, asked = len(seen.record.questions), list(asked_of(seen.record))
        own = n_own and rng.random() >= _ASIDE
        question = _one(rng, asked[:n_own] if own else asked[n_own:])
        words = question.question
        return seen, question_prompt(words), question.answer, QUESTION_TEXT.format(words)


_Row = tuple[SeenRecord, str, str, str]
"""What is seen, the prompt, the answer, and the former's text."""


def verdict_prompt(about: str) -> str:
    """What the language model is asked for a verdict on a record's actions."""
    return chat(JUDGE_PROMPT.format(subgoal=about, motion=""))


def _turns(kind: Kind, rows: Sequence[_Row]) -> Turns:
    seen, prompts, answers, texts = zip(*rows, strict=True)
    tokens = torch.from_numpy(np.stack([s.tokens for s in seen])).float()  # (B, 1, T', N, W)
    return Turns(kind, list(prompts), list(answers), tokens, list(texts))


def _status(record: Record) -> str | None:
    return record.verdict.status if record.verdict else None


def _one(rng: np.random.Generator, among: Sequence[_T]) -> _T:
    return among[int(rng.integers(len(among)))]
