"""Models with random weights, for tests: small, the same every time, and nothing to fetch.

    name                 what it is
    random:<timm name>   that vision transformer, at any image size
    random:tiny          a two-layer LLaMA with the tokenizer of `TOKENIZER`

`embodied.weights` takes these names wherever it takes those of pretrained weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig

PREFIX = "random:"
TOKENIZER = "smollm2-135m-instruct"
_SEED = 0


def is_random(name: str) -> bool:
    """Whether `name` asks for random weights."""
    return name.startswith(PREFIX)


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Draw the same weights every time, and leave torch's generator as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


def llm_config(name: str) -> LlamaConfig:
    """The architecture of a random language model, for the vocabulary of `TOKENIZER`.

    Raises:
        ValueError: a name other than "random:tiny".
    """
    from transformers import LlamaConfig

    if name != f"{PREFIX}tiny":
        raise ValueError(f"no random language model called '{name}'; there is {PREFIX}tiny")
    return LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=49_152,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
