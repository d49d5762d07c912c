"""LeRobotDatasets that were recorded with plans, sub-goals and pixel labels → records.

A record's clip is a part of the data set's own video file, so that nothing is copied: paths are
relative to the data set's root. Thoughts come from the pixel labels of the clip's first frame;
verdicts from what the simulator said and what went wrong on purpose, by the rules that train the
monitor (`embodied.egocot.dataset.verdict_of`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from embodied.egocot.fields import RecordError
from embodied.egocot.quarantine import Quarantine, strict
from embodied.egocot.records import Judgement, Place, Provenance, Record, Split
from embodied.egocot.words import in_words, narrated
from embodied.episodes import DatasetError, DatasetReader, EpisodeMeta
from embodied.episodes.info import PIXELS
from embodied.episodes.meta import read_rows
from embodied.episodes.places import Row, number_of, path_of, video_kind
from embodied.model.plan import REASONS, grounded_nouns
from embodied.types import Subgoal, Vocabulary

if TYPE_CHECKING:
    from embodied.egocot.dataset import Recorded

Part = Literal["start", "subgoal", "episode"]
_DONE = Judgement("done", REASONS["done"][0])
_START: tuple[Part, ...] = ("start",)


def read_lerobot(
    root: str | Path,
    quarantine: Quarantine | None = None,
    *,
    licence: str,
    split: Split = "train",
    parts: Collection[Part] = _START,
    camera: str | None = None,
    start_steps: int = 1,
) -> Iterator[Record]:
    """Read a data set, episode by episode.

    Args:
        root: its folder.
        quarantine: takes episodes without a plan and those that ended in a fault, by their
            number; without it the first one raises.
        licence: the recordings', which the data set itself does not say.
        split: which one all of them are in.
        parts: which clips of an episode to make records of. "start" is what the planner sees: the
            first pictures, the whole plan and no verdict. "subgoal" is a clip each time that a
            sub-goal is worked on until success, with the verdict on it. "episode" is all of it,
            up to where success was last reported, with the verdict on the whole plan.
        camera: whose pictures; the data set's first when not given.
        start_steps: how many control steps the "start" is long.

    Raises:
        DatasetError: if the data set is damaged or there is no such camera.
        ValueError: for unknown parts, or a bad episode when there is no quarantine.
    """
    if start_steps < 1 or not set(parts) <= set(get_args(Part)):
        raise ValueError(f"parts are {get_args(Part)}, the start at least 1 step; got {parts}")
    quarantine = quarantine or strict()
    reader = DatasetReader(root)
    camera = camera or next(iter(reader.cameras), None)
    if camera is None or camera not in reader.cameras:
        raise DatasetError(f"no camera '{camera}' in '{root}': it has {[*reader.cameras]}")
    rows = read_rows(reader.root, reader.info, stats=False)
    for meta, row in zip(reader.episodes, rows, strict=True):
        episode = _Episode(reader, meta, row, camera, licence, split)
        text = json.dumps({"env_id": meta.env_id, "seed": meta.seed, "tag": meta.tag})
        try:
            episode.check()
        except RecordError as error:
            quarantine.reject(error, reader.root, meta.index, text)
            continue
        for make in episode.records(parts, start_steps):
            record = quarantine.admit(make, reader.root, meta.index, text)
            if record is not None:
                yield record


@dataclass(frozen=True)
class _Episode:
    """One episode on its way to records."""

    reader: DatasetReader
    meta: EpisodeMeta
    row: Row
    camera: str
    licence: str
    split: Split

    def check(self) -> None:
        """RecordError if nothing true can be said about it."""
        if self.meta.plan.refused is not None:
            raise RecordError("plan", "is missing or refused", repr(self.meta.plan.refused))
        if self.meta.outcome not in ("success", "failure"):
            raise RecordError("outcome", "must be success or failure", repr(self.meta.outcome))

    def records(self, parts: Collection[Part], start_steps: int) -> Iterator[partial[Record]]:
        """What makes each record, for `Quarantine.admit`."""
        if "start" in parts:
            yield partial(self._start, start_steps)
        if "subgoal" in parts:
            for number, (first, last) in enumerate(self._runs()):
                yield partial(self._subgoal, number, first, last)
        if "episode" in parts:
            yield partial(self._whole)

    def _start(self, n_steps: int) -> Record:
        subgoals = self.meta.plan.subgoals
        thought = self._thought(subgoals, 0)
        seen = ", ".join(f"the {place.object}" for place in thought)
        return self._record(
            "start",
            (0, min(n_steps, self.meta.length) - 1),
            instruction=self.meta.instruction,
            caption=f"In view: {seen}." if seen else "Nothing that the task needs is in view.",
            subgoals=subgoals,
        )

    def _subgoal(self, number: int, first: int, last: int) -> Record:
        index = int(self._recorded.subgoal[first])
        subgoal = self.meta.plan.subgoals[index]
        at_success = self.meta.success and last == self._ended(first_time=True)
        is_last = index == len(self.meta.plan.subgoals) - 1
        verdict = _DONE if at_success and is_last else self._verdict(index, last)
        return self._record(
            f"{number}: {subgoal.text}",
            (first, last),
            instruction=in_words(subgoal),
            caption=narrated(subgoal, verdict.status == "done"),
            subgoals=(subgoal,),
            verdict=verdict,
        )

    def _whole(self) -> Record:
        subgoals, last = self.meta.plan.subgoals, self._ended(first_time=False)
        tried = set(self._recorded.subgoal.tolist())
        met = [self.meta.success or self._recorded.met(i, last) for i in range(len(subgoals))]
        told = [narrated(s, met[i]) for i, s in enumerate(subgoals) if met[i] or i in tried]
        return self._record(
            "episode",
            (0, last),
            instruction=self.meta.instruction,
            caption=" ".join(told),
            subgoals=subgoals,
            verdict=_DONE if all(met) else self._verdict(met.index(False), last),
        )

    def _record(
        self,
        segment: str,
        steps: tuple[int, int],
        *,
        instruction: str,
        caption: str,
        subgoals: tuple[Subgoal, ...],
        verdict: Judgement | None = None,
    ) -> Record:
        meta, kind = self.meta, video_kind(self.camera)
        offset = round(self.row[f"{kind}/from_timestamp"] * self.reader.fps)
        episode = "/".join((meta.env_id, str(meta.seed), meta.tag or "none"))
        return Record(
            id=f"{episode}/{self.camera}/{segment}",
            clip=path_of(self.reader.info, kind, number_of(self.row, kind)),
            first_frame=offset + steps[0],
            last_frame=offset + steps[1],
            instruction=instruction,
            caption=caption,
            thought=self._thought(subgoals, steps[0]),
            plan=tuple(in_words(subgoal) for subgoal in subgoals),
            actions=subgoals,
            questions=(),
            verdict=verdict,
            provenance=self._provenance(episode, segment),
            score=None,
            split=self.split,
        )

    def _provenance(self, episode: str, segment: str) -> Provenance:
        source = f"LeRobotDataset '{self.reader.root.name}'"
        return Provenance(source, self.licence, episode, segment, "simulator", None, None)

    def _thought(self, subgoals: tuple[Subgoal, ...], step: int) -> tuple[Place, ...]:
        """What the sub-goals name and the gripper, where in view."""
        nouns = grounded_nouns(Vocabulary((self.meta.task,), subgoals))
        places = self._recorded.places
        found = []
        for noun in nouns:
            x, y = places[noun][step, 0] if noun in places else (np.nan, np.nan)
            if 0 <= x < 1 and 0 <= y < 1:
                found.append(Place(noun, _decimal(x), _decimal(y)))
        return tuple(found)

    def _runs(self) -> list[tuple[int, int]]:
        """Each time that a sub-goal is worked on: its first step, and the step that it ends at."""
        end = self._ended(first_time=True)
        changes = np.flatnonzero(np.diff(self._recorded.subgoal[:end])) + 1
        return list(pairwise([0, *changes.tolist(), end])) if end else [(0, 0)]

    def _ended(self, first_time: bool) -> int:
        """The step whose picture shows the success when it was first or last reported, or the end.

        Recordings go on for a while, and what was achieved may come undone.
        """
        steps = np.flatnonzero(self._columns.get("next.success", ()))
        if not self.meta.success or not len(steps):
            return self.meta.length - 1
        return min(int(steps[0 if first_time else -1]) + 1, self.meta.length - 1)

    def _verdict(self, index: int, step: int) -> Judgement:
        from embodied.egocot.dataset import verdict_of  # here, for it imports torch

        return Judgement(*verdict_of(self._recorded, index, step))

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return self.reader.arrays(self.meta.index)

    @cached_property
    def _recorded(self) -> Recorded:
        """The labels of the steps, as training has them; no features, nothing asks for them."""
        from embodied.egocot.dataset import Recorded
        from embodied.model.features import EpisodeSpan

        columns = self._columns
        labels = columns.get(PIXELS + self.camera, np.empty((self.meta.length, 0)))
        pixels = labels.reshape(self.meta.length, -1, 2)
        return Recorded(
            self.meta,
            EpisodeSpan(0, 0, self.meta.length),
            None,  # type: ignore[arg-type]
            columns["observation.state"],
            columns["action"],
            columns["subgoal_index"],
            columns["subgoal.done"],
            {noun: pixels[:, k, None] for k, noun in enumerate(self.reader.nouns)},
            columns.get("subgoal.met"),
        )


def _decimal(value: float) -> float:
    """With the few digits that a float32 has."""
    return float(str(np.float32(value)))
