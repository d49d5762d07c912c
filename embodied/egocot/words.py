"""Sub-goals in words: `press down(button)` → press down the button."""

from __future__ import annotations

from embodied.model.plan import GRIPPER, REASONS
from embodied.types import Status, Subgoal

UNDONE = REASONS["failed"][4]

_WITH_TWO = {  # verb → what is done with its first noun to its second
    "drop": "drop the {0} into the {1}",
    "hit": "hit the {1} with the {0}",
    "insert": "insert the {0} into the {1}",
    "lift": "lift the {0} off the {1}",
    "move": "move the {0} to the {1}",
    "move over wall": "move the {0} over the wall to the {1}",
    "place": "place the {0} on the {1}",
    "pull": "pull the {0} to the {1}",
    "pull with": "pull the {1} with the {0}",
    "push": "push the {0} to the {1}",
    "push around wall": "push the {0} around the wall to the {1}",
    "push back": "push the {0} back to the {1}",
    "push with": "push the {1} with the {0}",
    "slide back": "slide the {0} back to the {1}",
    "slide in": "slide the {0} into the {1}",
    "sweep": "sweep the {0} to the {1}",
    "take out": "take the {0} out and to the {1}",
    "unplug": "unplug the {0} and move it to the {1}",
}


def in_words(subgoal: Subgoal) -> str:
    """What is to be done; how two nouns belong together is left open for an unknown verb."""
    if len(subgoal.args) == 1:
        return f"{subgoal.verb} the {subgoal.args[0]}"
    if subgoal.args[1] == GRIPPER:
        return f"{subgoal.verb} the {subgoal.args[0]} with the {GRIPPER}"
    template = _WITH_TWO.get(subgoal.verb, subgoal.verb + " the {0} (the {1})")
    return template.format(*subgoal.args)


def narrated(subgoal: Subgoal, achieved: bool) -> str:
    """What is to be seen in a clip of it, as a sentence."""
    if not achieved:
        return f"The robot tries to {in_words(subgoal)}."
    verb, space, rest = in_words(subgoal).partition(" ")
    return f"The robot {_third_person(verb)}{space}{rest}."


def told(subgoal: Subgoal, status: Status, reason: str) -> str:
    """The same with a verdict: `The robot tries to pull the handle, but nothing moves.`"""
    if reason == UNDONE:
        return f"What the robot did has come undone: {in_words(subgoal)}."
    said = narrated(subgoal, status == "done")
    return f"{said[:-1]}, but {reason}." if status == "failed" else said


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return f"{verb}es"
    if verb.endswith("y") and not verb.endswith(("ay", "ey", "oy", "uy")):
        return f"{verb[:-1]}ies"
    return f"{verb}s"
