"""The model hub: language models as it stores them, and image towers through timm and open_clip."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embodied.weights.cache import WeightsError, check_local, holds_weights
from embodied.weights.towers import image_half, patch_size, save_tower
from embodied.weights.wheels import WHEELS

if TYPE_CHECKING:
    import torch

HUB_TIMEOUT_S = 5.0
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def find_llm(name: str, *, offline: bool) -> Path:
    """The folder of a language model in the hub's own cache, fetched the first time.

    Args:
        name: <owner>/<name>.
        offline: look at local files only.

    Raises:
        WeightsError: the name is of another form, or the model cannot be fetched.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise WeightsError(
            f"no weights called '{name}': expected {', '.join(WHEELS)}, timm:<name>,"
            " open_clip:<arch>/<pretrained>, a hub name <owner>/<name> or an existing directory"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
        if holds_weights(found):
            return found
    except LocalEntryNotFoundError:
        pass
    if _is_off(offline):
        raise WeightsError(
            f"'{name}' is not in the local hub cache and fetching is switched off; unset"
            " HF_HUB_OFFLINE, or name a local directory"
        )
    _ask(name)
    with _errors_of(name):
        found = Path(snapshot_download(name, allow_patterns=_FILES))
    return check_local(found)


def convert_tower(name: str, new: Path) -> None:
    """Let timm or open_clip fetch the weights; keep the image tower.

    Args:
        name: timm:<name> or open_clip:<arch>/<pretrained>.
        new: an empty folder, which gets config.json and safetensors.

    Raises:
        WeightsError: there is no such model, it is no ViT, or it cannot be fetched.
    """
    if _is_off(offline=False):
        raise WeightsError(f"'{name}' has to come from the model hub; unset HF_HUB_OFFLINE")
    library, _, model = name.partition(":")
    tower, extra = _from_timm(model) if library == "timm" else _from_open_clip(model)
    patch_size(tower)  # raises for what is no ViT
    save_tower(new, tower.state_dict(), library, model, **extra)


def _from_timm(model: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    import timm

    found = timm.get_pretrained_cfg(model)
    if found is None or not found.hf_hub_id:
        raise WeightsError(f"timm has no pretrained '{model}'; see timm.list_pretrained()")
    _ask(found.hf_hub_id)
    with _errors_of(found.hf_hub_id):
        tower = timm.create_model(model, pretrained=True, num_classes=0)
    return tower, {"mean": found.mean, "std": found.std}


def _from_open_clip(model: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    import open_clip

    arch, _, tag = model.partition("/")
    found = open_clip.get_pretrained_cfg(arch, tag)
    if not found.get("hf_hub"):
        known = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none"
        raise WeightsError(f"open_clip has no '{arch}/{tag}'; pretrained for '{arch}': {known}")
    repo = found["hf_hub"].strip("/")
    _ask(repo)
    with _errors_of(repo):
        tower = image_half(open_clip.create_model(arch, pretrained=tag))
    quick_gelu = bool(found.get("quick_gelu"))
    return tower, {"mean": found["mean"], "std": found["std"], "quick_gelu": quick_gelu}


def _is_off(offline: bool) -> bool:
    return offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _ask(repo: str) -> None:
    """Raise WeightsError unless the hub knows `repo` and says so within a few seconds."""
    from huggingface_hub import HfApi

    with _errors_of(repo):
        HfApi().model_info(repo, timeout=HUB_TIMEOUT_S)


@contextlib.contextmanager
def _errors_of(repo: str) -> Iterator[None]:
    """Turn what goes wrong while talking to the hub into one line that says what else there is."""
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    without = f"without the hub there are {', '.join(WHEELS)} and local directories"
    try:
        yield
    except RepositoryNotFoundError:
        raise WeightsError(
            f"the model hub has no '{repo}', or it is private or gated (`hf auth login`); {without}"
        ) from None
    except (HTTPError, OSError) as error:
        raise WeightsError(
            f"could not get '{repo}' from the model hub ({type(error).__name__}); {without}"
        ) from error
