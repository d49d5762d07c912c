"""The Embodied-former against attention written out by hand, and what must not change it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from embodied.model.former import EmbodiedFormer, FormerConfig, TextState

SMALL = FormerConfig(
    width=16,
    n_layers=3,
    n_heads=2,
    n_queries=3,
    cross_every=2,
    vision_width=10,
    text_width=6,
    n_patches=4,
    max_frames=2,
    max_cameras=2,
    max_text=8,
)
ONE_LAYER = FormerConfig(**{**SMALL.__dict__, "n_layers": 1})


def _former(config: FormerConfig = SMALL) -> EmbodiedFormer:
    torch.manual_seed(0)
    former = EmbodiedFormer(config).eval()
    for parameter in former.parameters():  # biases and norms too, so that none is without effect
        torch.nn.init.normal_(parameter, std=0.3)
    return former


def _vision(batch: int = 2, frames: int = 2) -> Tensor:
    return torch.randn(batch, 2, frames, 4, 10, generator=torch.Generator().manual_seed(3))


def _text(lengths: tuple[int, ...], longest: int | None = None) -> tuple[Tensor, Tensor]:
    """Word embeddings and mask; what is padded holds garbage."""
    longest = longest or max(lengths)
    generator = torch.Generator().manual_seed(4)
    words = torch.randn(len(lengths), 8, 6, generator=generator)[:, :longest].clone()
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    words[~mask] = 77.0
    return words, mask


# --- against a reference ---------------------------------------------------------------------


def _norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * layer.weight + layer.bias


def _attend(part: torch.nn.Module, x: Tensor, source: Tensor) -> Tensor:
    """Attention of one sample, head by head: x (L, D) looks at source (K, W)."""
    width = x.shape[1]
    size = width // part.n_heads
    query = F.linear(x, part.query.weight, part.query.bias)
    both = F.linear(source, part.key_value.weight, part.key_value.bias)
    key, value = both[:, :width], both[:, width:]
    heads = []
    for h in range(part.n_heads):
        one = slice(h * size, (h + 1) * size)
        scores = query[:, one] @ key[:, one].T / math.sqrt(size)
        heads.append(F.softmax(scores, dim=-1) @ value[:, one])
    return F.linear(torch.cat(heads, dim=1), part.out.weight, part.out.bias)


def _feed(layer: torch.nn.Module, x: Tensor) -> Tensor:
    first, _, second = layer.feed
    return x + second(F.gelu(first(_norm(x, layer.norm_feed))))


def _reference(former: EmbodiedFormer, vision: Tensor, words: Tensor) -> Tensor:
    """One sample through a one-layer former: vision (cameras, frames, N, W), words (L, W)."""
    (layer,) = former.layers
    text = former.text_in(words) + former.text_position[: len(words)]
    tokens = []
    for c, camera in enumerate(vision):
        for t, picture in enumerate(camera):
            for n, patch in enumerate(picture):
                token = former.vision_in(_norm(patch, former.vision_norm))
                place = former.patch_position[n] + former.frame_position[t]
                tokens.append(token + place + former.camera_embedding[c])
    queries = former.queries
    both = torch.cat([_norm(queries, layer.norm_self), _norm(text, layer.norm_self)])
    queries = queries + _attend(layer.attend_self, both[: len(queries)], both)
    looking = _norm(queries, layer.norm_cross)
    queries = queries + _attend(layer.attend_vision, looking, torch.stack(tokens))
    return _norm(_feed(layer, queries), former.norm_out)


@torch.no_grad()
def test_one_layer_equals_attention_by_hand() -> None:
    former, vision = _former(ONE_LAYER), _vision()
    words, mask = _text((5, 3))
    got = former(vision, former.encode_text(words, mask))
    for i, length in enumerate((5, 3)):
        torch.testing.assert_close(got[i], _reference(former, vision[i], words[i, :length]))


# --- what must not change the answer ---------------------------------------------------------


@torch.no_grad()
def test_padding_of_the_text_changes_nothing() -> None:
    former, vision = _former(), _vision()
    tight = former(vision, former.encode_text(*_text((4, 4))))
    padded = former(vision, former.encode_text(*_text((4, 4), longest=8)))
    torch.testing.assert_close(tight, padded)


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    former, vision = _former(), _vision(3)
    words, mask = _text((2, 8, 5))
    together = former(vision, former.encode_text(words, mask))
    for i in range(3):
        alone = former(vision[i : i + 1], former.encode_text(words[i : i + 1], mask[i : i + 1]))
        torch.testing.assert_close(alone[0], together[i])


@torch.no_grad()
def test_text_state_computed_once_serves_every_picture() -> None:
    former, vision = _former(), _vision(3)
    words, mask = _text((6,))
    once = former.encode_text(words, mask).expand(3)
    again = former.encode_text(words.repeat(3, 1, 1), mask.repeat(3, 1))
    torch.testing.assert_close(former(vision, once), former(vision, again))
    for i in range(3):
        one = former(vision[i : i + 1], former.encode_text(words, mask))
        torch.testing.assert_close(one[0], former(vision, once)[i])


# --- what must change it -----------------------------------------------------------------------


@torch.no_grad()
def test_words_cameras_frames_and_patches_are_told_apart() -> None:
    former, vision = _former(), _vision()
    words, mask = _text((5, 5))
    text = former.encode_text(words, mask)
    plain = former(vision, text)
    others = [former(vision.flip(dim), text) for dim in (1, 2, 3)]
    others.append(former(vision, former.encode_text(words.flip(1), mask)))
    for other in others:
        assert (plain - other).abs().max() > 1e-3


def test_cross_attention_in_every_other_layer() -> None:
    assert [layer.attend_vision is not None for layer in _former().layers] == [True, False, True]


def test_every_parameter_gets_a_gradient() -> None:
    former = _former()
    out = former(_vision(), former.encode_text(*_text((8, 5))))
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    without = [n for n, p in former.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_too_long_a_text_is_refused() -> None:
    words, mask = torch.zeros(1, 9, 6), torch.ones(1, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match="text of 9 tokens; the former takes 8"):
        _former().encode_text(words, mask)


@torch.no_grad()
def test_a_text_without_words_is_finite_and_carries_nothing() -> None:
    former, vision = _former(), _vision()
    silent = torch.zeros(2, 5, dtype=torch.bool)
    outs = []
    for scale in (0.0, 3.0):
        state: TextState = former.encode_text(_text((5, 5))[0] * scale, silent)
        outs.append(former(vision, state))
    assert outs[0].isfinite().all()
    torch.testing.assert_close(outs[0], outs[1])
