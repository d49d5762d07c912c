"""Language model and adapters: they start as the base, and only they learn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from embodied import checkpoint, weights
from embodied.config import preset
from embodied.model.adapter_files import adapter_files, read_adapters
from embodied.model.decoding import GrammarDecoder
from embodied.model.llm import (
    AdapterConfig,
    TokenBatch,
    adapter_tensors,
    add_adapter,
    answer_loss,
    backbone,
    chat,
    in_own_format,
    load_adapter_tensors,
    make_batch,
    merge_adapter,
    quantization_config,
    trained_parameters,
    use_gradient_checkpointing,
)
from embodied.model.planner import Planner

Make = Callable[..., LlamaForCausalLM]
LORA = AdapterConfig(kind="lora", rank=4)
PREFIX = AdapterConfig(kind="prefix", prefix_length=3, prefix_layers=2)
BOTH = AdapterConfig(kind="both", rank=4, prefix_length=3, prefix_layers=2)
EVERY = pytest.mark.parametrize("config", [LORA, PREFIX, BOTH], ids=["lora", "prefix", "both"])


def _batch(rows: tuple[tuple[int, int], ...] = ((5, 3), (2, 4)), longest: int = 0) -> TokenBatch:
    """Rows of (prompt tokens, answer tokens), right-padded."""
    longest = longest or max(map(sum, rows))
    ids = torch.randint(3, 96, (len(rows), 16), generator=torch.Generator().manual_seed(0))
    place = torch.arange(longest)
    ends = torch.tensor([head + tail for head, tail in rows])[:, None]
    heads = torch.tensor([head for head, _ in rows])[:, None]
    return TokenBatch(ids[:, :longest], place < ends, (place >= heads) & (place < ends))


def _visual(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, generator=torch.Generator().manual_seed(2))


def _row(batch: TokenBatch, i: int) -> TokenBatch:
    n = int(batch.mask[i].sum())
    return TokenBatch(*(t[i : i + 1, :n] for t in (batch.ids, batch.mask, batch.answer)))


def _shake(model: torch.nn.Module) -> None:
    """Give every trained weight a random value, as if it had been trained."""
    generator = torch.Generator().manual_seed(6)
    for parameter in trained_parameters(model):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


# --- starting from the base ------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_fresh_adapter_changes_nothing(
    small_llama: Make, config: AdapterConfig, dtype: torch.dtype
) -> None:
    ids = _batch().ids
    base = small_llama().to(dtype)(input_ids=ids).logits
    adapted = add_adapter(small_llama().to(dtype), config)
    assert torch.equal(adapted(input_ids=ids).logits, base)
    assert {p.dtype for p in trained_parameters(adapted)} == {torch.float32}
    copied = copy.deepcopy(adapted)
    _shake(adapted)
    assert not torch.equal(adapted(input_ids=ids).logits, base)
    assert torch.equal(copied(input_ids=ids).logits, base)


@EVERY
@torch.no_grad()
def test_an_adapted_model_reads_on_from_its_cache(small_llama: Make, config: AdapterConfig) -> None:
    model = add_adapter(small_llama(), config)
    _shake(model)
    ids = _batch().ids
    whole = model(input_ids=ids).logits[:, 5:]
    head = model(input_ids=ids[:, :5], use_cache=True)
    tail = model(input_ids=ids[:, 5:], past_key_values=head.past_key_values, use_cache=True)
    torch.testing.assert_close(tail.logits, whole)


def test_nothing_and_everything(small_llama: Make) -> None:
    none = add_adapter(small_llama(), AdapterConfig(kind="none"))
    assert trained_parameters(none) == [] and adapter_tensors(none) == {}
    full = add_adapter(small_llama().bfloat16(), AdapterConfig(kind="full"))
    assert len(trained_parameters(full)) == len(list(full.parameters()))
    assert {p.dtype for p in full.parameters()} == {torch.float32}
    answer_loss(full, _visual(), _batch()).backward()
    assert all(p.grad is not None and p.grad.any() for p in full.parameters())


# --- the loss --------------------------------------------------------------------------------


@pytest.mark.parametrize("visual", [None, _visual()], ids=["words", "visual"])
@torch.no_grad()
def test_loss_equals_transformers_own(small_llama: Make, visual: Tensor | None) -> None:
    model, batch = small_llama(), _batch()
    words = model.get_input_embeddings()(batch.ids)
    inputs = words if visual is None else torch.cat([visual, words], dim=1)
    before = inputs.shape[1] - words.shape[1]
    labels = torch.full(inputs.shape[:2], -100)
    labels[:, before:][batch.answer] = batch.ids[batch.answer]
    mask = torch.ones(inputs.shape[:2], dtype=torch.long)
    mask[:, before:] = batch.mask.long()
    expected = model(inputs_embeds=inputs, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(answer_loss(model, visual, batch), expected)


@torch.no_grad()
def test_loss_does_not_depend_on_padding_or_neighbours(small_llama: Make) -> None:
    model, visual, batch = small_llama(), _visual(), _batch()
    together = answer_loss(model, visual, batch)
    torch.testing.assert_close(answer_loss(model, visual, _batch(longest=16)), together)
    alone = [answer_loss(model, visual[i : i + 1], _row(batch, i)) for i in range(2)]
    n = batch.answer.sum(1)
    torch.testing.assert_close((alone[0] * n[0] + alone[1] * n[1]) / n.sum(), together)


@torch.no_grad()
def test_loss_sees_the_answer_and_the_visual_tokens(small_llama: Make) -> None:
    model, batch = small_llama(initializer_range=0.3), _batch()
    plain = answer_loss(model, _visual(), batch)
    other = replace(batch, ids=torch.where(batch.answer, (batch.ids + 1) % 96, batch.ids))
    assert answer_loss(model, _visual(), other) != plain
    assert answer_loss(model, _visual().flip(1), batch) != plain


# --- who learns ------------------------------------------------------------------------------


@EVERY
def test_gradients_reach_the_adapter_and_nothing_else(
    small_llama: Make, config: AdapterConfig
) -> None:
    model, visual = add_adapter(small_llama(), config), _visual().requires_grad_()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD(trained_parameters(model), lr=1.0)
    answer_loss(model, visual, _batch()).backward()
    first = ("lora_B", "adaption_gate")  # the others are behind a zero until these have moved
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        assert not p.requires_grad or p.grad.any() == any(part in name for part in first), name
    assert visual.grad.any()
    optimizer.step()
    answer_loss(model, visual, _batch()).backward()
    assert all(p.grad.any() for p in trained_parameters(model))
    optimizer.step()
    for name, p in model.named_parameters():
        assert p.requires_grad or (p.grad is None and torch.equal(p, frozen[name])), name


def test_both_adapters_learn_what_each_learns_alone(small_llama: Make) -> None:
    alone = [adapter_tensors(add_adapter(small_llama(), config)) for config in (LORA, PREFIX)]
    both = adapter_tensors(add_adapter(small_llama(), BOTH))
    shapes = {k: v.shape for tensors in alone for k, v in tensors.items()}
    assert {k: v.shape for k, v in both.items()} == shapes


@EVERY
def test_checkpointing_changes_memory_only(small_llama: Make, config: AdapterConfig) -> None:
    model, visual = add_adapter(small_llama(), config).train(), _visual().requires_grad_()
    _shake(model)
    losses, grads = [], []
    for checkpointed in (False, True):
        if checkpointed:
            use_gradient_checkpointing(model)
        losses.append(answer_loss(model, visual, _batch()))
        grads.append(torch.autograd.grad(losses[-1], [visual, *trained_parameters(model)]))
    assert torch.equal(*losses) and model.get_base_model().is_gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@EVERY
@torch.no_grad()
def test_folding_in_changes_nothing_that_is_said(small_llama: Make, config: AdapterConfig) -> None:
    model, ids = add_adapter(small_llama(), config), _batch().ids
    _shake(model)
    before, tensors = model(ids).logits, adapter_tensors(model)
    merge_adapter(model)
    torch.testing.assert_close(model(ids).logits, before)
    n_folded = sum(getattr(module, "merged", False) for module in model.modules())
    assert n_folded == (0 if config is PREFIX else 14)  # seven linear layers in each of two
    assert all(torch.equal(adapter_tensors(model)[k], v) for k, v in tensors.items())


def test_lora_is_on_every_linear_layer_but_the_head(small_llama: Make) -> None:
    names = adapter_tensors(add_adapter(small_llama(), LORA))
    layers = {n.split(".layers.")[1].rpartition(".lora_")[0] for n in names}
    kinds = [f"self_attn.{x}_proj" for x in "qkvo"] + [
        f"mlp.{x}_proj" for x in ("gate", "up", "down")
    ]
    assert layers == {f"{i}.{kind}" for i in range(2) for kind in kinds}
    some = add_adapter(small_llama(), AdapterConfig(targets=("q_proj", "v_proj")))
    assert len(adapter_tensors(some)) == 2 * 2 * 2


# --- keeping what was learnt -----------------------------------------------------------------


@EVERY
@torch.no_grad()
def test_adapter_tensors_round_trip(small_llama: Make, config: AdapterConfig) -> None:
    trained, fresh = (add_adapter(small_llama(), config) for _ in range(2))
    _shake(trained)
    load_adapter_tensors(fresh, {k: v.clone() for k, v in adapter_tensors(trained).items()})
    assert torch.equal(fresh(_batch().ids).logits, trained(_batch().ids).logits)


@EVERY
@torch.no_grad()
def test_peft_itself_reads_the_files(
    small_llama: Make, config: AdapterConfig, tmp_path: Path
) -> None:
    trained = add_adapter(small_llama(), config)
    _shake(trained)
    files = adapter_files(trained, "someone/something", torch.float32)
    checkpoint.write_files(tmp_path, checkpoint.checked(tmp_path, files))
    if config is BOTH:
        lora = peft.PeftModel.from_pretrained(small_llama(), str(tmp_path / "lora"))
        read = peft.PeftModel.from_pretrained(lora.get_base_model(), str(tmp_path / "prefix"))
    else:
        read = peft.PeftModel.from_pretrained(small_llama(), str(tmp_path))
    assert torch.equal(read.eval()(_batch().ids).logits, trained(_batch().ids).logits)
    told = read.peft_config["default"]
    assert told.base_model_name_or_path == "someone/something" and told.inference_mode
    assert dict(read_adapters(tmp_path)).keys() == adapter_tensors(trained).keys()


def test_full_weights_round_trip(small_llama: Make) -> None:
    full, other = (add_adapter(small_llama(), AdapterConfig(kind="full")) for _ in range(2))
    _shake(full)
    load_adapter_tensors(other, adapter_tensors(full))
    assert all(
        torch.equal(a, b) for a, b in zip(full.parameters(), other.parameters(), strict=True)
    )


def test_backbone_is_found_inside_every_wrapper(small_llama: Make) -> None:
    for kind in ("none", "full", "lora", "prefix", "both"):
        model = add_adapter(small_llama(), AdapterConfig(kind=kind, prefix_layers=1))
        assert type(backbone(model)).__name__ == "LlamaModel"


# --- any causal language model ----------------------------------------------------------------

SIZES: dict[str, Any] = dict(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    initializer_range=0.3,  # so that logits are large enough for Gemma's to be bent
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
FEW_KEYS = {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "gpt2": {"n_inner": 48},
    "qwen2": FEW_KEYS,
    "mistral": FEW_KEYS,
    "gemma2": {**FEW_KEYS, "final_logit_softcapping": 2.0},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.25},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 4.0},
}


def _family(name: str) -> Any:
    torch.manual_seed(1)
    shape = AutoConfig.for_model(name, **SIZES | FAMILIES[name])
    return AutoModelForCausalLM.from_config(shape).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_of_other_families_equals_transformers_own(name: str) -> None:
    model, batch = _family(name), _batch()
    labels = batch.ids.masked_fill(~batch.answer, -100)
    expected = model(batch.ids, attention_mask=batch.mask.long(), labels=labels).loss
    torch.testing.assert_close(answer_loss(model, None, batch), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_learn_with_lora(name: str) -> None:
    ids = _batch().ids
    base, model = _family(name), add_adapter(_family(name), LORA)
    assert torch.equal(model(ids).logits, base(ids).logits)
    optimizer = torch.optim.AdamW(trained_parameters(model), lr=0.02)
    losses = []
    for _ in range(4):
        losses.append(answer_loss(model, _visual(), _batch()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.any() for p in trained_parameters(model))


@pytest.mark.parametrize("kind", ["prefix", "both"])
def test_a_prefix_only_where_it_fits(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"types llama, mistral, this one is of type qwen2; use l"):
        add_adapter(_family("qwen2"), replace(PREFIX, kind=kind))
    assert trained_parameters(add_adapter(_family("mistral"), replace(PREFIX, kind=kind)))


# --- prompts and answers ---------------------------------------------------------------------


def test_batches_of_prompts_and_answers(tokenizer: Any) -> None:
    prompts, answers = [chat("One?"), chat("A somewhat longer one?")], ["1. reach(nut)", "yes"]
    batch = make_batch(tokenizer, prompts, answers)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = batch.ids[i][batch.mask[i]]
        assert tokenizer.decode(ids) == f"{prompt}{answer}<|im_end|>"
        assert tokenizer.decode(batch.ids[i][batch.answer[i]]) == f"{answer}<|im_end|>"
        assert not (batch.answer[i] & ~batch.mask[i]).any()


def test_chat_is_the_tokenizers_own_format(tokenizer: Any) -> None:
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "Hello there"}]
    own = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert own.endswith(chat("Hello there"))


class Told:
    """A tokenizer with another chat template, or none."""

    bos_token = "<s>"

    def __init__(self, template: str | None) -> None:
        self.chat_template = template

    def apply_chat_template(self, turns: list[dict[str, str]], **told: bool) -> str:
        assert told == {"tokenize": False, "add_generation_prompt": True}
        assert self.chat_template is not None
        return self.chat_template.format(**turns[0])


def test_each_model_is_spoken_to_in_its_own_format(tokenizer: Any) -> None:
    asked = chat("Plan: {it}.\nNow?")
    assert in_own_format(tokenizer, asked) == asked  # SmolLM2's is ours
    zephyr = Told("<|{role}|>\n{content}</s>\n<|assistant|>\n")
    expected = "<|user|>\nPlan: {it}.\nNow?</s>\n<|assistant|>\n"
    assert in_own_format(zephyr, asked) == expected
    assert in_own_format(Told(None), asked) == "<s>User: Plan: {it}.\nNow?\nAssistant:\n"
    assert in_own_format(zephyr, "no turn at all") == "no turn at all"


def test_the_own_format_is_trained_and_decoded(planner: Planner, tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{{ '[assistant]\n' }}"
    )
    batch = make_batch(other, [chat("One?")], ["yes"])
    assert other.decode(batch.ids[0]) == "[user] One?\n[assistant]\nyes<|im_end|>"
    said = [
        GrammarDecoder(planner.llm, t).score(None, p, ["yes", "no"])
        for t, p in (
            (other, chat("One?")),
            (tokenizer, "[user] One?\n[assistant]\n"),
            (tokenizer, chat("One?")),
        )
    ]
    assert torch.equal(said[0], said[1]) and not torch.equal(said[0], said[2])


# --- quantised -------------------------------------------------------------------------------


def _without_bitsandbytes() -> str:
    """Why bitsandbytes cannot be used here; empty when it can."""
    try:
        import bitsandbytes as bnb

        layer = bnb.nn.Linear4bit(64, 64, quant_type="nf4").to("cpu")
        layer(torch.zeros(1, 64))
    except (ImportError, RuntimeError, NotImplementedError, AttributeError) as error:
        return f"bitsandbytes does not work on this CPU: {error}"
    return ""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, planner: Planner) -> Path:
    """A local folder with a tiny language model and a tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    weights.load_llm("random:tiny", torch.float32)[0].save_pretrained(folder)
    planner.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@EVERY
def test_a_quantised_planner_learns(stored: Path, kind: Any, config: AdapterConfig) -> None:
    if reason := _without_bitsandbytes():
        pytest.skip(reason)
    settings = replace(preset("tiny"), llm=str(stored), quantize=kind, adapter=config)
    planner = Planner.build(settings)
    classes = {type(m).__name__ for m in planner.llm.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[kind] in classes
    batch = make_batch(planner.tokenizer, [chat("Which?")], ["drawer-open"])
    visual = torch.randn(1, 2, 64, requires_grad=True)
    optimizer = torch.optim.AdamW(trained_parameters(planner.llm), lr=0.03)
    losses = []
    for _ in range(3):
        loss = answer_loss(planner.llm, visual, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and visual.grad.any()
    assert all(p.grad is not None for p in trained_parameters(planner.llm))


def test_what_cannot_be_quantised(stored: Path) -> None:
    with pytest.raises(weights.WeightsError, match="'random:tiny' cannot be quantised"):
        Planner.build(replace(preset("tiny"), quantize="nf4"))
    if reason := _without_bitsandbytes():
        pytest.skip(reason)
    quantised = weights.load_llm(
        str(stored), torch.float32, quantization=quantization_config("nf4")
    )[0]
    with pytest.raises(ValueError, match="quantised model cannot be trained in full"):
        add_adapter(quantised, AdapterConfig(kind="full"))
