"""Recorded episodes as training samples: to act, to plan, to judge.

The simulator's truth that was recorded with every step (sub-goals met, pixel positions, what went
wrong on purpose) becomes labels here, and only here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from embodied.episodes import DatasetReader, EpisodeMeta
from embodied.model.features import (
    IMAGE_EVERY,
    N_TUBELETS,
    TUBELET_EVERY,
    EpisodeSpan,
    FeatureCache,
    n_images,
)
from embodied.model.motion import motion_text
from embodied.model.plan import GRIPPER, REASONS
from embodied.model.planner import CONTROL_TEXT, JUDGE_TEXT, plan_text
from embodied.types import STATUSES, Status, Subgoal


class Phrasebook(Protocol):
    """What people say; `sims.language` is one."""

    def ask(self, rng: np.random.Generator, tasks: Sequence[str]) -> str:
        """One of many ways to ask for `tasks` in their order."""
        ...

    def request(self, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        """Something that a person may say, and the tasks it asks for: none if it is refused."""
        ...


N_PLACES = 3
"""Positions asked of the former: the first noun at hand, the second, the gripper."""

_SEEN_AFTER = {"stopped": 16, "missed": 24, "moved": 8, "pushed_back": 4}
"""Steps after a fault from which a clip of 16 steps shows it."""
_SEEN_UNTIL = {"moved": 24, "pushed_back": 14}
"""Steps after a fault up to which a clip shows what was before."""
_LAG_STEPS = 12
_CLIP_STEPS = (N_TUBELETS * 2 - 1) * IMAGE_EVERY + 1
_LATE, _EARLY = 0.7, 0.12


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


def is_imitable(meta: EpisodeMeta) -> bool:
    """Whether the recorded actions are worth imitating: a success, or an expert's corrections."""
    return meta.success or "acted" in meta.info


def load_recorded(reader: DatasetReader, cache: FeatureCache) -> list[Recorded]:
    """Every episode of a data set, beside its cached features."""
    return [_load_one(reader, cache, i) for i in range(len(reader))]


def _load_one(reader: DatasetReader, cache: FeatureCache, i: int) -> Recorded:
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
    )


def verdict_of(episode: Recorded, index: int, step: int) -> tuple[Status, str]:
    """The true verdict on sub-goal `index` at `step`, and its reason, from how it was recorded."""
    tag, since = episode.meta.tag, step - episode.fault_step
    verb = episode.meta.plan.subgoals[index].verb
    if episode.met(index, step):
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


@dataclass(frozen=True)
class FormerBatch:
    """What one use of the former is trained on.

    Args:
        vision: (B, cameras, T', N, W). texts: the B texts for the former.
        places: (B, N_PLACES, cameras, 2), NaN where unknown.
        state: (B, S). actions: (B, H, A). valid: (B, H). done: (B,). Only for control.
        verdict: (B,) index into STATUSES. Only for verdicts.
    """

    vision: Tensor
    texts: list[str]
    places: Tensor
    state: Tensor | None = None
    actions: Tensor | None = None
    valid: Tensor | None = None
    done: Tensor | None = None
    verdict: Tensor | None = None


@dataclass(frozen=True)
class AlignmentBatch:
    """One batch of each use of the Embodied-former, as far as it is trained for that."""

    control: FormerBatch | None
    plan: FormerBatch | None
    judge: FormerBatch | None


class AlignmentSampler:
    """Batches by step number for training the Embodied-former with the policy.

    Args:
        act_on: episodes to imitate, those left out that are no example; none to train no policy.
        look_at: episodes to ground plans and verdicts in.
        phrases: how tasks are asked for.
        horizon: H, actions in a chunk.
        sizes: how many samples of control, plan and verdict a batch has.
    """

    def __init__(
        self,
        act_on: Sequence[Recorded],
        look_at: Sequence[Recorded],
        phrases: Phrasebook,
        horizon: int,
        sizes: tuple[int, int, int] = (48, 12, 16),
        seed: int = 0,
    ) -> None:
        self._act_on = [e for e in act_on if is_imitable(e.meta)]
        if act_on and not self._act_on:
            raise ValueError("no successful episode to imitate among those given")
        self._look_at = list(look_at)
        self._phrases, self._horizon = phrases, horizon
        self._sizes, self._seed = sizes, seed
        lengths = np.array([e.span.length for e in self._act_on], float)
        self._share = lengths / lengths.sum()
        self._all_by_task = group_by_task(self._look_at)
        self._serving = serving_subgoals(self._look_at)

    def __call__(self, step: int) -> AlignmentBatch:
        rng = np.random.default_rng([self._seed, step])
        n_control, n_plan, n_judge = self._sizes
        return AlignmentBatch(
            self._control(rng, n_control) if self._act_on else None,
            self._plan(rng, n_plan) if n_plan else None,
            self._judge(rng, n_judge) if n_judge else None,
        )

    def _control(self, rng: np.random.Generator, size: int) -> FormerBatch:
        rows = []
        for _ in range(size):
            episode = self._act_on[int(rng.choice(len(self._act_on), p=self._share))]
            step = int(rng.integers(n_images(episode.span.length))) * IMAGE_EVERY
            rows.append((episode, step, self._working_on(rng, episode, step)))
        chunks = [_chunk(e.action, step, self._horizon) for e, step, _ in rows]
        subgoals = [e.meta.plan.subgoals[g] for e, _, g in rows]
        return FormerBatch(
            vision=_stack([e.cache.images[e.span.image(step)][:, None] for e, step, _ in rows]),
            texts=[CONTROL_TEXT.format(s.text) for s in subgoals],
            places=_places(
                [(e, nouns_at_hand(s), t) for (e, t, _), s in zip(rows, subgoals, strict=True)]
            ),
            state=torch.from_numpy(np.stack([e.state[step] for e, step, _ in rows])),
            actions=torch.from_numpy(np.stack([a for a, _ in chunks])),
            valid=torch.from_numpy(np.stack([v for _, v in chunks])),
            done=torch.tensor([float(e.met(g, step)) for e, step, g in rows]),
        )

    def _working_on(self, rng: np.random.Generator, episode: Recorded, step: int) -> int:
        """The current sub-goal; sometimes one off, as when the monitor is late or too early."""
        current = int(episode.subgoal[step])
        if rng.random() < _EARLY:
            return min(current + 1, len(episode.meta.plan.subgoals) - 1)
        before = int(episode.subgoal[max(0, step - int(rng.integers(1, _LAG_STEPS + 1)))])
        return before if before < current and rng.random() < _LATE else current

    def _plan(self, rng: np.random.Generator, size: int) -> FormerBatch:
        rows = []
        for _ in range(size):
            episode = _draw(rng, self._all_by_task)
            step = int(rng.integers(n_images(episode.span.length))) * IMAGE_EVERY
            rows.append((episode, step))
        said = [self._phrases.ask(rng, e.tasks) for e, _ in rows]
        nouns = [self._nouns(rng, e) for e, _ in rows]
        return FormerBatch(
            vision=_stack([e.cache.images[e.span.image(step)][:, None] for e, step in rows]),
            texts=[plan_text(s, n) for s, n in zip(said, nouns, strict=True)],
            places=_places([(e, n, t) for (e, t), n in zip(rows, nouns, strict=True)]),
        )

    def _nouns(self, rng: np.random.Generator, episode: Recorded) -> list[str]:
        """The things that the plan for one of the episode's tasks is about."""
        _, subgoals = one_task(rng, episode, self._serving)
        return list(dict.fromkeys(noun for s in subgoals for noun in nouns_at_hand(s)))

    def _judge(self, rng: np.random.Generator, size: int) -> FormerBatch:
        rows = [draw_verdict(rng, self._all_by_task) for _ in range(size)]
        subgoals = [e.meta.plan.subgoals[g] for e, _, g in rows]
        verdicts = [STATUSES.index(verdict_of(e, g, step)[0]) for e, step, g in rows]
        return FormerBatch(
            vision=_stack([clip_tokens(e, step) for e, step, _ in rows]),
            texts=[JUDGE_TEXT.format(s.text) for s in subgoals],
            places=_places(
                [(e, nouns_at_hand(s), t) for (e, t, _), s in zip(rows, subgoals, strict=True)]
            ),
            verdict=torch.tensor(verdicts),
        )


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
        episode = _draw(rng, by_task)
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


def clip_tokens(episode: Recorded, step: int) -> np.ndarray:
    """The cached clip that ends at `step`: (cameras, tubelets, N, W)."""
    return np.stack([episode.cache.tubelets[row] for row in episode.span.tubelets(step)], axis=1)


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


def _draw(rng: np.random.Generator, by_task: Mapping[str, Sequence[Recorded]]) -> Recorded:
    """A task as `draw_task` does, then one of its episodes, longer ones more often."""
    episodes = draw_task(rng, by_task)
    lengths = np.array([e.span.length for e in episodes], float)
    return episodes[int(rng.choice(len(episodes), p=lengths / lengths.sum()))]


def _chunk(action: np.ndarray, step: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """The next `horizon` actions (H, A), the last one repeated, and which are real (H,)."""
    steps = step + np.arange(horizon)
    return action[np.minimum(steps, len(action) - 1)], steps < len(action)


def _stack(tokens: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(tokens)).float()


def _places(rows: Sequence[tuple[Recorded, list[str], int]]) -> Tensor:
    return torch.from_numpy(np.stack([places_at(e, nouns, step) for e, nouns, step in rows]))
