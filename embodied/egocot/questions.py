"""Questions about recorded clips, answered from the simulator's truth, in English.

What is asked is drawn so that who does not look is seldom right: every phase of a plan comes up as
often, and so does each of two possible answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from embodied.egocot.build.moments import held
from embodied.egocot.build.questions import GRASP, about_hand, about_places, doing
from embodied.egocot.dataset import (
    Recorded,
    draw_task,
    is_clear,
    nouns_at_hand,
    verdict_of,
)
from embodied.egocot.wordings import CHINESE, STATES, WORDINGS, Kind
from embodied.egocot.words import in_words, told
from embodied.model.features import IMAGE_EVERY, TUBELET_EVERY
from embodied.model.plan import GRIPPER

ALL_DONE = "nothing, it is done"

AS_EVALUATED: Mapping[Kind, float] = {
    "doing": 1.5,
    "holding": 1.0,
    "holds": 1.0,
    "now": 1.5,
    "done": 2.0,
    "state": 1.5,
    "where": 1.0,
    "side": 0.5,
    "gripper": 0.7,
    "caption": 1.5,
}
"""How often each kind is asked, against the others."""
TO_LEARN: Mapping[Kind, float] = {**AS_EVALUATED, "doing": 3.0, "where": 3.0, "caption": 2.5}
"""The same for the language model to learn from: its answers to these need the most looking."""
TO_WEIGH: Mapping[Kind, float] = {
    kind: share for kind, share in TO_LEARN.items() if kind not in ("where", "caption")
} | {"now": 3.0}
"""The same for a head that weighs answers: of what has a closed set of them."""
_EITHER: Mapping[Kind, tuple[str, str]] = {
    "holding": ("nothing", "the "),
    "holds": ("yes", "no"),
    "done": ("yes", "no"),
    "state": ("yes", "no"),
    "side": ("left", "right"),
    "gripper": ("open", "closed"),
}
"""How the answers begin that are wanted equally often."""

_CHINESE = 0.35
_FINGERS: Mapping[str, tuple[slice, float, float]] = {
    "metaworld": (slice(3, 4), 0.35, 0.95),
    "kitchen": (slice(7, 9), 0.03, 0.07),
}
"""A robot's fingers in its state; their sum up to which they are closed and from which open."""
_TRIES = 50
_SAMPLED_EVERY = 8
"""Steps between the moments at which all that is true is gathered."""


@dataclass(frozen=True)
class Fact:
    """Something that is true of a moment, and can be asked for.

    Args:
        slots: what the wordings of its kind have in braces.
        nouns: the things that it is about.
        weight: how often it is asked, against the other facts of its moment.
    """

    kind: Kind
    answer: str
    slots: Mapping[str, str] = field(default_factory=dict)
    nouns: Sequence[str] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Asked:
    """A question about the clip of `episode` that ends at `step`."""

    episode: Recorded
    step: int
    kind: Kind
    question: str
    answer: str
    nouns: Sequence[str] = ()


def closed_answers(episodes: Iterable[Recorded]) -> set[str]:
    """All that may be answered about some clips, but captions and places."""
    return {
        fact.answer
        for episode in episodes
        for step in range(IMAGE_EVERY, episode.span.length, _SAMPLED_EVERY)
        for fact in facts_at(episode, step)
        if fact.kind not in ("caption", "where")
    }


def questions_for(episode: Recorded, step: int, rng: np.random.Generator) -> tuple[str, str]:
    """A question about the clip that ends at `step`, and its answer.

    Raises:
        ValueError: nothing is known of that moment.
    """
    asked = _ask(episode, step, list(facts_at(episode, step)), rng)
    return asked.question, asked.answer


def draw_question(
    rng: np.random.Generator,
    by_task: Mapping[str, Sequence[Recorded]],
    shares: Mapping[Kind, float] = AS_EVALUATED,
) -> Asked:
    """A question about a clip of any episode, of a kind and with an answer that are drawn first.

    Args:
        shares: how often each kind is asked, against the others.

    Raises:
        ValueError: none of the episodes has a clip of which something is known.
    """
    kinds, weights = list(shares), np.array([*shares.values()])
    kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    wanted = _EITHER[kind][int(rng.integers(2))] if kind in _EITHER else ""
    clip: tuple[Recorded, int] | None = None
    for _ in range(_TRIES):
        clip = _draw_clip(rng, by_task) or clip
        if clip is not None:
            facts = [f for f in facts_at(*clip) if f.kind == kind and f.answer.startswith(wanted)]
            if facts:
                return _ask(*clip, facts, rng)
    if clip is None:
        raise ValueError("none of the episodes has a clip that can be asked about")
    return _ask(*clip, list(facts_at(*clip)), rng)  # that kind cannot be asked of these episodes


def _draw_clip(
    rng: np.random.Generator, by_task: Mapping[str, Sequence[Recorded]]
) -> tuple[Recorded, int] | None:
    """An episode and a clip's end: robots, tasks and phases evenly; None when none is clear."""
    episodes = draw_task(rng, by_task)
    episode = episodes[int(rng.integers(len(episodes)))]
    step = _draw_step(rng, episode)
    return None if step is None else (episode, step)


def _draw_step(rng: np.random.Generator, episode: Recorded) -> int | None:
    """The end of a clip that can be judged; every phase of the plan is as likely."""
    ends = range(IMAGE_EVERY, episode.span.length, TUBELET_EVERY)
    by_phase: dict[int, list[int]] = {}
    for step in ends:
        if is_clear(episode, step):
            by_phase.setdefault(_phase(episode, step), []).append(step)
    if not by_phase:
        return None
    steps = by_phase[list(by_phase)[int(rng.integers(len(by_phase)))]]
    return steps[int(rng.integers(len(steps)))]


def _phase(episode: Recorded, step: int) -> int:
    """The sub-goal that is worked on, or the number after the last once nothing is left."""
    current = int(episode.subgoal[step])
    return current + 1 if episode.met(current, step) else current


def _ask(episode: Recorded, step: int, facts: Sequence[Fact], rng: np.random.Generator) -> Asked:
    if not facts:
        raise ValueError(f"nothing is known of step {step} of {episode.meta.env_id}")
    n_alike = Counter(fact.kind for fact in facts)
    weights = np.array([AS_EVALUATED[f.kind] * f.weight / n_alike[f.kind] for f in facts])
    fact = facts[int(rng.choice(len(facts), p=weights / weights.sum()))]
    return Asked(episode, step, fact.kind, _worded(fact, rng), fact.answer, fact.nouns)


def _worded(fact: Fact, rng: np.random.Generator) -> str:
    """One of the ways to ask for it; in English where there are no words for it in Chinese."""
    slots, in_chinese = dict(fact.slots), bool(rng.random() < _CHINESE)
    if fact.kind == "state":
        return STATES[slots["step"]][int(in_chinese)]
    ways = WORDINGS[fact.kind]
    in_chinese &= "zh" in ways and slots.get("thing", GRIPPER) in CHINESE
    if in_chinese and "thing" in slots:
        slots["thing"] = CHINESE[slots["thing"]]
    wordings = ways["zh" if in_chinese else "en"]
    return wordings[int(rng.integers(len(wordings)))].format(**slots)


def facts_at(episode: Recorded, step: int) -> Iterator[Fact]:
    """All that can be asked about the clip that ends at `step`."""
    halted = episode.meta.tag in ("stopped", "missed") and step >= episode.fault_step
    yield from _about_work(episode, step, halted)
    yield from _about_steps(episode, step)
    yield from _about_states(episode, step)
    yield from _about_hand(episode, step)
    yield from _about_places(episode, step)


def _about_work(episode: Recorded, step: int, halted: bool) -> Iterator[Fact]:
    """What the robot is at, what it has to do, and what happened; a robot that halts does nothing.

    Between two sub-goals, or after the last one, it is at none of them.
    """
    subgoals, current = episode.meta.plan.subgoals, int(episode.subgoal[step])
    now = subgoals[current]
    nouns = nouns_at_hand(now)
    is_met = episode.met(current, step)
    if not halted and not is_met:
        yield Fact("doing", doing(in_words(now)), nouns=nouns)
    if is_clear(episode, step):
        yield Fact("caption", told(now, *verdict_of(episode, current, step)), nouns=nouns)
    left = [s for i, s in enumerate(subgoals) if not episode.met(i, step)]
    if episode.meta.instruction:
        answer = in_words(left[0]) if left else ALL_DONE
        following = nouns_at_hand(left[0] if left else subgoals[-1])
        yield Fact("now", answer, {"asked": episode.meta.instruction}, following)


def _about_steps(episode: Recorded, step: int) -> Iterator[Fact]:
    """Whether each sub-goal is done. Early ones mostly are, late ones mostly not."""
    n = len(episode.meta.plan.subgoals)
    for i, subgoal in enumerate(episode.meta.plan.subgoals):
        met = episode.met(i, step)
        n_phases = n - i if met else i + 1  # in which it is so, of n + 1
        asked, weight = {"step": in_words(subgoal)}, n / (2 * n_phases)
        yield Fact("done", _yes(met), asked, nouns_at_hand(subgoal), weight)


def _about_states(episode: Recorded, step: int) -> Iterator[Fact]:
    """Whether a drawer is open and the like; not while it is on the way there or was before."""
    furthest = int(episode.subgoal[: step + 1].max())
    for i, subgoal in enumerate(episode.meta.plan.subgoals):
        if subgoal.text not in STATES:
            continue
        met = episode.met(i, step)
        if met or furthest < i:
            n, n_phases = len(episode.meta.plan.subgoals), i  # in which it is not begun
            weight = 1.0 if met else max(1, n - i) / max(1, n_phases)
            yield Fact("state", _yes(met), {"step": subgoal.text}, nouns_at_hand(subgoal), weight)


def _about_hand(episode: Recorded, step: int) -> Iterator[Fact]:
    """What is held, whether this thing is, and whether the fingers are open."""
    known, noun = held(episode, step)
    if known:
        weight = 1.0 if noun else 0.4
        nouns = (noun,) if noun else ()
        yield Fact("holding", about_hand(noun)[0].answer, nouns=nouns, weight=weight)
        carried = [s.args[0] for s in episode.meta.plan.subgoals if s.verb == GRASP]
        for thing in dict.fromkeys(carried):
            yield Fact("holds", _yes(thing == noun), {"thing": thing}, (thing,), weight)
    fingers, closed, wide = _FINGERS.get(episode.meta.env_id.partition("/")[0], (None, 0, 0))
    if fingers is None or (known and noun):
        return
    width = float(episode.state[step, fingers].sum())
    if width <= closed or width >= wide:
        yield Fact("gripper", "open" if width >= wide else "closed")


def _about_places(episode: Recorded, step: int) -> Iterator[Fact]:
    """Where things are in the first camera's picture, and on which side of the gripper."""
    places = {n: (float(xy[step, 0, 0]), float(xy[step, 0, 1])) for n, xy in episode.places.items()}
    places = {noun: xy for noun, xy in places.items() if np.isfinite(xy).all()}
    for noun, xy in places.items():
        yield Fact("where", about_places({noun: xy})[0].answer, {"thing": noun}, (noun,))
        if noun != GRIPPER and GRIPPER in places:
            beside = about_places({noun: xy, GRIPPER: places[GRIPPER]})[2:]
            for side in beside:
                yield Fact("side", side.answer, {"thing": noun}, (noun,))


def _yes(true: bool) -> str:
    return "yes" if true else "no"
