"""A record's clip: pictures, whatever it is stored as; and what is no clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embodied.egocot.clips import open_npy, read_clip, scale_of, to_pictures
from embodied.video import write_mp4


def test_clips_become_pictures_whatever_they_are_stored_as(tmp_path: Path) -> None:
    frames = np.zeros((6, 32, 48, 3), np.uint8)
    frames[:] = np.arange(6)[:, None, None, None] * 40
    write_mp4(tmp_path / "a.mp4", frames, 10, crf=0)
    np.save(tmp_path / "a.npy", frames)
    np.save(tmp_path / "b.npy", np.moveaxis(frames, -1, 1))
    for name in ("a.mp4", "a.npy", "b.npy"):
        clip = read_clip(tmp_path, name, 1, 4, n_frames=4)
        assert np.abs(clip.frames.astype(int) - frames[1:5]).max() < 4
        assert len(read_clip(tmp_path, name)) == 8
    with pytest.raises(ValueError, match="6 frames, asked for 3 to 6"):
        read_clip(tmp_path, "a.mp4", 3, 6)


@pytest.mark.parametrize("scale", ["bytes", "unit", "openai", "imagenet"])
def test_normalised_frames_are_told_apart(scale: str) -> None:
    statistics = {
        "bytes": (0, 1 / 255),
        "unit": (0, 1),
        "openai": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 20, 3), np.uint8)
    mean, std = statistics[scale]
    frames = np.moveaxis((pictures / 255 - mean) / std, -1, 1).astype(np.float16)
    assert scale_of(frames) == scale
    assert np.abs(to_pictures(frames).astype(int) - pictures).max() <= 1
    with pytest.raises(ValueError, match="are no bytes"):
        scale_of(frames - 400)
    frames[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="nan"):
        scale_of(frames)


def test_what_is_no_clip_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no frames at"):
        open_npy(tmp_path / "none.npy")
    bad = {
        "three": np.zeros((8, 32, 32), np.uint8),
        "grey": np.zeros((8, 32, 32, 1), np.uint8),
        "tiny": np.zeros((8, 3, 8, 32), np.uint8),
        "ints": np.zeros((8, 3, 32, 32), np.int64),
        "text": np.array("eight frames"),
        "none": np.zeros((0, 3, 32, 32), np.uint8),
    }
    for name, array in bad.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match=f"{name}.npy"):
            open_npy(tmp_path / f"{name}.npy")
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "archive", np.zeros(3))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    for name in ("pickled", "archive"):
        with pytest.raises(ValueError, match=f"{name}.npy"):
            open_npy(tmp_path / f"{name}.npy")


def test_a_damaged_npy_is_an_error_or_still_frames(tmp_path: Path) -> None:
    """Whatever is flipped in its header, or cut off."""
    path, rng = tmp_path / "a.npy", np.random.default_rng(0)
    np.save(path, np.zeros((8, 3, 16, 16), np.uint8))
    whole = path.read_bytes()
    for size in (0, 5, 9, 60, 127, 128, 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cannot read .*a.npy"):
            open_npy(path)
    refused = 0
    for _ in range(500):
        raw = bytearray(whole)
        for at in rng.integers(128, size=rng.integers(1, 5)):
            raw[at] = rng.integers(256)
        path.write_bytes(raw)
        try:
            assert open_npy(path).ndim == 4
        except ValueError:
            refused += 1
    assert refused > 250
