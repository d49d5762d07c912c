"""A good record, the ways in which one can be wrong, and random ones."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

GOOD: dict[str, Any] = {
    "id": "kitchen/1",
    "clip": "clips/a.mp4",
    "first_frame": 3,
    "last_frame": 9,
    "instruction": "打开抽屉, s'il vous plaît 🙂",
    "caption": "The robot pulls the drawer handle.",
    "thought": [
        {"object": "drawer handle", "x": 0.25, "y": 0.999},
        {"object": "gripper", "x": 0.0, "y": 0.5},
    ],
    "plan": ["reach the drawer handle", "pull the drawer handle"],
    "actions": ["reach(drawer handle)", "grasp(drawer handle, gripper)"],
    "questions": [{"question": "What is pulled?", "answer": "the drawer handle"}],
    "verdict": {"status": "failed", "reason": "nothing moves"},
    "provenance": {
        "source": "made by hand",
        "licence": "Apache-2.0",
        "episode": "1",
        "segment": None,
        "method": "model",
        "model": "some LLM",
        "prompt_version": "3",
    },
    "score": 0.25,
    "split": "select",
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one place changed: `thought[0].x`."""
    record = copy.deepcopy(GOOD)
    *way, last = [int(p) if p.isdigit() else p for p in re.findall(r"\w+", path)]
    at: Any = record
    for step in way:
        at = at[step]
    at[last] = value
    return record


LONG = "x" * 2001
WRONG: list[tuple[str, Any, str, str]] = [
    ("id", "", "id", "is empty"),
    ("id", 7, "id", "must be text, got 7"),
    ("caption", " \u3000", "caption", "is empty"),
    ("caption", LONG, "caption", "is longer than 2000 characters, got 2001"),
    ("caption", "a\nb", "caption", "has a control character, got U+000A"),
    ("plan[1]", "a\u2028b", "plan[1]", "has a control character, got U+2028"),
    ("plan", ["go"] * 17, "plan", "has more than 16 entries, got 17"),
    ("plan", "go", "plan", "must be a list, got 'go'"),
    ("instruction", "\ud800", "instruction", "has a control character, got U+D800"),
    ("instruction", None, "instruction", "must be text, got None"),
    ("thought[0].x", 1, "thought[0].x", "must lie within 0..1, without 1"),
    ("thought[1].y", -0.001, "thought[1].y", "must lie within 0..1, without 1"),
    ("thought[1].y", True, "thought[1].y", "must be a number, got True"),
    ("thought[1].y", 10**400, "thought[1].y", "must lie within 0..1, without 1, got inf"),
    ("thought[1].z", 1, "thought[1]", "has an unknown field, got 'z'"),
    ("thought[1]", {"x": 0.1, "y": 0.1}, "thought[1].object", "is missing"),
    ("thought[1].object", "drawer handle", "thought", "has an object twice"),
    ("actions[0]", "pull", "actions[0]", "must be verb(noun) or verb(noun, noun), got 'pull'"),
    ("actions[0]", "Pull(a)", "actions[0]", "must be verb(noun) or verb(noun, noun)"),
    ("actions[0]", "put(a, b, c)", "actions[0]", "must be verb(noun) or verb(noun, noun)"),
    ("actions[0]", "put( a)", "actions[0]", "must be verb(noun) or verb(noun, noun)"),
    ("actions", [], "actions", "must be there where there is a verdict on them"),
    ("questions[0].answer", "", "questions[0].answer", "is empty"),
    ("verdict.status", "good", "verdict.status", "must be one of done, progressing, failed"),
    ("verdict.reason", None, "verdict.reason", "must be text, got None"),
    ("verdict", [], "verdict", "must be an object, got []"),
    ("score", 1.001, "score", "must lie within -1..1, got 1.001"),
    ("score", "0.2", "score", "must be a number, got '0.2'"),
    ("split", "dev", "split", "must be one of train, select, test, got 'dev'"),
    ("first_frame", -1, "first_frame", "must lie within 0.."),
    ("first_frame", 2.5, "first_frame", "must be a whole number, got 2.5"),
    ("first_frame", 10, "last_frame", "comes before first_frame, got 9"),
    ("first_frame", None, "last_frame", "must be null if and only if first_frame is"),
    ("last_frame", None, "last_frame", "must be null if and only if first_frame is"),
    ("provenance.method", "guess", "provenance.method", "must be one of simulator, human, model"),
    ("provenance.method", "human", "provenance.model", "must be null unless a model made it"),
    ("provenance.model", None, "provenance.model", "must not be null when a model made it"),
    ("extra", 1, "record", "has an unknown field, got 'extra'"),
]
PATHS = ("/etc/a.mp4", "../a.mp4", "a/../b.mp4", "a//b.npy", "./a.mp4", "a\\b.mp4", "C:a.mp4")
PATHS += ("https://a.org/b.mp4", "a.mov", ".npy", "a/", "..")
OUTSIDE = "must be an .mp4's or .npy's path in the folder, without '..'"
WRONG += [("clip", path, "clip", OUTSIDE) for path in PATHS]


JUNK = [None, True, "", " ", -1, 0, 0.5, 10**400, 1e308, [], {}, [[]], {"x": 1}, "\x00", "\ud83d"]
JUNK += ["../x.mp4", "a(b)", "done", "x" * 5000, ["go"] * 50, "\u202e", "model", 3.0]
TOGETHER = {"first_frame": "last_frame", "verdict": "actions"}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within a JSON value."""
    items = list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in value.items() if isinstance(value, dict) else items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def corrupt(rng: np.random.Generator) -> tuple[dict[str, Any], str]:
    """A good record with one thing changed, and the outermost field that it is in."""
    record, ways = copy.deepcopy(GOOD), list(places(GOOD))
    way = ways[rng.integers(len(ways))]
    at: Any = record
    for step in way[:-1]:
        at = at[step]
    match int(rng.integers(4)):
        case 0:
            del at[way[-1]]
        case 1 if isinstance(at, list):
            at.append(copy.deepcopy(at[way[-1]]))
        case 2 if isinstance(at[way[-1]], str):
            text, cut = at[way[-1]], int(rng.integers(len(at[way[-1]])))
            at[way[-1]] = text[:cut] + chr(int(rng.integers(1, 0x3000))) + text[cut:]
        case _:
            at[way[-1]] = JUNK[rng.integers(len(JUNK))]
    return record, str(way[0])
