"""Name → vision tower, frozen, with its weights or freshly initialised."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from embodied import random_weights
from embodied.checkpoint import WEIGHTS
from embodied.weights.cache import WeightsError
from embodied.weights.sources import resolve
from embodied.weights.towers import (
    DINOV2,
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_tower,
    class_first,
    read_config,
    resample_positions,
)
from embodied.weights.wheels import WHEELS

if TYPE_CHECKING:
    import torch


def load_vision(name: str, img_size: int, *, offline: bool = False) -> torch.nn.Module:
    """Load a frozen float32 vision tower in eval mode.

    Its `forward_features((B, 3, H, W))`, with H = W = `img_size` and pixels normalised by
    `vision_stats`, gives (B, 1 + N, D): the class token, then the patches row by row.

    Raises:
        WeightsError: `img_size` is no multiple of the tower's patch size.
    """
    if random_weights.is_random(name):
        with random_weights.fixed_seed():
            return empty_vision(name, img_size).float().eval().requires_grad_(False)
    folder = resolve(name, offline=offline)
    config = _tower_config(folder)
    from safetensors.torch import load_file

    tower = build_tower(config["tower"], img_size)
    state = load_file(folder / WEIGHTS)
    resample_positions(state, tower, antialias=config["tower"]["antialias"])
    tower.load_state_dict(state, strict=True)
    return class_first(tower).float().eval().requires_grad_(False)


def empty_vision(name: str, img_size: int) -> torch.nn.Module:
    """The named tower freshly initialised: nothing is fetched. For sizes and for tests.

    Raises:
        WeightsError: the name is of no known form, or `img_size` does not suit its patches.
    """
    return class_first(build_tower(tower_source(name), img_size))


def tower_source(name: str) -> dict[str, Any]:
    """Which library builds the named tower and by which name, as a stored tower's config says it.

    Raises:
        WeightsError: the name is of no known form.
    """
    library, _, model = name.partition(":")
    if name == "vit-small-dinov2":
        library, model = "timm", DINOV2
    if library not in ("timm", "open_clip", "random"):
        raise WeightsError(
            f"no vision tower called '{name}': expected vit-small-dinov2, timm:<name>,"
            " open_clip:<arch>/<pretrained> or random:<timm name>"
        )
    library = "timm" if library == "random" else library
    return {"library": library, "model": model, "quick_gelu": False}


def vision_stats(
    name: str, *, offline: bool = False
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per RGB channel, for pixels in 0..1."""
    if name in WHEELS or random_weights.is_random(name):  # known without fetching anything
        return IMAGENET_MEAN, IMAGENET_STD
    config = _tower_config(resolve(name, offline=offline))
    return _triple(config["mean"]), _triple(config["std"])


def _triple(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _tower_config(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    if "tower" not in config:
        known = ", ".join(n for n in WHEELS if n.startswith("vit"))
        raise WeightsError(
            f"{folder} holds no vision tower; use {known}, timm:<name> or"
            " open_clip:<arch>/<pretrained>"
        )
    return config
