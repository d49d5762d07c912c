"""An episode's labels → the moments of it that are worth a record.

Three kinds. A *start* is the first picture, which a plan is made from. A *step* is a clip of 8
pictures over 15 control steps, as the monitor sees it, with the true verdict on a sub-goal that was
at hand in it. An *episode* is 8 pictures over all of it, with the verdict on the whole plan. What
nobody could judge from the pictures (`embodied.egocot.dataset.is_clear`) is left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np

from embodied.egocot.build.cutting import N_FRAMES
from embodied.egocot.build.questions import GRASP, REACH
from embodied.egocot.dataset import Recorded, is_clear, verdict_of
from embodied.egocot.records import Judgement
from embodied.episodes import DatasetReader
from embodied.episodes.info import PIXELS
from embodied.model.features import IMAGE_EVERY, EpisodeSpan
from embodied.model.plan import REASONS
from embodied.video import sample_indices

Kind = Literal["start", "step", "episode"]

UNCLEAR = "nobody could judge it yet: something has just gone wrong"
_DONE = Judgement("done", REASONS["done"][0])
_GRID_STEPS = 8
_MOST_ALIKE = 2
_AFTER_FAULT_STEPS = 24


@dataclass(frozen=True)
class Moment:
    """A part of an episode.

    Args:
        steps: the control steps whose pictures are shown, in order.
        indices: the sub-goals of the plan that it is about.
        verdict: on these, at the last of the steps.
        variant: which of several ways to ask for the same.
    """

    kind: Kind
    steps: tuple[int, ...]
    indices: tuple[int, ...]
    verdict: Judgement | None = None
    variant: int = 0

    @property
    def name(self) -> str:
        """Tells it from the others of its episode."""
        about = f" {self.indices[0]}" if self.kind == "step" else ""
        return f"{self.kind}{about} {self.steps[0]}-{self.steps[-1]}.{self.variant}"


def load_labels(reader: DatasetReader, index: int, camera: str) -> tuple[Recorded, np.ndarray]:
    """An episode's labels in one camera, without features, and (T,) whether success was reported.

    Nothing here asks for features, so there need be none.
    """
    columns, meta = reader.arrays(index), reader.episodes[index]
    labels = columns.get(PIXELS + camera, np.empty((meta.length, 0)))
    pixels = labels.reshape(meta.length, -1, 2)
    recorded = Recorded(
        meta,
        EpisodeSpan(0, 0, meta.length),
        None,  # type: ignore[arg-type]
        columns["observation.state"],
        columns["action"],
        columns["subgoal_index"],
        columns["subgoal.done"],
        {noun: pixels[:, k, None] for k, noun in enumerate(reader.nouns) if k < pixels.shape[1]},
        columns.get("subgoal.met"),
    )
    return recorded, columns.get("next.success", np.zeros(meta.length, bool))


def moments(
    episode: Recorded, success: np.ndarray, variants: int
) -> tuple[list[Moment], Counter[str]]:
    """The moments of an episode, and how many were left out for which reason.

    Args:
        success: (T,), what the environment reported after each step.
        variants: how many ways to ask for the plan.
    """
    everything = tuple(range(len(episode.meta.plan.subgoals)))
    found = [Moment("start", (0,), everything, variant=v) for v in range(variants)]
    steps, left_out = _steps(episode)
    whole = _whole(episode, success, everything)
    if whole is None:
        left_out[UNCLEAR] += 1
    return [*found, *steps, *([whole] if whole else [])], left_out


def _steps(episode: Recorded) -> tuple[list[Moment], Counter[str]]:
    """Of those that look alike (same sub-goal, same verdict), the first and the last."""
    groups: dict[tuple[int, Judgement], list[Moment]] = {}
    left_out: Counter[str] = Counter()
    for step in _ends(episode):
        if not is_clear(episode, step):
            left_out[UNCLEAR] += 1
            continue
        first = step - IMAGE_EVERY * (N_FRAMES - 1)
        shown = tuple(max(0, s) for s in range(first, step + 1, IMAGE_EVERY))
        for index in at_hand(episode, step):
            verdict = Judgement(*verdict_of(episode, index, step))
            alike = groups.setdefault((index, verdict), [])
            alike.append(Moment("step", shown, (index,), verdict))
    kept = []
    for alike in groups.values():
        kept += [alike[i] for i in dict.fromkeys(sample_indices(len(alike), _MOST_ALIKE).tolist())]
    return kept, left_out


def _ends(episode: Recorded) -> list[int]:
    """Steps to end a clip at: evenly spread, and wherever another sub-goal begins."""
    length = episode.meta.length
    changes = (np.flatnonzero(np.diff(episode.subgoal)) + 1).tolist()
    ends = {*range(_GRID_STEPS, length, _GRID_STEPS), *changes, length - 1}
    return sorted(step for step in ends if step >= _GRID_STEPS)


def at_hand(episode: Recorded, step: int) -> list[int]:
    """The sub-goals that were worked on in the clip that ends at `step`.

    When the scene was changed of late, also what was being worked on then, and what has come
    undone by it.
    """
    first = max(0, step - IMAGE_EVERY * (N_FRAMES - 1))
    found = set(episode.subgoal[first : step + 1].tolist())
    fault = episode.fault_step
    if episode.meta.tag in ("moved", "pushed_back") and 0 <= step - fault <= _AFTER_FAULT_STEPS:
        before = max(0, fault - 1)
        found |= {int(episode.subgoal[before])}
        for i, subgoal in enumerate(episode.meta.plan.subgoals):
            if subgoal.verb != REACH and episode.met(i, before) and not episode.met(i, step):
                found |= {i}
    return sorted(found)


def _whole(episode: Recorded, success: np.ndarray, everything: tuple[int, ...]) -> Moment | None:
    """From the first step to the last reported success, or to the end; None when unclear."""
    last = episode.meta.length - 1
    reported = np.flatnonzero(success)
    if episode.meta.success and len(reported):
        last = min(int(reported[-1]) + 1, last)
    unmet = [i for i in everything if not (episode.meta.success or episode.met(i, last))]
    if unmet and not is_clear(episode, last):
        return None
    verdict = Judgement(*verdict_of(episode, unmet[0], last)) if unmet else _DONE
    return Moment(
        "episode", tuple(sample_indices(last + 1, N_FRAMES).tolist()), everything, verdict
    )


def held(episode: Recorded, step: int) -> tuple[bool, str | None]:
    """Whether it is known what is in the hand at `step`, and what; None is nothing.

    It is known from a plan that grasps: between the grasp and the end of what follows it, the
    thing; before it, nothing. A handle that is only hooked is never said to be held.
    """
    subgoals, current = episode.meta.plan.subgoals, int(episode.subgoal[step])
    before = subgoals[current - 1] if current else None
    now = subgoals[current]
    if before is not None and before.verb == GRASP and before.args[0] == now.args[0]:
        return not episode.met(current, step), before.args[0]
    upcoming = now if now.verb == GRASP else (*subgoals[current + 1 : current + 2], now)[0]
    waits = upcoming.verb == GRASP and upcoming.args[0] == now.args[0]
    return waits and not episode.met(current, step), None
