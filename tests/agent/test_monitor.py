"""The monitor: when it looks, and what it makes of the answers within its budgets."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from embodied.agent.memory import STANDSTILL, Memory, lesson
from embodied.agent.monitor import Look, Monitor, MonitorOptions, Reaction
from embodied.model.plan import REASONS
from embodied.types import Status, Subgoal, Verdict

REACH, PULL = Subgoal("reach", ("drawer handle",)), Subgoal("pull", ("drawer handle",))
OPTIONS = MonitorOptions()


class Watch:
    """A monitor that is shown a robot in motion, or at rest."""

    def __init__(self, options: MonitorOptions = OPTIONS) -> None:
        self.monitor = Monitor(options)
        self._time = count()

    def moving(self, done: float | None = None) -> Look | None:
        return self.monitor.watch(np.full(4, next(self._time) * 0.05), done)

    def still(self, n: int, jitter: float = 0.0) -> list[Look | None]:
        return [self.monitor.watch(np.full(4, jitter * (i % 2)), None) for i in range(n)]


def _say(monitor: Monitor, status: Status, reason: str = "", at: Subgoal = PULL) -> Reaction:
    return monitor.react("claimed", at, Verdict(status, reason or REASONS[status][0], 0.9))


# --- when to look ----------------------------------------------------------------------------


def test_two_claims_in_a_row_are_looked_at() -> None:
    watch = Watch()
    assert [watch.moving(p) for p in (0.9, 0.2, 0.9, 0.51)] == [None, None, None, "claimed"]


def test_steps_without_an_answer_of_the_done_head_neither_add_nor_reset() -> None:
    watch = Watch()
    looks = [watch.moving(p) for p in (0.9, None, None, None, 0.9)]
    assert looks == [None, None, None, None, "claimed"]


def test_half_is_no_claim() -> None:
    watch = Watch()
    assert [watch.moving(0.5) for _ in range(6)] == [None] * 6


def test_standing_still_is_looked_at_after_a_while() -> None:
    looks = Watch().still(OPTIONS.stall_steps)
    assert looks == [None] * (OPTIONS.stall_steps - 1) + ["stalled"]


@pytest.mark.parametrize(("jitter", "look"), [(0.011, "stalled"), (0.013, None)])
def test_how_still_is_still(jitter: float, look: Look | None) -> None:
    assert Watch().still(OPTIONS.stall_steps, jitter)[-1] == look


def test_one_moving_entry_is_motion() -> None:
    monitor = Monitor()
    for i in range(60):
        state = np.zeros(4)
        state[3] = i * 0.01
        assert monitor.watch(state, None) is None


def test_a_claim_is_looked_at_before_a_stall() -> None:
    watch = Watch()
    watch.still(22)
    watch.monitor.watch(np.zeros(4), 0.9)
    assert watch.monitor.watch(np.zeros(4), 0.9) == "claimed"


def test_a_new_sub_goal_starts_afresh_and_with_a_pause() -> None:
    watch = Watch()
    watch.moving(0.9)
    watch.still(OPTIONS.stall_steps - 2)
    watch.monitor.begin_subgoal()
    looks = [watch.moving(p) for p in (0.9, 0.9, 0.9, 0.9, 0.9)]
    assert looks == [None] * 4 + ["claimed"]
    watch.monitor.begin_subgoal()
    assert watch.still(OPTIONS.stall_steps) == [None] * (OPTIONS.stall_steps - 1) + ["stalled"]


def test_no_look_while_it_cools_down() -> None:
    watch = Watch()
    _say(watch.monitor, "progressing")
    looks = [watch.moving(0.9) for _ in range(OPTIONS.cooldown_steps + 1)]
    assert looks == [None] * OPTIONS.cooldown_steps + ["claimed"]


# --- what to make of it ----------------------------------------------------------------------


def test_done_is_next_and_progressing_goes_on() -> None:
    monitor = Monitor()
    assert _say(monitor, "done") == "next"
    assert [_say(monitor, "progressing") for _ in range(20)] == ["go on"] * 20
    assert (monitor.n_retries, monitor.n_replans) == (0, 0)


def test_a_done_that_is_doubted_is_work_in_progress() -> None:
    monitor = Monitor(MonitorOptions(believe_above=0.8))
    unsure, sure = (Verdict("done", REASONS["done"][0], p) for p in (0.79, 0.8))
    assert not monitor.options.believes(unsure)
    assert [monitor.react("claimed", PULL, unsure) for _ in range(20)] == ["go on"] * 20
    assert [monitor.react("stalled", PULL, unsure) for _ in range(2)] == ["go on", "retry"]
    assert monitor.react("claimed", REACH, unsure, ends_task=False) == "next"
    assert monitor.options.believes(sure)
    assert monitor.react("stalled", PULL, sure) == "next"


@pytest.mark.parametrize("status", ["progressing", "failed"])
def test_nothing_but_done_is_believed_to_be_done(status: Status) -> None:
    assert not MonitorOptions().believes(Verdict(status, REASONS[status][0], 1.0))


def test_first_again_then_anew() -> None:
    monitor = Monitor()
    assert [_say(monitor, "failed") for _ in range(4)] == ["retry", "replan", "retry", "replan"]
    assert (monitor.n_retries, monitor.n_replans) == (2, 2)


def test_another_reason_or_sub_goal_is_another_failure() -> None:
    monitor = Monitor()
    said = [_say(monitor, "failed", reason) for reason in REASONS["failed"]]
    assert said == ["retry"] * len(REASONS["failed"])
    assert _say(monitor, "failed", at=REACH) == "retry"
    assert _say(monitor, "failed", at=REACH) == "replan"


def test_a_loop_within_one_sub_goal_ends_after_three_plans() -> None:
    monitor = Monitor()
    said = [_say(monitor, "failed") for _ in range(20)]
    assert said == ["retry", "replan"] * OPTIONS.replans_per_subgoal + ["go on"] * 14
    assert monitor.n_replans == 3
    assert _say(monitor, "failed", at=REACH) == "retry"  # the other one has its own budget
    assert _say(monitor, "done") == "next"  # and what succeeds, succeeds


def test_no_more_than_eight_plans_an_episode() -> None:
    monitor = Monitor()
    subgoals = [Subgoal("reach", (f"thing {i}",)) for i in range(5)]
    said = [_say(monitor, "failed", at=s) for s in subgoals for _ in range(6)]
    assert said.count("replan") == monitor.n_replans == OPTIONS.replans_per_episode == 8
    assert said == ["retry", "replan"] * 8 + ["go on"] * 14


def test_stalling_twice_in_one_sub_goal_counts_as_failed() -> None:
    watch = Watch()
    going = Verdict("progressing", REASONS["progressing"][1], 0.8)
    monitor = watch.monitor
    assert watch.still(24)[-1] == "stalled"
    assert monitor.react("stalled", PULL, going) == "go on"
    looks = watch.still(24)
    assert looks == [None] * 23 + ["stalled"]  # the states of before are forgotten
    assert monitor.react("stalled", PULL, going) == "retry"
    monitor.begin_subgoal()
    assert monitor.react("stalled", PULL, going) == "go on"


# --- what is remembered ----------------------------------------------------------------------


def test_memory_keeps_the_last_two_failures_in_words() -> None:
    memory = Memory()
    assert memory.experience == ""
    for reason in REASONS["failed"][:3]:
        memory.learn(PULL, Verdict("failed", reason, 0.9))
    expected = [lesson(PULL, reason) for reason in REASONS["failed"][1:3]]
    assert memory.experience == " ".join(expected)
    assert expected[0] == "pull(drawer handle) failed: the gripper is in the wrong place."


def test_a_standstill_is_told_as_the_failure_it_is() -> None:
    memory = Memory()
    memory.learn(REACH, Verdict("progressing", REASONS["progressing"][0], 0.7))
    assert memory.experience == f"reach(drawer handle) failed: {STANDSTILL}."
    assert STANDSTILL == "nothing moves"


# --- patience ----------------------------------------------------------------------------------


def test_a_robot_that_moves_on_and_on_is_looked_at_in_the_end() -> None:
    watch = Watch(MonitorOptions(patience_steps=30))
    assert [watch.moving() for _ in range(30)] == [None] * 29 + ["stalled"]
    progressing = Verdict("progressing", REASONS["progressing"][0], 0.9)
    assert watch.monitor.react("stalled", PULL, progressing) == "go on"
    assert [watch.moving() for _ in range(30)] == [None] * 29 + ["stalled"]
    assert watch.monitor.react("stalled", PULL, progressing) == "retry"


def test_without_patience_set_it_is_never_overdue() -> None:
    watch = Watch(MonitorOptions(patience_steps=0))
    assert [watch.moving() for _ in range(500)] == [None] * 500


def test_a_new_sub_goal_has_its_own_time() -> None:
    watch = Watch(MonitorOptions(patience_steps=30))
    for _ in range(29):
        watch.moving()
    watch.monitor.begin_subgoal()
    assert [watch.moving() for _ in range(30)] == [None] * 29 + ["stalled"]
