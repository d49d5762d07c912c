"""Failures made from successes: the robot stops half way and stands still.

Demonstrations show how a task goes well and never how it looks when it does not, and a judge that
is tuned on them alone comes to call everything done. A tubelet of two equal pictures has exactly
the tokens of the picture (see `embodied.model.vision`), so what a camera would have seen of a robot
that halts at any moment is in the feature cache already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from embodied.egocot.dataset import Recorded
from embodied.model.features import TUBELET_EVERY

_HALT_STEPS = 40
"""How long it stands still; nobody can tell a halt from a pause before 16 steps."""

_ABOUT_TO = 12
"""No halt within so many steps before a sub-goal is met: it may look as if it were."""


@dataclass(frozen=True)
class Halted(Recorded):
    """An episode up to step `halt`, at which the robot stops for good."""

    halt: int = 0

    def picture(self, step: int) -> np.ndarray:
        """As of the whole episode; after the halt the picture of that moment."""
        return super().picture(min(step, self.halt))

    def _tubelet(self, row: int) -> np.ndarray:
        first_step = (row - self.span.first_tubelet) * TUBELET_EVERY
        return super()._tubelet(row) if first_step < self.halt else self.picture(self.halt)


def halt_at(episode: Recorded, step: int) -> Halted:
    """`episode`, had the robot stopped at `step`, which is the first of a tubelet.

    Raises:
        ValueError: it is not, or the episode has no such step.
    """
    if step % TUBELET_EVERY or not 0 <= step < episode.span.length:
        raise ValueError(
            f"a robot can halt at multiples of {TUBELET_EVERY} below {episode.span.length}, "
            f"not at {step}"
        )
    rows = np.minimum(np.arange(step + _HALT_STEPS + 1), step)
    info = {**episode.meta.info, "tag": "stopped", "fault_step": step}
    meta = replace(episode.meta, outcome="failure", length=len(rows), tag="stopped", info=info)
    return Halted(
        meta,
        replace(episode.span, length=len(rows)),
        episode.cache,
        episode.state[rows],
        episode.action[rows],
        episode.subgoal[rows],
        episode.done[rows],
        {noun: places[rows] for noun, places in episode.places.items()},
        None if episode.met_bits is None else episode.met_bits[rows],
        episode.still,
        halt=step,
    )


def halts_of(episode: Recorded, n: int, rng: np.random.Generator) -> list[Halted]:
    """`n` ways to stop in `episode`, every phase of its plan as often; also once all is done."""
    by_phase: dict[tuple[int, bool], list[int]] = {}
    for step in range(0, episode.span.length, TUBELET_EVERY):
        current = int(episode.subgoal[step])
        is_met = episode.met(current, step)
        if is_met or not _is_about_to(episode, current, step):
            by_phase.setdefault((current, is_met), []).append(step)
    phases: Sequence[list[int]] = list(by_phase.values())
    if not phases:
        return []
    return [halt_at(episode, int(rng.choice(phases[k % len(phases)]))) for k in range(n)]


def with_halts(episodes: Sequence[Recorded], n: int, seed: int) -> list[Recorded]:
    """The episodes, and `n` failures made of each of those that succeeded."""
    rng = np.random.default_rng(seed)
    halts = (halt for e in episodes if e.meta.success for halt in halts_of(e, n, rng))
    return [*episodes, *halts]


def _is_about_to(episode: Recorded, index: int, step: int) -> bool:
    """Whether sub-goal `index` is met within the next steps."""
    last = min(step + _ABOUT_TO, episode.span.length - 1)
    return any(episode.met(index, later) for later in range(step + 1, last + 1))
