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
from embodied.types import Observation, Plan, Status, Subgoal, Verdict, Vocabulary
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
        self.probability = dict.fromkeys((FLIP, PULL), 0.8)

    def route(self, instruction: str, catalogue: Any, env_id: str | None = None) -> Route:
        return Route(env_id, self._tasks, None, self._tasks, 0.9)

    def judge(self, clip: np.ndarray, subgoal: Subgoal, motion: str) -> Verdict:
        self.judged.append((clip, subgoal))
        if subgoal in self.failed:
            return Verdict("failed", "nothing moves", 0.8)
        status: Status = "done" if subgoal in self.done else "progressing"
        return Verdict(status, "so it looks", self.probability.get(subgoal, 0.8))


class Kitchen:
    def __init__(
        self, tasks: Sequence[str], ablate: Ablation = "none", **monitor_options: Any
    ) -> None:
        self.planner = SceneWatcher(tasks)
        planner: Any = self.planner
        policy, former = FakePolicy(CLAIMS), CountingFormer().eval()
        monitor = MonitorOptions(**monitor_options)
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

    def turns(self, n_steps: int) -> list[str]:
        """The sub-goals that are worked on in so many steps, one after the other."""
        return [text for text, _ in itertools.groupby(self.step() for _ in range(n_steps))]


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
    assert kitchen.turns(100) == [FLIP.text, REACH_DOOR.text]


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
    assert kitchen.turns(100) == [PULL.text, REACH_LIGHT.text]


def test_it_tries_again_from_the_start_of_the_task_not_of_the_plan() -> None:
    kitchen = Kitchen(("light", "door"))
    kitchen.begin()
    kitchen.planner.done = {REACH_LIGHT, FLIP, REACH_DOOR}
    kitchen.until(PULL)
    kitchen.planner.failed = {PULL}
    assert set(kitchen.turns(100)) == {PULL.text, REACH_DOOR.text}


def test_a_task_that_keeps_failing_is_put_off_until_the_others_are_done() -> None:
    kitchen = Kitchen(("light", "door"), tries_per_task=2)
    kitchen.begin()
    kitchen.planner.failed = {REACH_LIGHT}
    kitchen.until(REACH_DOOR)
    assert [s for _, s in kitchen.planner.judged[2:]] == [REACH_LIGHT, REACH_LIGHT]
    kitchen.planner.done, kitchen.planner.failed = {REACH_DOOR, PULL, FLIP}, set()
    kitchen.until(REACH_LIGHT)  # though the clip of the door looks as if the light was on
    report = kitchen.agent.report()
    assert report["n_put_off"] == 1 and report["n_retries"] == 1


def test_tasks_that_all_keep_failing_take_turns() -> None:
    kitchen = Kitchen(("light", "door"), tries_per_task=2)
    kitchen.begin()
    kitchen.planner.failed = {REACH_LIGHT, REACH_DOOR}
    assert kitchen.turns(300)[:4] == [REACH_LIGHT.text, REACH_DOOR.text] * 2


@pytest.mark.parametrize(("tasks", "tries"), [(("light",), 2), (("light", "door"), 0)])
def test_nothing_is_put_off_where_nothing_else_is_left_or_nobody_asks_for_it(
    tasks: tuple[str, ...], tries: int
) -> None:
    kitchen = Kitchen(tasks, tries_per_task=tries)
    kitchen.begin()
    kitchen.planner.failed = {REACH_LIGHT}
    assert kitchen.turns(200) == [REACH_LIGHT.text]
    report = kitchen.agent.report()
    assert report["n_put_off"] == 0 and report["n_retries"] >= 1


def test_what_may_not_be_done_after_all_is_done_again_when_nothing_else_is_left() -> None:
    kitchen = Kitchen(("light", "door"), sure_above=0.95)
    kitchen.begin()
    kitchen.planner.done = {REACH_LIGHT, FLIP, REACH_DOOR, PULL}
    kitchen.planner.probability = {FLIP: 0.7, PULL: 0.97}
    for subgoal in (FLIP, REACH_DOOR, PULL, REACH_LIGHT, FLIP):
        kitchen.until(subgoal)
    kitchen.planner.probability[FLIP] = 0.99
    assert kitchen.turns(100) == [FLIP.text]
    assert kitchen.agent.report()["n_repeats"] == 1


def test_what_is_worked_on_may_be_done_soon_and_is_not_let_go_at_once() -> None:
    kitchen = Kitchen(("light", "door"), sure_above=0.95)
    kitchen.begin()
    kitchen.planner.done = {REACH_LIGHT, FLIP, REACH_DOOR, PULL}
    kitchen.planner.probability = {FLIP: 0.97, PULL: 0.7}
    kitchen.until(PULL)
    n_judged = len(kitchen.planner.judged)
    turns = kitchen.turns(100)
    assert turns[:3] == [PULL.text, REACH_DOOR.text, PULL.text]
    judged = [s for _, s in kitchen.planner.judged[n_judged:]]
    assert judged[: judged.index(REACH_DOOR)] == [PULL, FLIP] * 2


def test_without_the_loop_the_plan_is_gone_through_once() -> None:
    kitchen = Kitchen(("light", "door"), ablate="no_loop")
    kitchen.planner.done, kitchen.planner.failed = {FLIP}, {REACH_DOOR}  # nobody asks
    kitchen.begin()
    assert kitchen.turns(100) == [REACH_LIGHT.text, FLIP.text, REACH_DOOR.text, PULL.text]
    assert kitchen.turns(50) == [PULL.text]
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
