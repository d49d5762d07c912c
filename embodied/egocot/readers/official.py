"""EgoCOT as its authors published it → records.

`results.json` is a list of objects: `image`, the name of an .npy of 8 frames, (8, 3, H, W);
`caption`; `planing` (so in the data; their documentation says `planning`); and `score`, the
similarity of video and plan, below which 0.2 was removed. The frames are beside it or in the folder
`EgoCOT_clear`. Source: the README of EmbodiedGPT/EgoCOT_Dataset, and how EmbodiedGPT_Pytorch loads
it: as frames that are normalised already.

It has no splits. A hash of a record's id assigns one, see `split_of`: the same on every machine,
whatever else is in the file.

None of that data is here: its frames are Ego4D's, which each user licenses for themselves.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from embodied.egocot.clips import open_npy, scale_of
from embodied.egocot.fields import RecordError, short
from embodied.egocot.quarantine import Quarantine, strict
from embodied.egocot.readers.planning import FIELD, parse_planning
from embodied.egocot.records import CLIP_PATH, Provenance, Record, Split, check_score

ASK = "Watch the video and plan the actions that it shows."
"""The records have no instruction: theirs is one prompt, in content this, for all of them."""

RESULTS = "results.json"
THRESHOLD = 0.2
_FOLDERS = ("", "EgoCOT_clear")
_SHAPE = (8, 3)


def read_official(
    where: str | Path,
    quarantine: Quarantine | None = None,
    *,
    threshold: float = THRESHOLD,
    split: Split | None = None,
    pixels: bool = True,
) -> Iterator[Record]:
    """Read a `results.json`; clips are relative to its folder.

    Args:
        where: the folder that it is in, or the file.
        quarantine: takes the bad ones, those below the threshold among them, by the number of
            their entry; without it the first one raises.
        threshold: the least score that is good enough.
        split: which one all of them are in; as `split_of` says when None.
        pixels: whether to look at every number of those clips that are floats, which takes as
            long as reading them; otherwise at headers only.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no list, or an entry is bad and there is no quarantine.
    """
    quarantine = quarantine or strict()
    path = Path(where)
    path = path / RESULTS if path.is_dir() else path
    for number, entry in enumerate(_entries(path), 1):
        make = partial(_record, entry, path.parent, threshold, split, pixels)
        record = quarantine.admit(make, path, number, json.dumps(entry))
        if record is not None:
            yield record


def split_of(record_id: str) -> Split:
    """Ten in a hundred are for `test` and ten for `select`, by the first 32 bits of the SHA-256."""
    digest = hashlib.sha256(record_id.encode(errors="surrogatepass")).digest()
    percent = int.from_bytes(digest[:4], "big") * 100 >> 32
    return "test" if percent < 10 else "select" if percent < 20 else "train"


def _entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"'{path}' is not JSON ({error}): download it again") from None
    if not isinstance(entries, list):
        raise ValueError(f"'{path}' must hold a list of objects, got {short.repr(entries)}")
    return entries


def _record(
    entry: Any, folder: Path, threshold: float, split: Split | None, pixels: bool
) -> Record:
    if not isinstance(entry, dict):
        raise RecordError("record", "must be an object", short.repr(entry))
    score = _score(entry.get("score"), threshold)
    plan, actions = parse_planning(_planning(entry))
    image = _text(entry, "image")
    clip = _find(folder, image)
    _check_frames(folder / clip, pixels)
    record_id = f"egocot/{PurePosixPath(image).with_suffix('')}"
    return Record(
        id=record_id,
        clip=clip,
        first_frame=None,
        last_frame=None,
        instruction=ASK,
        caption=" ".join(_text(entry, "caption").split()),
        thought=(),
        plan=plan,
        actions=actions,
        questions=(),
        verdict=None,
        provenance=_provenance(image),
        score=score,
        split=split or split_of(record_id),
    )


def _score(value: Any, threshold: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError("score", "must be a number", short.repr(value))
    if not -1 <= value <= 1:
        raise RecordError("score", "must lie within -1..1", short.repr(value))
    check_score(value, threshold)
    return float(value)


def _provenance(image: str) -> Provenance:
    return Provenance(
        source="EgoCOT (github.com/EmbodiedGPT/EgoCOT_Dataset)",
        licence="research only, its README says; frames under the personal Ego4D licence",
        episode=image,
        segment=None,
        method="model",
        model="not named: made by a machine, filtered, checked by people, its README says",
        prompt_version="not published",
    )


def _text(entry: dict[str, Any], field: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str):
        raise RecordError(field, "must be text", short.repr(value))
    return value


def _planning(entry: dict[str, Any]) -> str:
    found = [_text(entry, spelt) for spelt in ("planing", "planning") if spelt in entry]
    if not found:
        raise RecordError(FIELD, "is missing, in either spelling")
    if found[0] != found[-1]:
        raise RecordError(FIELD, "says something else in each spelling", short.repr(found[-1]))
    return found[0]


def _find(folder: Path, image: str) -> str:
    """Where the frames are, relative to `folder`."""
    if not re.fullmatch(CLIP_PATH, image) or not image.endswith(".npy"):
        raise RecordError("image", "must be an .npy's path in the folder", short.repr(image))
    for inside in _FOLDERS:
        clip = str(PurePosixPath(inside, image))
        try:
            if (folder / clip).is_file():
                return clip
        except (OSError, ValueError):  # a name that no file can have
            break
    raise RecordError("image", "is missing", short.repr(image))


def _check_frames(path: Path, pixels: bool) -> None:
    try:
        frames = open_npy(path)
        if frames.shape[:2] != _SHAPE:
            raise ValueError(f"'{path}' must hold (8, 3, H, W), got {frames.shape}")
        if pixels:
            scale_of(np.asarray(frames))
    except (ValueError, OSError) as error:
        raise RecordError("image", "cannot be read as frames", str(error)) from None
