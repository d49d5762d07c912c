"""Demonstrations to imitate, with cached features; also from data sets that others recorded.

Where a data set has no plans, its instruction is the one sub-goal: `do(instruction)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from embodied.egocot.dataset import Recorded, is_imitable
from embodied.episodes import DatasetReader, EpisodeMeta
from embodied.episodes.info import PIXELS
from embodied.model.features import IMAGE_EVERY, EpisodeSpan, FeatureCache, n_images
from embodied.model.plan import GRIPPER
from embodied.model.planner import Planner
from embodied.types import Plan, Subgoal


@dataclass(frozen=True)
class Source:
    """An episode of a data set, before anything of it is loaded."""

    reader: DatasetReader
    meta: EpisodeMeta


_Episode = TypeVar("_Episode", Source, Recorded)


def sources_of(reader: DatasetReader) -> list[Source]:
    """Every episode, with a plan and a task even where none was recorded."""
    return [Source(reader, _with_plan(meta)) for meta in reader.episodes]


def _with_plan(meta: EpisodeMeta) -> EpisodeMeta:
    task = meta.task or meta.instruction
    if meta.plan.subgoals:
        return replace(meta, task=task)
    subgoal = Subgoal("do", (meta.instruction or "the task",))
    return replace(meta, task=task, plan=Plan(meta.instruction, "", (subgoal,), (task,)))


def choose_demos(episodes: list[_Episode], n_demos: int) -> list[_Episode]:
    """The first `n_demos` successes of every task.

    Raises:
        ValueError: a task has fewer, or none has any.
    """
    chosen: dict[str, list[_Episode]] = {}
    for episode in episodes:
        found = chosen.setdefault(episode.meta.task, [])
        if is_imitable(episode.meta):
            found.append(episode)
    few = {task: len(found) for task, found in chosen.items() if len(found) < max(1, n_demos)}
    if (few and n_demos) or len(few) == len(chosen):
        asked = n_demos or "all"
        raise ValueError(f"{asked} successful demonstrations a task were asked for, got {few}")
    return [e for found in chosen.values() for e in found[: n_demos or None]]


def load_demos(
    planner: Planner, sources: Sequence[Source], cameras: Sequence[str], root: Path, n_altered: int
) -> list[Recorded]:
    """The episodes with what `cameras` saw, and as many altered copies of each as asked for.

    Args:
        root: where frozen features are cached.
        n_altered: random variants of each episode's pictures, see `embodied.model.augment`.
    """
    found: dict[tuple[DatasetReader, int], list[Recorded]] = {}
    for reader in dict.fromkeys(source.reader for source in sources):
        metas = [source.meta for source in sources if source.reader is reader]
        numbers = sorted(meta.index for meta in metas)
        for variant in range(n_altered + 1):
            cache = FeatureCache.build_part(planner, reader, root, cameras, numbers, variant)
            for meta in metas:
                copies = found.setdefault((reader, meta.index), [])
                copies.append(_load(reader, meta, cache, cameras))
    return [copy for source in sources for copy in found[source.reader, source.meta.index]]


def _load(
    reader: DatasetReader, meta: EpisodeMeta, cache: FeatureCache, cameras: Sequence[str]
) -> Recorded:
    columns, span = reader.arrays(meta.index), cache.spans[meta.index]
    nothing = np.zeros(meta.length)
    return Recorded(
        meta,
        span,
        cache,
        columns["observation.state"].astype(np.float32),
        columns["action"].astype(np.float32),
        columns.get("subgoal_index", nothing).astype(np.int64),
        columns.get("subgoal.done", nothing).astype(bool),
        _places(columns, reader.nouns, cameras, cache, span),
        columns.get("subgoal.met"),
    )


def _places(
    columns: Mapping[str, np.ndarray],
    nouns: Sequence[str],
    cameras: Sequence[str],
    cache: FeatureCache,
    span: EpisodeSpan,
) -> dict[str, np.ndarray]:
    """Noun → (T, cameras, 2), moved with the pictures; the gripper at least, NaN where unknown."""
    unknown = np.full((span.length, len(cameras), 2), np.nan, np.float32)
    if not nouns:
        return {GRIPPER: unknown}
    stacked = np.stack([columns[PIXELS + camera] for camera in cameras], 1)
    places = stacked.reshape(span.length, len(cameras), -1, 2)  # (T, cameras, nouns, 2)
    if cache.shifts is not None:
        rows = slice(span.first_image, span.first_image + n_images(span.length))
        shifts = np.repeat(cache.shifts[rows], IMAGE_EVERY, axis=0)[: span.length]
        places = places + shifts[:, :, None]
    known = {noun: places[:, :, k] for k, noun in enumerate(nouns)}
    return {n: p for n, p in known.items() if np.isfinite(p).any()} or {GRIPPER: unknown}
