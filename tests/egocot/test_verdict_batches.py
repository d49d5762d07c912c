"""What the verdict head learns from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from embodied.egocot.dataset import Recorded, verdict_of
from embodied.egocot.verdict_batches import VerdictSampler
from embodied.model.motion import MOTIONS
from embodied.types import STATUSES
from tests.egocot.conftest import seen_in

Make = Callable[..., Recorded]
KITCHEN = "kitchen/microwave+light switch"


def _episodes(make: Make) -> list[Recorded]:
    still = dict(length=100, tag="stopped", fault_step=40, subgoal=[0] * 100)
    return [
        make(seed=0, length=100),
        make(seed=1, **still),
        make(KITCHEN, seed=2, length=100, acted="policies/mine"),
    ]


def test_clips_come_with_what_is_true_of_them(make: Make) -> None:
    episodes = _episodes(make)
    batch = VerdictSampler(episodes, 64)(0)
    assert batch.vision.dtype == torch.float32 and batch.vision.shape[0] == 64
    assert set(batch.motions) <= set(MOTIONS) and len(batch.subgoals) == len(batch.motions) == 64
    rows = zip(batch.vision, batch.subgoals, batch.verdict, batch.is_sure, strict=True)
    for vision, subgoal, verdict, is_sure in rows:
        seed, tubelets = seen_in(vision)
        episode = episodes[seed]
        index = episode.meta.plan.subgoals.index(subgoal)
        possible = {
            verdict_of(episode, index, step)[0]
            for step in range(100)
            if episode.span.tubelets(step) == tubelets
        }
        assert STATUSES[int(verdict)] in possible
        assert bool(is_sure) == (seed != 2)  # nobody said where a policy's own way went wrong


def test_every_robot_comes_as_often_and_every_step_is_the_same_again(make: Make) -> None:
    sampler = VerdictSampler(_episodes(make), 200, seed=5)
    batch = sampler(3)
    in_kitchen = sum(not sure for sure in batch.is_sure.tolist())
    assert 65 < in_kitchen < 135  # one of three episodes, one of two robots
    again, other = VerdictSampler(_episodes(make), 200, seed=5)(3), sampler(4)
    assert torch.equal(again.vision, batch.vision) and again.subgoals == batch.subgoals
    assert not torch.equal(other.vision, batch.vision)


def test_there_is_something_to_judge() -> None:
    with pytest.raises(ValueError, match="a judge needs recorded episodes"):
        VerdictSampler([], 8)
