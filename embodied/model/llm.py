"""4. Embodied tokens and words → words: a causal language model with a small adapter.

The base is frozen. What is trained is an adapter of peft: LoRA (arXiv 2106.09685), or
LLaMA-Adapter's zero-initialised prefix attention (arXiv 2303.16199), EmbodiedGPT's choice; or
`both` on one base; or everything (`full`), or nothing (`none`). Visual tokens are spliced in front
of the words.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AdapterKind = Literal["lora", "prefix", "both", "full", "none"]
QuantizeKind = Literal["nf4", "int8", "none"]

PREFIX_FITS = ("llama", "mistral")
"""Model types whose attention peft can give a prefix."""


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained of the language model.

    Args:
        kind: lora, prefix (LLaMA-Adapter), both of them, full or none.
        rank: LoRA's rank; alpha is twice that.
        targets: linear layers that LoRA adapts; peft's "all-linear" by default.
        prefix_length: prefix tokens a layer.
        prefix_layers: how many of the top layers have a prefix; all but the first two when None.
    """

    kind: AdapterKind = "lora"
    rank: int = 12
    targets: str | tuple[str, ...] = "all-linear"
    prefix_length: int = 10
    prefix_layers: int | None = None


def quantization_config(kind: QuantizeKind) -> Any:
    """transformers' configuration of `kind`; None for none."""
    if kind == "none":
        return None
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def add_adapter(model: Any, config: AdapterConfig) -> Any:
    """The frozen `model` with a fresh adapter, which at first changes nothing.

    What is trained is float32, whatever the base is stored in.

    Raises:
        ValueError: `model` is quantised and should be trained in full, or its attention is of a
            kind that cannot have a prefix.
    """
    model.requires_grad_(False)
    match config.kind:
        case "none":
            return model
        case "full":
            if getattr(model, "is_quantized", False):
                raise ValueError("a quantised model cannot be trained in full; use lora or prefix")
            return model.float().requires_grad_(True)
        case "lora":
            return _with_lora(model, config)
        case "prefix":
            return _with_prefix(model, config)
        case "both":
            return _with_both(model, config)


def _with_lora(model: Any, config: AdapterConfig) -> Any:
    import peft

    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    lora = peft.LoraConfig(
        r=config.rank, lora_alpha=2 * config.rank, target_modules=targets, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, lora)


def _with_prefix(model: Any, config: AdapterConfig) -> Any:
    import peft

    if model.config.model_type not in PREFIX_FITS:
        raise ValueError(
            f"a prefix fits models of the types {', '.join(PREFIX_FITS)}, this one is of type"
            f" {model.config.model_type}; use lora"
        )
    n_layers = config.prefix_layers or max(1, model.config.num_hidden_layers - 2)
    prefix = peft.AdaptionPromptConfig(
        adapter_len=config.prefix_length, adapter_layers=n_layers, task_type="CAUSAL_LM"
    )
    return _prefix_in_float32(peft.get_peft_model(model, prefix))


def _with_both(model: Any, config: AdapterConfig) -> Any:
    """LoRA inside the base's layers, and prefixes around its attention.

    The wrapper returned is the prefix's. LoRA's configuration stays with the base model in it.
    """
    inner = _with_lora(model, config).get_base_model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are trying to modify a model with PEFT")
        wrapped = _with_prefix(inner, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:  # which the second wrapper froze
            parameter.requires_grad_(True)
    return wrapped


def _prefix_in_float32(model: Any) -> Any:
    """Keep the prefixes in float32 over a half-precision base, whose steps are too coarse to train.

    peft makes them in the base's own dtype, and LoRA in float32.
    """
    from peft.tuners.adaption_prompt.layer import AdaptedAttention

    for module in model.modules():
        if isinstance(module, AdaptedAttention) and module.adaption_prompt.dtype != torch.float32:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
            module.forward = MethodType(_in_half, module)  # type: ignore[method-assign]
    return model


def _in_half(module: Any, **inputs: Any) -> Any:
    """`AdaptedAttention.forward`, computed in the dtype of the attention that it wraps."""
    with torch.autocast(inputs["hidden_states"].device.type, module.model.q_proj.weight.dtype):
        return type(module).forward(module, **inputs)


def merge_adapter(model: Any) -> None:
    """Fold LoRA into the base weights in place, so that inference is as fast as without it.

    Nothing happens to prefixes, nor over quantised weights, which would lose precision. The
    adapter's own tensors stay as they are.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if getattr(_unwrapped(model), "is_quantized", False):
        return
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()


def use_plain_attention(model: Any) -> None:
    """Attention as two products: on a CPU the backward pass of torch's fused one is slower.

    For CPUs only: on a GPU the fused one is faster and takes less memory.
    """
    _unwrapped(model).set_attn_implementation("eager")


def use_gradient_checkpointing(model: Any) -> None:
    """Compute activations again in the backward pass: about a third slower, far less memory."""
    _unwrapped(model).activation_checkpointing_enable({"use_reentrant": False})


def half_precision(model: Any) -> Any:
    """A context in which the float32 adapter of a half-precision base computes in half too."""
    dtype = model.get_input_embeddings().weight.dtype
    device = device_of(model).type
    return torch.autocast(device, dtype, enabled=dtype in (torch.bfloat16, torch.float16))


def device_of(model: Any) -> torch.device:
    """Where a language model's input goes."""
    return model.get_input_embeddings().weight.device


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that take a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def word_embeddings(model: Any, ids: Tensor) -> Tensor:
    """Token ids (B, L) → the frozen word embeddings (B, L, W), float32, on the model's device."""
    with torch.no_grad():
        return model.get_input_embeddings()(ids.to(device_of(model))).float()


def embed_texts(
    model: Any, tokenizer: Any, texts: Sequence[str], limit: int
) -> tuple[Tensor, Tensor]:
    """The first `limit` tokens of texts → their word embeddings (B, L, W), and the mask (B, L).

    Both are where the model is.
    """
    rows = [r[:limit] for r in tokenizer(list(texts), add_special_tokens=False).input_ids]
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    words = word_embeddings(model, ids)
    return words, mask.to(words.device)


def splice(visual: Tensor | None, words: Tensor) -> Tensor:
    """Visual tokens (B, Q, W) in front of word embeddings (B, L, W)."""
    return words if visual is None else torch.cat([visual.to(words.dtype), words], dim=1)


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded prompts with answers.

    Args:
        ids: (B, L) token ids.
        mask: (B, L), true at real tokens.
        answer: (B, L), true at the tokens to be predicted.
    """

    ids: Tensor
    mask: Tensor
    answer: Tensor


def make_batch(tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> TokenBatch:
    """Tokenise prompts and their answers, each answer closed by the end-of-turn token."""
    heads = prompt_ids(tokenizer, prompts)
    tails = tokenizer(list(answers), add_special_tokens=False).input_ids
    tails = [[*tail, tokenizer.eos_token_id] for tail in tails]
    length = max(len(h) + len(t) for h, t in zip(heads, tails, strict=True))
    ids = torch.full((len(heads), length), tokenizer.pad_token_id)
    mask = torch.zeros(len(heads), length, dtype=torch.bool)
    answer = torch.zeros(len(heads), length, dtype=torch.bool)
    for i, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        n = len(head) + len(tail)
        ids[i, :n] = torch.tensor([*head, *tail])
        mask[i, :n] = True
        answer[i, len(head) : n] = True
    return TokenBatch(ids, mask, answer)


def answer_loss(model: Any, visual: Tensor | None, batch: TokenBatch) -> Tensor:
    """Mean cross-entropy over the answer tokens; logits are computed at those places only.

    Args:
        visual: (B, Q, W) tokens put before the words; None for text alone.
    """
    words = model.get_input_embeddings()(batch.ids)
    inputs = splice(visual, words)  # (B, Q + L, W)
    n_visual = inputs.shape[1] - batch.ids.shape[1]
    seen = batch.mask.new_ones(batch.mask.shape[0], n_visual)
    mask = torch.cat([seen, batch.mask], dim=1)
    hidden = backbone(model)(inputs_embeds=inputs, attention_mask=mask.long()).last_hidden_state
    # the token at place t is predicted from the place before it
    before = F.pad(batch.answer, (n_visual, 0))[:, 1:]
    logits = output_logits(model, hidden[:, :-1][before])  # (answers, vocabulary)
    return F.cross_entropy(logits, batch.ids[batch.answer])


def _unwrapped(model: Any) -> Any:
    """The transformers model, inside peft's wrapper or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: Any) -> Any:
    """The transformer without its output head, whatever its family calls it."""
    return _unwrapped(model).base_model


def output_logits(model: Any, hidden: Tensor) -> Tensor:
    """The backbone's last states (…, W) → logits (…, V), float32, as the model itself makes them.

    Cohere's models multiply them, Granite's divide them, Gemma's bend them.
    """
    config = model.config
    logits = model.get_output_embeddings()(hidden).float()
    logits = logits * (getattr(config, "logit_scale", None) or 1.0)
    logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


CHAT = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
PLAIN = "User: {prompt}\nAssistant:\n"


def chat(prompt: str) -> str:
    """A user's turn in ChatML, SmolLM2's own format, and the start of the answer.

    `prompt_ids` turns it into another model's format.
    """
    return CHAT.format(prompt=prompt)


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Prompts that `chat` made → token ids, in the format that the tokenizer's model knows."""
    texts = [in_own_format(tokenizer, prompt) for prompt in prompts]
    return tokenizer(texts, add_special_tokens=False).input_ids


def in_own_format(tokenizer: Any, prompt: str) -> str:
    """What `chat` made, by the tokenizer's own chat template, or in plain words if it has none.

    What a template puts in front of such a turn, like a system prompt, is left out.
    """
    head, tail = CHAT.split("{prompt}")
    if not (prompt.startswith(head) and prompt.endswith(tail)):
        return prompt
    said = prompt.removeprefix(head).removesuffix(tail)
    if not tokenizer.chat_template:
        return (tokenizer.bos_token or "") + PLAIN.format(prompt=said)
    turns = [{"role": "user", "content": said}]
    own: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return prompt if own.endswith(prompt) else own


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """What is trained of the language model, under peft's own names (its plain ones if full)."""
    if not hasattr(model, "peft_config"):
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {name: t for part in peft_adapters(model).values() for name, t in part[1].items()}


def peft_adapters(model: Any) -> dict[str, tuple[Any, dict[str, Tensor]]]:
    """lora, prefix → peft's configuration and its tensors, as plain peft would store each alone.

    Empty for a model without an adapter.
    """
    from peft import get_peft_model_state_dict

    if not hasattr(model, "peft_config"):
        return {}
    config, inner = model.peft_config["default"], model.get_base_model()
    own = dict(get_peft_model_state_dict(model))
    if not config.is_adaption_prompt:
        return {"lora": (config, own)}
    if not hasattr(inner, "peft_config"):
        return {"prefix": (config, own)}
    with model.disable_adapter():  # LoRA's layers then have the names they have without prefixes
        lora = {_WRAPPED + k: t for k, t in get_peft_model_state_dict(inner).items()}
    return {"lora": (inner.peft_config["default"], lora), "prefix": (config, own)}


_WRAPPED = "base_model.model."
"""What peft puts before the names of a model that it wraps."""


def load_adapter_tensors(model: Any, tensors: dict[str, Tensor]) -> None:
    """Put back what `adapter_tensors` gave."""
    from peft import set_peft_model_state_dict

    if not hasattr(model, "peft_config"):
        model.load_state_dict(tensors, strict=False)
        return
    inner = model.get_base_model()
    if list(peft_adapters(model)) == ["lora", "prefix"]:
        lora = {k.removeprefix(_WRAPPED): t for k, t in tensors.items() if "lora_" in k}
        with model.disable_adapter():
            set_peft_model_state_dict(inner, lora)
        tensors = {k: t for k, t in tensors.items() if "lora_" not in k}
    set_peft_model_state_dict(model, tensors)
