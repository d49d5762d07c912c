"""4. The plan language: its text form, its grammar for constrained decoding, and its parser.

A plan in words:

    Thought: drawer handle at (104, 88), gripper at (70, 50).
    1. reach(drawer handle)
    2. pull(drawer handle)

Positions are pixels of the first camera's picture, scaled to 224 × 224. The grammar offers the
scene's own nouns and sub-goals and nothing else, so that a decoded plan parses and can be carried
out; which of them, in what order, how many, and where things are is the model's to say.

For ablations a thought may name things without their places, or there is none and the steps begin
at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from embodied.types import MAX_SUBGOALS, STATUSES, Plan, Status, Subgoal, Verdict, Vocabulary

ThoughtKind = Literal["grounded", "ungrounded", "none"]
"""What a thought holds: things with their places, things alone, or there is no thought."""

GRID = 224
N_PLACES = 3
"""Positions asked of the former: the first noun at hand, the second, the gripper."""
MAX_STEPS = 12
"""The most steps that are decoded in one go; tasks in a row are planned one by one."""
GRIPPER = "gripper"
REFUSE = "refuse"
NOTHING = "nothing in view"

_PLACE = re.compile(r"([a-z][a-z ]*?) at \((\d{1,3}), (\d{1,3})\)")
_ANSWERED_PLACE = re.compile(r"at \((\d{1,3}), (\d{1,3})\)")
_STEP = re.compile(r"^(\d{1,2})\. (.+)$")

REASONS: Mapping[str, tuple[str, ...]] = {
    "done": ("it is achieved",),
    "progressing": ("the gripper is on its way", "the work is going on"),
    "failed": (
        "the gripper stopped short",
        "the gripper is in the wrong place",
        "the object is not where the gripper is",
        "nothing moves",
        "it has come undone",
    ),
}
"""What a verdict may give as its reason, by status."""


class PlanError(ValueError):
    """A plan's text does not follow the plan language; the message says where."""


def grounded_nouns(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The nouns that a thought places: the scene's own, then the gripper."""
    return (*(n for n in vocabulary.nouns if n != GRIPPER), GRIPPER)


def thought_text(places: Mapping[str, tuple[float, float]], kind: ThoughtKind = "grounded") -> str:
    """Noun → (x, y) in 0..1 of the picture → the thought in words; out of view is left out."""
    if kind == "none":
        return ""
    parts = []
    for noun, (x, y) in places.items():
        if 0 <= x < 1 and 0 <= y < 1:
            at = "({}, {})".format(*_on_grid((x, y)))
            parts.append(f"{noun} at {at}" if kind == "grounded" else noun)
    return _thought(parts)


def _on_grid(place: tuple[float, float]) -> tuple[int, ...]:
    """x and y in 0..1 → pixels of a picture of `GRID`."""
    return tuple(min(int(part * GRID), GRID - 1) for part in place)


def spoken_place(x: float, y: float) -> str:
    """x and y in 0..1 → as an answer tells a place, `at (104, 88)`."""
    return "at ({}, {})".format(*_on_grid((x, y)))


def read_place(answer: str) -> tuple[float, float] | None:
    """The place, in 0..1, that an answer tells; None when it tells something else."""
    found = _ANSWERED_PLACE.fullmatch(answer.strip())
    return None if found is None else (int(found[1]) / GRID, int(found[2]) / GRID)


def _thought(parts: Iterable[str]) -> str:
    return f"Thought: {', '.join(parts) or NOTHING}."


def parse_thought(text: str) -> dict[str, tuple[float, float]]:
    """The places that a thought names: noun → (x, y) in 0..1."""
    found = _PLACE.findall(text.removeprefix("Thought: "))
    return {noun: (int(x) / GRID, int(y) / GRID) for noun, x, y in found}


def join_thoughts(thoughts: Sequence[str], kind: ThoughtKind = "grounded") -> str:
    """The thoughts of plans that follow each other as one; of two places the later one holds."""
    if kind == "ungrounded":
        said = [t.removeprefix("Thought: ").removesuffix(".") for t in thoughts]
        return _thought(dict.fromkeys(n for t in said if t != NOTHING for n in t.split(", ")))
    places = {noun: at for thought in thoughts for noun, at in parse_thought(thought).items()}
    return thought_text(places, kind)


def steps_text(subgoals: Sequence[Subgoal]) -> str:
    """The numbered steps, a line each."""
    return "\n".join(f"{i}. {s.text}" for i, s in enumerate(subgoals, 1))


def parse_plan(
    text: str, instruction: str, vocabulary: Vocabulary, kind: ThoughtKind = "grounded"
) -> Plan:
    """Read a plan's text form.

    Raises:
        PlanError: naming the line and what is wrong with it.
    """
    thought, lines = "", text.strip().split("\n")
    if kind != "none":
        thought, *lines = lines
        if not thought.startswith("Thought: "):
            raise PlanError(f"line 1: expected 'Thought: …', got {thought!r}")
    n_before = int(kind != "none")
    subgoals = [_parse_step(line, i, n_before, vocabulary) for i, line in enumerate(lines, 1)]
    if not 1 <= len(subgoals) <= MAX_SUBGOALS:
        after = " after the thought" if n_before else ""
        raise PlanError(f"expected 1 to {MAX_SUBGOALS} steps{after}, got {len(subgoals)}")
    return Plan(instruction, thought, tuple(subgoals), vocabulary.tasks)


def _parse_step(line: str, number: int, n_before: int, vocabulary: Vocabulary) -> Subgoal:
    match = _STEP.match(line)
    where = f"line {n_before + number}"
    if match is None or int(match.group(1)) != number:
        raise PlanError(f"{where}: expected '{number}. verb(noun)', got {line!r}")
    try:
        subgoal = Subgoal.parse(match.group(2))
    except ValueError as error:
        raise PlanError(f"{where}: {error}") from None
    if subgoal not in vocabulary.subgoals:
        known = ", ".join(s.text for s in vocabulary.subgoals)
        raise PlanError(f"{where}: the scene cannot {subgoal.text}; it offers {known}")
    return subgoal


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def plan_grammar(
    vocabulary: Vocabulary,
    max_steps: int = MAX_STEPS,
    kind: ThoughtKind = "grounded",
    places: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """The plan language of one scene as a Lark grammar for llguidance.

    Steps are enumerated (no free numbers), and white space is fixed.

    Args:
        places: noun → x and y in 0..1, where they are known; they can only be said to be there.
    """
    actions = " | ".join(_quote(s.text) for s in vocabulary.subgoals)
    n_steps = min(max_steps, 2 * len(vocabulary.subgoals) + 1)
    rules = [*_thought_rules(grounded_nouns(vocabulary), kind, places or {}), f"action: {actions}"]
    for i in range(1, n_steps + 1):
        more = f" step{i + 1}?" if i < n_steps else ""
        new_line = "" if i == 1 and kind == "none" else "\n"
        rules.append(f"step{i}: {_quote(f'{new_line}{i}. ')} action{more}")
    return "\n".join(rules)


def _thought_rules(
    nouns: Sequence[str], kind: ThoughtKind, places: Mapping[str, tuple[float, float]]
) -> list[str]:
    match kind:
        case "grounded" if set(nouns) - set(places):
            numbers = ["NUM: /[0-9]{1,3}/"]
        case "grounded" | "ungrounded":
            numbers = []
        case "none":
            return ["start: step1"]
    start = f'start: "Thought: " (from1 | {_quote(NOTHING)}) "." step1'
    return [start, *_place_rules(nouns, kind, places), *numbers]


def _place_rules(
    nouns: Sequence[str], kind: ThoughtKind, places: Mapping[str, tuple[float, float]]
) -> list[str]:
    """The nouns, with places or without, in their order; what is out of view is left out."""
    rules = []
    for i, noun in enumerate(nouns, 1):
        place = f"{_quote(f'{noun} at (')} NUM {_quote(', ')} NUM {_quote(')')}"
        if noun in places:
            place = _quote(f"{noun} at ({', '.join(map(str, _on_grid(places[noun])))})")
        place = place if kind == "grounded" else _quote(noun)
        more = f' (", " from{i + 1})? | from{i + 1}' if i < len(nouns) else ""
        rules.append(f"from{i}: {place}{more}")
    return rules


def verdict_texts() -> list[str]:
    """Every verdict that can be spoken, `status: reason`."""
    return [f"{status}: {reason}" for status in STATUSES for reason in REASONS[status]]


def likeliest_verdict(chances: Mapping[str, float]) -> Verdict:
    """The status with the largest sum over its texts, for the likeliest of its reasons.

    Args:
        chances: text of `verdict_texts` → probability; they sum to one.
    """
    by_status = dict.fromkeys(STATUSES, 0.0)
    for text, chance in chances.items():
        by_status[status_of(text)] += chance
    status = max(STATUSES, key=by_status.__getitem__)
    best = max((t for t in chances if status_of(t) == status), key=chances.__getitem__)
    return Verdict(status, best.partition(": ")[2], min(1.0, by_status[status]))


def status_of(text: str) -> Status:
    """The status that a text of `verdict_texts` begins with."""
    return next(status for status in STATUSES if text.startswith(f"{status}:"))
