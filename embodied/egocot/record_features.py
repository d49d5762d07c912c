"""Records with their clips' frozen vision tokens, computed once and memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from embodied.egocot.clips import read_clip
from embodied.egocot.fields import RecordError
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.readers.folder import read_folder
from embodied.egocot.records import Record
from embodied.model.features import finish, is_finished, vision_parts
from embodied.model.planner import Planner
from embodied.model.vision import TUBELET_FRAMES
from embodied.video import replacing

_BLOCK = 32
"""Clips after which what was computed is kept, should the run be stopped."""
_TOKENS, _COMPUTED = "clips.npy", "computed.npy"

_Clip = tuple[str, int | None, int | None]
"""A file, and the first and the last frame of it that are meant."""


@dataclass(frozen=True)
class SeenRecord:
    """A record and what its clip shows.

    Args:
        tokens: (1, T', N, W) vision tokens of one camera, float16.
        first: the same of its first picture alone, for the plan, where `tokens` are of its last.
    """

    record: Record
    tokens: np.ndarray
    first: np.ndarray | None = None

    @property
    def plan_tokens(self) -> np.ndarray:
        """What the plan is made from: a record's places are those of the clip's first picture."""
        return self.tokens if self.first is None else self.first


def load_records(
    folder: Path, quarantine: Quarantine | None = None, threshold: float | None = None
) -> list[Record]:
    """The good records of a folder: ours, or EgoCOT as published (with its `results.json`).

    Args:
        threshold: the least score that is good enough; the layout's own when None.

    Raises:
        ValueError: there is none, or one is bad and there is no quarantine.
    """
    found = list(read_folder(folder, quarantine, threshold=threshold))
    if not found:
        counted = quarantine.counts.bad.most_common() if quarantine else []
        bad = ", ".join(f"{n} × {reason}" for reason, n in counted)
        raise ValueError(
            f"no good record in '{folder}'{f' ({bad})' if bad else ''}; "
            f"python -m embodied.egocot.records {folder} says why"
        )
    return found


def see_records(
    planner: Planner,
    folder: Path,
    records: Sequence[Record],
    root: Path,
    quarantine: Quarantine | None = None,
) -> list[SeenRecord]:
    """`records` of `folder` with their tokens, which are kept under `root`.

    What is kept goes by the clips, by which frames of them are meant, and by all that changes the
    tokens. What a stopped run has computed is not computed again.

    Args:
        quarantine: the one that has admitted them, and now takes those whose clips turn out not to
            be readable to the end; without it the first one raises.

    Raises:
        ValueError: no clip can be read, or one cannot and there is no quarantine.
    """
    if not records:
        return []
    clips = list(dict.fromkeys(map(_clip_of, records)))
    cached = root / _key(planner, folder, clips)
    bad = {} if is_finished(cached) else _fill(planner, folder, clips, cached)
    for record in records:
        if _clip_of(record) in bad:
            _put_aside(record, bad[_clip_of(record)], quarantine)
    if len(bad) == len(clips):
        raise ValueError(f"no clip of '{folder}' can be read; the first: {bad[clips[0]]}")
    tokens = np.load(cached / _TOKENS, mmap_mode="r")
    rows = {clip: row for row, clip in enumerate(clips) if clip not in bad}
    good = [record for record in records if _clip_of(record) in rows]
    found = [SeenRecord(record, tokens[rows[_clip_of(record)]]) for record in good]
    if planner.config.sight != "picture":
        return found
    return [_still(one, planner.config.n_frames // TUBELET_FRAMES) for one in found]


def _still(seen: SeenRecord, n_times: int) -> SeenRecord:
    """From tokens of the first and the last picture (1, 2, N, W): each for every time."""
    shape = (1, n_times, *seen.tokens.shape[2:])
    first, last = seen.tokens[:, :1], seen.tokens[:, 1:]
    return SeenRecord(seen.record, np.broadcast_to(last, shape), np.broadcast_to(first, shape))


def _put_aside(record: Record, reason: str, quarantine: Quarantine | None) -> None:
    error = RecordError("clip", "cannot be read", reason)
    if quarantine is None:
        raise error
    quarantine.withdraw(record, error, json.dumps(record.to_json()))


def _clip_of(record: Record) -> _Clip:
    return record.clip, record.first_frame, record.last_frame


def _key(planner: Planner, folder: Path, clips: Sequence[_Clip]) -> str:
    files = {clip: (folder / clip).stat() for clip, _, _ in clips}
    told = [(*clip, files[clip[0]].st_size, files[clip[0]].st_mtime_ns) for clip in clips]
    parts = ["records", *vision_parts(planner), planner.config.n_frames, told]
    parts += ["pictures"] if planner.config.sight == "picture" else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _fill(planner: Planner, folder: Path, clips: Sequence[_Clip], cached: Path) -> dict[_Clip, str]:
    """Compute what is not there yet. Returns the clips that cannot be read, with the reason."""
    tokens, computed = _opened(planner, len(clips), cached)
    bad: dict[_Clip, str] = {}
    missing, fresh = np.flatnonzero(~computed).tolist(), []
    for row in tqdm(missing, desc="vision features", unit="clip"):
        clip, first, last = clips[row]
        try:
            frames = read_clip(folder, clip, first, last, planner.config.n_frames).frames
        except (ValueError, OSError) as error:
            bad[clips[row]] = str(error)
            continue
        if planner.config.sight == "picture":
            frames = frames[[0, 0, -1, -1]]
        with torch.inference_mode():
            tokens[row] = planner.see(frames[None, None])[0].half().cpu().numpy()
        fresh.append(row)
        if len(fresh) % _BLOCK == 0:
            _keep(tokens, computed, fresh)
    _keep(tokens, computed, fresh)
    if not bad:
        finish(cached, {"clips": len(clips)})
    return bad


def _keep(tokens: np.memmap, computed: np.memmap, rows: Sequence[int]) -> None:
    """Say that these are there, once they are."""
    tokens.flush()
    computed[list(rows)] = True
    computed.flush()


def _opened(planner: Planner, n_clips: int, cached: Path) -> tuple[np.memmap, np.memmap]:
    """Room for the tokens of every clip, and which of them are there."""
    config = planner.config
    if not (cached / _COMPUTED).is_file():
        cached.mkdir(parents=True, exist_ok=True)
        n_times = 2 if config.sight == "picture" else config.n_frames // TUBELET_FRAMES
        one = (1, n_times, config.former.n_patches, config.former.vision_width)
        np.lib.format.open_memmap(cached / _TOKENS, "w+", np.float16, (n_clips, *one))
        with replacing(cached / _COMPUTED) as partial:
            np.save(partial, np.zeros(n_clips, bool))
    tokens, computed = (np.load(cached / name, mmap_mode="r+") for name in (_TOKENS, _COMPUTED))
    return tokens, computed
