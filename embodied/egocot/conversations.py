"""What the language model is trained to say: which task, which plan, what verdict, what answer.

Four kinds of prompt and answer, in the very words of `embodied.model.planner`. Tasks are told
from the words alone; the others come with vision tokens of recorded episodes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from embodied.agent.memory import lesson
from embodied.egocot.dataset import (
    Phrasebook,
    Recorded,
    draw_task,
    draw_verdict,
    group_by_task,
    motion_at,
    one_task,
    serving_subgoals,
    verdict_of,
)
from embodied.egocot.questions import TO_LEARN, draw_question
from embodied.model.features import IMAGE_EVERY, n_images
from embodied.model.llm import chat
from embodied.model.plan import (
    REASONS,
    REFUSE,
    ThoughtKind,
    grounded_nouns,
    steps_text,
    thought_text,
)
from embodied.model.planner import (
    JUDGE_TEXT,
    QUESTION_TEXT,
    judge_prompt,
    plan_prompt,
    plan_text,
    question_prompt,
)
from embodied.model.routing import ROUTE_PROMPT, spoken
from embodied.types import Vocabulary

_BEFORE = {
    "en": ("please ", "robot, ", "hey, ", "now ", "could you ", "I need you to ", "ok, ", "next, "),
    "zh": ("请", "麻烦", "机器人，", "现在", "你能", "帮我", "好，"),
}
_AFTER = {
    "en": (" please", " now", ", thanks", " for me", "!", "."),
    "zh": ("吧", "，谢谢", "。", "！"),
}
_HAN = re.compile("[\u4e00-\u9fff]")  # English may have a dash or an arrow that is no ASCII

_LONG_WORD = re.compile("[A-Za-z]{5,}")
_TYPOS = 0.12
"""How often a request has a slip of the keyboard."""

_POOL = 4
_ONE_CAMERA = 0.3
"""How often questions are about the first camera's pictures alone, as of a video."""


def vary(rng: np.random.Generator, sentence: str) -> str:
    """The same request with small changes of form: case, closing mark, courtesies, a slip."""
    language = "zh" if _HAN.search(sentence) else "en"
    if rng.random() < 0.4:
        sentence = sentence.rstrip(".!?。！？")
    if rng.random() < 0.25:
        sentence = str(rng.choice(_BEFORE[language])) + sentence[:1].lower() + sentence[1:]
    if rng.random() < 0.2:
        sentence = sentence.rstrip(".!?。！？") + str(rng.choice(_AFTER[language]))
    if rng.random() < 0.3:
        sentence = sentence.lower()
    return _mistyped(rng, sentence) if rng.random() < _TYPOS else sentence


def _mistyped(rng: np.random.Generator, sentence: str) -> str:
    """A long English word with two letters swapped, or one left out or doubled; if there is one."""
    words = list(_LONG_WORD.finditer(sentence))
    if not words:
        return sentence
    word = words[int(rng.integers(len(words)))]
    i = int(rng.integers(word.start() + 1, word.end() - 1))
    a, b = sentence[i], sentence[i + 1]
    slip = str(rng.choice([b + a, b, a + a + b]))
    return sentence[:i] + slip + sentence[i + 2 :]


Kind = Literal["task", "plan", "verdict", "answer", "caption", "place"]
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Turns:
    """Prompts in chat form and their answers; with vision, also what the former sees and reads.

    `vision` is (B, cameras, T', N, W) and `texts` has B entries; None for words alone.
    """

    kind: Kind
    prompts: list[str]
    answers: list[str]
    vision: Tensor | None = None
    texts: list[str] | None = None


def of_like_length(
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator], _Row],
    size: int,
    length: Callable[[_Row], int],
) -> list[_Row]:
    """`size` of what `draw` gives, so that little of the batch is padding; each is as likely."""
    drawn = [draw(rng) for _ in range(_POOL * size)]
    drawn.sort(key=length)
    first = int(rng.integers(_POOL)) * size
    return drawn[first : first + size]


class ConversationSampler:
    """Batches by step number.

    Args:
        episodes: with cached features; may be empty when only words are asked for.
        phrases: what people say.
        sizes: how many of task, plan, verdict and answer a batch has.
        thought: what plans begin with.
    """

    def __init__(
        self,
        episodes: Sequence[Recorded],
        phrases: Phrasebook,
        sizes: tuple[int, int, int, int],
        seed: int = 0,
        thought: ThoughtKind = "grounded",
    ) -> None:
        self._by_task = group_by_task(episodes)
        self._serving = serving_subgoals(episodes)
        self._phrases = phrases
        self._sizes, self._seed, self._thought = sizes, seed, thought

    def __call__(self, step: int) -> list[Turns]:
        rng = np.random.default_rng([self._seed, step])
        draws = (self._tasks, self._plans, self._verdicts, self._answers)
        return [draw(rng, n) for draw, n in zip(draws, self._sizes, strict=True) if n]

    def _tasks(self, rng: np.random.Generator, size: int) -> Turns:
        rows = of_like_length(rng, self._request, size, lambda row: len(row[0].encode()))
        prompts = [chat(ROUTE_PROMPT.format(instruction=said)) for said, _ in rows]
        return Turns("task", prompts, [answer for _, answer in rows])

    def _request(self, rng: np.random.Generator) -> tuple[str, str]:
        """A way to ask for tasks, or for what no scene offers, and the right answer."""
        said, tasks = self._phrases.request(rng)
        return vary(rng, said), spoken(tasks) if tasks else REFUSE

    def _plans(self, rng: np.random.Generator, size: int) -> Turns:
        prompts, answers, tokens, texts = [], [], [], []
        for _ in range(size):
            episodes = draw_task(rng, self._by_task)
            episode = episodes[int(rng.integers(len(episodes)))]
            tasks, subgoals = one_task(rng, episode, self._serving)
            vocabulary = Vocabulary((episode.meta.task,), subgoals)
            step = self._plan_step(rng, episode)
            said = vary(rng, self._phrases.ask(rng, episode.tasks))
            told = self._experience(rng, episode, step)
            prompts.append(plan_prompt(said, told, () if _is_own_scene(episode) else tasks))
            answers.append(_plan_answer(episode, step, vocabulary, self._thought))
            tokens.append(episode.picture(step)[:, None])
            texts.append(plan_text(said, vocabulary.nouns))
        return Turns("plan", prompts, answers, _stack(tokens), texts)

    @staticmethod
    def _plan_step(rng: np.random.Generator, episode: Recorded) -> int:
        """The first moment half of the time, else any."""
        if rng.random() < 0.5:
            return 0
        return int(rng.integers(n_images(episode.span.length))) * IMAGE_EVERY

    @staticmethod
    def _experience(rng: np.random.Generator, episode: Recorded, step: int) -> str:
        """What is told of a failure, half of the time after the first moment.

        It leads to a whole plan again: a robot that has let go has to reach anew.
        """
        if step == 0 or rng.random() < 0.5:
            return ""
        subgoal = episode.meta.plan.subgoals[int(episode.subgoal[step])]
        return lesson(subgoal, str(rng.choice(REASONS["failed"])))

    def _verdicts(self, rng: np.random.Generator, size: int) -> Turns:
        rows = [draw_verdict(rng, self._by_task) for _ in range(size)]
        subgoals = [e.meta.plan.subgoals[index] for e, _, index in rows]
        return Turns(
            "verdict",
            [judge_prompt(s, motion_at(e, t)) for s, (e, t, _) in zip(subgoals, rows, strict=True)],
            [": ".join(verdict_of(e, index, step)) for e, step, index in rows],
            _stack([e.clip(step) for e, step, _ in rows]),
            [JUDGE_TEXT.format(s.text) for s in subgoals],
        )

    def _answers(self, rng: np.random.Generator, size: int) -> Turns:
        asked = [draw_question(rng, self._by_task, TO_LEARN) for _ in range(size)]
        tokens = _stack([a.episode.clip(a.step) for a in asked])
        return Turns(
            "answer",
            [question_prompt(a.question) for a in asked],
            [a.answer for a in asked],
            tokens[:, :1] if rng.random() < _ONE_CAMERA else tokens,
            [QUESTION_TEXT.format(a.question) for a in asked],
        )


def _is_own_scene(episode: Recorded) -> bool:
    """Whether the scene is the task's own, as `drawer-open-v3` is: then no plan is told of tasks.

    `kitchen/microwave` is not: that is a goal in a scene which offers others too.
    """
    return episode.meta.env_id.partition("/")[2].startswith(f"{episode.meta.task}-")


def _plan_answer(episode: Recorded, step: int, vocabulary: Vocabulary, kind: ThoughtKind) -> str:
    places = {
        noun: (float(episode.places[noun][step, 0, 0]), float(episode.places[noun][step, 0, 1]))
        for noun in grounded_nouns(vocabulary)
        if noun in episode.places
    }
    told = [thought_text(places, kind), steps_text(vocabulary.subgoals)]
    return "\n".join(filter(None, told))


def _stack(tokens: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(tokens)).float()
