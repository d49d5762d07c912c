"""Every environment by its id, and what each offers; imports no simulator until one is made."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from embodied.types import Vocabulary
from sims.subgoals import MT10, TASKS

if TYPE_CHECKING:
    from sims.metaworld import MetaWorldEnv

MW5 = ("assembly", "bin-picking", "button-press-topdown", "drawer-open", "hammer")
"""The five tasks of R3M's protocol (arXiv 2203.12601)."""


def _env_id(task: str) -> str:
    return f"metaworld/{task}-v3"


def catalogue() -> dict[str, Vocabulary]:
    """Environment id → what its scene offers, the same as the environment's `vocabulary`."""
    return {_env_id(task): Vocabulary((task,), spec.subgoals) for task, spec in TASKS.items()}


def task_sets() -> dict[str, list[str]]:
    """Name of a set → its environment ids, in the benchmark's order."""
    sets = {"mt10": MT10, "mt50": tuple(TASKS), "mw5": MW5}
    return {name: [_env_id(task) for task in tasks] for name, tasks in sets.items()}


def _suggestions(text: str) -> list[str]:
    """The ids that `text` was probably meant to be: a task's name alone counts as its id."""
    spellings = {name: _env_id(task) for task in TASKS for name in (task, _env_id(task))}
    spellings |= {name: name for name in task_sets()}
    near = difflib.get_close_matches(text.lower(), list(spellings), n=3, cutoff=0.7)
    return list(dict.fromkeys(spellings[name] for name in near if spellings[name] != text))


def check_env_id(env_id: str) -> str:
    """`env_id` when it exists.

    Raises:
        ValueError: it does not; the message says what was probably meant and what there is.
    """
    known = catalogue()
    if env_id in known:
        return env_id
    near = _suggestions(env_id)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    there_are = f"there are: {', '.join(known)}; and the sets {', '.join(task_sets())}"
    raise ValueError(f"unknown environment {env_id!r}; {hint}{there_are}")


def resolve_env_ids(text: str) -> list[str]:
    """`ID[,ID…]|mt10|mt50|mw5` → environment ids in that order, each once.

    Raises:
        ValueError: an id is unknown, or there is none.
    """
    sets = task_sets()
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"no environment in {text!r}; give ID[,ID…] or one of {', '.join(sets)}")
    ids = [env_id for part in parts for env_id in sets.get(part) or [check_env_id(part)]]
    return list(dict.fromkeys(ids))


def make(env_id: str, **kwargs: Any) -> MetaWorldEnv:
    """The environment of `env_id`; keywords go to it.

    Raises:
        ValueError: no such id, as in `check_env_id`.
    """
    task = catalogue()[check_env_id(env_id)].tasks[0]
    from sims.metaworld import MetaWorldEnv

    return MetaWorldEnv(task, **kwargs)
