"""Records of ego-centric video chain-of-thought: what they hold, and reading and writing them.

A folder of records is one or more `*.jsonl`, a record a line, beside the clips that they name;
data/egocot/README.md describes the format, data/egocot/schema.json is its JSON Schema. To check a
folder:

    python -m embodied.egocot.records FOLDER [--quarantine FILE]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from embodied.egocot.clips import ClipChecker
from embodied.egocot.fields import RecordError, Rule, check
from embodied.egocot.jsonl import from_json, jsonl_files, parse_line, to_json
from embodied.egocot.quarantine import Counts, Quarantine, strict
from embodied.types import MAX_SUBGOALS, Status, Subgoal
from embodied.video import replacing

__all__ = [
    "Answer",
    "Counts",
    "Judgement",
    "Place",
    "Provenance",
    "Quarantine",
    "Record",
    "RecordError",
    "read_records",
    "write_records",
]

Split = Literal["train", "select", "test"]
Method = Literal["simulator", "human", "model"]

CLIP_PATH = r"(?:(?!\.{1,2}/)[^/\\:]+/)*[^/\\:]+\.(?:mp4|npy)"
"""A clip's path: relative, with `/`, and never out of the folder."""

Text = Annotated[str, Rule(most=2000)]
Name = Annotated[str, Rule(most=200)]
Clip = Annotated[
    str,
    Rule(most=400, pattern=CLIP_PATH, wants="an .mp4's or .npy's path in the folder, without '..'"),
]
Frame = Annotated[int, Rule(low=0, high=2**31 - 1)]
Fraction = Annotated[float, Rule(low=0, below=1)]
Action = Annotated[Subgoal, Rule(most=200)]
Similarity = Annotated[float, Rule(low=-1, high=1)]


@dataclass(frozen=True)
class Place:
    """Where a thing is in the clip's first frame."""

    object: Annotated[Name, "what it is, in words"]
    x: Annotated[Fraction, "from the picture's left edge, 0, to its right edge, 1"]
    y: Annotated[Fraction, "from the picture's top edge, 0, to its bottom edge, 1"]

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Answer:
    """A question about the clip, and its answer."""

    question: Text
    answer: Text

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Judgement:
    """Whether the record's actions are achieved at the end of the clip."""

    status: Status
    reason: Annotated[Text, "why, in words"]

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Provenance:
    """Where a record comes from and how it was made; a model's name and prompt if by a model."""

    source: Annotated[Text, "the data set or the environment"]
    licence: Annotated[Text, "of the clip and the words; an SPDX identifier where there is one"]
    episode: Annotated[Name, "the recording within the source"]
    segment: Annotated[Name | None, "which part of the episode; null for no part in particular"]
    method: Annotated[Method, "who made the words: the simulator's truth, a person, or a model"]
    model: Annotated[Name | None, "the model's name; null unless a model made the words"]
    prompt_version: Annotated[Name | None, "the prompt's version; null unless a model made them"]

    def __post_init__(self) -> None:
        check(self)
        for field in ("model", "prompt_version"):
            given = getattr(self, field) is not None
            if given != (self.method == "model"):
                problem = "must not be null when a model made it" if not given else "must be null"
                raise RecordError(field, problem + ("" if not given else " unless a model made it"))


@dataclass(frozen=True)
class Record:
    """A short first-person clip, and what there is to say about it: one line of a JSONL file.

    Raises:
        RecordError: for the first field that is not as it must be.
    """

    id: Annotated[Name, "unlike any other record's"]
    clip: Annotated[Clip, "relative to the JSONL's folder; an .npy is (T, H, W, 3) or (T, 3, H, W)"]
    first_frame: Annotated[Frame | None, "of the part that is meant, from 0; null for all of it"]
    last_frame: Annotated[Frame | None, "of that part, itself included; null for all of it"]
    instruction: Annotated[Text, "what was asked for"]
    caption: Annotated[Text, "what is to be seen"]
    thought: Annotated[
        tuple[Place, ...], Rule(most=32), "where things are in the first frame; each thing once"
    ]
    plan: Annotated[tuple[Text, ...], Rule(most=MAX_SUBGOALS), "the steps in words"]
    actions: Annotated[
        tuple[Action, ...], Rule(most=MAX_SUBGOALS), "the steps as verb(noun[, noun])"
    ]
    questions: Annotated[tuple[Answer, ...], Rule(most=64), "questions about the clip"]
    verdict: Annotated[Judgement | None, "on the actions, at the clip's end; null for none"]
    provenance: Provenance
    score: Annotated[Similarity | None, "CLIP similarity of clip and words; null if not measured"]
    split: Annotated[Split, "train to train on, select to choose by, test to report on"]

    def __post_init__(self) -> None:
        check(self)
        if (self.first_frame is None) != (self.last_frame is None):
            raise RecordError("last_frame", "must be null if and only if first_frame is")
        if self.last_frame is not None and self.last_frame < (self.first_frame or 0):
            raise RecordError("last_frame", "comes before first_frame", str(self.last_frame))
        if len({place.object for place in self.thought}) < len(self.thought):
            raise RecordError("thought", "has an object twice")
        if self.verdict is not None and not self.actions:
            raise RecordError("actions", "must be there where there is a verdict on them")

    @property
    def places(self) -> dict[str, tuple[float, float]]:
        """The thought as `embodied.model.plan.thought_text` takes it."""
        return {place.object: (place.x, place.y) for place in self.thought}

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object, its fields in their order."""
        return to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> Record:
        """Read a JSON object. Raises RecordError."""
        return from_json(cls, value)


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write a JSONL in whole or not at all, and return how many records it has.

    Raises:
        ValueError: if two have the same id.
    """
    ids: set[str] = set()
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for record in records:
            if record.id in ids:
                raise RecordError("id", "is given twice", repr(record.id))
            ids.add(record.id)
            file.write(json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
    return len(ids)


def read_records(
    where: str | Path,
    quarantine: Quarantine | None = None,
    *,
    clips: bool = True,
    threshold: float | None = None,
) -> Iterator[Record]:
    """The good records of a JSONL, or of all those in a folder, file by file.

    Args:
        where: the file or folder; files named `quarantine*.jsonl` are passed over.
        quarantine: takes the bad ones, and counts; without it the first bad one raises.
        clips: whether to look if the clips are there and as long as the records say.
        threshold: the least score that is good enough, where a record has one; any when None.

    Raises:
        ValueError: if there is no JSONL, the quarantine would replace one, or a record is bad and
            there is no quarantine.
    """
    quarantine = quarantine or strict()
    files = jsonl_files(Path(where))
    if quarantine.path is not None and quarantine.path.resolve() in [p.resolve() for p in files]:
        raise ValueError(f"'{quarantine.path}' holds records: give the quarantine another file")
    for path in files:
        checker = ClipChecker(path.parent) if clips else None
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
                read = partial(_read, line, checker, threshold)
                record = quarantine.admit(read, path, number, text)
                if record is not None:
                    yield record


def _read(line: bytes, clips: ClipChecker | None, threshold: float | None) -> Record:
    record = Record.from_json(parse_line(line))
    if threshold is not None and record.score is not None:
        check_score(record.score, threshold)
    if clips is not None:
        clips.check(record.clip, record.last_frame)
    return record


def check_score(score: float, threshold: float) -> None:
    """Raises RecordError when it is too low."""
    if score < threshold:
        raise RecordError("score", f"is below the threshold of {threshold:g}", f"{score:g}")


@dataclass(frozen=True)
class CheckOptions:
    """What to check.

    Args:
        folder: of records, or one JSONL of them; or the official EgoCOT with its results.json.
        quarantine: where to write the bad ones; nowhere when not given.
        no_clips: do not look for the clips.
        min_score: the least score that is good enough; any for our own records and 0.2 for the
            official ones when not given.
        n_shown: how many of the bad ones to print.
    """

    folder: Positional[Path]
    quarantine: Path | None = None
    no_clips: bool = False
    min_score: float | None = None
    n_shown: int = 20


def main(argv: list[str] | None = None) -> int:
    """Check records. Returns 0 if every one is good, 1 if not, 2 if there are none to check."""
    prog = "python -m embodied.egocot.records"
    config = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(CheckOptions, prog=prog, args=argv, use_underscores=True, config=config)
    try:
        counts = _check_all(options)
    except (ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    print(counts)
    return 1 if counts.n_bad or not counts.good else 0


def _check_all(options: CheckOptions) -> Counts:
    from embodied.egocot.readers.folder import read_folder

    shown = iter(range(options.n_shown))

    def show(reason: str) -> None:
        if next(shown, None) is not None:
            print(reason, file=sys.stderr)

    with Quarantine(options.quarantine, show) as quarantine:
        clips, least = not options.no_clips, options.min_score
        for _ in read_folder(options.folder, quarantine, clips=clips, threshold=least):
            pass
    return quarantine.counts


if __name__ == "__main__":
    sys.exit(main())
