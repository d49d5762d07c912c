"""Recorded episodes and what was true in them.

The simulator's truth that was recorded with every step (sub-goals met, pixel positions, what went
wrong on purpose) becomes labels here, and only here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from embodied.episodes import DatasetReader, EpisodeMeta
from embodied.model.features import (
    IMAGE_EVERY,
    N_TUBELETS,
    TUBELET_EVERY,
    EpisodeSpan,
    FeatureCache,
)
from embodied.model.motion import motion_text
from embodied.model.plan import GRIPPER, N_PLACES, REASONS
from embodied.types import STATUSES, Status, Subgoal


class Phrasebook(Protocol):
    """What people say; `sims.language` is one."""

    def ask(self, rng: np.random.Generator, tasks: Sequence[str]) -> str:
        """One of many ways to ask for `tasks` in their order."""
        ...

    def request(self, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        """Something that a person may say, and the tasks it asks for: none if it is refused."""
        ...


_SEEN_AFTER = {"stopped": 16, "missed": 24, "moved": 8, "pushed_back": 4}
"""Steps after a fault from which a clip of 16 steps shows it."""
_SEEN_UNTIL = {"moved": 24, "pushed_back": 14}
"""Steps after a fault up to which a clip shows what was before."""
_CLIP_STEPS = (N_TUBELETS * 2 - 1) * IMAGE_EVERY + 1


@dataclass(frozen=True)
class Recorded:
    """One episode without its pictures.

    Args:
        meta: of the data set.
        span: its rows in the feature cache.
        cache: the feature cache that it is in.
        state: (T, S). action: (T, A). subgoal: (T,), index in the plan. done: (T,).
        places: noun → (T, cameras, 2), NaN where unknown.
        met_bits: (T,), bit i says whether sub-goal i of the plan holds; None where not recorded.
        still: whether a clip is its newest picture, for every frame of it.
    """

    meta: EpisodeMeta
    span: EpisodeSpan
    cache: FeatureCache
    state: np.ndarray
    action: np.ndarray
    subgoal: np.ndarray
    done: np.ndarray
    places: Mapping[str, np.ndarray]
    met_bits: np.ndarray | None = None
    still: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """What was asked for, in order."""
        return self.meta.plan.tasks or (self.meta.task,)

    @property
    def fault_step(self) -> int:
        return int(self.meta.info.get("fault_step", 0))

    def met(self, index: int, step: int) -> bool:
        """Whether sub-goal `index` of the plan is met at `step`.

        One task's sub-goals build on each other: those before the current one are met. Tasks may
        come undone in any order.
        """
        if len(self.tasks) > 1 and self.met_bits is not None:
            return bool(int(self.met_bits[step]) >> index & 1)
        current = int(self.subgoal[step])
        return index < current or (index == current and bool(self.done[step]))

    def picture(self, step: int) -> np.ndarray:
        """The cached tokens of the picture at or before `step`: (cameras, N, W)."""
        return np.array(self.cache.images[self.span.image(step)])

    def clip(self, step: int) -> np.ndarray:
        """The cached tokens of the clip that ends at `step`: (cameras, tubelets, N, W)."""
        if self.still:  # a tubelet of two equal pictures has the tokens of the picture
            return self.picture(step)[:, None].repeat(N_TUBELETS, axis=1)
        return np.stack([self._tubelet(row) for row in self.span.tubelets(step)], axis=1)

    def _tubelet(self, row: int) -> np.ndarray:
        return np.asarray(self.cache.tubelets[row])


def is_imitable(meta: EpisodeMeta) -> bool:
    """Whether the recorded actions are worth imitating: a success, or an expert's corrections."""
    return meta.success or "acted" in meta.info


def load_recorded(
    reader: DatasetReader, cache: FeatureCache, *, still: bool = False
) -> list[Recorded]:
    """Every episode of a data set, beside its cached features."""
    return [_load_one(reader, cache, i, still) for i in range(len(reader))]


def _load_one(reader: DatasetReader, cache: FeatureCache, i: int, still: bool) -> Recorded:
    columns = reader.arrays(i)
    pixels = [columns[f"observation.pixels.{camera}"] for camera in reader.cameras]
    stacked = np.stack(pixels, 1).reshape(len(pixels[0]), len(pixels), -1, 2)
    places = {noun: stacked[:, :, k] for k, noun in enumerate(reader.nouns)}
    return Recorded(
        reader.episodes[i],
        cache.spans[i],
        cache,
        columns["observation.state"],
        columns["action"],
        columns["subgoal_index"],
        columns["subgoal.done"],
        {noun: p for noun, p in places.items() if np.isfinite(p).any()},
        columns.get("subgoal.met"),
        still,
    )


def verdict_of(episode: Recorded, index: int, step: int) -> tuple[Status, str]:
    """The true verdict on sub-goal `index` at `step`, and its reason, from how it was recorded."""
    tag, since = episode.meta.tag, step - episode.fault_step
    verb = episode.meta.plan.subgoals[index].verb
    if episode.met(index, step) and not _halted_beyond(episode, index, step):
        return "done", REASONS["done"][0]
    if tag in _SEEN_AFTER and since >= _SEEN_AFTER[tag]:
        reasons = REASONS["failed"]
        if tag == "stopped":
            return "failed", reasons[0]
        if tag == "missed":
            return "failed", reasons[1]
        if since <= _SEEN_UNTIL[tag]:
            if tag == "moved" and _has_lost(episode, index, step):
                return "failed", reasons[2]
            before = max(0, episode.fault_step - 1)
            if tag == "pushed_back" and verb != "reach" and episode.met(index, before):
                return "failed", reasons[4]
    return "progressing", REASONS["progressing"][0 if verb == "reach" else 1]


def _halted_beyond(episode: Recorded, index: int, step: int) -> bool:
    """Whether sub-goal `index` held before, and the hand has stopped or goes on beside the thing.

    What is pushed or turned may run ahead of the hand, which counts as being there all the same;
    one that has stopped some centimetres behind, or works elsewhere, is not.
    """
    if episode.meta.tag not in ("stopped", "missed") or step < episode.fault_step:
        return False
    if episode.met_bits is None or episode.met(len(episode.meta.plan.subgoals) - 1, step):
        return False
    return not int(episode.met_bits[step]) >> index & 1


def _has_lost(episode: Recorded, index: int, step: int) -> bool:
    """Whether the hand was at the thing of sub-goal `index` when that was moved, and no more."""
    before, now = (int(episode.subgoal[s]) for s in (max(0, episode.fault_step - 1), step))
    subgoals = episode.meta.plan.subgoals
    same_thing = subgoals[now].args[0] == subgoals[index].args[0]
    return now < index and now < before and subgoals[now].verb == "reach" and same_thing


def is_clear(episode: Recorded, step: int) -> bool:
    """Whether a clip that ends at `step` can be judged: not just when something goes wrong.

    A hand that stopped a moment ago cannot be told from one that is about to go on.
    """
    tag, since = episode.meta.tag, step - episode.fault_step
    if tag not in _SEEN_AFTER:
        return True
    if 0 <= since < _SEEN_AFTER[tag]:
        return False
    last = _SEEN_UNTIL.get(tag)
    return last is None or not last < since <= last + _SEEN_AFTER[tag]


def nouns_at_hand(subgoal: Subgoal) -> list[str]:
    """The nouns whose places a sub-goal asks for, at most two, without the gripper."""
    return [noun for noun in subgoal.args if noun != GRIPPER]


def places_at(episode: Recorded, nouns: Sequence[str], step: int) -> np.ndarray:
    """(N_PLACES, cameras, 2) positions of the nouns and the gripper; NaN where out of view."""
    n_cameras = next(iter(episode.places.values())).shape[1]
    out = np.full((N_PLACES, n_cameras, 2), np.nan, np.float32)
    slots = [*nouns[: N_PLACES - 1], *[None] * (N_PLACES - 1 - len(nouns)), GRIPPER]
    for slot, noun in enumerate(slots):
        if noun is not None and noun in episode.places:
            out[slot] = episode.places[noun][step]
    outside = ((out < 0) | (out > 1)).any(-1)
    out[outside] = np.nan
    return out


def serving_subgoals(episodes: Sequence[Recorded]) -> dict[str, tuple[Subgoal, ...]]:
    """Task → the sub-goals that serve it, from the episodes of that task alone."""
    return {e.tasks[0]: e.meta.plan.subgoals for e in episodes if len(e.tasks) == 1}


def one_task(
    rng: np.random.Generator, episode: Recorded, serving: Mapping[str, Sequence[Subgoal]]
) -> tuple[tuple[str, ...], tuple[Subgoal, ...]]:
    """One of the episode's tasks and its sub-goals: several are planned one by one.

    All of them where it is not known which sub-goals serve one of the tasks.
    """
    tasks, subgoals = episode.tasks, episode.meta.plan.subgoals
    if len(tasks) == 1 or not all(task in serving for task in tasks):
        return tasks, subgoals
    task = str(rng.choice(tasks))
    return (task,), tuple(s for s in subgoals if s in serving[task])


def draw_verdict(
    rng: np.random.Generator, by_task: Mapping[str, Sequence[Recorded]]
) -> tuple[Recorded, int, int]:
    """An episode, a step at a clip's end and a sub-goal to judge, failures drawn more often.

    Clips that nobody could judge are left out, see `is_clear`.
    """
    wanted = rng.choice(STATUSES, p=[0.4, 0.25, 0.35])
    found: tuple[Recorded, int, int] | None = None
    for attempt in range(200):
        episode = draw_long(rng, by_task)
        n_clips = max(1, (episode.span.length - IMAGE_EVERY) // TUBELET_EVERY)
        late = wanted == "failed" or rng.random() < 0.3
        low = min(n_clips - 1, episode.fault_step // TUBELET_EVERY) if late else 0
        step = int(rng.integers(low, n_clips)) * TUBELET_EVERY + IMAGE_EVERY
        step = min(step, episode.span.length - 1)
        index = int(rng.integers(len(episode.meta.plan.subgoals)))
        if not is_clear(episode, step):
            continue
        found = episode, step, index
        if attempt >= 20 or verdict_of(episode, index, step)[0] == wanted:
            break
    if found is None:
        raise ValueError("none of the episodes has a clip that can be judged")
    return found


def motion_at(episode: Recorded, step: int) -> str:
    """How the robot moved, in words, during the clip that ends at `step`.

    Nothing is known before a whole clip was seen.
    """
    first = step - _CLIP_STEPS + 1
    return motion_text(episode.state[first : step + 1]) if first >= 0 else ""


def group_by_task(episodes: Sequence[Recorded]) -> dict[str, list[Recorded]]:
    """Task, or how many of them one after the other → its episodes."""
    groups: dict[str, list[Recorded]] = {}
    for episode in episodes:
        n_tasks = len(episode.tasks)
        key = episode.meta.task if n_tasks == 1 else f"{n_tasks} tasks"
        groups.setdefault(key, []).append(episode)
    return groups


def draw_task(
    rng: np.random.Generator, by_task: Mapping[str, Sequence[Recorded]]
) -> Sequence[Recorded]:
    """The episodes of one task: a robot evenly, then one of its tasks evenly."""
    by_robot: dict[str, list[str]] = {}
    for task, episodes in by_task.items():
        by_robot.setdefault(episodes[0].meta.env_id.partition("/")[0], []).append(task)
    return by_task[str(rng.choice(by_robot[str(rng.choice(list(by_robot)))]))]


def draw_long(rng: np.random.Generator, by_task: Mapping[str, Sequence[Recorded]]) -> Recorded:
    """A task as `draw_task` does, then one of its episodes, longer ones more often."""
    episodes = draw_task(rng, by_task)
    lengths = np.array([e.span.length for e in episodes], float)
    return episodes[int(rng.choice(len(episodes), p=lengths / lengths.sum()))]
