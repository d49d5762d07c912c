"""What the language model is trained to say of records: plans, verdicts and answers.

The words are the record's own: a user's verbs and nouns need not be those of our scenes. Captions
and plans in sentences are asked for as questions are. For alignment captions, the places of things
and the record's own questions are drawn apart from each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from embodied.egocot.build.questions import about_places
from embodied.egocot.conversations import Kind, Turns, of_like_length
from embodied.egocot.record_features import SeenRecord
from embodied.egocot.records import Answer, Record
from embodied.egocot.wordings import CAPTION, PLAN_IN_WORDS
from embodied.model.llm import chat
from embodied.model.plan import ThoughtKind, steps_text, thought_text
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


def plan_answer(record: Record, kind: ThoughtKind = "grounded") -> str:
    """The plan as it stands in the record: its thought, where it has one, and numbered steps."""
    thought = thought_text(record.places, kind) if record.thought else ""
    numbered = steps_text(record.actions) or "\n".join(
        f"{i}. {step}" for i, step in enumerate(record.plan, 1)
    )
    return "\n".join(filter(None, [thought, numbered]))


def judged(record: Record) -> str:
    """What a record's verdict is about, in words."""
    return ", then ".join(action.text for action in record.actions)


def captions_of(record: Record) -> Iterator[Answer]:
    """Its caption, in all the ways to ask for it."""
    for question in (*CAPTION["en"], *CAPTION["zh"]):
        yield Answer(question, record.caption)


def asked_of(record: Record) -> Iterator[Answer]:
    """Every question that a record answers, the caption and the plan in sentences included."""
    yield from record.questions
    yield from captions_of(record)
    if record.plan:
        for question in PLAN_IN_WORDS:
            yield Answer(question.format(asked=record.instruction), "; ".join(record.plan))


def said_of(records: Sequence[SeenRecord]) -> tuple[bool, bool, bool]:
    """Whether any of them has a plan, a verdict, and something to answer."""
    plans = any(steps_of(seen.record) for seen in records)
    return plans, any(seen.record.verdict for seen in records), bool(records)


class RecordSampler:
    """Batches by step number, as `ConversationSampler`.

    Args:
        records: with their tokens.
        sizes: how many of plan, verdict and answer a batch has; none of what no record has.
        thought: what plans begin with.
    """

    def __init__(
        self,
        records: Sequence[SeenRecord],
        sizes: tuple[int, int, int],
        seed: int = 0,
        thought: ThoughtKind = "grounded",
    ) -> None:
        self._planned = [r for r in records if steps_of(r.record)]
        judged_as = {s: [r for r in records if _status(r.record) == s] for s in STATUSES}
        self._judged = [group for group in judged_as.values() if group]
        self._all = list(records)
        self._sizes = [n if some else 0 for n, some in zip(sizes, said_of(records), strict=True)]
        self._seed, self._thought = seed, thought

    def __call__(self, step: int) -> list[Turns]:
        rng = np.random.default_rng([self._seed, step, 1])
        draws: tuple[_Draw, ...] = (
            ("plan", self._plan),
            ("verdict", self._verdict),
            ("answer", self._answer),
        )
        return _batch(rng, draws, self._sizes)

    def _plan(self, rng: np.random.Generator) -> _Row:
        seen = _one(rng, self._planned)
        asked = seen.record.instruction
        said = plan_answer(seen.record, self._thought)
        return seen, plan_prompt(asked), said, plan_text(asked)

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
        return _question(seen, _one(rng, asked[:n_own] if own else asked[n_own:]))


def shown_by(records: Sequence[SeenRecord]) -> tuple[bool, bool, bool]:
    """Whether any of them has a caption, the place of a thing, and a question of its own."""
    placed = any(seen.record.thought for seen in records)
    return bool(records), placed, any(seen.record.questions for seen in records)


class AlignmentTurns:
    """Batches by step number to align clips and words: what is seen, where, and what is asked.

    Args:
        records: with their tokens.
        sizes: how many of caption, place and answer a batch has; none of what no record has.
    """

    def __init__(
        self, records: Sequence[SeenRecord], sizes: tuple[int, int, int], seed: int = 0
    ) -> None:
        self._all = list(records)
        self._placed = [r for r in records if r.record.thought]
        self._asked = [r for r in records if r.record.questions]
        self._sizes = [n if some else 0 for n, some in zip(sizes, shown_by(records), strict=True)]
        self._seed = seed

    def __call__(self, step: int) -> list[Turns]:
        rng = np.random.default_rng([self._seed, step, 2])
        draws: tuple[_Draw, ...] = (
            ("caption", self._caption),
            ("place", self._place),
            ("answer", self._answer),
        )
        return _batch(rng, draws, self._sizes)

    def _caption(self, rng: np.random.Generator) -> _Row:
        seen = _one(rng, self._all)
        return _question(seen, _one(rng, list(captions_of(seen.record))))

    def _place(self, rng: np.random.Generator) -> _Row:
        """Where one thing of the thought is, which is about the clip's first frame."""
        seen = _one(rng, self._placed)
        place = _one(rng, seen.record.thought)
        return _question(seen, about_places({place.object: (place.x, place.y)}, " at first")[0])

    def _answer(self, rng: np.random.Generator) -> _Row:
        seen = _one(rng, self._asked)
        return _question(seen, _one(rng, seen.record.questions))


_Row = tuple[SeenRecord, str, str, str]
"""What is seen, the prompt, the answer, and the former's text."""
_Draw = tuple[Kind, Callable[[np.random.Generator], _Row]]


def _question(seen: SeenRecord, asked: Answer) -> _Row:
    words = asked.question
    return seen, question_prompt(words), asked.answer, QUESTION_TEXT.format(words)


def _batch(rng: np.random.Generator, draws: Sequence[_Draw], sizes: Sequence[int]) -> list[Turns]:
    """Rows of like length of each kind that there is some of."""
    wanted = zip(draws, sizes, strict=True)
    return [_turns(kind, of_like_length(rng, draw, n, _length)) for (kind, draw), n in wanted if n]


def _length(row: _Row) -> int:
    return len((row[1] + row[2]).encode())


def verdict_prompt(about: str) -> str:
    """What the language model is asked for a verdict on a record's actions."""
    return chat(JUDGE_PROMPT.format(subgoal=about, motion=""))


def _turns(kind: Kind, rows: Sequence[_Row]) -> Turns:
    seen, prompts, answers, texts = zip(*rows, strict=True)
    shown = [s.plan_tokens if kind == "plan" else s.tokens for s in seen]
    tokens = torch.from_numpy(np.stack(shown)).float()  # (B, 1, T', N, W)
    return Turns(kind, list(prompts), list(answers), tokens, list(texts))


def _status(record: Record) -> str | None:
    return record.verdict.status if record.verdict else None


def _one(rng: np.random.Generator, among: Sequence[_T]) -> _T:
    return among[int(rng.integers(len(among)))]
