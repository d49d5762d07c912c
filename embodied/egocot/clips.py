"""A record's clip: is it there, how long is it, and its pictures.

A clip is an .mp4, or an .npy of frames: uint8 (T, H, W, 3) as everywhere here, or (T, 3, H, W) as
the official EgoCOT has them, bytes or floats, some of them already normalised for a vision encoder.
"""

from __future__ import annotations

import tokenize
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np

from embodied.egocot.fields import RecordError
from embodied.types import Clip
from embodied.video import count_frames, read_mp4, sample_indices

Scale = Literal["bytes", "unit", "openai", "imagenet"]

_STATISTICS: dict[Scale, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "openai": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}  # mean and standard deviation of red, green and blue in 0..1
_SLACK = 0.01  # half precision rounds
_SIDES = (16, 4096)

_DAMAGED = (
    *(ValueError, OSError, EOFError, SyntaxError, OverflowError, TypeError),
    *(tokenize.TokenError, zipfile.BadZipFile),
)
"""What NumPy raises for an .npy whose header or length is wrong."""


class ClipChecker:
    """Looks for the clips of one folder; each file is opened once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lengths: dict[str, int | RecordError] = {}

    def check(self, clip: str, last_frame: int | None) -> None:
        """RecordError if the file is missing, damaged, or ends before `last_frame`."""
        if clip not in self._lengths:
            self._lengths[clip] = _length(self._folder / clip)
        length = self._lengths[clip]
        if isinstance(length, RecordError):
            raise length
        if last_frame is not None and last_frame >= length:
            got = f"{last_frame} of {length} frames"
            raise RecordError("last_frame", "lies behind the clip's end", got)


def _length(path: Path) -> int | RecordError:
    try:
        length = len(open_npy(path)) if path.suffix == ".npy" else count_frames(path)
    except FileNotFoundError:
        return RecordError("clip", "is missing", f"'{path}'")
    except (ValueError, OSError) as error:
        return RecordError("clip", "cannot be read", str(error))
    return length or RecordError("clip", "declares no frames", f"'{path}'")


def open_npy(path: Path) -> np.ndarray:
    """The frames of an .npy, (T, H, W, 3) or (T, 3, H, W), of which only the header is read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds no pictures.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no frames at '{path}'")
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGED as error:
        raise ValueError(f"cannot read '{path}' ({error})") from error
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or 3 not in frames.shape[1::2]:
        got = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else "an archive"
        raise ValueError(f"'{path}' must hold (T, H, W, 3) or (T, 3, H, W), got {got}")
    sides = frames.shape[2:] if _channels_first(frames) else frames.shape[1:3]
    if not all(_SIDES[0] <= side <= _SIDES[1] for side in sides):
        raise ValueError(f"'{path}' has pictures of {sides[0]}×{sides[1]}, sides must be {_SIDES}")
    if not len(frames):
        raise ValueError(f"'{path}' has no frames")
    if frames.dtype != np.uint8 and frames.dtype.kind != "f":
        raise ValueError(f"'{path}' must hold uint8 or floats, got {frames.dtype}")
    return frames


def _channels_first(frames: np.ndarray) -> bool:
    return frames.shape[1] == 3


def scale_of(frames: np.ndarray) -> Scale:
    """How the numbers of frames (T, 3, H, W) stand for colours.

    Floats are told apart by their range. What lies within the range of both normalisations was
    most likely normalised by CLIP's statistics, as EmbodiedGPT's own loader does by default.

    Raises:
        ValueError: for a range that stands for nothing known.
    """
    if frames.dtype == np.uint8:
        return "bytes"
    low, high = frames.min(axis=(0, 2, 3)), frames.max(axis=(0, 2, 3))  # (3,)
    if low.min() >= 0 and high.max() <= 1 + _SLACK:
        return "unit"
    for scale, (mean, std) in _STATISTICS.items():
        black, white = -np.array(mean) / std, (1 - np.array(mean)) / std
        if (low >= black - _SLACK).all() and (high <= white + _SLACK).all():
            return scale
    if low.min() >= 0 and high.max() <= 255:
        return "bytes"
    raise ValueError(
        f"values from {low.min():g} to {high.max():g} are no bytes, no fractions, and normalised "
        f"neither by CLIP's nor by ImageNet's statistics"
    )


def to_pictures(frames: np.ndarray) -> np.ndarray:
    """Frames of an .npy → uint8 (T, H, W, 3). Raises ValueError for values out of every range."""
    chw = frames if _channels_first(frames) else np.moveaxis(frames, -1, 1)  # (T, 3, H, W)
    if chw.dtype != np.uint8:
        scale, chw = scale_of(chw), chw.astype(np.float32)
        if scale in _STATISTICS:
            mean, std = (np.array(v, np.float32)[:, None, None] for v in _STATISTICS[scale])
            chw = chw * std + mean
        chw = np.rint(chw if scale == "bytes" else 255 * chw).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(chw, 1, -1))


def read_clip(
    folder: str | Path,
    clip: str,
    first_frame: int | None = None,
    last_frame: int | None = None,
    n_frames: int = 8,
) -> Clip:
    """`n_frames` evenly spread over a record's clip, or over the part of it that is meant.

    Args:
        folder: that of the record's file.
        clip, first_frame, last_frame: as the record has them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or too short.
    """
    path = Path(folder) / clip
    is_npy = path.suffix == ".npy"
    frames = open_npy(path) if is_npy else None
    length = count_frames(path) if frames is None else len(frames)
    first, last = first_frame or 0, length - 1 if last_frame is None else last_frame
    if not first <= last < length:
        raise ValueError(f"'{path}' has {length} frames, asked for {first} to {last}")
    wanted = first + sample_indices(last - first + 1, n_frames)
    if frames is None:
        return Clip(read_mp4(path, wanted))
    return Clip(to_pictures(np.asarray(frames))[wanted])
