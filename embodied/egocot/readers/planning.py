"""The plans of the official EgoCOT: sentences, then numbered actions, in one text.

    pick up the mug. Put the mug on the shelf.
    actions:
    1. pick up(mug)
    2. put on(mug, shelf)

Machines wrote them, so the form varies. What varies without a change of meaning is read; whatever
else is there is an error, and nothing is left out to make a plan fit.
"""

from __future__ import annotations

import re

from embodied.egocot.fields import RecordError, short
from embodied.types import Subgoal

FIELD = "planning"
_LONGEST = 4000

_ASCII = str.maketrans("（），、：。；", "(),,:.;")
_LABEL = re.compile(r"^\s*plan(?:n?ing)?\s*:\s*", re.IGNORECASE)
_HEADING = re.compile(r"\bactions?\s*:|^[ \t]*actions?[ \t]*$", re.IGNORECASE | re.MULTILINE)
_NUMBER = r"(?:step\s*)?\(?(?P<number>\d{1,2})(?:\s*[.):,-]\s*|\s+)|[-*•]\s*"
_CALL = r"(?P<verb>[a-z][a-z _-]{0,60}?)\s*\((?P<nouns>[^()]{0,200})\)"
_ACTION = re.compile(rf"\s*(?:{_NUMBER})?{_CALL}\s*[.;,]?\s*", re.IGNORECASE)
_LISTING = re.compile(  # a whole line; "2. Take the cup (the blue one)." is none, for its space
    rf"^[ \t]*(?:{_NUMBER})?[a-z](?:[a-z _-]{{0,60}}[a-z])?\([^()]{{0,200}}\)[ \t]*[.;,]?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_ONLY_NUMBER = re.compile(r"(?:step\s*)?\(?\d{1,2}[.):]?|[-*•]", re.IGNORECASE)
_LEADING = re.compile(r"^(?:(?:step\s*)?\(?\d{1,2}[.):]\s*|[-*•]\s+)", re.IGNORECASE)


def parse_planning(text: str) -> tuple[tuple[str, ...], tuple[Subgoal, ...]]:
    """The plan's sentences and its actions, at least one.

    Raises:
        RecordError: if there is no action, or anything among them that is none.
    """
    if len(text) > _LONGEST:
        raise RecordError(FIELD, f"is longer than {_LONGEST} characters", str(len(text)))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    prose, listing = _halves(text)
    return _sentences(prose), _actions(listing.translate(_ASCII))


def _halves(text: str) -> tuple[str, str]:
    plain = text.translate(_ASCII)  # one character for one, so that places are the same
    if heading := _HEADING.search(plain):
        return text[: heading.start()], text[heading.end() :]
    if listing := _LISTING.search(plain):
        return text[: listing.start()], text[listing.start() :]
    raise RecordError(FIELD, "has no actions", short.repr(text))


def _sentences(prose: str) -> tuple[str, ...]:
    parts = _SENTENCE_END.split(_LABEL.sub("", prose.strip()))
    parts = [part.strip() for part in parts if not _ONLY_NUMBER.fullmatch(part.strip())]
    found = [_LEADING.sub("", part).rstrip(".。").strip() for part in parts]
    return tuple(" ".join(sentence.split()) for sentence in found if sentence)


def _actions(listing: str) -> tuple[Subgoal, ...]:
    found, numbers, at = [], [], 0
    listing = listing.strip()
    while at < len(listing):
        match = _ACTION.match(listing, at)
        if match is None:
            rest = short.repr(listing[at:])
            raise RecordError(FIELD, "has something among its actions that is none", rest)
        found.append(_subgoal(match["verb"], match["nouns"]))
        numbers.append(match["number"])
        at = match.end()
    if not found:
        raise RecordError(FIELD, "has no actions")
    given = [int(number) for number in numbers if number is not None]
    if given and given != list(range(1, len(found) + 1)):
        got = ", ".join(number or "none" for number in numbers)
        raise RecordError(FIELD, "must number its actions 1, 2, 3 and so on, or not at all", got)
    return tuple(found)


def _subgoal(verb: str, nouns: str) -> Subgoal:
    """`Pick_up`, `bag of clothes` → pick up(bag of clothes)."""
    verb = " ".join(re.sub("[_-]", " ", verb).lower().split())
    args = tuple(" ".join(noun.strip(" \t\n'\"").split()) for noun in nouns.split(","))
    if not 1 <= len(args) <= 2 or not all(args):
        raise RecordError(FIELD, "has an action without one or two nouns", f"'{verb}({nouns})'")
    return Subgoal(verb, args)
