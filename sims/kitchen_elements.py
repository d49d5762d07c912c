"""Franka Kitchen's seven elements: where each is, when it counts as done, which sub-goals hold.

Two rules say when an element is done. The benchmark's is FrankaKitchen's own: the distance of the
element's joints to their goal is below 0.3, which the slide cabinet meets after 0.07 m of 0.37 m.
The strict one asks for 90 % of the way, held for five control steps.
What is read here is the simulator's truth: it makes labels and metrics, and never reaches the
agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embodied.types import Subgoal
from sims.kitchen_scene import franka
from sims.kitchen_tasks import OWNER, SUBGOALS, check_tasks, plan_subgoals

import mujoco  # isort: skip  (after sims.rendering, which picks the GL back end)

STRICT_TRAVEL = 0.9
"""The part of the way from closed to open from which an element is done by the strict rule."""
STRICT_STEPS = 5
"""For how many control steps in a row it has to be that far."""
LOST_M = 0.08
"""How much further than `reach_m` the hand may be before it has lost the handle, metres."""

_KETTLE_STARTS = (-0.269, 0.35, 1.619, 1.0, 0.0, 0.0, 0.0)
_UPRIGHT_COS = 0.94  # of a tilt of 20 degrees


@dataclass(frozen=True)
class Element:
    """One thing in the kitchen that can be opened, turned, flipped or moved.

    Args:
        name: FrankaKitchen's name of the task.
        indices: of its joints in qpos.
        start: its joints closed, off, or where the kettle stands at first; rad, m, quaternion.
        goal: its joints in the benchmark's goal.
        site: the MuJoCo site in the middle of its handle.
        half_m: from there to the handle's end, (3,) metres in the site's frame.
        reach_m: how near the `end_effector` site, which is 5 cm behind the finger tips, comes to
            the handle once it is reached, metres.
    """

    name: str
    indices: np.ndarray
    start: np.ndarray
    goal: np.ndarray
    site: str
    half_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    reach_m: float = 0.06

    @property
    def subgoals(self) -> tuple[Subgoal, ...]:
        """Reaching it, and then what is done to it."""
        return SUBGOALS[self.name]

    @property
    def noun(self) -> str:
        """What the hand goes for, in words."""
        return self.subgoals[0].args[0]

    def distance(self, qpos: np.ndarray) -> float:
        """FrankaKitchen's distance to the goal, over all the element's joints."""
        return float(np.linalg.norm(qpos[self.indices] - self.goal))

    def is_complete(self, qpos: np.ndarray) -> bool:
        """Whether the benchmark counts the element as done."""
        return self.distance(qpos) < franka.BONUS_THRESH

    def travel(self, qpos: np.ndarray) -> float:
        """How much of the way is done: 0 at the start, 1 at the goal, more beyond it.

        The way of hinged and sliding things is measured along their joints; that of the kettle is
        how near to the goal it stands, and nothing while it lies.
        """
        joints = qpos[self.indices]
        if self.name == "kettle":
            way = np.linalg.norm(self.goal[:3] - self.start[:3])
            left = np.linalg.norm(self.goal[:3] - joints[:3])
            return float(1 - left / way) if _stands(joints[3:]) else 0.0
        way = self.goal - self.start
        return float((joints - self.start) @ way / (way @ way))

    def at(self, part: float) -> np.ndarray:
        """Its joints after `part` of the way, 0 the start and 1 the goal."""
        joints = self.start + part * (self.goal - self.start)
        if self.name == "kettle":
            joints[3:] /= np.linalg.norm(joints[3:])
        return joints

    def gap_m(self, hand: np.ndarray, data: Any) -> float:
        """From `hand`, (3,) metres, to the nearest point of the handle's middle line."""
        site = data.site(self.site)
        away, half = hand - site.xpos, site.xmat.reshape(3, 3) @ np.array(self.half_m)
        along = np.clip(away @ half / max(half @ half, 1e-9), -1.0, 1.0)
        return float(np.linalg.norm(away - along * half))


def _stands(quat: np.ndarray) -> bool:
    _, x, y, _ = quat / np.linalg.norm(quat)
    return bool(1 - 2 * (x * x + y * y) > _UPRIGHT_COS)


def _element(
    name: str,
    site: str,
    half_m: tuple[float, float, float] = (0.0, 0.0, 0.0),
    reach_m: float = 0.06,
) -> Element:
    goal = franka.OBS_ELEMENT_GOALS[name]
    start = np.array(_KETTLE_STARTS) if name == "kettle" else np.zeros(len(goal))
    return Element(name, franka.OBS_ELEMENT_INDICES[name], start, goal, site, half_m, reach_m)


_ALL = (
    _element("microwave", "microhandle_site", (0.0, 0.0, 0.13)),
    _element("kettle", "kettle_site", (0.1, 0.0, 0.0), reach_m=0.08),
    _element("bottom burner", "knob2_site"),
    _element("top burner", "knob4_site"),
    _element("light switch", "light_site", reach_m=0.08),
    _element("slide cabinet", "slide_site", (0.0, 0.0, 0.16)),
    _element("hinge cabinet", "hinge_site2", (0.0, 0.0, 0.16)),
)
ELEMENTS: dict[str, Element] = {element.name: element for element in _ALL}


def set_element(model: Any, qpos: np.ndarray, element: Element, part: float) -> None:
    """Put an element `part` of its way along, in `qpos`: 0 closed, 1 at the goal.

    The burner under a knob and the lamp behind the switch follow as the scene couples them; the
    benchmark's goals are slightly off that.
    """
    qpos[element.indices] = element.at(part)
    for i in np.flatnonzero(model.eq_type == mujoco.mjtEq.mjEQ_JOINT):
        first, second = model.jnt_qposadr[[model.eq_obj1id[i], model.eq_obj2id[i]]]
        qpos[second] = qpos[first] / model.eq_data[i, 1]


def _holds_kettle(model: Any, data: Any) -> bool:
    """Whether both fingers touch the kettle."""
    kettle = model.body("kettleroot").id
    fingers = {model.body(f"panda0_{side}finger").id for side in ("left", "right")}
    bodies = [{int(model.geom_bodyid[g]) for g in c.geom} for c in data.contact]
    return fingers <= set().union(*(pair for pair in bodies if kettle in pair))


@dataclass(frozen=True)
class KitchenTruth:
    """What the simulator knows of one moment; for labels and metrics only.

    Args:
        hand: the `end_effector` site, (3,) metres.
        handles: task → the middle of its handle, (3,) metres.
        gaps_m: task → from the hand to the nearest point of the handle.
        travel: task → how much of its way is done, see `Element.travel`.
        holds_kettle: whether the kettle is between the fingers.
    """

    hand: np.ndarray
    handles: Mapping[str, np.ndarray]
    gaps_m: Mapping[str, float]
    travel: Mapping[str, float]
    holds_kettle: bool

    @classmethod
    def read(cls, model: Any, data: Any) -> KitchenTruth:
        """The present moment of a simulation of the kitchen."""
        hand = data.site("end_effector").xpos.copy()
        return cls(
            hand,
            {e.name: data.site(e.site).xpos.copy() for e in _ALL},
            {e.name: e.gap_m(hand, data) for e in _ALL},
            {e.name: e.travel(data.qpos) for e in _ALL},
            _holds_kettle(model, data),
        )

    def is_open(self, task: str) -> bool:
        """Whether the element is as far as the strict rule asks, now."""
        return self.travel[task] >= STRICT_TRAVEL


def is_met(subgoal: Subgoal, truth: KitchenTruth) -> bool:
    """Whether `subgoal` holds at this moment; all of an open element's do.

    Raises:
        ValueError: the kitchen does not offer this sub-goal.
    """
    if subgoal not in OWNER:
        there_are = ", ".join(s.text for s in OWNER)
        raise ValueError(f"the kitchen has no sub-goal {subgoal.text!r}; there are: {there_are}")
    element = ELEMENTS[OWNER[subgoal]]
    if truth.is_open(element.name):
        return True
    near = truth.gaps_m[element.name] < element.reach_m
    match subgoal.verb:
        case "reach":
            return near
        case "grasp":
            return near and truth.holds_kettle
        case _:
            return False


@dataclass
class KitchenTracker:
    """Which sub-goal of the ordered tasks is being worked on, told from the truth.

    It works on the first task whose element is not open; so it goes back when one falls shut. It
    advances when the current predicate holds and falls back to reaching when the hand has lost
    the handle.

    Args:
        tasks: in the order of the plan.
        index: in `plan_subgoals(tasks)`.
    """

    tasks: tuple[str, ...]
    index: int = 0
    plan: tuple[Subgoal, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.tasks = check_tasks(self.tasks)
        self.plan = plan_subgoals(self.tasks)

    def update(self, truth: KitchenTruth) -> None:
        """Advance, or fall back, by one step."""
        task = next((t for t in self.tasks if not truth.is_open(t)), None)
        if task is None:
            self.index = len(self.plan) - 1
            return
        first = self.plan.index(SUBGOALS[task][0])
        last = first + len(SUBGOALS[task]) - 1
        lost = truth.gaps_m[task] > ELEMENTS[task].reach_m + LOST_M
        if lost or not first <= self.index <= last:
            self.index = first
        if self.index < last and is_met(self.plan[self.index], truth):
            self.index += 1


@dataclass
class Completion:
    """Which elements are done by either rule, counted step by step.

    Args:
        tasks: the goal; other elements do not count.
        completed: tasks that met the benchmark's rule at some step, in that order.
        success_strict: whether all tasks were done by the strict rule at one step.
    """

    tasks: tuple[str, ...]
    completed: list[str] = field(default_factory=list)
    success_strict: bool = False
    _held: dict[str, int] = field(default_factory=dict)

    def update(self, qpos: np.ndarray) -> list[str]:
        """Count one control step. Returns the tasks newly done by the benchmark's rule."""
        new = [t for t in self.tasks if t not in self.completed and ELEMENTS[t].is_complete(qpos)]
        self.completed += new
        for task in self.tasks:
            is_far = ELEMENTS[task].travel(qpos) >= STRICT_TRAVEL
            self._held[task] = self._held.get(task, 0) + 1 if is_far else 0
        self.success_strict |= len(self.completed_strict) == len(self.tasks)
        return new

    @property
    def success(self) -> bool:
        """Whether each task has met the benchmark's rule at some step."""
        return len(self.completed) == len(self.tasks)

    @property
    def completed_strict(self) -> list[str]:
        """The tasks done by the strict rule now, in the order of the goal."""
        return [task for task in self.tasks if self._held.get(task, 0) >= STRICT_STEPS]
