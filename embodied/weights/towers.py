"""Vision towers: how the cache stores one, and how timm or open_clip build it for any image size.

A stored tower is safetensors with the library's own names, and a config.json with the keys

    tower      library ("timm" or "open_clip"), model, quick_gelu, antialias
    mean, std  of each RGB channel, for pixels in 0..1
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embodied.checkpoint import CONFIG, WEIGHTS
from embodied.weights.cache import WeightsError

if TYPE_CHECKING:
    import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DINOV2 = "vit_small_patch14_dinov2"  # timm's name of the architecture


def save_tower(
    new: Path, state: dict[str, torch.Tensor], library: str, model: str, **extra: Any
) -> None:
    """Store a tower.

    Args:
        new: the folder that gets it.
        state: its state dict.
        library: "timm" or "open_clip".
        model: as the library calls it.
        **extra: mean, std, quick_gelu or antialias, where they are not the usual ones.
    """
    from safetensors.torch import save_file

    tower = {"library": library, "model": model} | {"quick_gelu": False, "antialias": True} | extra
    stats = {"mean": tower.pop("mean", IMAGENET_MEAN), "std": tower.pop("std", IMAGENET_STD)}
    save_file({k: v.contiguous() for k, v in state.items()}, new / WEIGHTS)
    config = {"tower": tower, **stats}
    (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder of weights; a vision tower's has the key "tower"."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config


def build_tower(tower: dict[str, Any], img_size: int) -> torch.nn.Module:
    """The tower without weights, for square images of `img_size` pixels.

    Args:
        tower: what its config.json says under that key.
        img_size: side of the images.

    Raises:
        WeightsError: it is no ViT, or `img_size` is no multiple of its patch size.
    """
    model = unchecked_tower(tower, img_size)
    near = fitting_size(model, img_size)
    if img_size != near:
        raise WeightsError(
            f"images of {img_size} px do not divide into the {patch_size(model)} px patches of"
            f" {tower['model']}; use {near}"
        )
    return model


def unchecked_tower(tower: dict[str, Any], img_size: int) -> torch.nn.Module:
    """The same, whether the images divide into its patches or not.

    Raises:
        WeightsError: the library has no such model, or it is no ViT.
    """
    if tower["library"] == "timm":
        return _timm_tower(tower["model"], img_size)
    import open_clip
    import torch

    arch = tower["model"].partition("/")[0]
    if open_clip.get_model_config(arch) is None:
        raise WeightsError(f"open_clip has no model '{arch}'; see open_clip.list_models()")
    return image_half(
        open_clip.create_model(
            arch,
            force_image_size=img_size,
            force_quick_gelu=tower["quick_gelu"],
            device=torch.get_default_device(),  # open_clip's own choice is the CPU
        )
    )


def _timm_tower(name: str, img_size: int) -> torch.nn.Module:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise WeightsError(f"timm has no model '{name}'; see timm.list_models('vit*')")
    try:
        return timm.create_model(name, img_size=img_size, dynamic_img_size=False, num_classes=0)
    except TypeError as error:  # of an argument that only ViTs take
        raise WeightsError(f"{name} is no vision transformer ({error}); use a ViT") from None


def fitting_size(model: Any, img_size: int) -> int:
    """The image size nearest to `img_size` that divides into the patches of `model`."""
    patch = patch_size(model)
    return max(1, round(img_size / patch)) * patch


def patch_size(model: Any) -> int:
    """Side of a patch in pixels; raises WeightsError for what is no plain ViT."""
    timm_vit = hasattr(model, "patch_embed") and hasattr(model, "num_prefix_tokens")
    if not timm_vit and not (hasattr(model, "class_embedding") and hasattr(model, "patch_size")):
        raise WeightsError(
            f"{type(model).__name__} is no vision transformer with patch tokens; use a ViT"
        )
    size = model.patch_embed.patch_size if hasattr(model, "patch_embed") else model.patch_size
    return int(size[0] if isinstance(size, tuple | list) else size)


def image_half(clip: Any) -> torch.nn.Module:
    """open_clip's image encoder: a timm model where it wraps one, else its own, unprojected."""
    if hasattr(clip.visual, "trunk"):
        return clip.visual.trunk
    clip.visual.proj = None
    clip.visual.output_tokens = True
    return clip.visual


def resample_positions(
    state: dict[str, torch.Tensor], tower: torch.nn.Module, *, antialias: bool
) -> None:
    """Resize the position table in `state` to the grid of `tower` (bicubic), in place."""
    from timm.layers import resample_abs_pos_embed

    for key, wanted in tower.state_dict().items():
        if key not in ("pos_embed", "positional_embedding") or key not in state:
            continue
        table = state[key].float().reshape(1, *state[key].shape[-2:])  # (1, prefix + N, D)
        n_new = wanted.shape[-2]
        n_prefix = n_new - int(n_new**0.5) ** 2
        side = int((n_new - n_prefix) ** 0.5)
        table = resample_abs_pos_embed(
            table, [side, side], num_prefix_tokens=n_prefix, antialias=antialias
        )
        state[key] = table.reshape(wanted.shape)


def class_first(tower: Any) -> torch.nn.Module:
    """Make `forward_features` give (B, 1 + N, D) where the tower's own does not."""
    import torch

    class ClassFirst(torch.nn.Module):
        """One summary token, then the patches: registers dropped, a mean where none was."""

        def __init__(self, trunk: Any) -> None:
            super().__init__()
            self.trunk = trunk

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            if not hasattr(self.trunk, "forward_features"):  # open_clip's own ViT
                summary, patches = self.trunk(x)  # (B, D), (B, N, D)
                return torch.cat([summary[:, None], patches], dim=1)
            tokens = self.trunk.forward_features(x)  # (B, prefix + N, D)
            n_prefix = self.trunk.num_prefix_tokens
            patches = tokens[:, n_prefix:]
            summary = tokens[:, :1] if n_prefix else patches.mean(dim=1, keepdim=True)
            return torch.cat([summary, patches], dim=1)  # (B, 1 + N, D)

    return tower if getattr(tower, "num_prefix_tokens", 0) == 1 else ClassFirst(tower)
