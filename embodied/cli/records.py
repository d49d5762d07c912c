"""The EgoCOT records that a command is given: read, chosen, and seen; bad ones are put aside."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from embodied.cli.splits import of_splits, records_without
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.record_features import SeenRecord, load_records, see_records
from embodied.model.planner import Planner
from embodied.processes import Processes


class RecordOptions(Protocol):
    """The options of a command that reads records.

    Args:
        records: folders, comma-separated.
        records_split: which of their splits, comma-separated.
        min_score: the least score that is good enough; the layout's own when None.
        features_dir: where frozen features are cached.
        output_dir: where bad records go; nowhere when None.
    """

    @property
    def records(self) -> str: ...

    @property
    def records_split(self) -> str: ...

    @property
    def min_score(self) -> float | None: ...

    @property
    def features_dir(self) -> Path: ...

    @property
    def output_dir(self) -> Path | None: ...


def check_min_score(min_score: float | None) -> None:
    """Raises ValueError when it is no similarity."""
    if min_score is not None and not -1 <= min_score <= 1:
        raise ValueError(f"--min_score is a similarity from -1 to 1, got {min_score:g}")


def chosen_records(
    planner: Planner, options: RecordOptions, left_out: tuple[str, ...] = ()
) -> list[SeenRecord]:
    """The good records of the wanted splits, with what their clips show.

    Bad ones go to quarantine_0.jsonl and so on in the output directory, one for each folder; how
    many for which reason to stderr.

    Raises:
        ValueError: a folder has no good record of these splits.
    """
    found: list[SeenRecord] = []
    for i, name in enumerate(filter(None, options.records.split(","))):
        path = None if options.output_dir is None else options.output_dir / f"quarantine_{i}.jsonl"
        with Processes.here().main_first(), Quarantine(path) as quarantine:
            found += _of_folder(planner, options, Path(name), left_out, quarantine)
    return found


def _of_folder(
    planner: Planner,
    options: RecordOptions,
    folder: Path,
    left_out: tuple[str, ...],
    quarantine: Quarantine,
) -> list[SeenRecord]:
    records = load_records(folder, quarantine, options.min_score)
    print(f"{folder}: {quarantine.counts}", file=sys.stderr)
    n_bad = quarantine.counts.n_bad
    kept = records_without(of_splits(folder, records, options.records_split), left_out)
    seen = see_records(planner, folder, kept, options.features_dir, quarantine)
    if quarantine.counts.n_bad > n_bad:
        print(f"{folder}, its clips read: {quarantine.counts}", file=sys.stderr)
    return seen


def layouts_of(records: Sequence[SeenRecord]) -> list[tuple[str, int]]:
    """Environment id and seed of the records that were made of rollouts.

    Their provenance names the episode `simulator/task/seed/…`.
    """
    sources = [seen.record.provenance for seen in records]
    parts = [source.episode.split("/") for source in sources if source.method == "simulator"]
    return [("/".join(of[:2]), int(of[2])) for of in parts if len(of) > 2 and of[2].isdecimal()]
