"""What training starts from: a planner that was trained before, or a fresh one of chosen parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embodied.config import (
    ModelConfig,
    Preset,
    Sight,
    preset,
    with_adapter,
    with_llm,
    with_vision,
)
from embodied.model.llm import AdapterKind, QuantizeKind
from embodied.model.plan import ThoughtKind
from embodied.model.planner import Planner, read_planner
from embodied.processes import Processes


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Which planner to train.

    Args:
        model: a planner to go on with; a fresh one when not given.
        adapter_from: a planner whose adapter is taken instead of that of `model`, as when `words`
            and `align` ran side by side.
        fresh_adapter: train an adapter from its beginning instead of that of `model`, of the same
            kind and rank unless others are named.
        preset: sizes of a fresh planner; small when not given.
        llm: its language model: a hub name <owner>/<name>, a directory, or a name of
            `embodied.weights`.
        vision: its vision tower: timm:<name>, open_clip:<arch>/<pretrained>, or a name of
            `embodied.weights`.
        adapter: what is trained of the language model.
        rank: LoRA's.
        quantize: how the frozen language model is stored; may change when going on.
        thought: what plans begin with: things with their places (grounded), without them
            (ungrounded), or nothing; for ablations. May change when going on.
        sight: what is seen of a clip: all of it, its newest picture in place of every frame, or
            black pictures (none); for ablations. May change when going on.
    """

    model: Path | None = None
    adapter_from: Path | None = None
    fresh_adapter: bool = False
    preset: Preset | None = None
    llm: str | None = None
    vision: str | None = None
    adapter: AdapterKind | None = None
    rank: int | None = None
    quantize: QuantizeKind | None = None
    thought: ThoughtKind | None = None
    sight: Sight | None = None


def planner_to_train(options: StartOptions) -> Planner:
    """The planner that `options` name, on this process's device.

    Raises:
        ValueError: they contradict each other, or the planner that they go on with.
        CheckpointError: that one is damaged.
    """
    processes = Processes.here()
    if options.model is None:
        _check_fresh(options)
        config = fresh_config(options)
        device = processes.loading_device(config.quantize != "none")
        return ready_to_see(Planner.build(config, device), processes)
    has = _agreeing(options, options.model)
    device = processes.loading_device((options.quantize or has.quantize) != "none")
    adapter = None
    if options.fresh_adapter:
        adapter = with_adapter(has, options.adapter, options.rank).adapter
    planner = Planner.load(options.model, options.adapter_from, options.quantize, device, adapter)
    planner.config = _ablated(planner.config, options)
    return ready_to_see(planner, processes)


def ready_to_see(planner: Planner, processes: Processes) -> Planner:
    """The planner with its vision tower on the process's device, wherever the rest still is."""
    planner.vision.to(processes.device)
    return planner


def _ablated(config: ModelConfig, options: StartOptions) -> ModelConfig:
    thought, sight = options.thought or config.thought, options.sight or config.sight
    return replace(config, thought=thought, sight=sight)


def _check_fresh(options: StartOptions) -> None:
    if options.adapter_from is not None:
        raise ValueError(
            "--adapter_from replaces the adapter of a planner; give its --model as well"
        )
    if options.fresh_adapter:
        raise ValueError("--fresh_adapter is for going on with a --model; all is fresh without")


def fresh_config(options: StartOptions) -> ModelConfig:
    """A preset with the parts that were named in place of its own."""
    config = preset(options.preset or "small")
    if options.llm is not None:
        config = with_llm(config, options.llm)
    if options.vision is not None:
        config = with_vision(config, options.vision)
    config = with_adapter(config, options.adapter, options.rank)
    config = replace(config, quantize=options.quantize or config.quantize)
    return _ablated(config, options)


def _agreeing(options: StartOptions, model: Path) -> ModelConfig:
    """The config of `model`, which cannot change its parts but for an adapter that is fresh.

    Raises:
        ValueError: what is asked for beside it is not what it has.
    """
    if options.fresh_adapter and options.adapter_from is not None:
        raise ValueError("--fresh_adapter and --adapter_from: give one of them")
    config = read_planner(model)[1]
    adapter = read_planner(options.adapter_from)[1].adapter if options.adapter_from else None
    adapter = adapter or config.adapter
    rank = adapter.rank if adapter.kind in ("lora", "both") else None
    has: dict[str, Any] = {"llm": config.llm, "vision": config.vision}
    if not options.fresh_adapter:
        has |= {"adapter": adapter.kind, "rank": rank}
    odd = _differences(options, has)
    if options.preset is not None:
        odd.append(f"--preset {options.preset}, which is for a fresh one")
    if odd:
        raise ValueError(
            f"--model {model} cannot become another planner: you asked for {'; '.join(odd)}."
            " Leave that out, or leave out --model to start afresh"
        )
    return config


def _differences(options: StartOptions, has: Mapping[str, Any]) -> list[str]:
    asked = {name: getattr(options, name) for name in has}
    return [
        f"--{name} {value}, it has {has[name]}"
        for name, value in asked.items()
        if value is not None and value != has[name]
    ]
