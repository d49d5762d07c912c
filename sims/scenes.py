"""Every environment by its id, and what each offers; imports no simulator until one is made.

metaworld/<task>-v3        one Meta-World task
kitchen                    Franka Kitchen; as a set, its seven tasks one by one
kitchen/<task>[+<task>…]   with these tasks as the goal, in this order
kitchen/<n>                with n tasks in an order that the layout's seed draws
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from embodied.types import Vocabulary
from sims import kitchen_tasks
from sims.subgoals import MT10, TASKS

if TYPE_CHECKING:
    from sims.kitchen import KitchenEnv
    from sims.metaworld import MetaWorldEnv

MW5 = ("assembly", "bin-picking", "button-press-topdown", "drawer-open", "hammer")
"""The five tasks of R3M's protocol (arXiv 2203.12601)."""

KITCHEN = "kitchen"
FAMILIES = ("metaworld", KITCHEN)
"""The simulators, each with a robot of its own; an environment's id begins with one."""


def _env_id(task: str) -> str:
    return f"metaworld/{task}-v3"


def _kitchen_id(*tasks: str) -> str:
    return f"{KITCHEN}/{'+'.join(tasks)}"


def catalogue(families: tuple[str, ...] = FAMILIES) -> dict[str, Vocabulary]:
    """Environment id → what its scene offers, the same as the environment's `vocabulary`."""
    tasks = {_env_id(task): Vocabulary((task,), spec.subgoals) for task, spec in TASKS.items()}
    every = {**tasks, KITCHEN: kitchen_tasks.VOCABULARY}
    return {env_id: v for env_id, v in every.items() if family(env_id) in families}


def family(env_id: str) -> str:
    """Which simulator an id belongs to."""
    return env_id.partition("/")[0]


def scene_of(env_id: str) -> str:
    """The catalogue's id of the scene that `env_id` is in, whatever its goal."""
    return KITCHEN if family(env_id) == KITCHEN else env_id


def task_sets() -> dict[str, list[str]]:
    """Name of a set → its environment ids, in the benchmark's order."""
    sets = {"mt10": MT10, "mt50": tuple(TASKS), "mw5": MW5}
    named = {name: [_env_id(task) for task in tasks] for name, tasks in sets.items()}
    kitchen = {KITCHEN: kitchen_tasks.TASKS, "fk5": kitchen_tasks.FK5}
    return named | {name: [_kitchen_id(task) for task in tasks] for name, tasks in kitchen.items()}


def _suggestions(text: str) -> list[str]:
    """The ids that `text` was probably meant to be: a task's name alone counts as its id."""
    spellings = {name: _env_id(task) for task in TASKS for name in (task, _env_id(task))}
    spellings |= {
        name: _kitchen_id(task)
        for task in kitchen_tasks.TASKS
        for name in (task, _kitchen_id(task))
    }
    spellings |= {name: name for name in (*task_sets(), KITCHEN)}
    near = difflib.get_close_matches(text.lower(), list(spellings), n=3, cutoff=0.7)
    return list(dict.fromkeys(spellings[name] for name in near if spellings[name] != text))


def check_env_id(env_id: str) -> str:
    """`env_id` when it exists.

    Raises:
        ValueError: it does not; the message says what was probably meant and what there is.
    """
    known = catalogue()
    if env_id in known or (family(env_id) == KITCHEN and _is_goal(env_id)):
        return env_id
    near = _suggestions(env_id)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    goals = ", ".join(_kitchen_id(task) for task in kitchen_tasks.TASKS)
    there_are = f"there are: {', '.join(known)}, {goals}; and the sets {', '.join(task_sets())}"
    raise ValueError(f"unknown environment {env_id!r}; {hint}{there_are}")


def _goal(env_id: str) -> tuple[str, ...] | int:
    """The tasks that a kitchen's id asks for, or how many. Raises ValueError."""
    told = env_id.partition("/")[2]
    if told.isdecimal() and 1 <= int(told) <= len(kitchen_tasks.TASKS):
        return int(told)
    return kitchen_tasks.check_tasks(told.split("+"))


def _is_goal(env_id: str) -> bool:
    try:
        _goal(env_id)
    except ValueError:
        return False
    return True


def resolve_env_ids(text: str) -> list[str]:
    """`ID[,ID…]`, or names of sets among them → environment ids in that order, each once.

    Raises:
        ValueError: an id is unknown, or there is none.
    """
    sets = task_sets()
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"no environment in {text!r}; give ID[,ID…] or one of {', '.join(sets)}")
    ids = [env_id for part in parts for env_id in sets.get(part) or [check_env_id(part)]]
    return list(dict.fromkeys(ids))


def resolve_tasks(text: str) -> tuple[str, ...]:
    """`TASK[,TASK…]`, or names of sets among them → tasks by their own names, each once.

    Raises:
        ValueError: there is no such task.
    """
    known: dict[str, tuple[str, ...]] = {
        task: (task,) for v in catalogue().values() for task in v.tasks
    }
    known |= {
        name: tuple(task for env_id in ids for task in tasks_of(env_id))
        for name, ids in task_sets().items()
    }
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part not in known:
            near = difflib.get_close_matches(part.lower(), list(known), n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown task {part!r}; {hint}there are: {', '.join(known)}")
        found += known[part]
    return tuple(dict.fromkeys(found))


def tasks_of(env_id: str) -> tuple[str, ...]:
    """The tasks that an id names: none where a layout's seed draws them."""
    if family(env_id) != KITCHEN:
        return catalogue()[env_id].tasks
    goal = () if env_id == KITCHEN else _goal(env_id)
    return goal if isinstance(goal, tuple) else ()


def cameras(env_id: str) -> tuple[str, ...]:
    """The names of the cameras that `make` gives an environment when it is not told others."""
    if family(env_id) == KITCHEN:
        from sims import kitchen

        return kitchen.CAMERAS
    from sims import metaworld

    return metaworld.CAMERAS


def make(env_id: str, **kwargs: Any) -> MetaWorldEnv | KitchenEnv:
    """The environment of `env_id`; keywords go to it.

    Raises:
        ValueError: no such id, as in `check_env_id`.
    """
    check_env_id(env_id)
    if family(env_id) == KITCHEN:
        from sims.kitchen import KitchenEnv

        goal = {} if env_id == KITCHEN else {"tasks": _goal(env_id)}
        return KitchenEnv(**{**goal, **kwargs}, env_id=env_id)
    from sims.metaworld import MetaWorldEnv

    return MetaWorldEnv(catalogue()[env_id].tasks[0], **kwargs)
