"""The small CLIP: what learns, what is locked, and what it is worth when captions are shuffled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from embodied.checkpoint import CheckpointError
from embodied.cli.build_egocot import load_encoder
from embodied.config import preset
from embodied.egocot.filter import calibrate, compare
from embodied.model.llm import embed_texts
from embodied.model.locked_clip import (
    CaptionBatch,
    LockedClip,
    LockedClipConfig,
    LockedEncoder,
    fields,
)
from embodied.model.planner import Planner
from embodied.types import Clip
from embodied.weights import WeightsError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}
WORDS = [f"The robot pushes the {a} block onto the {b} one." for a in COLOURS for b in COLOURS]


def _clip(planner: Planner, n_fields: int = 2) -> LockedClip:
    torch.manual_seed(0)
    config = LockedClipConfig.of(
        planner.config, n_fields=n_fields, width=32, n_layers=1, dropout=0.0
    )
    embed = partial(embed_texts, planner.llm, planner.tokenizer, limit=config.max_text)
    return LockedClip(config, embed)


def _pictures(caption: str, rng: np.random.Generator, n: int = 2) -> np.ndarray:
    """uint8 (n, 48, 48, 3): the first colour of the caption on the left, the other on the right."""
    left, right = (COLOURS[word] for word in caption.split() if word in COLOURS)
    frames = np.empty((n, 48, 48, 3))
    frames[:, :, :24], frames[:, :, 24:] = left, right
    return (0.8 * frames + 50 * rng.random(frames.shape)).astype(np.uint8)


def _batch(planner: Planner, encoder: LockedEncoder, rng: np.random.Generator) -> CaptionBatch:
    clips = [torch.from_numpy(_tokens(encoder, _pictures(word, rng))) for word in WORDS]
    return CaptionBatch(torch.stack(clips), list(WORDS))


def _tokens(encoder: LockedEncoder, frames: np.ndarray) -> np.ndarray:
    """What `picture` gets of frames."""
    taken: list[Tensor] = []
    hook = encoder.model.picture.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    encoder.images(frames)
    hook.remove()
    return torch.cat(taken).numpy()


def test_fields_are_means_of_the_tokens_in_them() -> None:
    tokens = torch.randn(3, 16, 5)
    grid = tokens.view(3, 4, 4, 5)
    expected = torch.cat(
        [grid[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2) for j in (0, 2)], 1
    )
    torch.testing.assert_close(fields(tokens, 2), expected)
    torch.testing.assert_close(fields(tokens, 1), tokens.mean(1))


def test_everything_learns_but_what_is_locked(planner: Planner) -> None:
    clip = _clip(planner)
    encoder = LockedEncoder("x", clip, planner.vision)
    planner.zero_grad(set_to_none=True)
    loss, figures = clip.loss(_batch(planner, encoder, np.random.default_rng(0)))
    loss.backward()
    for name, parameter in clip.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(p.grad is None for p in planner.parameters())
    assert not any(p.requires_grad for p in planner.vision.parameters())
    assert 0 <= figures["found"] <= 1


def test_the_loss_is_that_of_every_pair_written_out(planner: Planner) -> None:
    clip = _clip(planner).eval()
    clips, captions = torch.randn(3, 2, 4 * 192), WORDS[:3]
    loss, figures = clip.loss(CaptionBatch(clips, captions))
    seen, said, scale = clip.seen(clips), clip.read(captions), clip.log_scale.exp()
    cosine = [[F.cosine_similarity(a, b, dim=0) * scale for b in said] for a in seen]
    table = torch.stack([torch.stack(row) for row in cosine])
    rows = [table[i, i] - torch.logsumexp(table[i], 0) for i in range(3)]
    columns = [table[i, i] - torch.logsumexp(table[:, i], 0) for i in range(3)]
    torch.testing.assert_close(loss, -sum(rows + columns) / 6)
    assert figures["found"] == sum(int(row.argmax()) == i for i, row in enumerate(table)) / 3


def test_padding_and_company_change_nothing(planner: Planner) -> None:
    clip = _clip(planner).eval()
    alone = clip.read(["The robot pushes it."])
    together = clip.read(["The robot pushes it.", WORDS[0] + " " + WORDS[1]])
    torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=1e-4)
    assert clip.read(["block " * 500]).shape == (1, 32)  # longer than it reads


def _auc(planner: Planner, captions_of: list[str], n_steps: int = 60) -> float:
    """On pictures not trained on, after training each kind of picture with `captions_of`."""
    clip, rng = _clip(planner), np.random.default_rng(1)
    encoder = LockedEncoder("x", clip, planner.vision)
    batches = [_batch(planner, encoder, rng) for _ in range(4)]
    optimizer = torch.optim.AdamW(clip.parameters(), lr=3e-3)
    for step in range(n_steps):
        optimizer.zero_grad()
        clip.loss(replace(batches[step % 4], captions=captions_of))[0].backward()
        optimizer.step()
    clip.eval()
    clips = [Clip(_pictures(word, rng)) for word in WORDS * 2]
    return calibrate(encoder, clips, WORDS * 2, np.random.default_rng(0)).auc


def test_it_learns_to_tell_captions_and_knows_nothing_untrained_or_of_shuffled_ones(
    planner: Planner,
) -> None:
    assert _auc(planner, WORDS) > 0.95
    assert 0.3 < _auc(planner, WORDS, n_steps=0) < 0.7
    others = WORDS[5:] + WORDS[:5]  # every caption is another's
    assert _auc(planner, others) < 0.6


def test_what_is_saved_loads_back_the_same(planner: Planner, tmp_path: Path) -> None:
    clip = _clip(planner)
    for parameter in clip.parameters():
        parameter.data = parameter.data.half().float()  # what is saved is in half precision
    clip.save(tmp_path / "clip", trained_on="x")
    encoder = load_encoder(str(tmp_path / "clip"))
    before = LockedEncoder("x", clip.eval(), planner.vision)
    frames = _pictures(WORDS[1], np.random.default_rng(0), n=40)
    assert encoder.name == str(tmp_path / "clip")
    np.testing.assert_array_equal(encoder.images(frames), before.images(frames))
    np.testing.assert_array_equal(encoder.texts(WORDS), before.texts(WORDS))
    found = calibrate(encoder, [Clip(frames)] * 16, WORDS, np.random.default_rng(0))
    seen = clip.seen(torch.from_numpy(_tokens(before, frames))[None]).detach().numpy()
    again = compare("x", np.repeat(seen, 16, 0), WORDS, encoder.texts, np.random.default_rng(0))
    np.testing.assert_allclose(found.own, again.own, atol=1e-5)  # training's mean is the filter's


def test_a_folder_that_holds_something_else_or_is_damaged(planner: Planner, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no CLIP called 'x': expected open_clip:.*, small, or"):
        load_encoder("x")
    planner.save(tmp_path / "planner")
    with pytest.raises(WeightsError, match=r"planner holds no CLIP .* `embodied align-clip` wrote"):
        load_encoder(str(tmp_path / "planner"))
    _clip(planner).save(tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(CheckpointError, match=r"is damaged: SHA-256"):
        load_encoder(str(tmp_path / "clip"))


def test_the_presets_name_the_planners_own_towers() -> None:
    config = LockedClipConfig.of(preset("small"))
    assert (config.vision, config.llm) == ("vit-small-dinov2", "smollm2-135m-instruct")
    assert (config.vision_width, config.text_width, config.vision_layers) == (384, 576, 6)
