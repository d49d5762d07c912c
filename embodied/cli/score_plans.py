"""Plans, verdicts and answers on recorded episodes, scored for `embodied evaluate-plans`."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from embodied.egocot.dataset import Recorded, group_by_task
from embodied.egocot.questions import draw_question
from embodied.egocot.words import in_words
from embodied.metrics import Rate, step_f1
from embodied.metrics_text import NEAR_PX, Mean, bleu4, cider, is_right, order_score, rouge_l
from embodied.model.plan import GRID, parse_thought
from embodied.types import Plan, Subgoal, Vocabulary
from sims import language, scenes

Split = Literal["new_layouts", "unseen_paraphrases", "unseen_tasks"]


class Plans(Protocol):
    """A planner, or a baseline."""

    def plan_tokens(
        self,
        vision: Tensor,
        instruction: str,
        vocabulary: Vocabulary,
        experience: str = "",
        tasks: Sequence[str] = (),
    ) -> Plan: ...


@dataclass(frozen=True)
class Sample:
    """One plan to be made: of which episode, asked for how, and what it is a sample of."""

    episode: Recorded
    said: str
    split: Split


@dataclass(frozen=True)
class Planned:
    """What was planned, and how far its places were off, in pixels of a 224 px picture."""

    split: Split
    said: tuple[Subgoal, ...]
    true: tuple[Subgoal, ...]
    errors_px: tuple[float, ...]


def samples(
    episodes: Sequence[Recorded],
    rng: np.random.Generator,
    n: int,
    unseen_tasks: Sequence[str] = (),
    paraphrases: Mapping[tuple[str, ...], Sequence[str]] | None = None,
) -> list[Sample]:
    """What to plan for: `n` episodes; those of seen tasks again in other words where there are any.

    Args:
        unseen_tasks: that training left out.
        paraphrases: tasks in order → ways to ask for them that training did not see.
    """
    found: list[Sample] = []
    for i in rng.permutation(len(episodes))[:n]:
        episode = episodes[i]
        unseen = bool(set(episode.tasks) & set(unseen_tasks))
        said = language.ask(rng, episode.tasks)
        found.append(Sample(episode, said, "unseen_tasks" if unseen else "new_layouts"))
        ways = (paraphrases or {}).get(tuple(episode.tasks), ())
        if ways and not unseen:
            other = str(ways[int(rng.integers(len(ways)))])
            found.append(Sample(episode, other, "unseen_paraphrases"))
    return found


def made(
    planner: Plans, sample: Sample, find_tasks: Callable[[str, str], Sequence[str]] | None = None
) -> Planned:
    """One plan, beside the truth.

    Args:
        find_tasks: instruction and scene → tasks, none to refuse; they are told when it is None.
    """
    episode = sample.episode
    scene = scenes.scene_of(episode.meta.env_id)
    true = episode.meta.plan.subgoals
    tasks = episode.tasks if find_tasks is None else find_tasks(sample.said, scene)
    if not tasks:
        return Planned(sample.split, (), true, ())
    picture = torch.from_numpy(episode.picture(0)[None, :, None])
    vocabulary = scenes.catalogue()[scene]
    plan = planner.plan_tokens(picture.float(), sample.said, vocabulary, tasks=tasks)
    return Planned(sample.split, plan.subgoals, true, tuple(_errors_px(plan, episode)))


def _errors_px(plan: Plan, episode: Recorded) -> Iterator[float]:
    """Over all that the thought names and that is in view."""
    for noun, place in parse_thought(plan.thought).items():
        true = episode.places[noun][0, 0] if noun in episode.places else np.array([np.nan])
        if ((true >= 0) & (true <= 1)).all():  # not where it is unknown
            yield float(np.linalg.norm(np.array(place) - true) * GRID)


def score_plans(planned: Sequence[Planned]) -> dict[str, Any]:
    """Scores over all of them, and again for each split."""
    everything = _plan_figures(planned)
    by_split = defaultdict(list)
    for one in planned:
        by_split[one.split].append(one)
    return everything | {"plans": {split: _plan_figures(some) for split, some in by_split.items()}}


def _plan_figures(planned: Sequence[Planned]) -> dict[str, Any]:
    errors = [error for one in planned for error in one.errors_px]
    return {
        "plan_right": rate([one.said == one.true for one in planned]),
        **steps_figures([one.said for one in planned], [one.true for one in planned]),
        "grounding_mean_px": mean(errors, 1),
        "grounding_median_px": round(float(np.median(errors)), 1) if errors else None,
        f"grounding_within_{NEAR_PX}_px": rate([error < NEAR_PX for error in errors]),
        **text_figures(
            [". ".join(map(in_words, one.said)) for one in planned],
            [". ".join(map(in_words, one.true)) for one in planned],
        ),
    }


def steps_figures(said: Sequence[Sequence[Any]], true: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """F1 of the steps as a bag, and in order."""
    pairs = list(zip(said, true, strict=True))
    return {
        "step_f1": mean([step_f1(s, t) for s, t in pairs]),
        "step_order": mean([order_score(s, t) for s, t in pairs]),
    }


def text_figures(said: Sequence[str], true: Sequence[str]) -> dict[str, Any]:
    """BLEU-4, ROUGE-L and CIDEr."""
    return {
        "bleu4": figure(bleu4(said, true), 1),
        "rouge_l": figure(rouge_l(said, true)),
        "cider": figure(cider(said, true)),
    }


@torch.no_grad()
def score_questions(
    planner: Any, episodes: Sequence[Recorded], n: int, seed: int
) -> dict[str, Any]:
    """How many answers are right, by kind too; and how well the captions are worded.

    `question_blind` is the best that anyone can do who does not look, but knows of each question
    which answer to it is the most frequent.
    """
    rng, by_task = np.random.default_rng(seed), group_by_task(episodes)
    answers = []
    for _ in tqdm(range(n), desc="questions", file=sys.stderr):
        asked = draw_question(rng, by_task)
        tokens = torch.from_numpy(asked.episode.clip(asked.step))[None].float()
        said = planner.answer_tokens(tokens, asked.question)
        answers.append((asked.kind, asked.question, said, asked.answer))
    return answer_figures(answers)


def answer_figures(answers: Sequence[tuple[str, str, str, str]]) -> dict[str, Any]:
    """Figures of answers (kind, question, what was said, the truth); captions by their wording."""
    asked = [row for row in answers if row[0] != "caption"]
    captions = [row for row in answers if row[0] == "caption"]
    right = {kind: [is_right(s, t) for k, _, s, t in asked if k == kind] for kind, *_ in asked}
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question, _, true in asked:
        by_question[question][true] += 1
    n_blind = sum(max(counts.values()) for counts in by_question.values())
    return {
        "question_right": rate([hit for hits in right.values() for hit in hits]),
        "question_blind": _rate_of(Rate(n_blind, len(asked))),
        "questions": {kind: rate(hits) for kind, hits in sorted(right.items())},
        "captions": {
            "exact": rate([is_right(s, t) for *_, s, t in captions]),
            **text_figures([s for *_, s, _ in captions], [t for *_, t in captions]),
        },
    }


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    """k of n, in per cent, with Wilson's interval."""
    return _rate_of(Rate(sum(hits), len(hits)))


def _rate_of(found: Rate) -> dict[str, Any]:
    percent = None if found.percent is None else round(found.percent, 1)
    return {"k": found.k, "n": found.n, "pc": percent, "wilson95": found.wilson95}


def mean(values: Sequence[float], digits: int = 3) -> dict[str, Any]:
    """The mean with n and a bootstrap interval."""
    return figure(Mean.of(values), digits)


def figure(score: Mean, digits: int = 3) -> dict[str, Any]:
    """A score as JSON has it."""
    interval = score.bootstrap95 and [round(bound, digits) for bound in score.bootstrap95]
    value = None if score.value is None else round(score.value, digits)
    return {"value": value, "n": score.n, "bootstrap95": interval}
