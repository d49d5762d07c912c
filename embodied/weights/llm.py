"""Name → causal language model and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from embodied import random_weights
from embodied.weights.cache import WeightsError
from embodied.weights.sources import resolve
from embodied.weights.towers import read_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_llm(
    name: str,
    dtype: torch.dtype,
    *,
    quantization: Any = None,
    device: Any = "cpu",
    offline: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, in eval mode, on the CPU unless quantised.

    The tokenizer always has a padding token (the end-of-text token where it had none), so mask
    labels by length, never by comparing with `pad_token_id`.

    Args:
        name: one of the forms in the table of `embodied.weights`.
        dtype: of its weights, unless they are quantised.
        quantization: transformers' quantisation config, applied while loading.
        device: where a model that is quantised is put, layer by layer.
        offline: look at local files only.

    Raises:
        WeightsError: the name is of no known form, cannot be fetched, or is no language model.
        CheckpointError: a file in the cache is damaged.
    """
    if random_weights.is_random(name):
        return _random_llm(name, dtype, quantization, offline)
    path = resolve(name, offline=offline)
    if "tower" in read_config(path):
        raise WeightsError(f"'{name}' is a vision tower where a language model is needed")
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {}
    if quantization is not None:
        settings = {"quantization_config": quantization, "device_map": {"": device}}
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, local_files_only=True, **settings
    )
    return model.eval(), _tokenizer(path)


def _tokenizer(path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _random_llm(
    name: str, dtype: torch.dtype, quantization: Any, offline: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM

    if quantization is not None:
        raise WeightsError(f"'{name}' cannot be quantised; take a model that is stored somewhere")
    config = random_weights.llm_config(name)
    with random_weights.fixed_seed():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval(), _tokenizer(resolve(random_weights.TOKENIZER, offline=offline))
