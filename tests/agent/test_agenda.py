"""Which of several tasks is turned to, by what a judge of the test's says is done."""

from __future__ import annotations

import pytest

from embodied.agent.agenda import Agenda
from embodied.agent.monitor import MonitorOptions
from embodied.types import Subgoal, Verdict, Vocabulary

TASKS = ("door", "light", "kettle")
SUBGOALS = tuple(Subgoal(verb, (task,)) for task in TASKS for verb in ("reach", "pull"))
VOCABULARY = Vocabulary(TASKS, SUBGOALS, tuple(task for task in TASKS for _ in range(2)))


class Scene:
    """Task → the probability that it is done; below a half it is in progress."""

    def __init__(self, is_watched: bool = True, **options: float) -> None:
        self.done = dict.fromkeys(TASKS, 0.0)
        settings = MonitorOptions(**options)  # type: ignore[arg-type]
        self.agenda = Agenda(VOCABULARY, settings, self.judge, is_watched)
        self.agenda.follow(SUBGOALS)

    def judge(self, subgoal: Subgoal) -> Verdict:
        done = self.done[subgoal.args[0]]
        if done < 0.5:
            return Verdict("progressing", "the work is going on", 1 - done)
        return Verdict("done", "it is achieved", done)

    def work(self, *tasks: str) -> None:
        """Turn to them, and get each done beyond doubt."""
        for task in tasks:
            self.agenda.turn_to(2 * TASKS.index(task))
            self.done[task] = 1.0


def test_one_after_the_other_as_they_were_said() -> None:
    scene = Scene()
    assert scene.agenda.first_open(0) == 0
    for index, following in enumerate([1, 2, 3, 4, 5]):
        scene.work(TASKS[index // 2])
        assert scene.agenda.after(index) == following
    scene.work("kettle")
    assert scene.agenda.after(5) is None


def test_a_span_is_one_tasks_sub_goals() -> None:
    agenda = Scene().agenda
    assert [agenda.span(index) for index in range(6)] == [(i, i + 1) for i in (0, 0, 2, 2, 4, 4)]


def test_what_is_done_at_first_is_passed_over() -> None:
    scene = Scene(believe_above=0.8)
    scene.done = {"door": 0.9, "light": 0.7, "kettle": 0.1}
    scene.agenda.look_first()
    assert scene.agenda.done_at_first == {"door"}
    assert scene.agenda.first_open(0) == 2


def test_what_came_undone_comes_after_the_rest() -> None:
    scene = Scene()
    scene.work("door", "light")
    scene.done["door"] = 0.0
    assert scene.agenda.after(3) == 4
    scene.work("kettle")
    assert scene.agenda.after(5) == 0


def test_unwatched_it_goes_through_once() -> None:
    scene = Scene(is_watched=False, tries_per_task=1, sure_above=0.9)
    scene.done = dict.fromkeys(TASKS, 1.0)
    scene.agenda.look_first()
    assert scene.agenda.done_at_first == set()
    assert [scene.agenda.after(index) for index in range(6)] == [1, 2, 3, 4, 5, None]
    assert scene.agenda.instead(0) is None


def test_what_keeps_failing_waits_for_what_is_open() -> None:
    scene = Scene(tries_per_task=2)
    scene.agenda.turn_to(0)
    assert [scene.agenda.instead(0) for _ in range(2)] == [None, 2]
    scene.work("light", "kettle")
    assert scene.agenda.after(5) == 0
    assert (scene.agenda.n_put_off, scene.agenda.n_repeats) == (1, 0)


def test_two_that_keep_failing_take_turns_and_the_last_one_is_tried_on() -> None:
    scene = Scene(tries_per_task=1)
    scene.work("kettle")
    assert [scene.agenda.instead(i) for i in (0, 2, 0)] == [2, 0, 2]
    scene.work("light")
    scene.agenda.after(3)  # back to the door, which had been put off
    assert [scene.agenda.instead(0) for _ in range(3)] == [None] * 3


def test_the_least_often_repeated_is_done_again_then_the_least_sure() -> None:
    scene = Scene(sure_above=0.95)
    scene.work(*TASKS)
    scene.done |= {"door": 0.9, "light": 0.8}
    assert [scene.agenda.after(5) for _ in range(4)] == [2, 0, 2, 0]
    scene.done |= {"light": 0.95}
    assert scene.agenda.after(5) == 0
    scene.done |= {"door": 0.99}
    assert scene.agenda.after(5) is None
    assert scene.agenda.n_repeats == 5


@pytest.mark.parametrize("sure_above", [0.0, 0.95])
def test_what_is_worked_on_is_given_some_time(sure_above: float) -> None:
    scene = Scene(sure_above=sure_above)
    scene.work(*TASKS)
    scene.done["kettle"] = 0.6
    assert [scene.agenda.after(5) for _ in range(2)] == [None, 4 if sure_above else None]
    assert scene.agenda.n_repeats == (1 if sure_above else 0)


def test_what_is_turned_to_is_put_off_no_more() -> None:
    scene = Scene(tries_per_task=1)
    scene.agenda.turn_to(0)
    assert scene.agenda.instead(0) == 2
    scene.agenda.turn_to(0)  # a new plan begins with it
    assert scene.agenda.first_open(0) == 0


def test_one_task_by_itself_is_never_begun_anew_for_doubt() -> None:
    scene = Scene(sure_above=0.95)
    scene.agenda.follow(SUBGOALS[:2])
    scene.work("door")
    scene.done["door"] = 0.6
    assert [scene.agenda.after(1) for _ in range(3)] == [None] * 3
