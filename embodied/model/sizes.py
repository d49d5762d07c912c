"""How large a planner is, without its weights: the whole of it on torch's meta device.

Nothing is fetched and no memory is used, so that the 7-billion configuration can be built,
counted and checked on any machine in seconds. Quantisation is skipped here: it changes how the
frozen weights are stored, not how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from embodied import random_weights, weights
from embodied.config import ModelConfig
from embodied.model.planner import Planner
from embodied.model.vision import VisionEncoder

_LLAMA: dict[str, dict[str, Any]] = {
    "huggyllama/llama-7b": dict(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=11008,
        vocab_size=32_000,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    ),
    "smollm2-135m-instruct": dict(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49_152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}


@dataclass(frozen=True)
class Size:
    """Numbers of weights; shared ones count once."""

    trained: int
    frozen: int


def count(module: nn.Module) -> Size:
    """How many weights of `module` take a gradient, and how many do not."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return Size(trained, sum(p.numel() for p in module.parameters()) - trained)


def build_on_meta(config: ModelConfig) -> Planner:
    """The planner of `config` with every tensor on the meta device, and no tokenizer.

    Raises:
        ValueError: the architecture of a name is not known without its files.
    """
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, config.dtype)
    with torch.device("meta"):
        tower = weights.empty_vision(config.vision, config.image_size)
        vision = VisionEncoder(tower, (0.0,) * 3, (1.0,) * 3, config.vision_layers, dtype)
        language = AutoModelForCausalLM.from_config(_llm_config(config.llm), dtype=dtype)
        return Planner(config, vision, language, tokenizer=None)


def _llm_config(name: str) -> Any:
    from transformers import LlamaConfig

    if random_weights.is_random(name):
        return random_weights.llm_config(name)
    if name not in _LLAMA:
        raise ValueError(f"the sizes of '{name}' are not known here; of {sorted(_LLAMA)} they are")
    return LlamaConfig(**_LLAMA[name])
