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
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.readers.official import read_official
from embodied.egocot.records import Record, read_records
from embodied.model.features import finish, is_finished, vision_parts
from embodied.model.planner import Planner


@dataclass(frozen=True)
class SeenRecord:
    """A record and what its clip shows.

    Args:
        tokens: (1, T', N, W) vision tokens of one camera, float16.
    """

    record: Record
    tokens: np.ndarray


def load_records(folder: Path, quarantine: Quarantine | None = None) -> list[Record]:
    """The good records of a folder: ours, or EgoCOT as published (with its `results.json`).

    Raises:
        ValueError: there is none, or one is bad and there is no quarantine.
    """
    read = read_official if (folder / "results.json").is_file() else read_records
    found = list(read(folder, quarantine))
    if not found:
        raise ValueError(
            f"no good record in '{folder}'; python -m embodied.egocot.records {folder} says why"
        )
    return found


def see_records(
    planner: Planner, folder: Path, records: Sequence[Record], root: Path
) -> list[SeenRecord]:
    """`records` of `folder` with their tokens, which are kept under `root`.

    What is kept goes by the clips, by which frames of them are meant, and by all that changes the
    tokens.
    """
    clips = list(dict.fromkeys(map(_clip_of, records)))
    cached = root / _key(planner, folder, clips)
    if not is_finished(cached):
        _fill(planner, folder, clips, cached)
    tokens = np.load(cached / "clips.npy", mmap_mode="r")
    rows = {clip: row for row, clip in enumerate(clips)}
    return [SeenRecord(record, tokens[rows[_clip_of(record)]]) for record in records]


_Clip = tuple[str, int | None, int | None]


def _clip_of(record: Record) -> _Clip:
    return record.clip, record.first_frame, record.last_frame


def _key(planner: Planner, folder: Path, clips: Sequence[_Clip]) -> str:
    files = {clip: (folder / clip).stat() for clip, _, _ in clips}
    told = [(*clip, files[clip[0]].st_size, files[clip[0]].st_mtime_ns) for clip in clips]
    parts = ["records", *vision_parts(planner), planner.config.n_frames, told]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _fill(planner: Planner, folder: Path, clips: Sequence[_Clip], cached: Path) -> None:
    config = planner.config
    cached.mkdir(parents=True, exist_ok=True)
    n_times = config.n_frames // 2
    shape = (len(clips), 1, n_times, config.former.n_patches, config.former.vision_width)
    out = np.lib.format.open_memmap(cached / "clips.npy", "w+", np.float16, shape)
    for row, (clip, first, last) in enumerate(tqdm(clips, desc="vision features", unit="clip")):
        frames = read_clip(folder, clip, first, last, config.n_frames).frames
        with torch.inference_mode():
            out[row] = planner.see(frames[None, None])[0].half().cpu().numpy()
    out.flush()
    finish(cached, {"clips": len(clips)})
