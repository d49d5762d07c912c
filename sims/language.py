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
_ALIKE = 5
_PASSING = 0.25
_CAPITAL = 0.5
_ENGLISH = 0.65
_CHOICE = re.compile(r"\[([^][]*\|[^][]*)\]")
_SLOT = re.compile(r"\{([a-z]+)(\d)\}")
_START = re.compile(r"(?:^|[.!?] )[a-z]")


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
    """A frame for so many tasks, one of each [choice|of words] made, its slots filled with clauses.

    A slot's number is the place of its task in the order; those after the last are named, but not
    asked for. Every task has the forms of "frames"; those of "alike" ("turn on {on0} and {on1}")
    fit some tasks only.
    """
    book, n_tasks = _read("kitchen"), str(len(tasks))
    others = rng.permutation([task for task in kitchen_tasks.TASKS if task not in tasks])
    meant = [*tasks, *others.tolist()]  # by a slot's number
    alike = [frame for frame in book["alike"][n_tasks][language] if _fits(frame, meant)]
    frames = [*book["frames"][n_tasks][language], *_ALIKE * alike]  # the rare ones more often
    frame = frames[int(rng.integers(len(frames)))]
    frame = _CHOICE.sub(lambda match: str(rng.choice(match[1].split("|"))), frame)
    clauses = {
        (form, number): str(rng.choice(book[form][meant[int(number)]][language]))
        for form, number in dict.fromkeys(_SLOT.findall(frame))
    }
    said = _SLOT.sub(lambda match: clauses[match[1], match[2]], frame)
    return _in_passing(rng, said, language)


def _fits(frame: str, meant: Sequence[str]) -> bool:
    """Whether there are words for every slot of `frame`."""
    book = _read("kitchen")
    return all(meant[int(number)] in book[form] for form, number in _SLOT.findall(frame))


def _in_passing(rng: np.random.Generator, said: str, language: Language) -> str:
    """`said`, at times with a word before or after it that asks for nothing, and with capitals."""
    stop, space = {"en": (".", " "), "zh": ("。", "")}[language]
    if rng.random() < _PASSING:
        where = str(rng.choice(["lead", "tail"]))
        words = str(rng.choice(_read("kitchen")[where][language]))
        closed = said if said[-1] in ".!?。！？" else said + stop
        said = space.join([words, said] if where == "lead" else [closed, words])
    return _START.sub(lambda m: m[0].upper(), said) if rng.random() < _CAPITAL else said


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
