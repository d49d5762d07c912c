"""Which planner `embodied finetune` starts from: presets, named parts, and what may not change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from embodied import weights
from embodied.cli.finetune import FinetuneOptions, finetune
from embodied.cli.main import main
from embodied.cli.start import StartOptions, fresh_config, planner_to_train
from embodied.config import preset, with_llm, with_vision
from embodied.model.llm import AdapterConfig, backbone, trained_parameters
from embodied.model.planner import Planner

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX of random weights in a folder, with a tokenizer of bytes and no chat template."""
    folder = tmp_path_factory.mktemp("neox")
    letters = [*pre_tokenizers.ByteLevel.alphabet(), "<|end|>", "<|start|>"]
    words = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|end|>", bos_token="<|start|>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        "gpt_neox",
        vocab_size=len(letters),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        bos_token_id=len(letters) - 1,
        eos_token_id=len(letters) - 2,
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    return folder


# --- a fresh planner --------------------------------------------------------------------------


def test_without_options_it_is_the_small_preset() -> None:
    assert fresh_config(StartOptions()) == preset("small")
    assert fresh_config(StartOptions(preset="paper")) == preset("paper")


def test_options_replace_parts_of_the_preset() -> None:
    asked = StartOptions(preset="tiny", adapter="both", rank=3, quantize="nf4")
    tiny = preset("tiny")
    adapter = replace(tiny.adapter, kind="both", rank=3)
    assert fresh_config(asked) == replace(tiny, adapter=adapter, quantize="nf4")


@pytest.mark.parametrize("name", ["tiny", "small", "paper"])
def test_naming_a_presets_own_parts_changes_nothing(name: Any) -> None:
    config = preset(name)
    assert with_vision(config, config.vision) == config
    if name != "paper":  # whose language model has to be fetched to be measured
        assert with_llm(config, config.llm) == config


TOWERS = {
    "random:vit_base_patch32_224": (96, 9, 768, 6),
    "random:vit_small_patch14_reg4_dinov2": (112, 64, 384, 6),
    "open_clip:ViT-B-16/openai": (112, 49, 768, 6),
    "open_clip:ViT-B-16-SigLIP/webli": (112, 49, 768, 6),
    "timm:vit_large_patch14_dinov2.lvd142m": (112, 64, 1024, 6),
}


@pytest.mark.parametrize("name", TOWERS)
def test_sizes_follow_the_tower(name: str) -> None:
    config = with_vision(replace(preset("small"), image_size=100 if "32" in name else 112), name)
    former = config.former
    sizes = (config.image_size, former.n_patches, former.vision_width, config.vision_layers)
    assert sizes == TOWERS[name] and config.vision == name


def test_a_tower_with_fewer_layers_is_used_whole() -> None:
    config = with_vision(preset("paper"), "random:vit_tiny_patch16_224")
    assert config.vision_layers == 12


@pytest.mark.parametrize("adapter", ["lora", "full", "none"])
def test_a_planner_of_other_towers_plans_and_judges(neox: Path, adapter: Any) -> None:
    """Another hidden layout, tokenizer and chat format, and registers beside the patches."""
    asked = StartOptions(
        preset="tiny",
        llm=str(neox),
        vision="random:vit_small_patch14_reg4_dinov2",
        adapter=adapter,
    )
    planner = planner_to_train(asked).eval()
    assert type(backbone(planner.llm)).__name__ == "GPTNeoXModel"
    former = planner.config.former
    assert (former.text_width, former.vision_width, former.n_patches) == (48, 384, 25)
    assert bool(trained_parameters(planner.llm)) == (adapter != "none")
    clip = np.random.default_rng(0).integers(0, 256, (2, 8, 70, 70, 3), dtype=np.uint8)
    from embodied.types import Subgoal

    verdict = planner.judge(clip, Subgoal.parse("reach(nut)"))
    assert 0 < verdict.probability <= 1


def test_finetune_trains_it_and_goes_on(neox: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = dict(steps=2, threads=1, warmup=1, learning_rate=0.01)
    first = FinetuneOptions(
        "words", tmp_path / "a", preset="tiny", llm=str(neox), adapter="lora", rank=2, **common
    )
    assert finetune(first) == 0
    planner = Planner.load(tmp_path / "a" / "planner")
    assert planner.config == with_llm(
        replace(preset("tiny"), adapter=AdapterConfig("lora", 2)), str(neox)
    )
    assert any(p.any() for n, p in planner.llm.named_parameters() if "lora_B" in n)
    again = FinetuneOptions(
        "words", tmp_path / "b", model=tmp_path / "a" / "planner", rank=2, llm=str(neox), **common
    )
    assert finetune(again) == 0


# --- going on ---------------------------------------------------------------------------------


def test_what_a_planner_has_may_be_said_again(tiny_planner: Path) -> None:
    config = preset("tiny")
    asked = StartOptions(
        model=tiny_planner, llm=config.llm, vision=config.vision, adapter="lora", rank=4
    )
    assert planner_to_train(asked).config == config


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"adapter": "prefix"}, "--adapter prefix, it has lora"),
        ({"rank": 8}, "--rank 8, it has 4"),
        ({"llm": "someone/something"}, "--llm someone/something, it has random:tiny"),
        ({"vision": "timm:x"}, "--vision timm:x, it has random:vit_tiny_patch16_224"),
        ({"preset": "tiny"}, "--preset tiny, which is for a fresh one"),
    ],
)
def test_what_a_planner_cannot_become_is_one_line(
    asked: dict[str, Any],
    said: str,
    tiny_planner: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flags = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    argv = ["finetune", "--stage", "words", "--model", str(tiny_planner), *flags]
    assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert said in err and "leave out --model to start afresh" in err
    assert not (tmp_path / "out").exists()


def test_all_that_differs_is_named(tiny_planner: Path) -> None:
    with pytest.raises(ValueError, match="--adapter both, it has lora; --rank 1, it has 4"):
        planner_to_train(StartOptions(model=tiny_planner, adapter="both", rank=1))


def test_the_adapter_of_another_planner(tiny_planner: Path, tmp_path: Path) -> None:
    other = planner_to_train(StartOptions(preset="tiny", adapter="both", rank=2))
    for parameter in trained_parameters(other.llm):
        parameter.data.normal_().copy_(parameter.bfloat16())
    other.save(tmp_path / "other")
    taken = planner_to_train(
        StartOptions(model=tiny_planner, adapter_from=tmp_path / "other", adapter="both", rank=2)
    )
    theirs, mine = other.trained_tensors(), Planner.load(tiny_planner).trained_tensors()
    for name, tensor in taken.trained_tensors().items():
        assert torch.equal(tensor, (theirs if name.startswith("adapter.") else mine)[name]), name
    with pytest.raises(ValueError, match="--adapter lora, it has both"):
        planner_to_train(
            StartOptions(model=tiny_planner, adapter_from=tmp_path / "other", adapter="lora")
        )


def test_what_is_left_out_may_change(tiny_planner: Path, tmp_path: Path) -> None:
    asked = StartOptions(model=tiny_planner, thought="ungrounded", sight="picture")
    config = replace(preset("tiny"), thought="ungrounded", sight="picture")
    planner = planner_to_train(asked)
    assert planner.config == config
    planner.save(tmp_path / "p")
    assert planner_to_train(StartOptions(model=tmp_path / "p")).config == config
    back = StartOptions(model=tmp_path / "p", thought="grounded", sight="clip")
    assert planner_to_train(back).config == preset("tiny")
    assert fresh_config(replace(asked, model=None, preset="tiny")) == config


@pytest.mark.parametrize("kind", ["lora", "prefix", "both", "full", "none"])
def test_a_fresh_adapter_of_any_kind(tmp_path: Path, kind: Any) -> None:
    """The planner is as trained but for its language model, which is as it was."""
    before = planner_to_train(StartOptions(preset="tiny", adapter="lora", rank=2))
    for parameter in before.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn_like(parameter).bfloat16())
    before.save(tmp_path / "p")
    rank = 3 if kind in ("lora", "both") else None
    asked = StartOptions(model=tmp_path / "p", fresh_adapter=True, adapter=kind, rank=rank)
    after = planner_to_train(asked)
    assert (after.config.adapter.kind, after.config.adapter.rank) == (kind, rank or 2)
    for name, tensor in before.trained_tensors().items():
        if not name.startswith("adapter."):
            assert torch.equal(after.trained_tensors()[name], tensor), name
    ids = torch.arange(1, 20)[None]
    untrained = weights.load_llm("random:tiny", torch.float32)[0].eval()
    with torch.no_grad():
        torch.testing.assert_close(after.llm(ids).logits, untrained(ids).logits)
    assert bool(trained_parameters(after.llm)) == (kind != "none")


def test_a_fresh_adapter_is_like_the_one_before_unless_told(tiny_planner: Path) -> None:
    planner = planner_to_train(StartOptions(model=tiny_planner, fresh_adapter=True))
    assert planner.config == preset("tiny")
    with pytest.raises(ValueError, match="--fresh_adapter and --adapter_from: give one"):
        planner_to_train(
            StartOptions(model=tiny_planner, fresh_adapter=True, adapter_from=tiny_planner)
        )
    with pytest.raises(ValueError, match="--llm someone/something, it has random:tiny"):
        planner_to_train(
            StartOptions(model=tiny_planner, fresh_adapter=True, llm="someone/something")
        )


def test_quantisation_may_change(tmp_path: Path, tiny_planner: Path) -> None:
    model, tokenizer = weights.load_llm("random:tiny", torch.float32)
    model.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    asked = StartOptions(preset="tiny", llm=str(tmp_path / "llm"), adapter="lora")
    planner_to_train(asked).save(tmp_path / "p")
    pytest.importorskip("bitsandbytes")
    smaller = planner_to_train(StartOptions(model=tmp_path / "p", quantize="nf4"))
    assert smaller.config.quantize == "nf4"
    assert "Linear4bit" in {type(m).__name__ for m in smaller.llm.modules()}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"adapter": "prefix", "rank": 4}, "--rank is LoRA's, and --adapter prefix has none"),
        ({"rank": 0}, "--rank is at least 1, got 0"),
        ({"adapter_from": Path("x")}, "--adapter_from replaces .* give its --model as well"),
        ({"fresh_adapter": True}, "--fresh_adapter is for going on with a --model"),
        ({"vision": "no-such-tower"}, "no vision tower called 'no-such-tower'"),
        ({"vision": "random:resnet18"}, "resnet18 is no vision transformer .*; use a ViT"),
        ({"vision": "timm:vit_vast_patch1.mine"}, "timm has no model 'vit_vast_patch1.mine'; see"),
        ({"vision": "open_clip:ViT-Z-1/mine"}, "open_clip has no model 'ViT-Z-1'; see"),
        ({"llm": "no-such-model"}, "no weights called 'no-such-model'"),
        ({"preset": "tiny", "adapter": "full", "quantize": "nf4"}, "cannot be quantised"),
    ],
)
def test_a_fresh_planner_that_cannot_be(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        planner_to_train(StartOptions(**asked))


def test_words_without_an_adapter_trains_nothing(tmp_path: Path) -> None:
    options = FinetuneOptions("words", tmp_path, preset="tiny", adapter="none", steps=1)
    with pytest.raises(ValueError, match="stage words trains the adapter, and this planner has no"):
        finetune(options)
