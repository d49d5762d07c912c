"""The vision encoder: video starts where images are, and stays frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embodied import weights
from embodied.model.planner import shrink
from embodied.model.vision import TubeletEmbed, VisionEncoder, single_threaded

TINY, REAL = "random:vit_tiny_patch16_224", "vit-small-dinov2"


def _encoder(name: str) -> VisionEncoder:
    size, layers = (64, 2) if name == TINY else (112, 6)
    return VisionEncoder.load(name, size, layers, torch.float32)


def _pixels(n: int, size: int) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    return _encoder(TINY)


@pytest.mark.parametrize(
    ("name", "size", "n", "width"), [(TINY, 64, 16, 192), (REAL, 112, 64, 384)]
)
def test_two_equal_frames_give_the_images_tokens(name: str, size: int, n: int, width: int) -> None:
    encoder, pixels = _encoder(name), _pixels(2, size)
    image = encoder.images(pixels)
    clip = encoder.clips(pixels[:, None].repeat(1, 4, 1, 1, 1))
    assert image.shape == (2, n, width) and clip.shape == (2, 2, n, width)
    assert image.std() > 0.01
    for tubelet in clip.unbind(1):
        torch.testing.assert_close(tubelet, image, atol=1e-4, rtol=1e-4)


def test_images_are_the_towers_own_tokens_after_n_layers(encoder: VisionEncoder) -> None:
    tower, pixels = weights.load_vision(TINY, 64), _pixels(2, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in weights.vision_stats(TINY))
    tower.blocks = tower.blocks[:2]
    expected = tower.forward_features((pixels - mean) / std)[:, 1:]
    torch.testing.assert_close(encoder.images(pixels), expected)


def test_both_frames_of_a_tubelet_count_and_no_other(encoder: VisionEncoder) -> None:
    clip = _pixels(4, 64)[None]  # (1, 4, 3, H, W)
    plain = encoder.clips(clip)
    for frame in range(4):
        changed = clip.clone()
        changed[0, frame] = 1 - changed[0, frame]
        moved = (encoder.clips(changed) - plain).abs().amax((0, 2, 3)) > 1e-4
        assert moved.tolist() == [frame // 2 == tubelet for tubelet in range(2)]


def test_tubelet_embedding_is_the_mean_over_its_frames() -> None:
    conv = torch.nn.Conv2d(3, 5, 4, 4)
    frames = _pixels(2, 8)
    got = TubeletEmbed(conv)(torch.cat([frames[0], frames[1]])[None])
    torch.testing.assert_close(got, (conv(frames[:1]) + conv(frames[1:])) / 2)


def test_an_odd_number_of_frames_is_refused(encoder: VisionEncoder) -> None:
    with pytest.raises(ValueError, match="even number of frames, got 3"):
        encoder.clips(_pixels(3, 64)[None])


def test_frozen_and_always_in_eval_mode(encoder: VisionEncoder) -> None:
    assert not any(p.requires_grad for p in encoder.parameters())
    pixels = _pixels(2, 64).requires_grad_()
    assert not encoder.images(pixels).requires_grad
    assert not encoder.clips(pixels[None]).requires_grad
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())


@pytest.mark.parametrize("n_layers", [0, 13])
def test_layers_that_are_not_there(n_layers: int) -> None:
    with pytest.raises(ValueError, match=rf"within 1\.\.12, got {n_layers}"):
        VisionEncoder.load(TINY, 64, n_layers, torch.float32)


def test_what_is_no_vit() -> None:
    stats = (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="Flatten has no patch convolution"):
        VisionEncoder(torch.nn.Flatten(), stats, stats)
    with pytest.raises(ValueError, match="cannot cut Flatten"):
        VisionEncoder(torch.nn.Flatten(), stats, stats, n_layers=1)


def test_shrinking_averages() -> None:
    pixels = _pixels(1, 8)
    expected = pixels.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    torch.testing.assert_close(shrink(pixels, 4), expected)
    assert shrink(pixels, 8) is pixels


def test_single_threaded_puts_the_number_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), single_threaded():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before
