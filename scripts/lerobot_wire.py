"""Named arrays between two Python processes, over pipes.

A frame is four bytes "LRW1", the payload's length and CRC-32 as unsigned 32-bit numbers, low byte
first, and the payload: NumPy's own npz. Pickled objects are neither written nor read. Both
processes import this file, each with its own Python and NumPy.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO

import numpy as np

MAGIC = b"LRW1"
MOST_BYTES = 64 * 2**20
_HEAD = struct.Struct("<4sII")

Arrays = dict[str, np.ndarray]


class WireError(ValueError):
    """What came is no frame, or what is to go cannot be one."""


def send(stream: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write one frame.

    Raises:
        WireError: an array holds Python objects, or all together are over `MOST_BYTES`.
    """
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise WireError(f"'{name}' is {array.dtype}; only plain numbers and text are sent")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    payload = buffer.getvalue()
    if len(payload) > MOST_BYTES:
        raise WireError(f"a frame has at most {MOST_BYTES} bytes, got {len(payload)}")
    stream.write(_HEAD.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload)
    stream.flush()


def receive(stream: IO[bytes]) -> Arrays | None:
    """Read one frame; None when the other side has closed the pipe between two frames.

    Raises:
        WireError: the bytes are no frame, or end in the middle of one.
    """
    head = _read(stream, _HEAD.size)
    if not head:
        return None
    if len(head) < _HEAD.size:
        raise WireError(f"the stream ended within a frame's head: {head!r}")
    magic, size, checksum = _HEAD.unpack(head)
    if magic != MAGIC:
        raise WireError(f"a frame begins with {MAGIC!r}, got {magic!r}")
    if size > MOST_BYTES:
        raise WireError(f"a frame has at most {MOST_BYTES} bytes, {size} were announced")
    payload = _read(stream, size)
    if len(payload) < size:
        raise WireError(f"{size} bytes were announced, the stream ended after {len(payload)}")
    if zlib.crc32(payload) != checksum:
        raise WireError(f"the {size} bytes of a frame came damaged: its CRC-32 is another")
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise WireError(f"a frame's payload is no npz of plain arrays: {error}") from None


def _read(stream: IO[bytes], size: int) -> bytes:
    """`size` bytes, fewer only where the stream ends."""
    parts = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
