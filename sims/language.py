"""What people say to the scenes: instructions, and requests that no scene can meet.

Imports no simulator, so that the command line starts fast.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def _read(name: str) -> dict[str, Any]:
    path = resources.files("sims") / "instructions" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def instructions() -> dict[str, dict[str, list[str]]]:
    """Task → language ("en", "zh") → ways to say it, the plainest first."""
    return _read("metaworld")


def refusals() -> dict[str, list[str]]:
    """Language → requests that no scene can meet."""
    return _read("refusals")


def canonical(task: str, language: str = "en") -> str:
    """The plainest way to ask for `task`. Raises ValueError for an unknown task or language."""
    said = instructions()
    if task not in said:
        raise ValueError(f"no instructions for task {task!r}; there are: {', '.join(said)}")
    if language not in said[task]:
        raise ValueError(f"no instructions in {language!r}; there are: {', '.join(said[task])}")
    return said[task][language][0]
