"""Adapters as files in peft's own format, which plain `PeftModel.from_pretrained` reads.

One adapter lies beside the planner's own files: adapter_config.json, adapter_model.safetensors.
Of two adapters each has a folder, `lora` and `prefix`; on one base they are read like this:

    lora = PeftModel.from_pretrained(base, "DIR/lora")
    both = PeftModel.from_pretrained(lora.get_base_model(), "DIR/prefix")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embodied import checkpoint
from embodied.model.llm import peft_adapters

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PLACES = ("", "lora/", "prefix/")


def adapter_files(model: Any, base: str, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Path → content of the files of every adapter on `model`; none for a model without.

    Args:
        model: the language model.
        base: the name of the model without adapter, which goes into peft's configuration.
        dtype: of the tensors.
    """
    parts = peft_adapters(model)
    files: dict[str, dict[str, Any]] = {}
    for name, (config, tensors) in parts.items():
        place = f"{name}/" if len(parts) > 1 else ""
        files[place + CONFIG] = _json_values(config, base)
        files[place + TENSORS] = {k: t.to(dtype) for k, t in tensors.items()}
    return files


def _json_values(config: Any, base: str) -> dict[str, Any]:
    """peft's configuration as it stores it: sets as lists, ready for inference."""
    values = config.to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    return {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}


def read_adapters(folder: Path | str) -> Mapping[str, Tensor]:
    """The tensors of every adapter in `folder`, under peft's names; none where there is no file.

    Raises:
        CheckpointError: a file is cut, or a tensor is not finite.
    """
    paths = [Path(folder) / f"{place}{TENSORS}" for place in _PLACES]
    found = [checkpoint.load_tensors(path) for path in paths if path.is_file()]
    return {name: tensor for part in found for name, tensor in part.items()}
