"""Verbs, nouns and places → questions about a clip, each with its true answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from embodied.egocot.records import Answer, Judgement
from embodied.egocot.words import in_words
from embodied.model.plan import GRIPPER, spoken_place
from embodied.types import Subgoal

REACH, GRASP = "reach", "grasp"
_MOVES_SECOND = ("hit", "push with", "pull with")
"""Verbs by which the first noun is the tool and the second what is moved."""
_ING = {"unplug": "unplugging"}
_SHORT = re.compile(r"[^aeiou]*[aeiou][^aeiouwxy]")
_BESIDE = 0.08
"""How far apart, in widths of the picture, two things are to be told left from right."""

Places = Mapping[str, tuple[float, float]]


def moved_by(subgoal: Subgoal) -> str | None:
    """The noun that is moved when a sub-goal is carried out; None when nothing is."""
    if subgoal.verb in (REACH, GRASP):
        return None
    return subgoal.args[-1 if subgoal.verb in _MOVES_SECOND else 0]


def doing(verb: str) -> str:
    """`press down` → pressing down."""
    word, space, rest = verb.partition(" ")
    if word in _ING:
        word = _ING[word]
    elif _SHORT.fullmatch(word):
        word += word[-1] + "ing"
    else:
        word = (word[:-1] if word.endswith("e") and not word.endswith("ee") else word) + "ing"
    return word + space + rest


def about_plan(subgoals: Sequence[Subgoal]) -> list[Answer]:
    """What is first, what comes after what, what is last."""
    said = [in_words(subgoal) for subgoal in subgoals]
    if len(said) < 2:
        return []
    found = [Answer("What is the first step?", said[0])]
    for before, after in pairwise(said):
        if said.count(before) == 1:
            found.append(Answer(f"What comes after this step: {before}?", after))
    return [*found, Answer("What is the last step?", said[-1])]


def about_moved(subgoals: Sequence[Subgoal]) -> list[Answer]:
    """Which object the sub-goals move, or which ones."""
    moved = list(dict.fromkeys(noun for s in subgoals if (noun := moved_by(s)) is not None))
    if not moved:
        return []
    which = "Which object is moved?" if len(moved) == 1 else "Which objects are moved, in order?"
    return [Answer(which, ", ".join(f"the {noun}" for noun in moved))]


def about_places(places: Places, when: str = "") -> list[Answer]:
    """Where each thing is, and on which side of the gripper.

    Args:
        places: noun → (x, y); within 0..1 when in view.
        when: " at first" where things move.
    """
    found = [Answer(f"Where is the {noun}{when}?", _where(*xy)) for noun, xy in places.items()]
    seen = {noun: x for noun, (x, y) in places.items() if 0 <= x < 1 and 0 <= y < 1}
    for noun, x in seen.items():
        if noun != GRIPPER and GRIPPER in seen and abs(x - seen[GRIPPER]) >= _BESIDE:
            side = "left" if x < seen[GRIPPER] else "right"
            asked = f"Is the {noun} left or right of the {GRIPPER}{when}?"
            found.append(Answer(asked, f"{side} of it"))
    return found


def _where(x: float, y: float) -> str:
    """In the plan language's own pixels."""
    if 0 <= x < 1 and 0 <= y < 1:
        return spoken_place(x, y)
    return "out of view"


def about_verdict(subgoal: Subgoal, verdict: Judgement) -> list[Answer]:
    """Whether it is done, and why not."""
    answer = "yes" if verdict.status == "done" else "no"
    return [Answer(f"Is this done: {in_words(subgoal)}?", f"{answer}, {verdict.reason}")]


def about_work(subgoal: Subgoal) -> list[Answer]:
    """What the robot is at."""
    noun = moved_by(subgoal)
    if subgoal.verb == REACH:
        return [Answer("What is the robot reaching for?", f"the {subgoal.args[0]}")]
    if noun is None:
        return [Answer(f"What is the robot {doing(subgoal.verb)}?", f"the {subgoal.args[0]}")]
    verb = subgoal.verb if len(subgoal.args) == 1 else subgoal.verb.partition(" ")[0]
    return [Answer(f"What is the robot {doing(verb)}?", f"the {noun}"), *about_moved([subgoal])]


def about_hand(held: str | None) -> list[Answer]:
    """What the robot is holding; None is nothing."""
    return [Answer("What is the robot holding?", "nothing" if held is None else f"the {held}")]


def about_next(asked: str, following: Subgoal | None) -> list[Answer]:
    """What comes next when `asked` was asked for; None when all of it is done."""
    answer = "nothing, all of it is done" if following is None else in_words(following)
    return [Answer(f"The robot was asked: '{asked}'. What comes next?", answer)]
