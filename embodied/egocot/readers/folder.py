"""A folder of records, whichever layout it has: ours, or EgoCOT as its authors published it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from embodied.egocot.quarantine import Quarantine
from embodied.egocot.readers.official import RESULTS, THRESHOLD, read_official
from embodied.egocot.records import Record, read_records


def read_folder(
    where: str | Path,
    quarantine: Quarantine | None = None,
    *,
    clips: bool = True,
    threshold: float | None = None,
) -> Iterator[Record]:
    """The good records of a folder or file, by `read_official` or `read_records`.

    Args:
        clips: whether to look at the clips, as far as those two do.
        threshold: the least score that is good enough; the layout's own when None.
    """
    path = Path(where)
    if path.name == RESULTS or (path / RESULTS).is_file():
        least = THRESHOLD if threshold is None else threshold
        return read_official(path, quarantine, threshold=least, pixels=clips)
    return read_records(path, quarantine, clips=clips, threshold=threshold)
