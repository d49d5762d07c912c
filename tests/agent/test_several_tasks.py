"""A scene that offers several tasks: in the order said, what is done is passed over, and again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embodied.agent.agent import Ablation, Agent, AgentOptions, Motor
from embodied.agent.monitor import MonitorOptions
from embodied.model.routing import Route
from embodied.types import Observation, Plan, Subgoal, Verdict, Vocabulary
from tests.agent.test_agent import CLAIMS, CountingFormer, FakePlanner, FakePolicy

REACH_LIGHT, FLIP = Subgoal("reach", ("light switch",)), Subgoal("flip", ("light switch",))
REACH_DOOR, PULL = Subgoal("reach", ("door",)), Subgoal("pull", ("door",))
VOCABULARY = Vocabulary(
    ("door", "light"),
    (REACH_DOOR, PULL, REACH_LIGHT, FLIP),
    ("door", "door", "light", "light"),
)


class SceneWatcher(FakePlanner):
    """Judges by what the test says is done."""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self.done: set[Subgoal] = set()
        self.failed: set[Subgoal] = set()

    def route(self, instruction: str, catalogue: Any, env_id: str | None = None) -> Route:
        return Route(env_id, self._tasks, None, self._tasks, 0.9)

    def judge(self, clip: np.ndarray, subgoal: Subgoal, motion: str) -> Verdict:
        self.judged.append((clip, subgoal))
        if subgoal in self.failed:
            return Verdict("failed", "nothing moves", 0.8)
        return Verdict("done" if subgoal in self.done else "progressing", "so it looks", 0.8)


class Kitchen:
    def __init__(
        self, tasks: Sequence[str], ablate: Ablation = "none", believe_above: float = 0.0
    ) -> None:
        self.planner = SceneWatcher(tasks)
        planner: Any = self.planner
        policy, former = FakePolicy(CLAIMS), CountingFormer().eval()
        monitor = MonitorOptions(believe_above=believe_above)
        retreat = (0.0, 0.0, 0.5, -1.0)
        motor = Motor(former, policy, retreat=retreat, retreat_steps=2, monitor=monitor)
        options = AgentOptions(ablate)
        self.agent = Agent(planner, {"kitchen": motor}, {"kitchen": VOCABULARY}, options)
        self.n_steps = 0

    def observation(self) -> Observation:
        picture = np.zeros((8, 8, 3), np.uint8)
        return Observation(
            {"workspace": picture, "wrist": picture}, np.full(4, 0.1 * self.n_steps, np.float32)
        )

    def begin(self) -> Plan:
        return self.agent.begin(self.observation(), "light, then door", VOCABULARY)

    def step(self) -> str:
        """One control step. Returns the sub-goal that is worked on after it."""
        self.agent.act(self.observation())
        self.n_steps += 1
        return self.agent.caption()[2 + self.agent._index].lstrip("> 0123456789.")

    def until(self, subgoal: Subgoal) -> None:
        for _ in range(100):
            if self.step() == subgoal.text:
                return
        raise AssertionError(f"{subgoal.text} was never begun")


def test_the_plan_serves_the_tasks_that_were_said_in_their_order() -> None:
    plan = Kitchen(("light", "door")).begin()
    assert plan.tasks == ("light", "door")
    assert plan.subgoals == (REACH_LIGHT, FLIP, REACH_DOOR, PULL)
    assert Kitchen(("light",)).begin().subgoals == (REACH_LIGHT, FLIP)


def test_a_task_that_is_seen_to_be_done_is_passed_over() -> None:
    kitchen = Kitchen(("light", "door"))
    kitchen.planner.done = {FLIP}
    kitchen.begin()
    assert [s for _, s in kitchen.planner.judged] == [FLIP, PULL]
    assert kitchen.step() == REACH_DOOR.text
    assert kitchen.agent.report()["seen_done"] == ["light"]


def test_a_task_that_may_be_done_is_not_passed_over_when_that_is_doubted() -> None:
    kitchen = Kitchen(("light", "door"), believe_above=0.9)  # the judge says 0.8
    kitchen.planner.done = {FLIP}
    kitchen.begin()
    assert kitchen.step() == REACH_LIGHT.text
    assert kitchen.agent.report()["seen_done"] == []


def test_doubt_keeps_it_at_the_end_of_a_task_and_not_on_the_way_there() -> None:
    kitchen = Kitchen(("light", "door"), believe_above=0.9)  # the judge says 0.8
    kitchen.planner.done = {REACH_LIGHT, FLIP}
    kitchen.begin()
    assert {kitchen.step() for _ in range(100)} == {REACH_LIGHT.text, FLIP.text}


def test_what_was_never_begun_is_begun_whatever_the_clip_looks_like() -> None:
    kitchen = Kitchen(("light", "door"))
    kitchen.begin()
    kitchen.planner.done = {REACH_LIGHT, FLIP, PULL}  # the door is taken to be open, as the light
    kitchen.until(FLIP)
    kitchen.until(REACH_DOOR)


def test_a_task_that_came_undone_is_done_again() -> None:
    kitchen = Kitchen(("light", "door"))
    kitchen.begin()
    kitchen.planner.done = {REACH_LIGHT}
    kitchen.until(FLIP)
    kitchen.planner.done |= {FLIP}
    kitchen.until(REACH_DOOR)
    kitchen.planner.done |= {REACH_DOOR}
    kitchen.until(PULL)
    kitchen.planner.done = {REACH_DOOR, PULL}  # somebody turned the light off again
    kitchen.until(REACH_LIGHT)


def test_it_tries_again_from_the_start_of_the_task_not_of_the_plan() -> None:
    kitchen = Kitchen(("light", "door"))
    kitchen.begin()
    kitchen.planner.done = {REACH_LIGHT, FLIP, REACH_DOOR}
    kitchen.until(PULL)
    kitchen.planner.failed = {PULL}
    kitchen.until(REACH_DOOR)


def test_without_the_loop_the_plan_is_gone_through_once() -> None:
    kitchen = Kitchen(("light", "door"), ablate="no_loop")
    kitchen.planner.done, kitchen.planner.failed = {FLIP}, {REACH_DOOR}  # nobody asks
    kitchen.begin()
    worked_on = [kitchen.step() for _ in range(150)]
    turns = [a for a, b in itertools.pairwise(worked_on) if a != b]
    assert [*turns, worked_on[-1]] == [REACH_LIGHT.text, FLIP.text, REACH_DOOR.text, PULL.text]
    assert worked_on.count(PULL.text) > 50
    report = kitchen.agent.report()
    assert kitchen.planner.judged == [] and report["verdicts"] == []
    assert report["n_retries"] == report["n_replans"] == 0 and len(report["plans"]) == 1


def test_a_vocabulary_says_which_task_a_sub_goal_serves() -> None:
    assert VOCABULARY.owner(FLIP) == "light"
    assert VOCABULARY.narrowed(["light"]).subgoals == (REACH_LIGHT, FLIP)
    with pytest.raises(ValueError, match=r"offers \['door', 'light'\], not \['oven'\]"):
        VOCABULARY.narrowed(["light", "oven"])
    with pytest.raises(ValueError, match="of 2 tasks says which one each of its 1 sub-goals"):
        Vocabulary(("door", "light"), (PULL,))
    with pytest.raises(ValueError, match=r"owners \['oven'\] are not among"):
        Vocabulary(("door",), (PULL,), ("oven",))
