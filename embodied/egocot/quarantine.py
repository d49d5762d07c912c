"""Where records that cannot be used go: none is dropped without its file, line and reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO, TypeVar

from embodied.egocot.fields import RecordError
from embodied.video import replacing


class _Named(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_Named)


@dataclass
class Counts:
    """How many records are good, and how many are bad for which reason; `print` it."""

    good: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    @property
    def n_bad(self) -> int:
        return self.bad.total()

    def __str__(self) -> str:
        total = self.good + self.n_bad
        head = f"{total} records: {self.good} good, {self.n_bad} quarantined"
        return "\n".join([head, *(f"{n:7d}  {reason}" for reason, n in self.bad.most_common())])


class Quarantine:
    """Takes the bad records of one reading, and counts the good ones.

    As a context it writes `path` in whole when the block ends, or leaves it as it was when the
    block fails. A line of it is

        {"file": …, "line": …, "field": "thought[2].x", "reason": …, "record": the text that came}

    where `line` is the number of the line, or that of the entry or episode in files of other kinds.

    Args:
        path: the JSONL to write; None to count only.
        report: called with `file:line: reason` of each.
    """

    def __init__(
        self, path: str | Path | None = None, report: Callable[[str], object] | None = None
    ) -> None:
        self.path = None if path is None else Path(path)
        self.counts = Counts()
        self._report = report
        self._seen: dict[str, tuple[str | Path, int]] = {}
        self._stack = ExitStack()
        self._out: TextIO | None = None

    def __enter__(self) -> Self:
        if self.path is not None:
            partial = self._stack.enter_context(replacing(self.path))
            self._out = self._stack.enter_context(partial.open("w", encoding="utf-8"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._out = None
        self._stack.__exit__(kind, error, trace)

    def admit(self, make: Callable[[], R], file: str | Path, line: int, text: str) -> R | None:
        """The record that `make` returns; None when it is bad, or its id was admitted before.

        Args:
            make: raises RecordError for a bad record.
            file, line, text: where it comes from, and what came.
        """
        try:
            record = make()
            if record.id in self._seen:
                first = ":".join(map(str, self._seen[record.id]))
                raise RecordError("id", "is given twice", f"{record.id!r}, {first}")
        except RecordError as error:
            self.reject(error, file, line, text)
            return None
        self._seen[record.id] = file, line
        self.counts.good += 1
        return record

    def withdraw(self, record: _Named, error: RecordError, text: str) -> None:
        """Note that a record which was admitted turns out to be bad."""
        self.counts.good -= 1
        self.reject(error, *self._seen[record.id], text)

    def reject(self, error: RecordError, file: str | Path, line: int, text: str) -> None:
        """Note a bad record."""
        self.counts.bad[error.kind] += 1
        if self._report is not None:
            self._report(f"{file}:{line}: {error}")
        if self.path is None:
            return
        if self._out is None:
            raise RuntimeError(f"nothing can go to '{self.path}' yet: use `with Quarantine(…)`")
        row = {"file": str(file), "line": line, "field": error.field, "reason": str(error)}
        self._out.write(json.dumps({**row, "record": text}) + "\n")


def _refuse(reason: str) -> None:
    raise ValueError(f"{reason}; read with a Quarantine to go on without such records")


def strict() -> Quarantine:
    """One that goes on with nothing: the first bad record raises ValueError."""
    return Quarantine(report=_refuse)
