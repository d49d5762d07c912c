"""What was true in recorded episodes: verdicts, places, and what is drawn of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embodied.egocot.dataset import (
    N_PLACES,
    Recorded,
    draw_verdict,
    group_by_task,
    is_clear,
    load_recorded,
    motion_at,
    nouns_at_hand,
    places_at,
    verdict_of,
)
from embodied.model.features import IMAGE_EVERY, N_TUBELETS, TUBELET_EVERY
from embodied.model.plan import REASONS
from embodied.types import Subgoal
from tests.egocot.conftest import seen_in

Make = Callable[..., Recorded]

DRAWER, HAMMER = "metaworld/drawer-open-v3", "metaworld/hammer-v3"


# --- drawing verdicts -------------------------------------------------------------------------


def test_failures_are_drawn_though_they_are_rare(make: Make) -> None:
    """One episode of six ends in a standstill, for a sixth of its steps."""
    still = make(seed=9, length=100, tag="stopped", fault_step=68, subgoal=[0] * 100)
    by_task = group_by_task([make(seed=s, length=100) for s in range(5)] + [still])
    rng = np.random.default_rng(0)
    drawn: Counter[str] = Counter()
    for _ in range(400):
        episode, step, index = draw_verdict(rng, by_task)
        drawn[verdict_of(episode, index, step)[0]] += 1
    share = {status: n / 400 for status, n in drawn.items()}
    assert share["failed"] > 0.15 and share["done"] > 0.3 and share["progressing"] > 0.2


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 7, 11, 40])
def test_verdicts_of_short_episodes_stay_within_them(make: Make, length: int) -> None:
    episode = make(length=length)
    rng = np.random.default_rng(0)
    for _ in range(30):
        _, step, _ = draw_verdict(rng, group_by_task([episode]))
        assert 0 <= step < length
        assert episode.clip(step).shape == (2, N_TUBELETS, 2, 3)


@pytest.mark.parametrize("step", [2, 6, 7, 9, 10, 14, 38])
def test_a_clip_ends_at_its_step_and_shows_nothing_of_later(make: Make, step: int) -> None:
    episode = make(seed=4)
    seed, rows = seen_in(torch.from_numpy(episode.clip(step)))
    first_pictures = [(row - episode.span.first_tubelet) * TUBELET_EVERY for row in rows]
    newest = first_pictures[-1] + IMAGE_EVERY
    assert seed == 4 and newest <= step < newest + TUBELET_EVERY
    expected = [newest - IMAGE_EVERY - TUBELET_EVERY * k for k in (3, 2, 1, 0)]
    assert first_pictures == [max(0, picture) for picture in expected]


# --- true verdicts ---------------------------------------------------------------------------

REACH, PULL = 0, 1
ON_ITS_WAY, GOING_ON = REASONS["progressing"]
SHORT, ELSEWHERE, LOST, _, _ = REASONS["failed"]


@pytest.mark.parametrize(
    ("tag", "index", "since", "status", "reason"),
    [
        ("none", REACH, 50, "progressing", ON_ITS_WAY),
        ("none", PULL, 50, "progressing", GOING_ON),
        ("stopped", REACH, 0, "progressing", ON_ITS_WAY),
        ("stopped", REACH, 15, "progressing", ON_ITS_WAY),
        ("stopped", REACH, 16, "failed", SHORT),
        ("stopped", PULL, 50, "failed", SHORT),
        ("missed", REACH, 23, "progressing", ON_ITS_WAY),
        ("missed", REACH, 24, "failed", ELSEWHERE),
        ("missed", PULL, 23, "progressing", GOING_ON),
        ("missed", PULL, 50, "failed", ELSEWHERE),
        ("moved", PULL, 7, "progressing", GOING_ON),
        ("moved", PULL, 8, "failed", LOST),
        ("moved", PULL, 24, "failed", LOST),
        ("moved", PULL, 25, "progressing", GOING_ON),
        ("moved", REACH, 16, "progressing", ON_ITS_WAY),  # reaching is what there is to do
    ],
)
def test_true_verdicts_at_their_boundaries(
    make: Make, tag: str, index: int, since: int, status: str, reason: str
) -> None:
    subgoal = [1] * 30 + [0] * 70 if tag == "moved" else [0] * 100  # the hand was at the thing
    episode = make(length=100, tag=tag, fault_step=30, subgoal=subgoal)
    assert verdict_of(episode, index, 30 + since) == (status, reason)


@pytest.mark.parametrize(
    ("tag", "bits", "status"),
    [
        ("none", 0b00, "done"),  # what is pulled may run ahead of the hand
        ("none", 0b01, "done"),
        ("stopped", 0b01, "done"),
        ("stopped", 0b00, "failed"),
        ("missed", 0b00, "failed"),
        ("missed", 0b10, "done"),  # all is done, wherever the hand is
    ],
)
def test_a_hand_that_halted_beyond_the_thing_is_not_there(
    make: Make, tag: str, bits: int, status: str
) -> None:
    episode = make(length=100, tag=tag, fault_step=30, subgoal=[1] * 100)
    done = np.full(100, bool(bits & 0b10))
    episode = dataclasses.replace(episode, met_bits=np.full(100, bits), done=done)
    assert verdict_of(episode, REACH, 70)[0] == status
    assert verdict_of(episode, REACH, 29)[0] == "done"  # nothing had gone wrong yet


def test_nothing_is_lost_before_the_hand_was_there(make: Make) -> None:
    episode = make(length=100, tag="moved", fault_step=30, subgoal=[0] * 100)
    assert verdict_of(episode, PULL, 46) == ("progressing", GOING_ON)


@pytest.mark.parametrize(("since", "undone"), [(3, False), (4, True), (14, True), (15, False)])
def test_what_was_pushed_back_has_come_undone(make: Make, since: int, undone: bool) -> None:
    """The microwave was open at step 30; the second task, never begun, has not."""
    bits = np.array([0b0011] * 30 + [0] * 70)
    env_id, steps = "kitchen/microwave+light switch", [2] * 30 + [0] * 70
    episode = make(env_id, length=100, tag="pushed_back", fault_step=30, subgoal=steps)
    episode = dataclasses.replace(episode, met_bits=bits)
    status = "failed" if undone else "progressing"
    assert verdict_of(episode, 1, 30 + since)[0] == status
    assert verdict_of(episode, 3, 30 + since)[0] == "progressing"


@pytest.mark.parametrize(
    ("tag", "since", "clear"),
    [
        ("none", 0, True),
        ("stopped", -1, True),
        ("stopped", 0, False),
        ("stopped", 15, False),
        ("stopped", 16, True),
        ("missed", 23, False),
        ("missed", 24, True),
        ("moved", 7, False),
        ("moved", 8, True),
        ("moved", 25, False),
        ("moved", 33, True),
    ],
)
def test_a_clip_is_not_judged_just_when_something_goes_wrong(
    make: Make, tag: str, since: int, clear: bool
) -> None:
    assert is_clear(make(length=100, tag=tag, fault_step=30), 30 + since) is clear


@pytest.mark.parametrize("tag", ["none", "stopped", "missed", "moved"])
def test_nothing_has_failed_before_it_went_wrong(make: Make, tag: str) -> None:
    episode = make(length=100, tag=tag, fault_step=60, subgoal=[0] * 100)
    statuses = {verdict_of(episode, i, step)[0] for i in (0, 1) for step in range(61)}
    assert statuses == {"progressing"}


@pytest.mark.parametrize("tag", ["none", "stopped", "missed", "moved"])
def test_what_is_met_is_done_whatever_went_wrong(make: Make, tag: str) -> None:
    done = ("done", REASONS["done"][0])
    episode = make(length=100, tag=tag, fault_step=10)  # the second sub-goal from step 50 on
    assert verdict_of(episode, REACH, 49) != done and verdict_of(episode, REACH, 50) == done
    assert verdict_of(episode, PULL, 96) != done and verdict_of(episode, PULL, 97) == done


def test_what_was_moved_has_not_failed_while_it_is_still_in_hand(make: Make) -> None:
    episode = make(length=100, tag="moved", fault_step=30, subgoal=[1] * 100)
    assert verdict_of(episode, PULL, 45) == ("progressing", GOING_ON)


def test_with_several_tasks_each_step_has_its_own_truth(make: Make) -> None:
    """A task done early may come undone while a later one is at hand."""
    episode = make("kitchen/microwave+light switch", length=40, subgoal=[2] * 40)
    assert [episode.met(i, 5) for i in range(4)] == [True, True, False, False]
    bits = np.full(40, 0b1001)
    episode = dataclasses.replace(episode, met_bits=bits)
    assert [episode.met(i, 5) for i in range(4)] == [True, False, False, True]
    one = dataclasses.replace(make(subgoal=[1] * 40), met_bits=np.zeros(40, int))
    assert one.met(0, 5)  # one task's sub-goals build on each other


# --- places ----------------------------------------------------------------------------------


def test_places_of_two_nouns_and_the_gripper(make: Make) -> None:
    episode = make(HAMMER)
    nouns = list(episode.places)
    assert nouns[0] == "hammer" and "gripper" in nouns
    place = Subgoal("move", ("hammer", nouns[-1]))
    got = places_at(episode, nouns_at_hand(place), 7)
    assert got.shape == (N_PLACES, 2, 2) and got.dtype == np.float32
    for slot, noun in enumerate(("hammer", nouns[-1], "gripper")):
        assert np.array_equal(got[slot], episode.places[noun][7])


def test_a_slot_without_a_noun_or_a_label_is_unknown(make: Make) -> None:
    episode = make()
    assert nouns_at_hand(Subgoal("grasp", ("nut", "gripper"))) == ["nut"]
    for nouns in ([], ["a thing that nobody has seen"]):
        got = places_at(episode, nouns, 0)
        assert np.isnan(got[:2]).all() and np.isfinite(got[2]).all()


@pytest.mark.parametrize(
    ("xy", "known"),
    [
        ((0.0, 1.0), True),
        ((-0.01, 0.5), False),
        ((0.5, 1.01), False),
        ((np.nan, np.nan), False),
        ((3.0, -2.0), False),
    ],
)
def test_places_out_of_view_are_unknown(make: Make, xy: tuple[float, float], known: bool) -> None:
    episode = make()
    episode.places["drawer handle"][4, 1] = xy
    got = places_at(episode, ["drawer handle"], 4)
    if known:
        assert np.array_equal(got[0, 1], np.float32(xy))
    else:
        assert np.isnan(got[0, 1]).all()  # both numbers, of that camera only
    assert np.isfinite(got[0, 0]).all() and np.isfinite(got[2]).all()


# --- drawing ---------------------------------------------------------------------------------


def test_motion_is_what_the_robot_itself_did_during_the_clip(make: Make) -> None:
    episode = make(length=60)
    episode.state[:] = 0.0
    episode.state[30:, 2] = 0.03
    assert motion_at(episode, 13) == ""  # not a whole clip yet
    assert motion_at(episode, 29) == motion_at(episode, 44) == "stands still"
    assert motion_at(episode, 30) == motion_at(episode, 43) == "hardly moves"
    episode.state[30:, 3] = 1.0
    assert motion_at(episode, 36) == "moves"


def test_episodes_of_several_tasks_are_grouped_by_how_many(make: Make) -> None:
    ids = [DRAWER, HAMMER, "kitchen/kettle", "kitchen/kettle+microwave", DRAWER]
    ids += ["kitchen/microwave+top burner"]
    groups = group_by_task([make(env_id, s) for s, env_id in enumerate(ids)])
    assert {key: [e.meta.seed for e in found] for key, found in groups.items()} == {
        "drawer-open": [0, 4],
        "hammer": [1],
        "kettle": [2],
        "2 tasks": [3, 5],
    }


# --- from a data set -------------------------------------------------------------------------


def test_loaded_with_each_nouns_places_in_each_camera(make: Make) -> None:
    kept = make(seed=3, length=6)
    pixels = np.arange(6 * 2 * 6, dtype=np.float32).reshape(6, 2, 6)  # two numbers a noun
    pixels[:, :, 2:4] = np.nan  # a thing of another scene
    columns = {
        "observation.state": kept.state,
        "action": kept.action,
        "subgoal_index": kept.subgoal,
        "subgoal.done": kept.done,
        "observation.pixels.workspace": pixels[:, 0],
        "observation.pixels.wrist": pixels[:, 1],
    }

    class Reader(SimpleNamespace):
        def __len__(self) -> int:
            return 2

    reader: Any = Reader(
        episodes=[make().meta, kept.meta],
        cameras=["workspace", "wrist"],
        nouns=["drawer handle", "nail", "gripper"],
        arrays=lambda i: columns,
    )
    cache: Any = SimpleNamespace(spans=[make().span, kept.span])
    _, got = load_recorded(reader, cache)
    assert got.meta == kept.meta and got.span == kept.span and got.cache is cache
    assert list(got.places) == ["drawer handle", "gripper"]
    for noun, k in (("drawer handle", 0), ("gripper", 4)):
        assert np.array_equal(got.places[noun], pixels[:, :, k : k + 2])
    assert np.array_equal(got.state, kept.state) and np.array_equal(got.action, kept.action)
    assert np.array_equal(got.subgoal, kept.subgoal) and np.array_equal(got.done, kept.done)
