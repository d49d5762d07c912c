"""The tasks of Meta-World cut into sub-goals, and the predicates that say when each is met.

Predicates read the simulator: they make labels and metrics, and never reach the agent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from embodied.types import Subgoal


@dataclass(frozen=True)
class TaskSpec:
    """One task: what it is about and the steps that solve it.

    Args:
        subgoals: in order; the last one is met when the environment reports success.
        thing: the noun at the environment's first object position.
        other: the noun at its second place: a second object, or the goal.
        other_is_goal: whether `other` stands at the goal position instead of a second object.
        reach_m: how near the fingers' centre comes to `thing` once it is reached, metres. Several
            tasks put the object's reference point deep inside the object.
    """

    subgoals: tuple[Subgoal, ...]
    thing: str
    other: str | None = None
    other_is_goal: bool = True
    reach_m: float = 0.06

    @property
    def lost_m(self) -> float:
        """How far the hand is from `thing` once it has lost it, metres.

        What is carried stays in the hand; what is pushed or turned may run ahead of it.
        """
        carried = any(subgoal.verb == "grasp" for subgoal in self.subgoals)
        return self.reach_m + (0.01 if carried else 0.08)


def _spec(
    thing: str,
    *steps: str,
    other: str | None = None,
    second: bool = False,
    reach_m: float = 0.06,
) -> TaskSpec:
    subgoals = tuple(Subgoal.parse(step) for step in steps)
    return TaskSpec(subgoals, thing, other, not second, reach_m)


def _pick(thing: str, last: str, other: str, *, second: bool = False, r: float = 0.06) -> TaskSpec:
    return _spec(
        thing,
        f"reach({thing})",
        f"grasp({thing}, gripper)",
        f"{last}({thing}, {other})",
        other=other,
        second=second,
        reach_m=r,
    )


def _shove(thing: str, last: str, other: str, r: float = 0.06) -> TaskSpec:
    return _spec(thing, f"reach({thing})", f"{last}({thing}, {other})", other=other, reach_m=r)


def _use(thing: str, last: str, r: float = 0.06) -> TaskSpec:
    return _spec(thing, f"reach({thing})", f"{last}({thing})", reach_m=r)


TASKS: dict[str, TaskSpec] = {
    "assembly": _pick("nut", "place", "peg"),
    "basketball": _pick("basketball", "drop", "hoop"),
    "bin-picking": _pick("block", "move", "right bin"),
    "box-close": _pick("lid", "place", "box"),
    "button-press-topdown": _use("button", "press down", 0.07),
    "button-press-topdown-wall": _use("button", "press down", 0.07),
    "button-press": _use("button", "press in", 0.14),
    "button-press-wall": _use("button", "press in", 0.07),
    "coffee-button": _use("coffee button", "press in", 0.15),
    "coffee-pull": _shove("mug", "pull", "goal"),
    "coffee-push": _shove("mug", "push", "coffee machine"),
    "dial-turn": _use("dial", "turn", 0.09),
    "disassemble": _pick("nut", "lift", "peg"),
    "door-close": _use("door handle", "push", 0.23),
    "door-lock": _use("door lock", "turn", 0.06),
    "door-open": _use("door handle", "pull", 0.06),
    "door-unlock": _use("door lock", "turn back", 0.10),
    "hand-insert": _pick("block", "insert", "hole"),
    "drawer-close": _use("drawer handle", "push", 0.09),
    "drawer-open": _use("drawer handle", "pull", 0.06),
    "faucet-open": _use("faucet handle", "turn on", 0.06),
    "faucet-close": _use("faucet handle", "turn off", 0.06),
    "hammer": _pick("hammer", "hit", "nail", second=True),
    "handle-press-side": _use("handle", "press down", 0.06),
    "handle-press": _use("handle", "press down", 0.06),
    "handle-pull-side": _use("handle", "pull up", 0.06),
    "handle-pull": _use("handle", "pull up", 0.06),
    "lever-pull": _use("lever", "pull up", 0.15),
    "peg-insert-side": _pick("peg", "insert", "hole"),
    "pick-place-wall": _pick("puck", "move over wall", "goal"),
    "pick-out-of-hole": _pick("puck", "take out", "goal"),
    "reach": _spec("goal", "reach(goal)", other="goal"),
    "push-back": _shove("puck", "push back", "goal"),
    "push": _shove("puck", "push", "goal"),
    "pick-place": _pick("puck", "move", "goal"),
    "plate-slide": _shove("plate", "slide in", "goal", 0.09),
    "plate-slide-side": _shove("plate", "slide in", "goal", 0.09),
    "plate-slide-back": _shove("plate", "slide back", "goal", 0.09),
    "plate-slide-back-side": _shove("plate", "slide back", "goal", 0.09),
    "peg-unplug-side": _pick("peg", "unplug", "goal"),
    "soccer": _shove("ball", "push", "goal net"),
    "stick-push": _pick("stick", "push with", "thermos", second=True),
    "stick-pull": _pick("stick", "pull with", "thermos", second=True),
    "push-wall": _shove("puck", "push around wall", "goal"),
    "reach-wall": _spec("goal", "reach(goal)", other="goal"),
    "shelf-place": _pick("puck", "place", "shelf"),
    "sweep-into": _shove("puck", "sweep", "hole"),
    "sweep": _shove("puck", "sweep", "table edge"),
    "window-open": _use("window handle", "slide open", 0.08),
    "window-close": _use("window handle", "slide shut", 0.08),
}

MT10 = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)

GRASP_TRAVEL_M = 0.01
"""How far the held object has moved from where it lay before the grasp counts."""


@dataclass(frozen=True)
class SceneTruth:
    """What the simulator knows of one moment; for labels and metrics only."""

    fingers: np.ndarray
    thing: np.ndarray
    thing_start: np.ndarray
    opening: float
    success: bool


def is_met(subgoal: Subgoal, spec: TaskSpec, truth: SceneTruth) -> bool:
    """Whether `subgoal` holds at this moment."""
    if subgoal == spec.subgoals[-1]:
        return truth.success
    near = float(np.linalg.norm(truth.fingers - truth.thing)) < spec.reach_m
    if subgoal.verb == "grasp":
        travel = float(np.linalg.norm(truth.thing - truth.thing_start))
        return near and travel > GRASP_TRAVEL_M and truth.opening < 0.95
    return near


@dataclass
class SubgoalTracker:
    """Which sub-goal is being worked on, told from the truth: labels for recorded steps.

    It advances when the current predicate holds and falls back to the first sub-goal when the
    hand has lost the thing.
    """

    spec: TaskSpec
    index: int = 0
    _last: int = field(init=False)

    def __post_init__(self) -> None:
        self._last = len(self.spec.subgoals) - 1

    def update(self, truth: SceneTruth) -> bool:
        """Advance by one step. Returns whether the sub-goal current before the call is met."""
        distance = float(np.linalg.norm(truth.fingers - truth.thing))
        if self.index > 0 and distance > self.spec.lost_m and not truth.success:
            self.index = 0
        met = is_met(self.spec.subgoals[self.index], self.spec, truth)
        if met and self.index < self._last:
            self.index += 1
        return met
