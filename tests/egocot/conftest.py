"""Recorded episodes made by hand: every number in them says where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from embodied.egocot.dataset import Recorded
from embodied.episodes import EpisodeMeta
from embodied.model.features import EpisodeSpan, n_images, n_tubelets
from embodied.model.plan import GRIPPER
from embodied.types import Plan
from sims import kitchen_tasks
from sims.subgoals import TASKS

N_CAMERAS, N_PATCHES, WIDTH = 2, 2, 3
FIRST_IMAGE, FIRST_TUBELET = 3, 5


class FakeCache:
    """A feature cache of one episode, behind rows of others: token (seed, row, camera)."""

    def __init__(self, seed: int, length: int) -> None:
        self.images = self._tokens(seed, FIRST_IMAGE + n_images(length))
        self.tubelets = self._tokens(seed, FIRST_TUBELET + n_tubelets(length))

    @staticmethod
    def _tokens(seed: int, n_rows: int) -> np.ndarray:
        tokens = np.zeros((n_rows, N_CAMERAS, N_PATCHES, WIDTH), np.float16)
        tokens[..., 0] = seed
        tokens[..., 1] = np.arange(n_rows)[:, None, None]
        tokens[..., 2] = np.arange(N_CAMERAS)[:, None]
        return tokens


def _plan_of(env_id: str) -> tuple[str, Plan]:
    """The task by the environment's own name, and its plan."""
    family, _, name = env_id.partition("/")
    if family == "kitchen":
        tasks = tuple(name.split("+"))
        return ", ".join(tasks), Plan("", "", kitchen_tasks.plan_subgoals(tasks), tasks)
    task = name.removesuffix("-v3")
    return task, Plan("", "", TASKS[task].subgoals, (task,))


def _places(plan: Plan, length: int) -> dict[str, np.ndarray]:
    """Noun → (T, cameras, 2): a line of its own, walked down within the picture."""
    nouns = dict.fromkeys([*(noun for s in plan.subgoals for noun in s.args), GRIPPER])
    places = {}
    for k, noun in enumerate(nouns):
        xy = np.zeros((length, N_CAMERAS, 2), np.float32)
        xy[..., 0] = (k + 1) / 20 + 0.5 * np.arange(N_CAMERAS)
        xy[..., 1] = np.arange(length)[:, None] / length
        places[noun] = xy
    return places


@pytest.fixture
def make() -> Callable[..., Recorded]:
    """Environment, seed, length and how it went → an episode.

    Its sub-goals take equally long; the last one holds in the last three steps. State and action
    begin with the seed and the step.
    """

    def recorded(
        env_id: str = "metaworld/drawer-open-v3",
        seed: int = 0,
        length: int = 40,
        *,
        outcome: str = "success",
        tag: str = "none",
        fault_step: int = 0,
        subgoal: Sequence[int] | None = None,
        **info: Any,
    ) -> Recorded:
        task, plan = _plan_of(env_id)
        steps, n = np.arange(length), len(plan.subgoals)
        told = {"tag": tag, "fault_step": fault_step, **info}
        meta = EpisodeMeta(
            0,
            env_id,
            task,
            "",
            seed,
            "",
            plan,
            outcome,
            length,
            tag,
            told,  # type: ignore[arg-type]
        )
        codes = [np.full(length, seed), steps, np.zeros(length), np.ones(length)]
        code = np.stack(codes, 1).astype(np.float32)
        return Recorded(
            meta=meta,
            span=EpisodeSpan(FIRST_IMAGE, FIRST_TUBELET, length),
            cache=FakeCache(seed, length),  # type: ignore[arg-type]
            state=code,
            action=code + np.float32(0.25),
            subgoal=steps * n // length if subgoal is None else np.asarray(subgoal),
            done=steps >= length - 3,
            places=_places(plan, length),
        )

    return recorded


def seen_in(vision: Tensor) -> tuple[int, list[int]]:
    """(cameras, T', N, W) of one sample → the episode's seed and the rows of its cache."""
    assert (vision[0, ..., :2] == vision[1, ..., :2]).all()
    assert (vision[0, ..., 2] == 0).all() and (vision[1, ..., 2] == 1).all()
    (seed,) = vision[..., 0].unique().tolist()
    return int(seed), [int(row) for row in vision[0, :, 0, 1]]
