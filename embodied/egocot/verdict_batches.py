"""Batches that the verdict head learns from: clips, sub-goals, and what is true of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embodied.egocot.dataset import Recorded, draw_verdict, motion_at, verdict_of
from embodied.types import STATUSES, Subgoal


@dataclass(frozen=True)
class VerdictBatch:
    """Clips to judge.

    Args:
        vision: (B, cameras, T', N, W). subgoals, motions: B each.
        verdict: (B,), index in `STATUSES`.
        is_sure: (B,), whether "in progress" and "failed" are told apart. Of a policy's own
            episodes it is known what is done, but nobody said where it went wrong.
    """

    vision: Tensor
    subgoals: list[Subgoal]
    motions: list[str]
    verdict: Tensor
    is_sure: Tensor


class VerdictSampler:
    """Batches by step number: every robot as often, of its episodes the longer ones more often.

    Args:
        episodes: with failures among them.
        size: clips a batch.

    Raises:
        ValueError: there is no episode.
    """

    def __init__(self, episodes: Sequence[Recorded], size: int, seed: int = 0) -> None:
        if not episodes:
            raise ValueError("a judge needs recorded episodes, and there are none")
        self._by_robot: dict[str, list[Recorded]] = {}
        for episode in episodes:
            robot = episode.meta.env_id.partition("/")[0]
            self._by_robot.setdefault(robot, []).append(episode)
        self._size, self._seed = size, seed

    def __call__(self, step: int) -> VerdictBatch:
        rng = np.random.default_rng([self._seed, step])
        rows = [draw_verdict(rng, self._by_robot) for _ in range(self._size)]
        verdicts = [STATUSES.index(verdict_of(e, g, t)[0]) for e, t, g in rows]
        return VerdictBatch(
            torch.from_numpy(np.stack([e.clip(t) for e, t, _ in rows])).float(),
            [e.meta.plan.subgoals[g] for e, _, g in rows],
            [motion_at(e, t) for e, t, _ in rows],
            torch.tensor(verdicts),
            torch.tensor(["acted" not in e.meta.info for e, _, _ in rows]),
        )
