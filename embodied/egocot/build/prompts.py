"""Prompt templates for a language model, and what its answer must hold.

A template is a text file with `{narration}`, `{before}` and `{after}` in it. An answer says what
somebody could have asked for, then a plan in words and as actions:

    Task: put the mug on the shelf
    Plan: Pick up the mug. Put the mug on the shelf.
    Actions:
    1. pick up(mug)
    2. put on(mug, shelf)
"""

from __future__ import annotations

import hashlib
import re
import string
from dataclasses import dataclass
from pathlib import Path

import embodied
from embodied.egocot.fields import RecordError, short
from embodied.egocot.readers.planning import parse_planning
from embodied.types import Subgoal

PROMPTS = Path(embodied.__file__).parents[1] / "data" / "egocot" / "prompts"
FIELDS = {"narration", "before", "after"}
_TASK = re.compile(r"\s*task\s*[:：]\s*(?P<task>[^\n]+)", re.IGNORECASE)
_MARKS = re.compile(r"\*\*|__|^\s*```.*$|^#+ ", re.MULTILINE)


@dataclass(frozen=True)
class Template:
    """A prompt template; its version changes with every letter of it."""

    text: str
    version: str

    def fill(self, narration: str, before: str, after: str) -> str:
        return self.text.format(narration=narration, before=before, after=after)


def load_templates(folder: Path) -> list[Template]:
    """Every `*.txt` of a folder, by name.

    Raises:
        ValueError: there is none, or one has no place for the narration, or a place for something
            else.
    """
    found = sorted(folder.glob("*.txt"))
    if not found:
        raise ValueError(f"no *.txt in '{folder}': give a folder of prompt templates by --prompts")
    return [_load(path) for path in found]


def _load(path: Path) -> Template:
    text = path.read_text(encoding="utf-8")
    try:
        places = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ValueError(f"'{path}' is no template ({error}): write a brace as {{{{") from None
    if "narration" not in places or not places <= FIELDS:
        got = ", ".join(f"{{{name}}}" for name in sorted(places)) or "none"
        expected = "{narration}, and if it likes {before} and {after}"
        raise ValueError(f"'{path}' must have the places {expected}; it has {got}")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Template(text, f"{path.stem} {digest}")


@dataclass(frozen=True)
class Planned:
    """What an answer says."""

    task: str
    plan: tuple[str, ...]
    actions: tuple[Subgoal, ...]


def parse_answer(text: str) -> Planned:
    """Read an answer; markdown's marks are passed over.

    Raises:
        RecordError: the task, the plan in words or the actions are missing or of another form.
    """
    text = _MARKS.sub("", text.replace("\r\n", "\n")).strip()
    match = _TASK.match(text)
    if match is None:
        raise RecordError("answer", "does not begin with 'Task: …'", short.repr(text))
    plan, actions = parse_planning(text[match.end() :])
    if not plan:
        raise RecordError("answer", "has no plan in words", short.repr(text))
    return Planned(match["task"].strip(), plan, actions)
