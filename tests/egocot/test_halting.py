"""Failures made from successes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from embodied.egocot.dataset import (
    Recorded,
    draw_verdict,
    group_by_task,
    is_clear,
    is_imitable,
    motion_at,
    verdict_of,
)
from embodied.egocot.halting import halt_at, halts_of, with_halts
from embodied.model.features import IMAGE_EVERY, TUBELET_EVERY
from embodied.model.plan import REASONS
from tests.egocot.conftest import FIRST_IMAGE, FIRST_TUBELET, seen_in

Make = Callable[..., Recorded]


def test_a_robot_that_halts_is_seen_standing_still(make: Make) -> None:
    """Long after the halt every tubelet is the picture of that moment, twice."""
    halted = halt_at(make(seed=7, length=40), 12)
    seed, rows = seen_in(torch.from_numpy(halted.clip(12 + 30)))
    assert (seed, rows) == (7, [FIRST_IMAGE + 12 // IMAGE_EVERY] * 4)
    assert motion_at(halted, 12 + 30) == "stands still"
    assert (halted.picture(12 + 30) == halted.picture(12)).all()


def test_where_clips_are_one_picture_they_are_so_after_a_halt(make: Make) -> None:
    still = replace(make(seed=7, length=40), still=True)
    halted = halt_at(still, 12)
    for step, at in ((8, 8), (12, 12), (12 + 30, 12)):
        _, rows = seen_in(torch.from_numpy(halted.clip(step)))
        assert rows == [FIRST_IMAGE + at // IMAGE_EVERY] * 4
    assert (still.clip(8) == halted.clip(8)).all()


def test_before_the_halt_nothing_is_changed(make: Make) -> None:
    episode = make(seed=7, length=40)
    halted = halt_at(episode, 20)
    assert (halted.clip(18) == episode.clip(18)).all()
    assert (halted.picture(8) == episode.picture(8)).all()
    assert motion_at(halted, 18) == motion_at(episode, 18) == "moves"


def test_the_clip_over_the_halt_is_half_of_each(make: Make) -> None:
    halted = halt_at(make(length=40), 20)
    _, rows = seen_in(torch.from_numpy(halted.clip(20 + TUBELET_EVERY + IMAGE_EVERY)))
    before = [FIRST_TUBELET + 20 // TUBELET_EVERY - k for k in (2, 1)]
    assert rows == [*before, *[FIRST_IMAGE + 20 // IMAGE_EVERY] * 2]


def test_what_was_not_met_has_failed_and_what_was_met_is_done(make: Make) -> None:
    episode = make(length=80)
    first, last = 0, len(episode.meta.plan.subgoals) - 1
    halted = halt_at(episode, 60)
    end = halted.span.length - 1
    assert int(halted.subgoal[end]) == last and is_clear(halted, end)
    assert verdict_of(halted, first, end) == ("done", REASONS["done"][0])
    assert verdict_of(halted, last, end) == ("failed", REASONS["failed"][0])
    assert not is_imitable(halted.meta) and halted.meta.length == halted.span.length


@pytest.mark.parametrize("step", [-4, 3, 40, 44])
def test_a_halt_is_where_a_tubelet_begins(make: Make, step: int) -> None:
    with pytest.raises(ValueError, match="a robot can halt at multiples of 4 below 40"):
        halt_at(make(length=40), step)


def test_halts_are_of_every_phase_and_never_just_before_a_success(make: Make) -> None:
    episode = make(length=160)
    halts = halts_of(episode, 30, np.random.default_rng(0))
    n = len(episode.meta.plan.subgoals)
    assert len(halts) == 30 and {int(h.subgoal[-1]) for h in halts} == set(range(n))
    for halted in halts:
        current = int(halted.subgoal[-1])
        soon = range(halted.halt + 1, min(halted.halt + 12, 159) + 1)
        assert episode.met(current, halted.halt) or not any(episode.met(current, s) for s in soon)
    assert len({h.halt for h in halts}) > 5


def test_halts_are_the_same_for_the_same_seed(make: Make) -> None:
    first, again = (
        [h.halt for h in halts_of(make(length=160), 8, np.random.default_rng(3))] for _ in range(2)
    )
    assert first == again


def test_with_halts_a_set_of_successes_has_failures_to_judge(make: Make) -> None:
    demos = [make(seed=s, length=100) for s in range(3)]
    rng = np.random.default_rng(0)

    def share_of_failures(episodes: list[Recorded]) -> float:
        drawn = [draw_verdict(rng, group_by_task(episodes)) for _ in range(200)]
        return sum(verdict_of(e, i, t)[0] == "failed" for e, t, i in drawn) / 200

    assert share_of_failures(demos) == 0
    assert 0.2 < share_of_failures(with_halts(demos, 4, seed=0)) < 0.5


def test_halts_are_made_of_successes_alone(make: Make) -> None:
    success, failure = make(length=100), make(length=100, outcome="failure", tag="missed")
    assert [e.meta.tag for e in with_halts([success, failure], 2, seed=0)] == [
        "none",
        "missed",
        "stopped",
        "stopped",
    ]
    assert with_halts([success, failure], 0, seed=0) == [success, failure]
