"""Pictures and captions in one space: a locked image tower, and a small text tower that learns.

Locked-image tuning (LiT, arXiv 2111.07991). Pictures go through the planner's frozen vision tower,
whose tokens are averaged over a few fields of the picture, and a linear layer. Captions go through
the frozen word embeddings of a language model, a small transformer and a linear layer. What is
trained, the layers and the transformer, learns by InfoNCE (arXiv 1807.03748) which of the captions
of a batch is a clip's own.

    tokens ─ fields ─ linear ─┐ of every picture, then their mean
                              ├─ cosine
    words ─ transformer ──────┘
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embodied import checkpoint, weights
from embodied.config import ModelConfig
from embodied.model.llm import embed_texts
from embodied.model.planner import shrink
from embodied.model.vision import VisionEncoder
from embodied.sharing import Fractions
from embodied.video import to_chw

_KIND = "locked_clip"
_FIRST_SCALE, _LARGEST_SCALE = 1 / 0.07, 100.0  # CLIP's own, arXiv 2103.00020
_BATCH = 32


@dataclass(frozen=True)
class LockedClipConfig:
    """Sizes, and the names of what is frozen.

    Args:
        vision, image_size, vision_layers, dtype, llm: as in `ModelConfig`.
        vision_width: of its tokens.
        text_width: of the word embeddings.
        n_fields: along either side of the picture; what lies in one field is averaged.
        width: of the space that both sides share.
        n_layers, n_heads: of the text tower.
        max_text: tokens of a caption that are read.
        dropout: in the text tower, while training.
    """

    vision: str
    image_size: int
    vision_layers: int | None
    dtype: str
    llm: str
    vision_width: int
    text_width: int
    n_fields: int = 2
    width: int = 128
    n_layers: int = 2
    n_heads: int = 4
    max_text: int = 48
    dropout: float = 0.1

    @classmethod
    def of(cls, model: ModelConfig, **sizes: Any) -> LockedClipConfig:
        """With the frozen parts of a planner."""
        return cls(
            model.vision,
            model.image_size,
            model.vision_layers,
            model.dtype,
            model.llm,
            model.former.vision_width,
            model.former.text_width,
            **sizes,
        )


@dataclass(frozen=True)
class CaptionBatch:
    """Clips with their captions, no two of which are the same.

    Args:
        clips: (B, T, C), each picture as `fields` gives it.
        captions: B of them.
    """

    clips: Tensor
    captions: list[str]


def fields(tokens: Tensor, n: int) -> Tensor:
    """Vision tokens (B, N, W) of pictures, averaged over n × n fields → (B, n · n · W)."""
    side = math.isqrt(tokens.shape[-2])
    grid = tokens.float().transpose(-1, -2).unflatten(-1, (side, side))  # (B, W, side, side)
    return F.adaptive_avg_pool2d(grid, n).flatten(2).transpose(-1, -2).flatten(1)


class CaptionTower(nn.Module):
    """Word embeddings of captions → a vector each."""

    def __init__(self, config: LockedClipConfig) -> None:
        super().__init__()
        width = config.width
        self.squeeze = nn.Linear(config.text_width, width)
        self.norm = nn.LayerNorm(width)
        self.positions = nn.Parameter(torch.randn(config.max_text, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width,
            config.n_heads,
            2 * width,
            config.dropout,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)
        self.project = nn.Linear(width, width)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Words (B, L, W) and mask (B, L), true at real tokens → (B, D)."""
        x = self.norm(self.squeeze(words)) + self.positions[: words.shape[1]]  # (B, L, D)
        x = self.layers(x, src_key_padding_mask=~mask)
        real = mask[..., None].float()
        return self.project((x * real).sum(1) / real.sum(1).clamp(min=1))


class LockedClip(nn.Module):
    """All that is trained.

    Args:
        config: sizes.
        embed: captions → frozen word embeddings (B, L, W) and their mask (B, L).
    """

    def __init__(
        self, config: LockedClipConfig, embed: Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.config = config
        self._embed = embed
        n_inputs = config.n_fields**2 * config.vision_width
        self.picture = nn.Sequential(
            nn.LayerNorm(n_inputs, elementwise_affine=False), nn.Linear(n_inputs, config.width)
        )
        self.caption = CaptionTower(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))

    def seen(self, clips: Tensor) -> Tensor:
        """Clips (B, T, C) → unit vectors (B, D), as `embodied.egocot.filter` takes the mean."""
        pictures = F.normalize(self.picture(clips), dim=-1)  # (B, T, D)
        return F.normalize(pictures.mean(1), dim=-1)

    def read(self, captions: Sequence[str]) -> Tensor:
        """Captions → unit vectors (B, D)."""
        words, mask = self._embed(captions)
        device = self.log_scale.device
        return F.normalize(self.caption(words.to(device), mask.to(device)), dim=-1)

    def loss(
        self, batch: CaptionBatch, fractions: Fractions | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """InfoNCE both ways, and the share of clips whose own caption is the likeliest.

        It compares all of a batch with all of it, which shares of a batch cannot add up to.
        """
        assert fractions is None, "a batch of captions is not shared"
        scale = self.log_scale.exp().clamp(max=_LARGEST_SCALE)
        logits = scale * self.seen(batch.clips) @ self.read(batch.captions).T  # (B, B)
        own = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        return loss, {"found": float((logits.argmax(1) == own).float().mean())}

    def save(self, folder: Path, **notes: Any) -> None:
        """Write the trained weights in half precision; `notes` go to config.json as well."""
        tensors = {name: t.half() for name, t in self.state_dict().items()}
        checkpoint.save(folder, tensors, {"kind": _KIND, _KIND: asdict(self.config), **notes})


@dataclass(frozen=True)
class LockedEncoder:
    """A `LockedClip` with its frozen parts: an `embodied.egocot.filter.Encoder`.

    Args:
        name: as it was asked for.
        model: in eval mode.
    """

    name: str
    model: LockedClip
    vision: VisionEncoder

    @torch.no_grad()
    def images(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) → (N, D)."""
        parts = []
        for first in range(0, len(frames), _BATCH):
            pixels = shrink(to_chw(frames[first : first + _BATCH]), self.model.config.image_size)
            pixels = pixels.to(self.model.log_scale.device)
            tokens = fields(self.vision.images(pixels), self.model.config.n_fields)
            parts.append(self.model.picture(tokens).cpu().numpy())
        return np.concatenate(parts)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """N texts → (N, D); what is longer than the model reads is cut."""
        parts = [self.model.read(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
        return torch.cat(parts).cpu().numpy()


def load_locked(folder: Path, name: str, device: torch.device | None = None) -> LockedEncoder:
    """What `LockedClip.save` wrote, with the frozen parts that it names; on the CPU by default.

    Raises:
        WeightsError: the folder holds something else, or the frozen parts cannot be had.
        CheckpointError: it is damaged.
    """
    tensors, found = checkpoint.load(folder)
    if found.get("kind") != _KIND:
        raise weights.WeightsError(
            f"{folder} holds no CLIP but {found.get('kind', 'something else')}; name the folder"
            " `clip` that `embodied align-clip` wrote"
        )
    config = LockedClipConfig(**found[_KIND])
    dtype = getattr(torch, config.dtype)
    vision = VisionEncoder.load(config.vision, config.image_size, config.vision_layers, dtype)
    where = device or torch.device("cpu")
    loaded, tokenizer = weights.load_llm(config.llm, dtype)
    language: Any = loaded
    language.to(where)
    model = LockedClip(config, partial(embed_texts, language, tokenizer, limit=config.max_text))
    model.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    return LockedEncoder(name, model.to(where).eval(), vision.to(where))
