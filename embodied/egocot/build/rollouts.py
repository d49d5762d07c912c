"""LeRobotDatasets that `embodied record` wrote → records of their own, with clips cut out.

All that is said is the simulator's truth: captions, positions, verdicts and answers come from the
recorded labels. Only what people say comes from a phrasebook.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from embodied.egocot.build import questions
from embodied.egocot.build.cutting import clip_name, cut
from embodied.egocot.build.drafts import Draft
from embodied.egocot.build.moments import Moment, held, load_labels, moments
from embodied.egocot.dataset import Phrasebook, Recorded
from embodied.egocot.fields import RecordError
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.records import Answer, Judgement, Place, Provenance, Record, Split
from embodied.egocot.words import in_words, narrated, told
from embodied.episodes import DatasetError, DatasetReader, EpisodeMeta
from embodied.model.plan import grounded_nouns
from embodied.types import Subgoal, Vocabulary

LICENCE = "Apache-2.0"
_AT_FIRST = " at first"
_TRIES = 20


@dataclass(frozen=True)
class Settings:
    """How records are made.

    Args:
        phrases: how tasks are asked for.
        split_of: which split an episode is in.
        seed: of the instructions.
        variants: ways to ask for each plan.
        camera: whose pictures; each data set's first when None.
        licence: the recordings'; what the data set says, or else `LICENCE`, when None.
        side: pixels of a clip's longer side at most.
    """

    phrases: Phrasebook
    split_of: Callable[[EpisodeMeta], Split]
    seed: int = 0
    variants: int = 2
    camera: str | None = None
    licence: str | None = None
    side: int = 224


@dataclass(frozen=True)
class Candidate:
    """A moment of a rollout that can become a record."""

    rollout: Rollout
    moment: Moment

    @property
    def kind(self) -> str:
        """By which it takes its turn when some are chosen; a step's is its verdict."""
        verdict = self.moment.verdict
        return verdict.status if self.moment.kind == "step" and verdict else self.moment.kind

    @property
    def reason(self) -> str:
        """The verdict's; empty without one."""
        return self.moment.verdict.reason if self.moment.verdict else ""

    @property
    def group(self) -> str:
        """The task, or how many of them one after the other."""
        tasks = self.rollout.recorded.tasks
        return tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"


def candidates(
    roots: Sequence[Path], settings: Settings, quarantine: Quarantine
) -> tuple[list[Candidate], Counter[str]]:
    """Every moment of the data sets that is worth a record, and what was left out for which reason.

    Episodes of which nothing true can be said go to the quarantine by their number.

    Raises:
        DatasetError: a data set is damaged, or has no such camera.
    """
    found: list[Candidate] = []
    left_out: Counter[str] = Counter()
    for root in roots:
        reader = DatasetReader(root)
        camera = settings.camera or next(iter(reader.cameras), None)
        if camera is None or camera not in reader.cameras:
            raise DatasetError(f"no camera '{camera}' in '{root}': it has {[*reader.cameras]}")
        for meta in reader.episodes:
            try:
                rollout = Rollout.load(reader, meta, camera, settings)
            except RecordError as error:
                quarantine.reject(error, reader.root, meta.index, _text(meta))
                continue
            kept, dropped = moments(rollout.recorded, rollout.success, settings.variants)
            found += [Candidate(rollout, moment) for moment in kept]
            left_out += dropped
    return found, left_out


def build(
    chosen: Sequence[Candidate], folder: Path, settings: Settings, quarantine: Quarantine
) -> Iterator[Draft]:
    """A record of each, its clip written to `folder`; the bad ones go to the quarantine."""
    for candidate in chosen:
        rollout, moment = candidate.rollout, candidate.moment
        meta = rollout.recorded.meta
        text = _text(meta, moment.name)
        try:
            record = rollout.record(moment)
        except RecordError as error:
            quarantine.reject(error, rollout.reader.root, meta.index, text)
            continue
        frames = partial(rollout.reader.frames, meta.index, rollout.camera, moment.steps)
        cut(folder, record.clip, frames, rollout.fps(moment), settings.side)
        yield Draft(record, rollout.reader.root, meta.index, text)


def _text(meta: EpisodeMeta, moment: str | None = None) -> str:
    known = {"env_id": meta.env_id, "seed": meta.seed, "tag": meta.tag}
    return json.dumps(known | ({"moment": moment} if moment else {}))


@dataclass(frozen=True)
class Rollout:
    """One episode on its way to records.

    Args:
        asked: ways to ask for its tasks, each another one where there are so many.
    """

    reader: DatasetReader
    recorded: Recorded
    success: np.ndarray
    camera: str
    asked: tuple[str, ...]
    settings: Settings

    @classmethod
    def load(
        cls, reader: DatasetReader, meta: EpisodeMeta, camera: str, settings: Settings
    ) -> Rollout:
        """Raises RecordError if nothing true can be said about it, or nobody asks for its tasks."""
        if meta.plan.refused is not None:
            raise RecordError("plan", "is missing or refused", repr(meta.plan.refused))
        if meta.outcome not in ("success", "failure"):
            raise RecordError("outcome", "must be success or failure", repr(meta.outcome))
        recorded, success = load_labels(reader, meta.index, camera)
        rng = np.random.default_rng([settings.seed, zlib.crc32(_text(meta).encode())])
        asked = _ways_to_ask(rng, settings.phrases, recorded.tasks, settings.variants + 1)
        return cls(reader, recorded, success, camera, asked, settings)

    @property
    def episode(self) -> str:
        meta = self.recorded.meta
        return "/".join((meta.env_id, str(meta.seed), meta.tag or "none"))

    def fps(self, moment: Moment) -> float:
        """At which a clip plays as fast as it was."""
        span = max(1, moment.steps[-1] - moment.steps[0])
        return self.reader.fps * max(1, len(moment.steps) - 1) / span

    def record(self, moment: Moment) -> Record:
        """The record of one moment; its clip is named, not written."""
        every = self.recorded.meta.plan.subgoals
        subgoals = tuple(every[i] for i in moment.indices)
        asked = self.asked[-1 if moment.kind == "episode" else moment.variant]
        of = (self.reader.root.name, self.episode, self.camera)
        key = (self.recorded.meta.layout_sha, self.recorded.meta.length, self.settings.side)
        return Record(
            id="/".join((*of, moment.name)),
            clip=clip_name("/".join(of), moment.steps, *key),
            first_frame=None,
            last_frame=None,
            instruction=in_words(subgoals[0]) if moment.kind == "step" else asked,
            caption=self._caption(moment, subgoals),
            thought=self._thought(subgoals, moment.steps[0]),
            plan=tuple(in_words(subgoal) for subgoal in subgoals),
            actions=subgoals,
            questions=tuple(self._questions(moment, subgoals)),
            verdict=moment.verdict,
            provenance=self._provenance(moment),
            score=None,
            split=self.settings.split_of(self.recorded.meta),
        )

    def _provenance(self, moment: Moment) -> Provenance:
        source = f"LeRobotDataset '{self.reader.root.name}'"
        given = self.reader.info.get("embodied", {}).get("extra", {}).get("licence")
        licence = self.settings.licence or given or LICENCE
        return Provenance(source, licence, self.episode, moment.name, "simulator", None, None)

    def _caption(self, moment: Moment, subgoals: tuple[Subgoal, ...]) -> str:
        verdict = moment.verdict
        if verdict is None:
            things = [f"the {place.object}" for place in self._thought(subgoals, 0)]
            return f"In view: {', '.join(things)}." if things else "Nothing of it is in view."
        if moment.kind == "step":
            return told(subgoals[0], verdict.status, verdict.reason)
        last, tried = moment.steps[-1], set(self.recorded.subgoal.tolist())
        success = self.recorded.meta.success
        met = [success or self.recorded.met(i, last) for i in moment.indices]
        said = [narrated(s, met[i]) for i, s in enumerate(subgoals) if met[i] or i in tried]
        return " ".join(said)

    def _thought(self, subgoals: tuple[Subgoal, ...], step: int) -> tuple[Place, ...]:
        """What the sub-goals name and the gripper, where in view."""
        places = self._places(subgoals, step)
        seen = {n: (x, y) for n, (x, y) in places.items() if 0 <= x < 1 and 0 <= y < 1}
        return tuple(Place(noun, x, y) for noun, (x, y) in seen.items())

    def _places(self, subgoals: tuple[Subgoal, ...], step: int) -> dict[str, tuple[float, float]]:
        """Noun → (x, y), out of view too, with the few digits that a float32 has."""
        found = {}
        for noun in grounded_nouns(Vocabulary((self.recorded.meta.task,), subgoals)):
            xy = self.recorded.places.get(noun)
            if xy is not None and np.isfinite(xy[step, 0]).all():
                found[noun] = (float(str(xy[step, 0, 0])), float(str(xy[step, 0, 1])))
        return found

    def _questions(self, moment: Moment, subgoals: tuple[Subgoal, ...]) -> list[Answer]:
        places = self._places(subgoals, moment.steps[0])
        if moment.verdict is None:
            plan = questions.about_plan(subgoals) + questions.about_moved(subgoals)
            return [*questions.about_places(places), *plan]
        where = questions.about_places(places, _AT_FIRST)
        if moment.kind == "step":
            return [*where, *self._about_step(moment, moment.verdict)]
        unmet = moment.verdict.status != "done"
        moved = [] if unmet else questions.about_moved(subgoals)
        return [*where, *questions.about_plan(subgoals), *moved]

    def _about_step(self, moment: Moment, verdict: Judgement) -> list[Answer]:
        every, last = self.recorded.meta.plan.subgoals, moment.steps[-1]
        index = moment.indices[0]
        found = questions.about_verdict(every[index], verdict)
        if verdict.status == "failed":
            return found
        if index == int(self.recorded.subgoal[last]):
            found += questions.about_work(every[index])
        known, noun = held(self.recorded, last)
        found += questions.about_hand(noun) if known else []
        return [*found, *self._about_next(index, verdict, last)]

    def _about_next(self, index: int, verdict: Judgement, last: int) -> list[Answer]:
        """Where there is one true answer: the sub-goal is being worked on, or was just done."""
        every, current = self.recorded.meta.plan.subgoals, int(self.recorded.subgoal[last])
        if current not in ((index, index + 1) if verdict.status == "done" else (index,)):
            return []
        following = every[index + 1] if index + 1 < len(every) else None
        if following is None and not self._all_met(last):
            return []
        return questions.about_next(self.asked[0], following)

    def _all_met(self, step: int) -> bool:
        n_subgoals = len(self.recorded.meta.plan.subgoals)
        return all(self.recorded.met(i, step) for i in range(n_subgoals))


def _ways_to_ask(
    rng: np.random.Generator, phrases: Phrasebook, tasks: Sequence[str], n: int
) -> tuple[str, ...]:
    """`n` instructions, each another one unless there seem to be no more."""
    found: list[str] = []
    try:
        for _ in range(_TRIES * n):
            said = phrases.ask(rng, tasks)
            if said not in found:
                found.append(said)
            if len(found) == n:
                break
    except KeyError as error:
        raise RecordError("tasks", "are not in the phrasebook", str(error)) from None
    return tuple(found[i % len(found)] for i in range(n))
