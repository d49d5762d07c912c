"""Name → how wide the models are, for what is built between them. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embodied import random_weights
from embodied.weights.sources import resolve
from embodied.weights.towers import fitting_size, patch_size, read_config, unchecked_tower
from embodied.weights.vision import tower_source

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class TowerShape:
    """A vision tower's sizes.

    Args:
        image_size: side of its square images in pixels.
        n_patches: tokens of an image, without the class token.
        width: of a token.
        n_layers: of the whole tower.
    """

    image_size: int
    n_patches: int
    width: int
    n_layers: int


def tower_shape(name: str, img_size: int) -> TowerShape:
    """The named tower's sizes for images of about `img_size` pixels, whatever its patches allow.

    Raises:
        WeightsError: the name is of no known form, or it is no ViT.
    """
    import torch

    local = Path(name).expanduser()
    source = read_config(local)["tower"] if local.is_dir() else tower_source(name)
    with torch.device("meta"):
        tower: Any = unchecked_tower(source, img_size)
    size = fitting_size(tower, img_size)
    n_patches = (size // patch_size(tower)) ** 2
    if hasattr(tower, "blocks"):
        return TowerShape(size, n_patches, tower.embed_dim, len(tower.blocks))
    width = tower.class_embedding.shape[-1]
    return TowerShape(size, n_patches, width, len(tower.transformer.resblocks))


def llm_config(name: str) -> PretrainedConfig:
    """The named language model's configuration.

    Raises:
        WeightsError: the name is of no known form, or it cannot be fetched.
    """
    from transformers import AutoConfig

    if random_weights.is_random(name):
        return random_weights.llm_config(name)
    return AutoConfig.from_pretrained(resolve(name), local_files_only=True)


def llm_width(name: str) -> int:
    """Width of the named language model's word embeddings."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llm_config(name))
    return int(model.get_input_embeddings().weight.shape[1])
