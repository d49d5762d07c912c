"""4. From the words alone: which scene and which of its tasks are meant, or that none is.

The language model answers with a task's name, with several in order ("microwave, light switch")
where a scene offers several, or with a refusal. Every answer that is possible is scored, so the
choice comes with the model's own probability and the nearest alternatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embodied.model.decoding import GrammarDecoder
from embodied.model.llm import chat
from embodied.model.plan import REFUSE
from embodied.types import Vocabulary

ROUTE_PROMPT = "Instruction: {instruction}\nWhich task is it?"

REFUSE_ABOVE = 0.3
"""Probability of a refusal from which an instruction is refused; see docs/log.md for the choice."""

FITS_ABOVE = 0.05
"""Probability of its task from which an instruction fits the scene at hand."""

N_NEAREST = 3
SEPARATOR = ", "


@dataclass(frozen=True)
class Route:
    """Which scene and tasks an instruction is about, or why none is.

    Args:
        env_id: None when refused.
        tasks: in the order to be carried out.
        refused: why; None otherwise.
        nearest: the likeliest tasks.
        probability: the model's own, of this answer.
    """

    env_id: str | None
    tasks: tuple[str, ...]
    refused: str | None
    nearest: tuple[str, ...]
    probability: float


def spoken(tasks: Sequence[str]) -> str:
    """Tasks in order, as the model is to name them."""
    return SEPARATOR.join(tasks)


def route(
    decoder: GrammarDecoder,
    instruction: str,
    catalogue: Mapping[str, Vocabulary],
    env_id: str | None = None,
) -> Route:
    """Which environment of `catalogue` offers what `instruction` asks for, or why none does.

    Args:
        env_id: the scene at hand; its tasks need only be a likely reading of the words
            ("press the button" fits every scene with a button), not the likeliest.
    """
    prompt = chat(ROUTE_PROMPT.format(instruction=instruction))
    owner = {task: env for env, vocabulary in catalogue.items() for task in vocabulary.tasks}
    chances = _first_task_chances(decoder, prompt, catalogue)
    refusal = chances.pop(REFUSE)
    nearest = tuple(sorted(chances, key=lambda task: -chances[task])[:N_NEAREST])
    if refusal > REFUSE_ABOVE:
        reason = f"no scene can do {instruction!r}; the nearest are: {', '.join(nearest)}"
        return Route(None, (), reason, nearest, refusal)
    best = nearest[0]
    if env_id is not None:
        best = max(catalogue[env_id].tasks, key=lambda task: chances[task])
        if chances[best] < FITS_ABOVE:
            offered = ", ".join(catalogue[env_id].tasks)
            reason = (
                f"{env_id} offers {offered}, and {instruction!r} is not that; "
                f"the nearest are: {', '.join(nearest)}"
            )
            return Route(None, (), reason, nearest, chances[nearest[0]])
    tasks, more = _further_tasks(decoder, prompt, best, catalogue[owner[best]].tasks)
    return Route(owner[best], tasks, None, nearest, chances[best] * more)


def _first_task_chances(
    decoder: GrammarDecoder, prompt: str, catalogue: Mapping[str, Vocabulary]
) -> dict[str, float]:
    """How likely the answer is, or begins with, each task; and how likely it is a refusal."""
    alone = {task: len(v.tasks) == 1 for v in catalogue.values() for task in v.tasks}
    alone[REFUSE] = True
    scores = decoder.score(None, prompt, list(alone), closed=list(alone.values()))
    return dict(zip(alone, scores.softmax(0).tolist(), strict=True))


def _further_tasks(
    decoder: GrammarDecoder, prompt: str, first: str, offered: Sequence[str]
) -> tuple[tuple[str, ...], float]:
    """The tasks that follow `first` in the same scene, each once, and their probability."""
    tasks, probability = [first], 1.0
    while left := [task for task in offered if task not in tasks]:
        options = ["", *(SEPARATOR + task for task in left)]
        closed = [True] + [False] * len(left)
        scores = decoder.score(None, prompt + spoken(tasks), options, closed=closed).softmax(0)
        best = int(scores.argmax())
        probability *= float(scores[best])
        if best == 0:
            break
        tasks.append(left[best - 1])
    return tuple(tasks), probability
