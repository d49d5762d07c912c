"""3. Vision tokens and words → embodied tokens: the Embodied-former.

Learnable queries attend to themselves and to the text, and look at the vision tokens through
cross-attention (EmbodiedGPT, arXiv 2305.15021, section 3.2; the idea is BLIP-2's Q-Former,
arXiv 2301.12597). The same module serves twice: with the instruction for the planner, and with
the current sub-goal for control.

Text tokens attend to text alone. So what the text contributes to every layer depends on nothing
else and is computed once per sub-goal (`encode_text`), not once per control step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

EmbedTexts = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Texts → frozen word embeddings (B, L, W), and their mask (B, L)."""


@dataclass(frozen=True)
class FormerConfig:
    """Sizes of the Embodied-former.

    Args:
        width: D of its tokens.
        n_layers: transformer layers.
        n_heads: attention heads; divides `width`.
        n_queries: Q, learnable queries.
        cross_every: cross-attention to vision in every `cross_every`-th layer, from the first on.
        vision_width: width of the frozen vision encoder's tokens.
        text_width: width of the frozen word embeddings.
        n_patches: N, positions of one picture's grid.
        max_frames: most time positions (tubelets) of a clip.
        max_cameras: most cameras seen at once.
        max_text: most text tokens.
    """

    width: int = 256
    n_layers: int = 4
    n_heads: int = 8
    n_queries: int = 32
    cross_every: int = 1
    vision_width: int = 384
    text_width: int = 576
    n_patches: int = 64
    max_frames: int = 4
    max_cameras: int = 2
    max_text: int = 96


@dataclass(frozen=True)
class TextState:
    """The text's keys and values for every layer, each (B, heads, L, D/heads), and its mask.

    `mask` is (B, L), true at real tokens.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor

    def expand(self, batch: int) -> TextState:
        """One text for a whole batch of pictures."""
        grow = lambda t: t.expand(batch, *t.shape[1:])  # noqa: E731
        return TextState(
            tuple(map(grow, self.keys)), tuple(map(grow, self.values)), grow(self.mask)
        )


class Attention(nn.Module):
    """Multi-head attention whose queries and keys come from different places."""

    def __init__(self, width: int, source_width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(source_width, 2 * width)
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, heads, L, D/heads)

    def project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `source` (B, L, W), each (B, heads, L, D/heads)."""
        key, value = self.key_value(source).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` (B, L, D) attends to keys and values; `mask` (B, 1, 1, K) true where allowed."""
        query = self._split(self.query(x)) * (key.shape[-1] ** -0.5)
        # written out: for so few queries torch's fused CPU attention is slower, above all backward
        scores = query @ key.transpose(-1, -2)  # (B, heads, Q, K)
        if mask is not None:  # -inf would give NaN where nothing is allowed, as without any words
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        mixed = scores.softmax(-1).to(value.dtype) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


class FormerLayer(nn.Module):
    """Self-attention over queries and text, cross-attention to vision, feed-forward; pre-norm."""

    def __init__(self, config: FormerConfig, crosses: bool) -> None:
        super().__init__()
        width = config.width
        self.norm_self = nn.LayerNorm(width)
        self.attend_self = Attention(width, width, config.n_heads)
        self.norm_cross = nn.LayerNorm(width) if crosses else None
        self.attend_vision = Attention(width, width, config.n_heads) if crosses else None
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward_text(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Text (B, L, D) → its next state, and its keys and values for the queries."""
        normed = self.norm_self(text)
        key, value = self.attend_self.project(normed)
        text = text + self.attend_self(normed, key, value, mask[:, None, None, :])
        return text + self.feed(self.norm_feed(text)), key, value

    def forward(
        self, queries: Tensor, text: tuple[Tensor, Tensor], mask: Tensor, vision: Tensor
    ) -> Tensor:
        """Queries (B, Q, D) → (B, Q, D). `mask` (B, 1, 1, Q + L); `vision` (B, N, D)."""
        normed = self.norm_self(queries)
        key, value = self.attend_self.project(normed)
        key = torch.cat([key, text[0]], dim=2)  # (B, heads, Q + L, D/heads)
        value = torch.cat([value, text[1]], dim=2)
        queries = queries + self.attend_self(normed, key, value, mask)
        if self.attend_vision is not None and self.norm_cross is not None:
            key, value = self.attend_vision.project(vision)
            queries = queries + self.attend_vision(self.norm_cross(queries), key, value)
        return queries + self.feed(self.norm_feed(queries))


class EmbodiedFormer(nn.Module):
    """Learnable queries that read a scene with some words in mind."""

    def __init__(self, config: FormerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.queries = nn.Parameter(torch.randn(config.n_queries, width) * 0.02)
        self.text_in = nn.Linear(config.text_width, width)
        self.text_position = nn.Parameter(torch.randn(config.max_text, width) * 0.02)
        self.vision_norm = nn.LayerNorm(config.vision_width)
        self.vision_in = nn.Linear(config.vision_width, width)
        self.patch_position = nn.Parameter(torch.randn(config.n_patches, width) * 0.02)
        self.frame_position = nn.Parameter(torch.randn(config.max_frames, width) * 0.02)
        self.camera_embedding = nn.Parameter(torch.randn(config.max_cameras, width) * 0.02)
        self.layers = nn.ModuleList(
            FormerLayer(config, crosses=i % config.cross_every == 0) for i in range(config.n_layers)
        )
        self.norm_out = nn.LayerNorm(width)

    def encode_text(self, embedded: Tensor, mask: Tensor) -> TextState:
        """Word embeddings (B, L, W) and mask (B, L), true at real tokens → `TextState`.

        Raises:
            ValueError: more than `max_text` tokens.
        """
        length = embedded.shape[1]
        if length > self.config.max_text:
            raise ValueError(f"text of {length} tokens; the former takes {self.config.max_text}")
        text = self.text_in(embedded) + self.text_position[:length]
        keys, values = [], []
        for layer in cast("list[FormerLayer]", self.layers):
            text, key, value = layer.forward_text(text, mask)
            keys.append(key)
            values.append(value)
        return TextState(tuple(keys), tuple(values), mask)

    def forward(self, vision: Tensor, text: TextState) -> Tensor:
        """Vision tokens (B, cameras, frames, N, W) and text → embodied tokens (B, Q, D)."""
        batch, n_cameras, n_frames, _, _ = vision.shape
        tokens = self.vision_in(self.vision_norm(vision))
        tokens = tokens + self.patch_position
        tokens = tokens + self.frame_position[:n_frames, None]
        tokens = tokens + self.camera_embedding[:n_cameras, None, None]
        tokens = tokens.flatten(1, 3)  # (B, cameras * frames * N, D)
        queries = self.queries.expand(batch, -1, -1)
        always = text.mask.new_ones(batch, self.config.n_queries)
        mask = torch.cat([always, text.mask], dim=1)[:, None, None, :]
        for layer, key, value in zip(self.layers, text.keys, text.values, strict=True):
            queries = layer(queries, (key, value), mask, tokens)
        return self.norm_out(queries)


def text_states(former: EmbodiedFormer, embed_texts: EmbedTexts, texts: list[str]) -> TextState:
    """The texts' states (B, …) in the former; each different text is encoded once."""
    unique = list(dict.fromkeys(texts))
    device = former.queries.device
    state = former.encode_text(*(part.to(device) for part in embed_texts(unique)))
    rows = torch.tensor([unique.index(text) for text in texts], device=device)
    take = lambda parts: tuple(part[rows] for part in parts)  # noqa: E731
    return TextState(take(state.keys), take(state.values), state.mask[rows])
