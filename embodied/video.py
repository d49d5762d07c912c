"""1. frames → Clip: a ring buffer, uniform sampling, pictures and video files in and out.

Images are uint8 (H, W, 3) RGB everywhere outside the model; `to_chw` is the one place where they
become float (3, H, W) for it.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from embodied.types import Clip

if TYPE_CHECKING:
    import torch


def sample_indices(n: int, t: int) -> np.ndarray:
    """Indices of `t` frames spread evenly over `n`, first and last included; the last when t = 1.

    With fewer frames than asked for, every frame is taken and the earliest is repeated in front.

    Returns:
        int64 (t,), non-decreasing, within 0..n-1.

    Raises:
        ValueError: if n or t is below 1.
    """
    if n < 1 or t < 1:
        raise ValueError(f"sampling needs at least 1 frame of at least 1, got t={t} of n={n}")
    if n < t:
        return np.concatenate([np.zeros(t - n, np.int64), np.arange(n)])
    if t == 1:
        return np.array([n - 1], np.int64)
    return np.floor(np.linspace(0, n - 1, t) + 0.5).astype(np.int64)


class FrameBuffer:
    """The last `capacity` frames of one camera, oldest first.

    Args:
        capacity: frames kept, at least 1; older ones are forgotten.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a frame buffer holds at least 1 frame, got capacity={capacity}")
        self.capacity = capacity
        self._frames: deque[np.ndarray] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._frames)

    def append(self, frame: np.ndarray) -> None:
        """Add a copy of a frame, uint8 (H, W, 3), of the same size as those before it.

        Raises:
            ValueError: if the frame's type or size differs.
        """
        frame = np.array(frame)
        Clip(frame[None])  # checks type and shape
        if self._frames and frame.shape != self._frames[0].shape:
            expected = self._frames[0].shape
            raise ValueError(
                f"the buffer holds frames of {expected}, got {frame.shape}: call clear() first"
            )
        self._frames.append(frame)

    def clear(self) -> None:
        """Forget every frame."""
        self._frames.clear()

    def clip(self, n_frames: int = 8, span: int | None = None) -> Clip:
        """`n_frames` evenly spread over the last `span` frames (all when None), newest last.

        Returns:
            A clip of uint8 (n_frames, H, W, 3); the earliest frame repeats when there are fewer.

        Raises:
            ValueError: if the buffer is empty, or n_frames or span is below 1.
        """
        if not self._frames:
            raise ValueError("the frame buffer is empty: append a frame before taking a clip")
        if span is not None and span < 1:
            raise ValueError(f"a clip spans at least 1 frame, got span={span}")
        n = len(self) if span is None else min(span, len(self))
        indices = sample_indices(n, n_frames) + len(self) - n
        return Clip(np.stack([self._frames[i] for i in indices]))


def to_chw(frames: np.ndarray) -> torch.Tensor:
    """uint8 (..., H, W, 3) in 0..255 → float32 (..., 3, H, W) in 0..1.

    Raises:
        ValueError: for any other dtype or shape.
    """
    import torch  # here, so that recording and playing videos needs no torch

    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim < 3 or frames.shape[-1] != 3:
        raise ValueError(f"expected uint8 (..., H, W, 3), got {frames.dtype} {frames.shape}")
    chw = np.ascontiguousarray(np.moveaxis(frames, -1, -3))  # (..., 3, H, W)
    return torch.from_numpy(chw).to(torch.float32) / 255.0


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it becomes `path` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


_TREE_FROM = 64
"""Pixels from which x264's macroblock tree codes the same pictures alike each time.

On sides of 32 it did not in one to four of twelve runs, on sides of 48 and more always did.
"""


def write_mp4(
    path: str | Path,
    frames: np.ndarray | Iterable[np.ndarray],
    fps: float,
    *,
    crf: int = 18,
    gop: int = 10,
) -> None:
    """Write an H.264 (yuv420p) file, in whole or not at all.

    Args:
        path: where to; its folder is made.
        frames: uint8 (T, H, W, 3), H and W even, or any iterable of such frames.
        fps: frames per second.
        crf: quality, 0 (lossless) to 51; 18 is near transparent.
        gop: frames from key frame to key frame; small makes random access quick. There are no
            B-frames, so time stamps are exact and files can be joined without encoding again.

    Raises:
        ValueError: if there is no frame, frames differ in size, or a side is odd.
    """
    import av

    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no frames to write to '{path}'")
    height, width = _even_size(first, path)
    options = {"crf": str(crf), "g": str(gop), "bf": "0", "preset": "veryfast"}
    if min(height, width) < _TREE_FROM:
        options["x264-params"] = "mbtree=0"
    with replacing(path) as partial, av.open(str(partial), "w") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # pictures are small, and recorders run in parallel
        for frame in chain([first], frames):
            if frame.shape != first.shape or frame.dtype != np.uint8:
                got = f"{frame.dtype} {frame.shape}"
                raise ValueError(f"frames of one video are uint8 {first.shape}, got {got}")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _even_size(frame: np.ndarray, path: str | Path) -> tuple[int, int]:
    Clip(frame[None])  # checks type and shape
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(
            f"H.264 (yuv420p) needs even sides, got {height}x{width} for '{path}': "
            f"crop or pad the frames to an even size"
        )
    return height, width


def join_mp4(parts: Sequence[str | Path], path: str | Path) -> None:
    """Put files of `write_mp4` end to end in one file, without encoding again.

    Frame k of a part becomes frame k + (frames of the parts before it). All parts must have been
    written with the same size, rate and quality.

    Raises:
        ValueError: if `parts` is empty or one is not a readable video.
    """
    import av

    if not parts:
        raise ValueError(f"no videos to join into '{path}'")
    with replacing(path) as partial, av.open(str(partial), "w") as container:
        stream, offset = None, 0  # offset in time-base ticks
        for part in parts:
            with _open_video(part) as (source, template):
                if stream is None:
                    stream = container.add_stream_from_template(template)
                    stream.time_base = template.time_base
                end = offset
                for packet in source.demux(template):
                    if packet.dts is None:  # the flushing packet
                        continue
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    end = max(end, packet.pts + packet.duration)
                    packet.stream = stream
                    container.mux(packet)
            offset = end


def count_frames(path: str | Path) -> int:
    """Number of frames that an mp4's header declares.

    Raises:
        ValueError: if the file is not a readable video.
    """
    with _open_video(path) as (_, stream):
        return int(stream.frames)


def read_mp4(path: str | Path, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Decode a video of constant frame rate.

    Args:
        path: the file.
        indices: frames wanted, in any order and with repeats; all when None. Only the groups of
            pictures that hold them are decoded.

    Returns:
        uint8 (T, H, W, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a readable video, or ends before a wanted frame.
    """
    with _open_video(path) as (container, stream):
        if indices is None:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            if not frames:
                raise ValueError(f"'{path}' has no frames: record it again")
            return np.stack(frames)
        wanted = np.asarray(indices, np.int64)
        if wanted.ndim != 1 or not len(wanted) or wanted.min() < 0:
            raise ValueError(f"frame indices are a non-empty list of n ≥ 0, got {indices}")
        found = _decode(container, stream, sorted({int(i) for i in wanted}))
        missing = [int(i) for i in wanted if int(i) not in found]
        if missing:
            raise ValueError(
                f"'{path}' has {stream.frames} frames, so none numbered {missing[0]}: "
                f"it is cut short, or belongs to another dataset"
            )
        return np.stack([found[int(i)] for i in wanted])


@contextmanager
def _open_video(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream. ValueError when a file is damaged."""
    import av

    if not Path(path).is_file():
        raise FileNotFoundError(f"no video at '{path}'")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"'{path}' holds no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.error.FFmpegError as error:
        raise ValueError(f"cannot decode '{path}' ({error.strerror}): record it again") from error


def _decode(container: Any, stream: Any, wanted: list[int]) -> dict[int, np.ndarray]:
    """Frames by number; seeks over gaps. `wanted` is sorted and holds no repeats."""
    per_frame = 1 / (stream.average_rate * stream.time_base)  # time-base ticks
    origin = stream.start_time or 0
    found: dict[int, np.ndarray] = {}
    position, reader = 0, container.decode(stream)
    for index in wanted:
        if index - position > 2:
            container.seek(origin + int(index * per_frame), stream=stream)  # to the key frame
            reader = container.decode(stream)
        for frame in reader:
            at = round((frame.pts - origin) / per_frame)
            position = at + 1
            if at >= index:
                if at == index:
                    found[index] = frame.to_ndarray(format="rgb24")
                break
    return found


def write_gif(path: str | Path, frames: np.ndarray | Sequence[np.ndarray], fps: float) -> None:
    """Write an endless animation. Browsers play at most 50 frames/s, so faster ones are thinned.

    Args:
        path: where to; its folder is made.
        frames: uint8 (T, H, W, 3).
        fps: frames per second.

    Raises:
        ValueError: if there is no frame or one is not uint8 (H, W, 3).
    """
    if not len(frames):
        raise ValueError(f"no frames to write to '{path}'")
    stride = max(1, math.ceil(fps / 50))
    clip = Clip(np.stack(list(frames[::stride])))
    pictures = [Image.fromarray(f).quantize(256, dither=Image.Dither.NONE) for f in clip.frames]
    duration_ms = max(20, round(1000 * stride / fps))
    with replacing(path) as partial:
        pictures[0].save(
            partial, "GIF", save_all=True, append_images=pictures[1:], duration=duration_ms, loop=0
        )
