"""The DINOv2 inside an ONNX graph → timm's, name by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embodied.weights.towers import DINOV2, save_tower

if TYPE_CHECKING:
    import torch


def convert_onnx(source: Path, new: Path) -> None:
    """The `backbone.*` of an exported Hugging Face DINOv2 → timm's names, float32.

    Weights of linear layers are anonymous constants in ONNX, stored transposed: the node that
    multiplies by them carries the layer's name.

    Args:
        source: the .onnx file.
        new: an empty folder, which gets config.json and safetensors.
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
    save_tower(new, timm_names(named), "timm", DINOV2, antialias=False)  # as trained


def timm_names(hf: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Hugging Face's DINOv2 names → timm's; q, k, v become one matrix.

    Args:
        hf: name → array, with the whole position table (1, 1 + N, D) as "positions".
    """
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
