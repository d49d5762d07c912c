"""Pictures → a clip's mp4 in the folder of records. A file that is there is not made again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from embodied.video import write_mp4

CLIPS = "clips"
N_FRAMES = 8
CRF = 23


def clip_name(label: str, *key: object) -> str:
    """A path in the folder: the label in plain letters, and a hash of all that makes the clip."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")[:80]
    digest = hashlib.sha256(repr((label, *key)).encode()).hexdigest()[:10]
    return f"{CLIPS}/{plain}-{digest}.mp4"


def cut(folder: Path, name: str, frames: Callable[[], np.ndarray], fps: float, side: int) -> None:
    """Write the clip `name` in whole, unless it is there.

    Args:
        frames: gives uint8 (T, H, W, 3).
        side: pixels of the longer side at most; pictures are made smaller, never larger.
    """
    if not (folder / name).exists():
        write_mp4(folder / name, shrunk(frames(), side), fps, crf=CRF)


def shrunk(frames: np.ndarray, side: int) -> np.ndarray:
    """(T, H, W, 3) with the longer side at most `side`, both even, in the same proportions."""
    height, width = frames.shape[1:3]
    scale = min(1.0, side / max(height, width))
    size = _even(scale * width), _even(scale * height)
    if size == (width, height):
        return frames
    resized = [Image.fromarray(f).resize(size, Image.Resampling.BICUBIC) for f in frames]
    return np.stack([np.asarray(picture) for picture in resized])


def _even(length: float) -> int:
    """The next even number below, at least 2."""
    return max(2, 2 * int(length / 2 + 1e-6))


def remove_others(folder: Path, kept: set[str]) -> int:
    """Delete the clips that no record names, and return how many."""
    others = [p for p in (folder / CLIPS).glob("*.mp4") if f"{CLIPS}/{p.name}" not in kept]
    for path in others:
        path.unlink()
    return len(others)
