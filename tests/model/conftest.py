"""Shared by the model's tests: the tiny random planner, and small language models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from embodied.config import preset
from embodied.model.planner import Planner
from embodied.types import Observation


@pytest.fixture(scope="session")
def planner() -> Planner:
    """The tiny planner; tests must leave it as it is."""
    torch.manual_seed(0)
    return Planner.build(preset("tiny")).eval()


@pytest.fixture(scope="session")
def tokenizer(planner: Planner) -> Any:
    return planner.tokenizer


@pytest.fixture
def small_llama() -> Callable[..., LlamaForCausalLM]:
    """Settings → a two-layer LLaMA with random weights, the same ones every time."""

    def make(**settings: Any) -> LlamaForCausalLM:
        torch.manual_seed(1)
        sizes: dict[str, Any] = dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            vocab_size=96,
        )
        return LlamaForCausalLM(LlamaConfig(**sizes | settings)).eval()

    return make


@pytest.fixture
def observation() -> Observation:
    """What both cameras and the robot see of nothing in particular."""
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for c in ("workspace", "wrist")}
    return Observation(images, np.zeros(4, np.float32))
