"""The sizes of every preset, counted without weights against sums written out here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embodied.config import preset
from embodied.model.planner import Planner
from embodied.model.sizes import Size, build_on_meta, count


@pytest.fixture(scope="module")
def paper() -> Planner:
    return build_on_meta(preset("paper"))


def _linear(n_in: int, n_out: int, bias: bool = True) -> int:
    return n_in * n_out + bias * n_out


def _eva_giant(n_layers: int) -> int:
    """EVA ViT-g/14 of arXiv 2211.07636 with a patch embedding for two frames; keys have no bias."""
    width, hidden = 1408, 6144
    attention = _linear(width, 3 * width, False) + 2 * width + _linear(width, width)
    block = attention + _linear(width, hidden) + _linear(hidden, width) + 2 * 2 * width
    patches = 2 * 3 * 14 * 14 * width + width
    return n_layers * block + patches + (1 + 257) * width + 2 * width


def _former(width: int, layers: int, every: int, vision: int, text: int) -> int:
    attention = 4 * _linear(width, width)
    feed = _linear(width, 4 * width) + _linear(4 * width, width)
    plain = attention + feed + 2 * 2 * width
    crossing = attention + 2 * width
    tables = (32 + 512 + 256 + 4 + 2) * width  # queries, text, patches, frames, cameras
    ends = _linear(text, width) + _linear(vision, width) + 2 * vision + 2 * width
    return layers * plain + -(-layers // every) * crossing + tables + ends


def _llama_7b() -> int:
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    return 32 * layer + 2 * 32_000 * 4096 + 4096


def test_the_papers_towers(paper: Planner) -> None:
    assert {p.device.type for p in paper.parameters()} == {"meta"}
    assert count(paper.vision) == Size(trained=0, frozen=_eva_giant(39))
    assert 0.98e9 < _eva_giant(39) < 1.0e9 < _eva_giant(40) < 1.02e9
    assert count(paper.llm).frozen == _llama_7b() == 6_738_415_616


def test_what_the_paper_trains(paper: Planner) -> None:
    former = _former(768, 12, 2, vision=1408, text=4096)
    assert count(paper.former) == Size(trained=former, frozen=0)
    assert count(paper.mapping) == Size(trained=_linear(768, 4096), frozen=0)
    prefix = 30 * (10 * 4096 + 1)  # ten tokens and a gate in each of the top 30 layers
    assert count(paper.llm).trained == prefix
    assert count(paper).trained == former + _linear(768, 4096) + prefix
    trained = {n.split(".")[0] for n, p in paper.named_parameters() if p.requires_grad}
    assert trained == {"former", "mapping", "llm"}
    gates = [n for n, _ in paper.named_parameters() if n.endswith("adaption_gate")]
    layers = sorted(int(name.split(".layers.")[1].split(".")[0]) for name in gates)
    assert layers == list(range(2, 32))


def test_tiny_on_meta_has_the_shapes_of_the_built_one(planner: Planner) -> None:
    meta = build_on_meta(preset("tiny"))
    expected = {n: (p.shape, p.requires_grad) for n, p in planner.named_parameters()}
    assert {n: (p.shape, p.requires_grad) for n, p in meta.named_parameters()} == expected


def test_small_fits_its_shipped_share() -> None:
    small = build_on_meta(preset("small"))
    assert count(small.llm).frozen == 134_515_008
    assert 2 * count(small).trained < 20e6  # bytes of bfloat16


def test_quantisation_is_skipped(paper: Planner) -> None:
    plain = build_on_meta(replace(preset("paper"), quantize="none"))
    assert count(plain) == count(paper)
    assert {p.dtype for p in paper.llm.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["owner/unknown", "random:huge"])
def test_unknown_architecture(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'"):
        build_on_meta(replace(preset("tiny"), llm=name))


def test_unknown_tower() -> None:
    with pytest.raises(ValueError, match="no vision tower called 'nope'"):
        build_on_meta(replace(preset("tiny"), vision="nope"))
