"""What a field of a record may hold, by its type hint; every fault says which field it is in.

A field is a `str`, `int`, `float`, a `Literal` of words, a `Subgoal` (in JSON its text), another
such dataclass, `X | None` or `tuple[X, ...]`. `Annotated[X, Rule(…), "what it means"]` says what
is allowed. `embodied.egocot.jsonl` reads and writes JSON by the same hints, and
`embodied.egocot.schema` makes the JSON Schema of them, so that the three cannot drift apart.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from embodied.types import Subgoal

CONTROLS = r"[\u0000-\u001f\u007f-\u009f\u2028\u2029]"
"""Characters that no text may have: controls, line and paragraph separators."""

_FORBIDDEN = re.compile(CONTROLS.replace("]", r"\ud800-\udfff]"))  # halves of pairs as well
short = reprlib.Repr()
"""How errors quote what came: in one line, and not all of it when it is long."""
short.maxstring = short.maxother = short.maxlong = 80


class RecordError(ValueError):
    """What is wrong with a record, and in which of its fields.

    Attributes:
        field: its path, such as `thought[2].x`; "line" or "record" for the whole.
        problem: the same words for every record that has it, so that they can be counted.
        got: what came instead; may be empty.
    """

    def __init__(self, field: str, problem: str, got: str = "") -> None:
        super().__init__(f"{field}: {problem}" + (f", got {got}" if got else ""))
        self.field, self.problem, self.got = field, problem, got

    def within(self, path: str) -> RecordError:
        """The same error, seen from the object that `path` leads from."""
        return RecordError(f"{path}.{self.field}" if path else self.field, self.problem, self.got)

    @property
    def kind(self) -> str:
        """What it is counted as: without the numbers of entries and what came."""
        anywhere = re.sub(r"\[\d+\]", "[]", self.field)
        return f"{anywhere}: {self.problem}"


@dataclass(frozen=True)
class Rule:
    """What is allowed; nothing is forbidden where nothing is said.

    Args:
        most: characters of a text, or entries of a list.
        low, high, below: a number's bounds; `below` itself is not allowed.
        pattern: a regular expression for the whole text, `wants` what it stands for in words.
    """

    most: int | None = None
    low: float | None = None
    high: float | None = None
    below: float | None = None
    pattern: str | None = None
    wants: str = ""


@dataclass(frozen=True)
class Hint:
    """A type hint taken apart: the type without `None`, its rule and its meaning in words."""

    base: Any
    rule: Rule
    doc: str
    nullable: bool

    @property
    def entry(self) -> Hint:
        """Of the entries of a `tuple[X, ...]`."""
        return peel(get_args(self.base)[0])


def peel(hint: Any) -> Hint:
    """Take a type hint apart."""
    rule, doc, nullable = Rule(), "", False
    while True:
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            rule = next((note for note in notes if isinstance(note, Rule)), rule)
            doc = doc or next((note for note in notes if isinstance(note, str)), "")
        elif get_origin(hint) in (Union, UnionType):
            (hint,) = (arg for arg in get_args(hint) if arg is not NoneType)
            nullable = True
        else:
            return Hint(hint, rule, doc, nullable)


def hints(cls: Any) -> dict[str, Hint]:
    """Field of a dataclass → its hint, in the order in which they are declared."""
    return _hints(cls)


@cache
def _hints(cls: Any) -> dict[str, Hint]:
    types = get_type_hints(cls, include_extras=True)
    return {field.name: peel(types[field.name]) for field in dataclasses.fields(cls)}


def check(instance: Any) -> None:
    """Check every field of a dataclass by its hint. Raises RecordError for the first bad one."""
    for name, hint in hints(type(instance)).items():
        _check(getattr(instance, name), hint, name)


def _check(value: Any, hint: Hint, at: str) -> None:
    base, rule = hint.base, hint.rule
    if value is None and hint.nullable:
        return
    if get_origin(base) is tuple:
        of_type(value, tuple, "a list", at)
        if rule.most is not None and len(value) > rule.most:
            raise RecordError(at, f"has more than {rule.most} entries", str(len(value)))
        for i, entry in enumerate(value):
            _check(entry, hint.entry, f"{at}[{i}]")
    elif get_origin(base) is Literal:
        if value not in get_args(base):
            raise RecordError(at, f"must be one of {', '.join(get_args(base))}", short.repr(value))
    elif base is str:
        check_text(value, rule, at)
    elif base is Subgoal:
        of_type(value, Subgoal, "a sub-goal", at)
        check_text(value.text, rule, at)
        if parse_subgoal(value.text, at) != value:
            raise RecordError(at, "has a noun with a comma in it", short.repr(value.args))
    elif base in (int, float):
        _check_number(value, base, rule, at)
    else:
        of_type(value, base, "an object", at)


def of_type(value: Any, types: Any, what: str, at: str) -> None:
    """RecordError unless it is; `what` says in words what is expected."""
    if not isinstance(value, types):
        raise RecordError(at, f"must be {what}", short.repr(value))


def check_text(text: Any, rule: Rule, at: str) -> None:
    """RecordError if it is no text, empty, too long, or has characters that it must not have."""
    of_type(text, str, "text", at)
    if rule.most is not None and len(text) > rule.most:
        raise RecordError(at, f"is longer than {rule.most} characters", str(len(text)))
    if found := _FORBIDDEN.search(text):
        raise RecordError(at, "has a control character", f"U+{ord(found[0]):04X}")
    if not re.search(r"\S", text):
        raise RecordError(at, "is empty")
    if rule.pattern is not None and not re.fullmatch(rule.pattern, text):
        raise RecordError(at, f"must be {rule.wants}", short.repr(text))


def _check_number(value: Any, base: Any, rule: Rule, at: str) -> None:
    if isinstance(value, bool) or not isinstance(value, base):
        kind = "a whole number" if base is int else "a number"
        raise RecordError(at, f"must be {kind}", short.repr(value))
    low, high = rule.low, rule.high if rule.below is None else rule.below
    inside = (low is None or value >= low) and (high is None or value <= high)
    if not inside or value == rule.below or not math.isfinite(value):
        bounds = f"{'-∞' if low is None else low}..{'∞' if high is None else high}"
        bounds += "" if rule.below is None else f", without {rule.below}"
        raise RecordError(at, f"must lie within {bounds}", short.repr(value))


def parse_subgoal(text: str, at: str) -> Subgoal:
    """A sub-goal in the one form that its text has."""
    try:
        subgoal = Subgoal.parse(text)
    except ValueError:
        subgoal = None
    if subgoal is None or subgoal.text != text:
        raise RecordError(at, "must be verb(noun) or verb(noun, noun)", short.repr(text))
    return subgoal
