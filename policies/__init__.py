"""Light policy networks behind one protocol: features of the current sub-goal → action chunks.

mlp.py          the paper's
transformer.py  chunks decoded by a transformer, as in ACT
diffusion.py    chunks drawn by denoising; schedule.py and denoisers.py are its parts
r3m.py          the head of R3M's protocol, a baseline
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, overload

from policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from policies.mlp import MLPPolicy, MLPPolicyConfig
from policies.r3m import R3MPolicy, R3MPolicyConfig
from policies.transformer import TransformerPolicy, TransformerPolicyConfig

KINDS = ("mlp", "transformer", "diffusion", "r3m")
AnyPolicy = MLPPolicy | TransformerPolicy | DiffusionPolicy | R3MPolicy


@overload
def make(kind: Literal["mlp"], **sizes: Any) -> MLPPolicy: ...
@overload
def make(kind: str, **sizes: Any) -> AnyPolicy: ...
def make(kind: str, **sizes: Any) -> AnyPolicy:
    """A fresh policy. Raises ValueError for an unknown kind."""
    match kind:
        case "mlp":
            return MLPPolicy(MLPPolicyConfig(**sizes))
        case "transformer":
            return TransformerPolicy(TransformerPolicyConfig(**sizes))
        case "diffusion":
            return DiffusionPolicy(DiffusionPolicyConfig(**sizes))
        case "r3m":
            return R3MPolicy(R3MPolicyConfig(**sizes))
        case _:
            raise ValueError(f"unknown policy {kind!r}; there are: {', '.join(KINDS)}")


def describe(policy: AnyPolicy) -> dict[str, Any]:
    """The kind and sizes from which `make` builds it again."""
    return {"kind": policy.kind, **asdict(policy.config)}
