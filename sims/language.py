"""What people say to the scenes: instructions, and requests that no scene can meet.

Meta-World's instructions are whole sentences; the kitchen's, which ask for up to four things in an
order, are put together from clauses and frames that were written by hand as well. Imports no
simulator, so that the command line starts fast.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np

from sims import kitchen_tasks

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

MAX_TASKS = 4
"""The most tasks that one sentence asks for."""

_REFUSED, _KITCHEN = 0.3, 0.35
_HOW_MANY = (0.4, 0.3, 0.17, 0.13)
_FRAMED = 0.3
_ENGLISH = 0.65
_SLOT = re.compile(r"\{(do|doing|done|not)(\d)\}")


@cache
def _read(name: str) -> dict[str, Any]:
    path = resources.files("sims") / "instructions" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def instructions() -> dict[str, dict[str, list[str]]]:
    """Task of any scene → language → whole sentences that ask for it, the plainest first."""
    return {**_read("metaworld"), **_read("kitchen")["say"]}


def refusals() -> dict[str, list[str]]:
    """Language → requests that no scene can meet."""
    there, kitchen = _read("refusals"), _read("kitchen")["refuse"]
    return {language: [*there[language], *kitchen[language]] for language in LANGUAGES}


def canonical(tasks: Sequence[str], language: Language = "en") -> str:
    """The plainest way to ask for `tasks`, one after the other.

    Raises:
        ValueError: an unknown task or language.
    """
    said = instructions()
    if unknown := [task for task in tasks if task not in said]:
        raise ValueError(f"no instructions for {unknown}; there are: {', '.join(said)}")
    if language not in LANGUAGES:
        raise ValueError(f"no instructions in {language!r}; there are: {', '.join(LANGUAGES)}")
    then = {"en": ", then ", "zh": "，然后"}[language]
    return then.join(said[task][language][0] for task in tasks)


def ask(rng: np.random.Generator, tasks: Sequence[str]) -> str:
    """One of many ways to ask for `tasks` in their order, in either language."""
    language: Language = "en" if rng.random() < _ENGLISH else "zh"
    if len(tasks) == 1 and (tasks[0] not in kitchen_tasks.TASKS or rng.random() >= _FRAMED):
        return str(rng.choice(instructions()[tasks[0]][language]))
    return _framed(rng, tasks, language)


def _framed(rng: np.random.Generator, tasks: Sequence[str], language: Language) -> str:
    """A frame for so many tasks, its slots filled with clauses."""
    book = _read("kitchen")
    frames = book["frames"][str(len(tasks))][language]
    frame = frames[int(rng.integers(len(frames)))]
    meant = dict(zip(frame["order"], tasks, strict=True))  # number of a slot → task
    others = iter(rng.permutation([t for t in kitchen_tasks.TASKS if t not in tasks]).tolist())
    clauses = {}
    for form, number in _SLOT.findall(frame["text"]):
        if int(number) not in meant:
            meant[int(number)] = next(others)  # named, but not asked for
        if (form, number) not in clauses:
            clauses[form, number] = str(rng.choice(book[form][meant[int(number)]][language]))
    return _SLOT.sub(lambda match: clauses[match[1], match[2]], frame["text"])


def request(rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """Something that a person may say, and the tasks it asks for: none if no scene offers it."""
    drawn = rng.random()
    if drawn < _REFUSED:
        said = [s for ways in refusals().values() for s in ways]
        return str(said[int(rng.integers(len(said)))]), ()
    if drawn < _REFUSED + _KITCHEN:
        n_tasks = int(rng.choice(MAX_TASKS, p=_HOW_MANY)) + 1
        tasks = tuple(rng.permutation(kitchen_tasks.TASKS)[:n_tasks].tolist())
    else:
        tasks = (str(rng.choice(list(_read("metaworld")))),)
    return ask(rng, tasks), tasks
