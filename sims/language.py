"""What people say to the scenes: instructions, and requests that no scene can meet.

Meta-World's instructions are whole sentences; the kitchen's, which ask for up to four things in an
order, are put together from clauses and frames that were written by hand as well, and so are most
refusals. Imports no simulator, so that the command line starts fast.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np

from sims import kitchen_tasks

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

MAX_TASKS = 4
"""The most tasks that one sentence asks for in words of its own; more are said in a plain row."""

_REFUSED, _KITCHEN = 0.3, 0.35
_COMPOSED = 0.6
_TALK, _PAIRED, _WRAPPED = 0.4, 0.12, 0.4
_HOW_MANY = (0.4, 0.3, 0.17, 0.13)
_PLAIN, _FRAMED = 0.12, 0.3
_ALIKE = 5
_PASSING = 0.25
_CAPITAL = 0.5
_ENGLISH = 0.65
_CHOICE = re.compile(r"\[([^][]*\|[^][]*)\]")
_SLOT = re.compile(r"\{([a-z]+)(\d)\}")
_PART = re.compile(r"\{([a-z_]+)\}")
_START = re.compile(r"(?:^|[.!?] )[a-z]")
_TRIES = 200


@cache
def _read(name: str) -> dict[str, Any]:
    path = resources.files("sims") / "instructions" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def instructions() -> dict[str, dict[str, list[str]]]:
    """Task of any scene → language → whole sentences that ask for it, the plainest first."""
    return {**_read("metaworld"), **_read("kitchen")["say"]}


def refusals() -> dict[str, list[str]]:
    """Language → requests that no scene can meet, those that were written whole."""
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


def ask(rng: np.random.Generator, tasks: Sequence[str], without: Sequence[str] = ()) -> str:
    """One of many ways to ask for `tasks` in their order, in either language.

    Args:
        without: tasks that are not to be named either.
    """
    for _ in range(_TRIES):
        said = _asked(rng, tasks, without)
        if not names_any(said, without):
            return said
    raise ValueError(f"every way to ask for {list(tasks)} names one of {list(without)}")


def _asked(rng: np.random.Generator, tasks: Sequence[str], without: Sequence[str]) -> str:
    language: Language = "en" if rng.random() < _ENGLISH else "zh"
    if len(tasks) > MAX_TASKS or rng.random() < _PLAIN:
        return canonical(tasks, language)
    if len(tasks) == 1 and (tasks[0] not in kitchen_tasks.TASKS or rng.random() >= _FRAMED):
        return str(rng.choice(instructions()[tasks[0]][language]))
    return _framed(rng, tasks, language, without)


def names_any(said: str, tasks: Sequence[str]) -> bool:
    """Whether a sentence names the thing of one of the kitchen's `tasks`, whatever it asks for.

    Meta-World's tasks share their things: who closes a drawer names the one that opens.
    """
    return any(pattern.search(said) for task in tasks if (pattern := _names(task)) is not None)


@cache
def _names(task: str) -> re.Pattern[str] | None:
    """What the kitchen's thing of `task` is called; None for a task of another scene."""
    if task not in kitchen_tasks.TASKS:
        return None
    ways = [_read("kitchen")[form][task] for form in ("thing", "bare")]
    called = {name.removeprefix("the ") for way in ways for names in way.values() for name in names}
    return re.compile("|".join(_whole_word(name) for name in sorted(called)), re.IGNORECASE)


def _whole_word(name: str) -> str:
    """English by the word; in Chinese nothing stands between words."""
    return rf"\b{re.escape(name)}\b" if name.isascii() else re.escape(name)


def _framed(
    rng: np.random.Generator, tasks: Sequence[str], language: Language, without: Sequence[str]
) -> str:
    """A frame for so many tasks, one of each [choice|of words] made, its slots filled with clauses.

    A slot's number is the place of its task in the order; those after the last are named, but not
    asked for. Every task has the forms of "frames"; those of "alike" ("turn on {on0} and {on1}")
    fit some tasks only.
    """
    book, n_tasks = _read("kitchen"), str(len(tasks))
    known = [task for task in kitchen_tasks.TASKS if task not in (*tasks, *without)]
    meant = [*tasks, *rng.permutation(known).tolist()]  # by a slot's number
    alike = [frame for frame in book["alike"][n_tasks][language] if _fits(frame, meant)]
    common = [frame for frame in book["frames"][n_tasks][language] if _fits(frame, meant)]
    frames = [*common, *_ALIKE * alike]  # the rare ones more often
    frame = frames[int(rng.integers(len(frames)))]
    frame = _CHOICE.sub(lambda match: str(rng.choice(match[1].split("|"))), frame)
    clauses = {
        (form, number): str(rng.choice(book[form][meant[int(number)]][language]))
        for form, number in dict.fromkeys(_SLOT.findall(frame))
    }
    said = _SLOT.sub(lambda match: clauses[match[1], match[2]], frame)
    return _in_passing(rng, said, language)


def _fits(frame: str, meant: Sequence[str]) -> bool:
    """Whether there are tasks and words for every slot of `frame`."""
    book, slots = _read("kitchen"), [(form, int(n)) for form, n in _SLOT.findall(frame)]
    return all(n < len(meant) and meant[n] in book[form] for form, n in slots)


def _in_passing(rng: np.random.Generator, said: str, language: Language) -> str:
    """`said`, at times with a word before or after it that asks for nothing, and with capitals."""
    stop, space = {"en": (".", " "), "zh": ("。", "")}[language]
    if rng.random() < _PASSING:
        where = str(rng.choice(["lead", "tail"]))
        words = str(rng.choice(_read("kitchen")[where][language]))
        closed = said if said[-1] in ".!?。！？" else said + stop
        said = space.join([words, said] if where == "lead" else [closed, words])
    return _START.sub(lambda m: m[0].upper(), said) if rng.random() < _CAPITAL else said


def request(rng: np.random.Generator, without: Sequence[str] = ()) -> tuple[str, tuple[str, ...]]:
    """Something that a person may say, and the tasks it asks for: none if no scene offers it.

    Args:
        without: tasks that are neither asked for nor, where they are the kitchen's, named.

    Raises:
        ValueError: no task is left.
    """
    tables = [task for task in _read("metaworld") if task not in without]
    rooms = [task for task in kitchen_tasks.TASKS if task not in without]
    if not tables and not rooms:
        raise ValueError("no task is left to ask for")
    drawn = rng.random()
    if drawn < _REFUSED:
        return _refusal(rng, without), ()
    if rooms and (drawn < _REFUSED + _KITCHEN or not tables):
        n_tasks = min(int(rng.choice(MAX_TASKS, p=_HOW_MANY)) + 1, len(rooms))
        tasks = tuple(rng.permutation(rooms)[:n_tasks].tolist())
    else:
        tasks = (str(rng.choice(tables)),)
    return ask(rng, tasks, without), tasks


def _refusal(rng: np.random.Generator, without: Sequence[str]) -> str:
    """A request that no scene can meet: put together, or else one that was written whole."""
    if rng.random() < _COMPOSED:
        return composed_refusal(rng, without)
    said = _refused(tuple(without))
    return said[int(rng.integers(len(said)))]


def composed_refusal(rng: np.random.Generator, without: Sequence[str] = ()) -> str:
    """A request that no scene can meet, put together from frames and words, in either language.

    Args:
        without: tasks that are not to be named.
    """
    language: Language = "en" if rng.random() < _ENGLISH else "zh"
    for _ in range(_TRIES):
        said = _composed(rng, language)
        if _plain(said) not in _asked_for() and not names_any(said, without):
            return _START.sub(lambda m: m[0].upper(), said) if rng.random() < _CAPITAL else said
    raise ValueError(f"every refusal names one of {list(without)}")


def _composed(rng: np.random.Generator, language: Language) -> str:
    """Talk, or a deed that nobody offers: alone, asked for politely, or two in a row."""
    parts = _read("refused_parts")[language]
    if rng.random() < _TALK:
        return _filled(rng, _of_any_kind(rng, parts["talk"]), parts["words"])
    deeds = [_filled(rng, _of_any_kind(rng, parts["deeds"]), parts["words"]) for _ in range(2)]
    paired, wrapped = (rng.random(2) < (_PAIRED, _WRAPPED)).tolist()
    if paired:
        two = dict(zip(("first", "second"), deeds, strict=True))
        return _PART.sub(lambda match: two[match[1]], str(rng.choice(parts["pairs"])))
    return str(rng.choice(parts["wrap"])).replace("{said}", deeds[0]) if wrapped else deeds[0]


def _of_any_kind(rng: np.random.Generator, kinds: dict[str, list[str]]) -> str:
    """A frame of a kind; each kind is as likely as the next, however many frames it has."""
    return str(rng.choice(kinds[str(rng.choice(list(kinds)))]))


def _filled(rng: np.random.Generator, frame: str, words: dict[str, list[str]]) -> str:
    """`frame` with one of each [choice|of words] made and a word in each slot.

    Words may have slots of their own.
    """
    frame = _CHOICE.sub(lambda match: str(rng.choice(match[1].split("|"))), frame)
    while _PART.search(frame):
        frame = _PART.sub(lambda match: str(rng.choice(words[match[1]])), frame)
    return frame


def _plain(said: str) -> str:
    """`said` regardless of capitals and punctuation."""
    return re.sub(r"[\W_]+", " ", said.casefold()).strip()


@cache
def _asked_for() -> frozenset[str]:
    """Every whole sentence that asks for a task, plainly."""
    every = [said for ways in instructions().values() for said in ways.values()]
    return frozenset(_plain(text) for said in every for text in said)


@cache
def _refused(without: tuple[str, ...]) -> list[str]:
    every = [said for ways in refusals().values() for said in ways]
    return [said for said in every if not names_any(said, without)]


@dataclass(frozen=True)
class Phrases:
    """What people say, but for what asks for some tasks or names them.

    Args:
        without: these tasks.
    """

    without: tuple[str, ...] = ()

    def ask(self, rng: np.random.Generator, tasks: Sequence[str]) -> str:
        """One of many ways to ask for `tasks` in their order."""
        return ask(rng, tasks, self.without)

    def request(self, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        """Something that a person may say, and the tasks it asks for."""
        return request(rng, self.without)
