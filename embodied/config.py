"""Sizes and names of everything that is built: frozen dataclasses and three presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from embodied import weights
from embodied.model.former import FormerConfig
from embodied.model.llm import AdapterConfig, AdapterKind, QuantizeKind
from embodied.model.plan import ThoughtKind

Preset = Literal["tiny", "small", "paper"]

Sight = Literal["clip", "picture", "none"]
"""What of a clip is shown: all of it, its newest picture for every frame, or black pictures."""


@dataclass(frozen=True)
class ModelConfig:
    """One embodied planner.

    Args:
        vision: a name that `embodied.weights` knows, or "random:…" for tests.
        image_size: pixels of the square pictures that the ViT sees.
        vision_layers: how many of the ViT's layers are used; all when None.
        former: the Embodied-former.
        llm: a name that `embodied.weights` knows, or "random:…".
        adapter: what is trained of the language model.
        quantize: how its frozen weights are stored.
        cameras: in this order; the first one gives pixel positions.
        n_frames: frames of the clips for plans and verdicts.
        clip_stride: control steps between a clip's frames.
        dtype: what the frozen towers compute in.
        thought: what a plan begins with; other than grounded for ablations.
        sight: what plans, verdicts and answers are made from; other than clip for ablations.
        verdict_head: the former of the second opinion on clips; None for the language model alone.
        judged: the sub-goals, as texts, that it was trained on; of others it has no opinion.
        placed: the nouns, in every language, that a head places in thoughts and answers; none for
            the language model alone.
        answers: those that a head weighs against each other; none for the language model alone.
    """

    vision: str = "vit-small-dinov2"
    image_size: int = 112
    vision_layers: int | None = 6
    former: FormerConfig = field(default_factory=FormerConfig)
    llm: str = "smollm2-135m-instruct"
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    quantize: QuantizeKind = "none"
    cameras: tuple[str, ...] = ("workspace", "wrist")
    n_frames: int = 8
    clip_stride: int = 2
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    thought: ThoughtKind = "grounded"
    sight: Sight = "clip"
    verdict_head: FormerConfig | None = None
    judged: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def global_width(self) -> int:
        """Width of z_global: the pooled vision tokens of every camera, side by side."""
        return self.former.vision_width * len(self.cameras)


def preset(name: Preset) -> ModelConfig:
    """`tiny` is random and for tests; `small` is the CPU default; `paper` is EmbodiedGPT's size."""
    match name:
        case "tiny":
            former = FormerConfig(
                width=32,
                n_layers=2,
                n_heads=4,
                n_queries=8,
                vision_width=192,
                text_width=64,
                n_patches=16,
            )
            return ModelConfig(
                vision="random:vit_tiny_patch16_224",
                image_size=64,
                vision_layers=2,
                former=former,
                llm="random:tiny",
                adapter=AdapterConfig(rank=4),
                dtype="float32",
            )
        case "small":
            return ModelConfig()
        case "paper":
            former = FormerConfig(
                width=768,
                n_layers=12,
                n_heads=12,
                n_queries=32,
                cross_every=2,
                vision_width=1408,
                text_width=4096,
                n_patches=256,
                max_text=512,
            )
            return ModelConfig(
                vision="timm:eva_giant_patch14_224.clip_ft_in1k",
                image_size=224,
                vision_layers=39,
                former=former,
                llm="huggyllama/llama-7b",
                adapter=AdapterConfig(kind="prefix", prefix_layers=30),
                quantize="nf4",
            )


def with_llm(config: ModelConfig, name: str) -> ModelConfig:
    """The same with another language model, and a former that reads its word embeddings."""
    former = replace(config.former, text_width=weights.llm_width(name))
    return replace(config, llm=name, former=former)


def with_vision(config: ModelConfig, name: str) -> ModelConfig:
    """The same with another vision tower, of which at most as many layers are used.

    The image size changes to what its patches allow.
    """
    shape = weights.tower_shape(name, config.image_size)
    n_layers = min(config.vision_layers or shape.n_layers, shape.n_layers)
    former = replace(config.former, vision_width=shape.width, n_patches=shape.n_patches)
    return replace(
        config,
        vision=name,
        image_size=shape.image_size,
        vision_layers=n_layers,
        former=former,
    )


def with_verdict_head(config: ModelConfig) -> ModelConfig:
    """The same with a second opinion on clips, unless there is one.

    Its former sees and reads what the planner's does, and is a third as wide.
    """
    if config.verdict_head is not None:
        return config
    n_heads = max(1, config.former.n_heads // 2)
    width = max(1, config.former.width * 5 // 16 // n_heads) * n_heads
    sizes = {"width": width, "n_heads": n_heads, "n_layers": 2, "n_queries": 8, "cross_every": 1}
    return replace(config, verdict_head=replace(config.former, **sizes))


def with_adapter(
    config: ModelConfig, kind: AdapterKind | None, rank: int | None = None
) -> ModelConfig:
    """The same with another adapter; None leaves kind or rank as they are.

    Raises:
        ValueError: a rank for an adapter without LoRA, or a rank below 1.
    """
    kind = kind or config.adapter.kind
    if rank is not None and kind not in ("lora", "both"):
        raise ValueError(f"--rank is LoRA's, and --adapter {kind} has none; leave it out")
    if rank is not None and rank < 1:
        raise ValueError(f"--rank is at least 1, got {rank}")
    adapter = replace(config.adapter, kind=kind, rank=rank or config.adapter.rank)
    return replace(config, adapter=adapter)


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """As plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> ModelConfig:
    """The inverse of `to_dict`. Raises ValueError that names what it does not know."""
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    if unknown := set(values) - known:
        raise ValueError(f"unknown model options {sorted(unknown)}; there are {sorted(known)}")
    values = dict(values)
    if values.get("verdict_head") is not None:
        values["verdict_head"] = FormerConfig(**values["verdict_head"])
    adapter = dict(values.pop("adapter"))
    if isinstance(adapter.get("targets"), list):
        adapter["targets"] = tuple(adapter["targets"])
    return ModelConfig(
        former=FormerConfig(**values.pop("former")),
        adapter=AdapterConfig(**adapter),
        cameras=tuple(values.pop("cameras")),
        judged=tuple(values.pop("judged", ())),
        placed=tuple(values.pop("placed", ())),
        answers=tuple(values.pop("answers", ())),
        **values,
    )
