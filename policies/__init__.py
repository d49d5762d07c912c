"""Light policy networks behind one protocol: features of the current sub-goal → action chunks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from policies.mlp import MLPPolicy, MLPPolicyConfig

KINDS = ("mlp",)


def make(kind: str, **sizes: Any) -> MLPPolicy:
    """A fresh policy. Raises ValueError for an unknown kind."""
    match kind:
        case "mlp":
            return MLPPolicy(MLPPolicyConfig(**sizes))
        case _:
            raise ValueError(f"unknown policy {kind!r}; there are: {', '.join(KINDS)}")


def describe(policy: MLPPolicy) -> dict[str, Any]:
    """The kind and sizes from which `make` builds it again."""
    return {"kind": "mlp", **asdict(policy.config)}
