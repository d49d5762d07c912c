"""2. Clip → vision tokens: a frozen ViT, with a tubelet patch embedding for video.

A clip of T frames becomes T / 2 tubelets: a Conv3D with kernel = stride = (2, P, P) embeds two
frames at once, as in EmbodiedGPT (arXiv 2305.15021) and ViViT (arXiv 2103.15691). It starts as
the image tower's own Conv2D spread over both frames, so that two equal frames give exactly the
tokens of one image. Each tubelet then passes through the ViT alone; time is mixed later, in the
Embodied-former.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embodied import weights

TUBELET_FRAMES = 2


class TubeletEmbed(nn.Module):
    """Stands in for a ViT's patch Conv2D: images (B, 3, H, W) as before, and tubelets
    (B, 2 · 3, H, W), two frames stacked on the channel axis, through the Conv3D."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.stride = conv.stride
        inflated = conv.weight.detach()[:, :, None] / TUBELET_FRAMES
        self.weight = nn.Parameter(inflated.repeat(1, 1, TUBELET_FRAMES, 1, 1))
        self.bias = nn.Parameter(conv.bias.detach().clone()) if conv.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 3:  # an image is a tubelet of two equal frames
            return F.conv2d(x, self.weight.sum(2), self.bias, self.stride)
        video = x.unflatten(1, (TUBELET_FRAMES, 3)).transpose(1, 2)  # (B, 3, 2, H, W)
        return F.conv3d(video, self.weight, self.bias, (TUBELET_FRAMES, *self.stride)).squeeze(2)


def _keep_layers(tower: Any, n_layers: int | None) -> None:
    """Drop the blocks after the `n_layers`-th: middle layers keep finer positions, cost less."""
    if n_layers is None:
        return
    tower = getattr(tower, "trunk", tower)
    holder, name = (tower, "blocks") if hasattr(tower, "blocks") else (None, "")
    if holder is None and hasattr(tower, "transformer"):
        holder, name = tower.transformer, "resblocks"
    if holder is None:
        raise ValueError(f"cannot cut {type(tower).__name__}: it has neither blocks nor resblocks")
    blocks = getattr(holder, name)
    if not 0 < n_layers <= len(blocks):
        raise ValueError(f"n_layers must be within 1..{len(blocks)}, got {n_layers}")
    setattr(holder, name, blocks[:n_layers])


def _replace_patch_conv(tower: nn.Module) -> None:
    """Put a `TubeletEmbed` where the tower's first convolution is."""
    for name, module in tower.named_modules():
        if isinstance(module, nn.Conv2d):
            parent, _, leaf = name.rpartition(".")
            setattr(tower.get_submodule(parent), leaf, TubeletEmbed(module))
            return
    raise ValueError(f"{type(tower).__name__} has no patch convolution; use a ViT")


class VisionEncoder(nn.Module):
    """A frozen ViT for images and clips.

    Args:
        tower: as `embodied.weights.load_vision` gives it.
        mean, std: per channel, of pixels in 0..1.
        n_layers: how many of its layers to use; all when None.
        dtype: what it computes in; bfloat16 is several times faster on recent CPUs.
    """

    tower: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tower: nn.Module,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        n_layers: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        _keep_layers(tower, n_layers)
        _replace_patch_conv(tower)
        self.tower = tower.to(dtype).eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.dtype = dtype

    @classmethod
    def load(
        cls, name: str, image_size: int, n_layers: int | None, dtype: torch.dtype
    ) -> VisionEncoder:
        """The named tower with its pretrained weights (see `embodied.weights`)."""
        tower = weights.load_vision(name, image_size)
        return cls(tower, *weights.vision_stats(name), n_layers=n_layers, dtype=dtype)

    def train(self, mode: bool = True) -> VisionEncoder:
        """Stay in eval mode: the tower is frozen."""
        return super().train(False)

    def images(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 → tokens (B, N, W) without the class token."""
        x = ((pixels - self.mean) / self.std).to(self.dtype)
        with torch.no_grad():
            return self.tower.forward_features(x)[:, 1:]

    def clips(self, pixels: Tensor) -> Tensor:
        """(B, T, 3, H, W) in 0..1, T even → tokens (B, T / 2, N, W)."""
        n_clips, n_frames = pixels.shape[:2]
        if n_frames % TUBELET_FRAMES:
            raise ValueError(f"a clip needs an even number of frames, got {n_frames}")
        x = ((pixels - self.mean) / self.std).to(self.dtype)
        tubelets = x.unflatten(1, (-1, TUBELET_FRAMES)).flatten(0, 1).flatten(1, 2)
        with torch.no_grad():
            tokens = self.tower.forward_features(tubelets)[:, 1:]  # (B * T / 2, N, W)
        return tokens.unflatten(0, (n_clips, -1))


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run the body with one thread, for workers that share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
