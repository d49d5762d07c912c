"""Batches for the former: they belong together, and are what they are documented to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embodied.egocot.dataset import (
    N_PLACES,
    Recorded,
    is_imitable,
    nouns_at_hand,
    places_at,
    verdict_of,
)
from embodied.egocot.former_batches import AlignmentBatch, AlignmentSampler, FormerBatch
from embodied.model.features import IMAGE_EVERY, N_TUBELETS, TUBELET_EVERY
from embodied.model.planner import CONTROL_TEXT, JUDGE_TEXT, PLAN_TEXT
from embodied.types import STATUSES
from tests.egocot.conftest import seen_in

Make = Callable[..., Recorded]
HAMMER = "metaworld/hammer-v3"
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
        imitated |= {seen_in(v)[0] for v in batch.control.vision}
        looked |= {seen_in(v)[0] for part in (batch.plan, batch.judge) for v in part.vision}
    assert (imitated, looked) == ({1, 3}, {1, 2, 3})


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
        assert seen_in(part.vision[i]) == (episode.meta.seed, [episode.span.image(step)])
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


def test_plans_are_asked_for_by_the_tasks_of_what_isseen_in(make: Make) -> None:
    episodes = [make(seed=1), make("kitchen/kettle", 2, 80)]
    by_seed, met = {e.meta.seed: e for e in episodes}, set()
    sampler = AlignmentSampler(episodes[:1], episodes, Phrases(), HORIZON, SIZES)
    for number in range(10):
        part = sampler(number).plan
        assert part is not None
        for i, text in enumerate(part.texts):
            seed, (row,) = seen_in(part.vision[i])
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
            seed, rows = seen_in(part.vision[i])
            episode = by_seed[seed]
            texts = [JUDGE_TEXT.format(s.text) for s in episode.meta.plan.subgoals]
            # the step that the newest tubelet ends at
            step = (rows[-1] - episode.span.first_tubelet) * TUBELET_EVERY + IMAGE_EVERY
            status, _ = verdict_of(episode, texts.index(text), step)
            assert STATUSES[int(part.verdict[i])] == status
            drawn[status] += 1
    assert set(drawn) == set(STATUSES)


def _planned_for(sampler: AlignmentSampler) -> Counter[int]:
    """How often 25 batches plan for the episode of each seed."""
    drawn: Counter[int] = Counter()
    for number in range(25):
        part = sampler(number).plan
        assert part is not None
        drawn.update(seen_in(v)[0] for v in part.vision)
    return drawn


def test_robots_are_looked_at_evenly(make: Make) -> None:
    arm = [make(f"metaworld/{task}-v3", seed) for seed, task in enumerate(("hammer", "push"))]
    sampler = AlignmentSampler(
        [], [*arm, make("kitchen/kettle", 5)], Phrases(), HORIZON, (0, 40, 0, 0)
    )
    drawn = _planned_for(sampler)
    assert drawn[5] == pytest.approx(500, abs=75)  # of a thousand
    assert drawn[0] == pytest.approx(250, abs=65)


def test_without_episodes_to_imitate_nothing_is_acted(make: Make) -> None:
    batch = AlignmentSampler([], [make()], Phrases(), HORIZON, (4, 3, 2, 0))(0)
    assert batch.control is None and batch.plan is not None and batch.judge is not None


def test_tasks_are_looked_at_evenly_and_longer_episodes_more_often(make: Make) -> None:
    many = [make(seed=s, length=20) for s in range(1, 5)] + [make(seed=5, length=80)]
    rare = make(HAMMER, 6, 20)
    sampler = AlignmentSampler(many, [*many, rare], Phrases(), HORIZON, (1, 40, 0, 0))
    drawn = _planned_for(sampler)
    assert drawn[6] == pytest.approx(500, abs=75)  # of a thousand
    assert drawn[5] == pytest.approx(250, abs=65)


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
