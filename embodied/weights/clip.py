"""Name → a whole CLIP, image and text tower, that scores how well words fit pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embodied.weights.cache import WeightsError
from embodied.weights.hub import _ask, _errors_of, _is_off

PREFIX = "open_clip:"
_BATCH = 32


@dataclass(frozen=True)
class OpenClip:
    """A CLIP of open_clip behind the protocol of `embodied.egocot.filter.Encoder`.

    Args:
        name: as it was asked for.
        model: in eval mode.
        preprocess: PIL picture → (3, H, W).
        tokenizer: texts → ids (N, L).
        device: where the model is.
    """

    name: str
    model: Any
    preprocess: Callable[[Any], Any]
    tokenizer: Callable[[list[str]], Any]
    device: Any = "cpu"

    def images(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) → (N, D)."""
        import torch
        from PIL import Image

        parts = []
        for first in range(0, len(frames), _BATCH):
            pictures = [self.preprocess(Image.fromarray(f)) for f in frames[first : first + _BATCH]]
            with torch.no_grad():
                seen = self.model.encode_image(torch.stack(pictures).to(self.device))
            parts.append(seen.float().cpu().numpy())
        return np.concatenate(parts)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """N texts → (N, D); what is longer than the model reads is cut."""
        import torch

        parts = []
        for first in range(0, len(texts), _BATCH):
            ids = self.tokenizer(list(texts[first : first + _BATCH]))
            with torch.no_grad():
                said = self.model.encode_text(ids.to(self.device))
            parts.append(said.float().cpu().numpy())
        return np.concatenate(parts)


def load_encoder(name: str, device: Any = "cpu") -> OpenClip:
    """Load `open_clip:<arch>/<pretrained>`, fetched from the hub the first time.

    Args:
        name: `<pretrained>` is one of open_clip's tags, or a file of weights.
        device: where it computes.

    Raises:
        WeightsError: the name is of another form, or the weights cannot be had.
    """
    arch, _, pretrained = name.removeprefix(PREFIX).partition("/")
    if not name.startswith(PREFIX) or not arch or not pretrained:
        raise WeightsError(
            f"no CLIP called '{name}': expected {PREFIX}<arch>/<pretrained>, as in "
            f"{PREFIX}ViT-B-32/laion2b_s34b_b79k, or {PREFIX}<arch>/FILE"
        )
    import open_clip

    if arch not in open_clip.list_models():
        raise WeightsError(f"open_clip has no architecture '{arch}'; see open_clip.list_models()")
    where = pretrained if Path(pretrained).is_file() else _repository(arch, pretrained)
    with _errors_of(where):
        model, _, preprocess = _create(name, arch, pretrained)
    model = model.eval().to(device)
    return OpenClip(name, model, preprocess, open_clip.get_tokenizer(arch), device)


def _repository(arch: str, tag: str) -> str:
    """Where the hub keeps it, which is asked first: open_clip alone would try for minutes."""
    import open_clip

    found = open_clip.get_pretrained_cfg(arch, tag)
    if not found.get("hf_hub"):
        known = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none"
        raise WeightsError(f"open_clip has no '{arch}/{tag}'; pretrained for '{arch}': {known}")
    repository = found["hf_hub"].strip("/")
    if _is_off(offline=False):
        return repository  # what is in the hub's own cache is found without asking
    _ask(repository)
    return repository


def _create(name: str, arch: str, pretrained: str) -> tuple[Any, Any, Any]:
    import open_clip

    try:
        return open_clip.create_model_and_transforms(arch, pretrained=pretrained)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"'{name}' is no CLIP that can be loaded ({reason})") from error
