"""What a planner says of EgoCOT records, scored for `embodied evaluate-plans`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from embodied.cli.score_plans import answer_figures, mean, rate, steps_figures, text_figures
from embodied.cli.splits import is_about
from embodied.egocot.record_conversations import (
    judged,
    plan_answer,
    steps_of,
    verdict_prompt,
)
from embodied.egocot.record_features import SeenRecord
from embodied.egocot.records import Record
from embodied.egocot.wordings import CAPTION
from embodied.metrics import verdict_scores
from embodied.model.plan import GRID, parse_thought
from embodied.model.planner import JUDGE_TEXT, Planner, plan_prompt, plan_text
from embodied.types import STATUSES, Status

_STEP = re.compile(r"^\d{1,2}\. (.+)$")
_PLAN_TOKENS = 256


@torch.no_grad()
def score_records(
    planner: Planner, records: Sequence[SeenRecord], unseen_tasks: Sequence[str]
) -> dict[str, Any]:
    """Scores of plans, verdicts and answers; apart for records of tasks that were left out."""
    unseen = [r for r in records if is_about(r.record, unseen_tasks)]
    seen = [r for r in records if not is_about(r.record, unseen_tasks)]
    groups = {"seen_tasks": seen, "unseen_tasks": unseen}
    return {name: _figures(planner, group) for name, group in groups.items() if group}


def _figures(planner: Planner, records: Sequence[SeenRecord]) -> dict[str, Any]:
    said = [_plan(planner, r) for r in tqdm(records, desc="records: plans", file=sys.stderr)]
    rows = [(text, r.record) for text, r in zip(said, records, strict=True) if steps_of(r.record)]
    plans, true = [steps_in(text) for text, _ in rows], [steps_of(record) for _, record in rows]
    errors = [error for text, record in rows for error in _errors_px(text, record)]
    return {
        "plan_right": rate([s == t for s, t in zip(plans, true, strict=True)]),
        **steps_figures(plans, true),
        "grounding_mean_px": mean(errors, 1),
        **text_figures(
            [text for text, _ in rows],
            [plan_answer(record, planner.config.thought) for _, record in rows],
        ),
        **_verdict_figures(planner, [r for r in records if r.record.verdict]),
        **_answer_figures(planner, records),
    }


def _batched(tokens: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(tokens))[None].float()  # (1, 1, T', N, W)


def _plan(planner: Planner, seen: SeenRecord) -> str:
    """In the model's own words: nobody says what a record's scene offers."""
    asked = seen.record.instruction
    visual = planner.visual_tokens(_batched(seen.plan_tokens), plan_text(asked))
    return planner.decoder.speak(visual, plan_prompt(asked), _PLAN_TOKENS)


def steps_in(text: str) -> list[str]:
    """The numbered steps of a plan, without their numbers."""
    return [match[1].strip() for line in text.split("\n") if (match := _STEP.match(line))]


def _errors_px(text: str, record: Record) -> list[float]:
    """How far the things that both place are from where they are."""
    found = parse_thought(text.partition("\n")[0])
    both = [noun for noun in found if noun in record.places]
    return [float(np.hypot(*np.subtract(found[n], record.places[n])) * GRID) for n in both]


def _verdict_figures(planner: Planner, records: Sequence[SeenRecord]) -> dict[str, Any]:
    if not records:
        return {}
    true = [r.record.verdict.status for r in records if r.record.verdict]
    said = [_status(planner, r) for r in tqdm(records, desc="records: verdicts", file=sys.stderr)]
    hits = [s == t for s, t in zip(said, true, strict=True)]
    figures: dict[str, Any] = {"verdict_right": rate(hits)}
    for status, score in verdict_scores(true, said).items():
        parts = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
        figures[f"verdict_{status}"] = {k: round(v or 0.0, 3) for k, v in parts.items()}
    return figures


def _status(planner: Planner, seen: SeenRecord) -> Status:
    """The likeliest beginning of an answer; reasons are free here."""
    about = judged(seen.record)
    visual = planner.visual_tokens(_batched(seen.tokens), JUDGE_TEXT.format(about))
    closed = [False] * len(STATUSES)
    scores = planner.decoder.score(visual, verdict_prompt(about), STATUSES, closed=closed)
    return STATUSES[int(scores.argmax())]


def _answer_figures(planner: Planner, records: Sequence[SeenRecord]) -> dict[str, Any]:
    answers = []
    for seen in tqdm(records, desc="records: questions", file=sys.stderr):
        asked = [("question", a.question, a.answer) for a in seen.record.questions]
        asked.append(("caption", CAPTION["en"][0], seen.record.caption))
        for kind, question, true in asked:
            said = planner.answer_tokens(_batched(seen.tokens), question)
            answers.append((kind, question, said, true))
    return answer_figures(answers)
