"""The 50 tasks as plans, and the predicates and the tracker that label what is being done."""

from __future__ import annotations

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from embodied.types import Plan, Subgoal
from sims.subgoals import MT10, TASKS, SceneTruth, SubgoalTracker, TaskSpec, is_met

PICK = TASKS["pick-place"]
START = np.array([0.0, 0.6, 0.02])


def _truth(
    distance_m: float = 0.0, moved_m: float = 0.0, opening: float = 0.5, success: bool = False
) -> SceneTruth:
    """The hand `distance_m` above a thing that has been lifted by `moved_m`."""
    thing = START + [0, 0, moved_m]
    return SceneTruth(thing + [0, 0, distance_m], thing, START, opening, success)


def test_the_tasks_are_metaworlds() -> None:
    assert {f"{task}-v3" for task in TASKS} == set(ALL_V3_ENVIRONMENTS)
    assert len(set(MT10)) == 10 and set(MT10) <= set(TASKS)


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)
def test_every_task_is_a_plan(spec: TaskSpec) -> None:
    Plan("instruction", "thought", spec.subgoals)  # checks the number of sub-goals
    assert spec.subgoals[0] == Subgoal("reach", (spec.thing,))
    assert len(set(spec.subgoals)) == len(spec.subgoals)
    for subgoal in spec.subgoals:
        assert Subgoal.parse(subgoal.text) == subgoal
        assert set(subgoal.args) <= {spec.thing, spec.other, "gripper"}
        assert subgoal.args[0] == spec.thing
    assert 0.03 <= spec.reach_m <= 0.25


def test_plans_tell_tasks_apart() -> None:
    """Tasks may share a plan only where the words for them can hardly differ."""
    plans: dict[tuple[Subgoal, ...], list[str]] = {}
    for task, spec in TASKS.items():
        plans.setdefault(spec.subgoals, []).append(task)
    shared = [tasks for tasks in plans.values() if len(tasks) > 1]
    assert shared == [
        ["button-press-topdown", "button-press-topdown-wall"],
        ["button-press", "button-press-wall"],
        ["handle-press-side", "handle-press"],
        ["handle-pull-side", "handle-pull"],
        ["reach", "reach-wall"],
        ["plate-slide", "plate-slide-side"],
        ["plate-slide-back", "plate-slide-back-side"],
    ]


def test_reach_is_a_matter_of_distance() -> None:
    reach = PICK.subgoals[0]
    assert is_met(reach, PICK, _truth(PICK.reach_m - 0.001))
    assert not is_met(reach, PICK, _truth(PICK.reach_m + 0.001))


@pytest.mark.parametrize(
    ("truth", "met"),
    [
        (_truth(0.01, moved_m=0.02), True),
        (_truth(0.01, moved_m=0.005), False),  # closed around it, not lifted
        (_truth(0.01, moved_m=0.02, opening=1.0), False),  # pushed with an open hand
        (_truth(0.10, moved_m=0.02), False),  # knocked away
    ],
)
def test_a_grasp_holds_and_moves_the_thing(truth: SceneTruth, met: bool) -> None:
    assert is_met(PICK.subgoals[1], PICK, truth) is met


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)
def test_the_last_subgoal_is_the_environments_own_success(spec: TaskSpec) -> None:
    assert is_met(spec.subgoals[-1], spec, _truth(5.0, success=True))
    assert not is_met(spec.subgoals[-1], spec, _truth(0.0, moved_m=0.02))


def test_the_tracker_advances_one_subgoal_at_a_time() -> None:
    tracker = SubgoalTracker(PICK)
    history = []
    for truth in (
        _truth(0.2),
        _truth(0.05),
        _truth(0.0),
        _truth(0.0, moved_m=0.02),
        _truth(0.0, moved_m=0.1),
        _truth(0.0, moved_m=0.1, success=True),
    ):
        met = tracker.update(truth)
        history.append((met, tracker.index))
    assert history == [(False, 0), (True, 1), (False, 1), (True, 2), (False, 2), (True, 2)]


def test_the_tracker_begins_again_when_the_thing_is_lost() -> None:
    tracker = SubgoalTracker(PICK, index=2)
    assert not tracker.update(_truth(PICK.lost_m - 0.001))
    assert tracker.index == 2
    assert not tracker.update(_truth(PICK.lost_m + 0.001))
    assert tracker.index == 0


def test_what_is_pushed_may_run_ahead_of_the_hand() -> None:
    push = TASKS["push"]
    assert push.lost_m > push.reach_m + 0.05 > PICK.lost_m
    tracker = SubgoalTracker(push, index=1)
    tracker.update(_truth(push.lost_m - 0.001))
    assert tracker.index == 1


def test_the_tracker_keeps_a_success_from_afar() -> None:
    tracker = SubgoalTracker(PICK, index=2)
    assert tracker.update(_truth(PICK.lost_m + 0.1, success=True))
    assert tracker.index == 2
