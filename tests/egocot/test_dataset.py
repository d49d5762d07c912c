"""Samples to act, plan and judge: they belong together, and their labels are the truth."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embodied.egocot.dataset import (
    N_PLACES,
    Recorded,
    clip_tokens,
    draw_verdict,
    group_by_task,
    is_clear,
    is_imitable,
    load_recorded,
    motion_at,
    nouns_at_hand,
    places_at,
    verdict_of,
)
from embodied.egocot.former_batches import AlignmentBatch, AlignmentSampler, FormerBatch
from embodied.model.features import IMAGE_EVERY, N_TUBELETS, TUBELET_EVERY
from embodied.model.plan import REASONS
from embodied.model.planner import CONTROL_TEXT, JUDGE_TEXT, PLAN_TEXT
from embodied.types import STATUSES, Subgoal

Make = Callable[..., Recorded]

DRAWER, HAMMER = "metaworld/drawer-open-v3", "metaworld/hammer-v3"
HORIZON, SIZES = 5, (9, 4, 6, 5)


class Phrases:
    """Says which tasks are meant, and a number that is never the same."""

    def ask(self, rng: np.random.Generator, tasks: Sequence[str]) -> str:
        return f"{' and '.join(tasks)} no. {rng.integers(10**6)}"

    def request(self, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        raise AssertionError("nobody asks without a scene")


def _sampler(episodes: Sequence[Recorded], **changes: Any) -> AlignmentSampler:
    settings: dict[str, Any] = {"horizon": HORIZON, "sizes": SIZES, **changes}
    return AlignmentSampler(episodes, episodes, Phrases(), **settings)


def _parts(batch: AlignmentBatch) -> Iterator[FormerBatch]:
    yield from (b for b in (batch.control, batch.plan, batch.judge, batch.ask) if b)


def _equal(one: AlignmentBatch, other: AlignmentBatch) -> bool:
    for a, b in zip(_parts(one), _parts(other), strict=True):
        for name, value in vars(a).items():
            mine = getattr(b, name)
            if isinstance(value, Tensor):
                if not np.array_equal(value.numpy(), mine.numpy(), equal_nan=True):
                    return False
            elif value != mine:
                return False
    return True


def _seen(vision: Tensor) -> tuple[int, list[int]]:
    """(cameras, T', N, W) of one sample → the episode's seed and the rows of its cache."""
    assert (vision[0, ..., :2] == vision[1, ..., :2]).all()
    assert (vision[0, ..., 2] == 0).all() and (vision[1, ..., 2] == 1).all()
    (seed,) = vision[..., 0].unique().tolist()
    return int(seed), [int(row) for row in vision[0, :, 0, 1]]


# --- batches ---------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step(make: Make) -> None:
    episodes = [make(seed=1), make(HAMMER, 2)]
    straight, again = _sampler(episodes), _sampler(episodes)
    batches = {step: straight(step) for step in (0, 1, 2)}
    for step in (2, 0, 1, 2):  # in any order
        assert _equal(again(step), batches[step])
    assert not _equal(batches[0], batches[1])
    assert not _equal(_sampler(episodes, seed=1)(0), batches[0])


def test_shapes_are_those_documented(make: Make) -> None:
    batch = _sampler([make(seed=1), make(HAMMER, 2)])(0)
    (c, _p, j, _a), control = SIZES, batch.control
    assert batch.plan is not None and batch.judge is not None
    for part, size, n_times in zip(
        _parts(batch), SIZES, (1, 1, N_TUBELETS, N_TUBELETS), strict=True
    ):
        assert part.vision.shape == (size, 2, n_times, 2, 3)
        assert part.vision.dtype == part.places.dtype == torch.float32
        assert len(part.texts) == size and part.places.shape == (size, N_PLACES, 2, 2)
    assert control.state is not None and control.actions is not None
    assert control.valid is not None and control.done is not None
    assert control.state.shape == (c, 4) and control.state.dtype == torch.float32
    assert control.actions.shape == (c, HORIZON, 4) and control.actions.dtype == torch.float32
    assert control.valid.shape == (c, HORIZON) and control.valid.dtype == torch.bool
    assert control.done.shape == (c,) and control.done.dtype == torch.float32
    assert batch.plan.verdict is None and batch.plan.actions is None
    assert batch.judge.verdict is not None
    assert batch.judge.verdict.shape == (j,) and batch.judge.verdict.dtype == torch.int64


def test_plans_and_verdicts_may_be_left_out(make: Make) -> None:
    batch = _sampler([make()], sizes=(3, 0, 0, 0))(0)
    assert batch.plan is None and batch.judge is None and len(batch.control.texts) == 3


def test_nothing_to_imitate_is_an_error(make: Make) -> None:
    episodes = [make(outcome="failure"), make(outcome="sim_fault", seed=1)]
    with pytest.raises(ValueError, match="no successful episode to imitate"):
        _sampler(episodes)


def test_only_examples_are_imitated_but_all_are_looked_at(make: Make) -> None:
    episodes = [
        make(seed=1),
        make(seed=2, outcome="failure", tag="stopped", fault_step=8),
        make(seed=3, outcome="failure", acted="outputs/policy"),  # the expert's corrections
    ]
    assert [is_imitable(e.meta) for e in episodes] == [True, False, True]
    imitated, looked = set(), set()
    sampler = _sampler(episodes)
    for step in range(12):
        batch = sampler(step)
        assert batch.plan is not None and batch.judge is not None
        imitated |= {_seen(v)[0] for v in batch.control.vision}
        looked |= {_seen(v)[0] for part in (batch.plan, batch.judge) for v in part.vision}
    assert (imitated, looked) == ({1, 3}, {1, 2, 3})


# --- what a sample of control says ------------------------------------------------------------


def _control_rows(
    sampler: AlignmentSampler, episodes: Sequence[Recorded], n: int
) -> Iterator[tuple[Recorded, int, int, FormerBatch, int]]:
    """Episode, step and sub-goal of each row, told from its state and its text."""
    by_seed = {e.meta.seed: e for e in episodes}
    for number in range(n):
        part = sampler(number).control
        assert part.state is not None
        for i, state in enumerate(part.state):
            episode, step = by_seed[int(state[0])], int(state[1])
            texts = [CONTROL_TEXT.format(s.text) for s in episode.meta.plan.subgoals]
            yield episode, step, texts.index(part.texts[i]), part, i


def test_picture_state_words_actions_and_labels_belong_together(make: Make) -> None:
    episodes = [make(seed=1, length=21), make(HAMMER, 2, 40)]
    n_done = 0
    for episode, step, index, part, i in _control_rows(_sampler(episodes), episodes, 20):
        assert part.actions is not None and part.valid is not None and part.done is not None
        assert step % IMAGE_EVERY == 0
        assert _seen(part.vision[i]) == (episode.meta.seed, [episode.span.image(step)])
        expected = places_at(episode, nouns_at_hand(episode.meta.plan.subgoals[index]), step)
        assert np.array_equal(part.places[i].numpy(), expected, equal_nan=True)
        for k in range(HORIZON):
            now = min(step + k, episode.span.length - 1)
            assert np.array_equal(part.actions[i, k].numpy(), episode.action[now])
            assert bool(part.valid[i, k]) == (step + k < episode.span.length)
        assert bool(part.done[i]) == episode.met(index, step)
        n_done += bool(part.done[i])
    assert n_done


def test_actions_after_the_end_are_not_valid(make: Make) -> None:
    episodes = [make(length=3)]
    ends = set()
    for _, step, _, part, i in _control_rows(_sampler(episodes), episodes, 8):
        assert part.valid is not None and part.actions is not None
        ends.add(step)
        assert part.valid[i].tolist() == [True] * (3 - step) + [False] * (HORIZON - 3 + step)
        assert (part.actions[i, 2 - step :] == part.actions[i, 2 - step]).all()  # the last repeats
    assert ends == {0, 2}


def test_the_words_are_of_the_current_sub_goal_or_one_beside_it(make: Make) -> None:
    episodes = [make(HAMMER, 1, 45)]  # three sub-goals, fifteen steps each
    offsets: Counter[int] = Counter()
    for episode, step, index, _, _ in _control_rows(_sampler(episodes), episodes, 60):
        current = int(episode.subgoal[step])
        offsets[index - current] += 1
        if index < current:
            assert step % 15 < 12  # late by at most twelve steps
    assert set(offsets) == {-1, 0, 1} and offsets[0] > 0.5 * sum(offsets.values())


# --- plans and verdicts -----------------------------------------------------------------------


def test_plans_are_asked_for_by_the_tasks_of_what_is_seen(make: Make) -> None:
    episodes = [make(seed=1), make("kitchen/kettle", 2, 80)]
    by_seed, met = {e.meta.seed: e for e in episodes}, set()
    sampler = AlignmentSampler(episodes[:1], episodes, Phrases(), HORIZON, SIZES)
    for number in range(10):
        part = sampler(number).plan
        assert part is not None
        for i, text in enumerate(part.texts):
            seed, (row,) = _seen(part.vision[i])
            episode = by_seed[seed]
            things = {1: "drawer handle", 2: "kettle, top burner"}[seed]
            said = PLAN_TEXT.format(" and ".join(episode.tasks))
            assert text.startswith(f"find: {things}; {said}")
            step = (row - episode.span.first_image) * IMAGE_EVERY
            expected = places_at(episode, things.split(", "), step)
            assert np.array_equal(part.places[i].numpy(), expected, equal_nan=True)
            met.add(seed)
    assert met == {1, 2}


def test_verdicts_are_true_of_clips_that_end_where_they_are_asked(make: Make) -> None:
    still = make(seed=1, length=60, tag="stopped", fault_step=4, subgoal=[0] * 60)
    episodes = [still, make(HAMMER, 2, 60)]
    by_seed, drawn = {e.meta.seed: e for e in episodes}, Counter[str]()
    for number in range(25):
        part = _sampler(episodes)(number).judge
        assert part is not None and part.verdict is not None
        for i, text in enumerate(part.texts):
            seed, rows = _seen(part.vision[i])
            episode = by_seed[seed]
            texts = [JUDGE_TEXT.format(s.text) for s in episode.meta.plan.subgoals]
            # the step that the newest tubelet ends at
            step = (rows[-1] - episode.span.first_tubelet) * TUBELET_EVERY + IMAGE_EVERY
            status, _ = verdict_of(episode, texts.index(text), step)
            assert STATUSES[int(part.verdict[i])] == status
            drawn[status] += 1
    assert set(drawn) == set(STATUSES)


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
        assert clip_tokens(episode, step).shape == (2, N_TUBELETS, 2, 3)


@pytest.mark.parametrize("step", [2, 6, 7, 9, 10, 14, 38])
def test_a_clip_ends_at_its_step_and_shows_nothing_of_later(make: Make, step: int) -> None:
    episode = make(seed=4)
    seed, rows = _seen(torch.from_numpy(clip_tokens(episode, step)))
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


def test_robots_are_looked_at_evenly(make: Make) -> None:
    arm = [make(f"metaworld/{task}-v3", seed) for seed, task in enumerate(("hammer", "push"))]
    sampler = AlignmentSampler(
        [], [*arm, make("kitchen/kettle", 5)], Phrases(), HORIZON, (0, 40, 0, 0)
    )
    drawn: Counter[int] = Counter()
    for number in range(25):
        part = sampler(number).plan
        assert part is not None
        drawn.update(_seen(v)[0] for v in part.vision)
    assert drawn[5] == pytest.approx(500, abs=75)  # of a thousand
    assert drawn[0] == pytest.approx(250, abs=65)


def test_motion_is_what_the_robot_itself_did_during_the_clip(make: Make) -> None:
    episode = make(length=60)
    episode.state[:] = 0.0
    episode.state[30:, 2] = 0.03
    assert motion_at(episode, 13) == ""  # not a whole clip yet
    assert motion_at(episode, 29) == motion_at(episode, 44) == "stands still"
    assert motion_at(episode, 30) == motion_at(episode, 43) == "hardly moves"
    episode.state[30:, 3] = 1.0
    assert motion_at(episode, 36) == "moves"


def test_without_episodes_to_imitate_nothing_is_acted(make: Make) -> None:
    batch = AlignmentSampler([], [make()], Phrases(), HORIZON, (4, 3, 2, 0))(0)
    assert batch.control is None and batch.plan is not None and batch.judge is not None


def test_tasks_are_looked_at_evenly_and_longer_episodes_more_often(make: Make) -> None:
    many = [make(seed=s, length=20) for s in range(1, 5)] + [make(seed=5, length=80)]
    rare = make(HAMMER, 6, 20)
    sampler = AlignmentSampler(many, [*many, rare], Phrases(), HORIZON, (1, 40, 0, 0))
    drawn: Counter[int] = Counter()
    for number in range(25):
        part = sampler(number).plan
        assert part is not None
        drawn.update(_seen(v)[0] for v in part.vision)
    assert drawn[6] == pytest.approx(500, abs=75)  # of a thousand
    assert drawn[5] == pytest.approx(250, abs=65)


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


def test_questions_come_with_the_places_of_what_they_are_about(make: Make) -> None:
    episodes = [make(), make(HAMMER, 1), make("kitchen/kettle", 5)]
    positions = 0
    for number in range(40):
        part = _sampler(episodes, sizes=(0, 0, 0, 8))(number).ask
        assert part is not None and part.answers is not None
        assert part.choices == set(part.answers) - {""}
        for text, answer, places in zip(part.texts, part.answers, part.places, strict=True):
            assert text.startswith("answer: ")
            if not answer:
                positions += 1
                assert torch.isfinite(places[0, 0]).all() and not torch.isfinite(places[1]).any()
    assert positions > 10
