"""Frames → Clip, and pictures in and out of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from embodied import video


def moving_square(n: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """uint8 (n, H, W, 3): a smooth, noiseless scene in which every frame differs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    frames = np.zeros((n, height, width, 3), np.uint8)
    frames[..., 0], frames[..., 1] = 40 + x, 40 + y
    for t in range(n):
        left = (2 * t + seed) % (width - 16)
        frames[t, 16:32, left : left + 16] = rng.integers(0, 2) * 30 + 120
        frames[t, 40:48, : 1 + 2 * (t % 30)] = 220
    return frames


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 50, 499])
@pytest.mark.parametrize("t", [1, 2, 8, 16])
def test_sample_indices_are_ordered_end_with_the_last_and_skip_none_that_they_could_take(
    n: int, t: int
) -> None:
    indices = video.sample_indices(n, t)
    assert indices.shape == (t,) and indices.dtype == np.int64
    assert indices[-1] == n - 1 and indices.min() >= 0
    assert (np.diff(indices) >= 0).all()
    assert len(set(indices.tolist())) == min(n, t)
    if n >= t > 1:
        assert indices[0] == 0 and np.ptp(np.diff(indices)) <= 1


def test_sample_indices_repeats_the_earliest() -> None:
    assert video.sample_indices(3, 6).tolist() == [0, 0, 0, 0, 1, 2]
    with pytest.raises(ValueError, match="got t=8 of n=0"):
        video.sample_indices(0, 8)


def test_buffer_forgets_the_oldest_and_copies() -> None:
    buffer = video.FrameBuffer(10)
    frame = np.zeros((4, 6, 3), np.uint8)
    for value in range(25):
        frame[:] = value
        buffer.append(frame)
    assert len(buffer) == 10
    assert buffer.clip(4).frames[:, 0, 0, 0].tolist() == [15, 18, 21, 24]
    assert buffer.clip(3, span=3).frames[:, 0, 0, 0].tolist() == [22, 23, 24]
    assert buffer.clip(3, span=2).frames[:, 0, 0, 0].tolist() == [23, 23, 24]
    assert buffer.clip(1).frames[:, 0, 0, 0].tolist() == [24]
    assert buffer.clip(2, span=99).frames[:, 0, 0, 0].tolist() == [15, 24]


def test_buffer_errors_say_what_to_do() -> None:
    buffer = video.FrameBuffer(2)
    with pytest.raises(ValueError, match="empty: append a frame"):
        buffer.clip()
    buffer.append(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(4, 4, 3\), got \(2, 4, 3\): call clear"):
        buffer.append(np.zeros((2, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="must be uint8"):
        buffer.append(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="span=0"):
        buffer.clip(8, span=0)
    with pytest.raises(ValueError, match="capacity=0"):
        video.FrameBuffer(0)
    buffer.clear()
    buffer.append(np.zeros((2, 4, 3), np.uint8))


def test_to_chw_moves_channels_and_scales() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 6, 3)).astype(np.uint8)
    chw = video.to_chw(frames)
    assert chw.shape == (2, 5, 3, 4, 6) and chw.dtype == torch.float32
    assert torch.equal(
        (chw * 255).round().to(torch.uint8).movedim(-3, -1), torch.from_numpy(frames)
    )
    assert video.to_chw(np.full((1, 1, 3), 255, np.uint8)).max() == 1.0
    with pytest.raises(ValueError, match=r"expected uint8 \(..., H, W, 3\), got float32"):
        video.to_chw(frames.astype(np.float32))


def test_mp4_round_trip_and_random_access(tmp_path: Path) -> None:
    frames = moving_square(37)
    path = tmp_path / "new" / "clip.mp4"
    video.write_mp4(path, iter(frames), 12)
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]
    assert video.count_frames(path) == 37
    back = video.read_mp4(path)
    assert back.shape == frames.shape and back.dtype == np.uint8
    assert np.abs(back.astype(int) - frames).mean() < 2
    for indices in ([36], [0], [9, 10, 11], [30, 2, 2, 17], list(range(37))):
        assert np.array_equal(video.read_mp4(path, indices), back[indices])


@pytest.mark.parametrize(("side", "tree"), [(32, 0), (64, 1)])
def test_tiny_pictures_are_coded_alike_each_time(tmp_path: Path, side: int, tree: int) -> None:
    """x264 writes its settings into the stream; with the tree its output varied, but seldom."""
    video.write_mp4(tmp_path / "v.mp4", moving_square(20, side, side), fps=20)
    assert f"mbtree={tree}".encode() in (tmp_path / "v.mp4").read_bytes()


def test_a_lower_crf_is_closer(tmp_path: Path) -> None:
    frames = moving_square(10)
    errors = []
    for crf in (10, 40):
        video.write_mp4(tmp_path / f"{crf}.mp4", frames, 10, crf=crf)
        errors.append(np.abs(video.read_mp4(tmp_path / f"{crf}.mp4").astype(int) - frames).mean())
    assert errors[0] < errors[1]


@pytest.mark.parametrize("fps", [10, 30, 80])
def test_joined_videos_have_every_frame_where_it_belongs(tmp_path: Path, fps: int) -> None:
    parts = []
    for i, n in enumerate((1, 23, 10)):
        parts.append(tmp_path / f"{i}.mp4")
        video.write_mp4(parts[-1], moving_square(n, seed=i * 9), fps)
    video.join_mp4(parts, tmp_path / "all.mp4")
    whole = np.concatenate([video.read_mp4(part) for part in parts])
    assert np.array_equal(video.read_mp4(tmp_path / "all.mp4"), whole)
    indices = [0, 1, 23, 24, 33]
    assert np.array_equal(video.read_mp4(tmp_path / "all.mp4", indices), whole[indices])
    with pytest.raises(ValueError, match="no videos to join"):
        video.join_mp4([], tmp_path / "none.mp4")


def test_video_errors(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(ValueError, match="no frames to write"):
        video.write_mp4(path, [], 10)
    with pytest.raises(ValueError, match="even sides, got 64x63"):
        video.write_mp4(path, moving_square(2, width=63), 10)
    with pytest.raises(ValueError, match=r"frames of one video are uint8 \(64, 64, 3\)"):
        video.write_mp4(path, [moving_square(1)[0], moving_square(1, height=32)[0]], 10)
    assert list(tmp_path.iterdir()) == []  # nothing half-written stays
    with pytest.raises(FileNotFoundError, match="no video at"):
        video.read_mp4(path)
    video.write_mp4(path, moving_square(5), 10)
    with pytest.raises(ValueError, match="has 5 frames, so none numbered 5"):
        video.read_mp4(path, [0, 5])
    with pytest.raises(ValueError, match="non-empty list"):
        video.read_mp4(path, [-1])
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match="cannot decode"):
        video.read_mp4(path)


def test_gif_plays_at_the_asked_speed(tmp_path: Path) -> None:
    video.write_gif(tmp_path / "slow.gif", moving_square(9), 10)
    with Image.open(tmp_path / "slow.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.size) == (9, 100, (64, 64))
    video.write_gif(tmp_path / "fast.gif", moving_square(9), 80)
    with Image.open(tmp_path / "fast.gif") as gif:
        assert gif.n_frames == 5 and gif.info["duration"] in (20, 30)
    with pytest.raises(ValueError, match="no frames"):
        video.write_gif(tmp_path / "none.gif", [], 10)
