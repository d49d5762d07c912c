"""Franka Kitchen's seven tasks in words: their sub-goals and plans. Imports no simulator."""

from __future__ import annotations

from collections.abc import Iterable

from embodied.types import Subgoal, Vocabulary


def _subgoals(*steps: str) -> tuple[Subgoal, ...]:
    return tuple(Subgoal.parse(step) for step in steps)


SUBGOALS: dict[str, tuple[Subgoal, ...]] = {
    "microwave": _subgoals("reach(microwave handle)", "pull(microwave handle)"),
    "kettle": _subgoals("reach(kettle)", "grasp(kettle, gripper)", "move(kettle, top burner)"),
    "bottom burner": _subgoals("reach(bottom burner knob)", "turn(bottom burner knob)"),
    "top burner": _subgoals("reach(top burner knob)", "turn(top burner knob)"),
    "light switch": _subgoals("reach(light switch)", "flip(light switch)"),
    "slide cabinet": _subgoals("reach(slide cabinet handle)", "slide(slide cabinet handle)"),
    "hinge cabinet": _subgoals("reach(hinge cabinet handle)", "pull(hinge cabinet handle)"),
}
"""FrankaKitchen's own name of a task → its sub-goals in order. None is shared by two tasks."""

TASKS = tuple(SUBGOALS)
OWNER: dict[Subgoal, str] = {s: task for task, steps in SUBGOALS.items() for s in steps}
VOCABULARY = Vocabulary(TASKS, tuple(OWNER), tuple(OWNER.values()))
"""All that the scene offers, whatever the goal."""

FK5 = ("bottom burner", "light switch", "slide cabinet", "hinge cabinet", "microwave")
"""The five tasks of R3M's protocol (arXiv 2203.12601), each a goal of its own."""


def check_tasks(tasks: Iterable[str]) -> tuple[str, ...]:
    """`tasks` as a tuple. Raises ValueError when there is none, or one unknown or twice."""
    tasks = tuple(tasks)
    if not tasks or len(set(tasks)) < len(tasks) or not set(tasks) <= set(TASKS):
        there_are = ", ".join(TASKS)
        raise ValueError(f"one or more tasks, each once, of: {there_are}; got {list(tasks)}")
    return tasks


def plan_subgoals(tasks: Iterable[str]) -> tuple[Subgoal, ...]:
    """The sub-goals of `tasks` one after the other. Raises ValueError as `check_tasks`."""
    return tuple(s for task in check_tasks(tasks) for s in SUBGOALS[task])
