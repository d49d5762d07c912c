"""What training starts from: a planner that was trained before, or a fresh one of chosen parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embodied.config import ModelConfig, Preset, preset, with_adapter, with_llm, with_vision
from embodied.model.llm import AdapterKind, QuantizeKind
from embodied.model.planner import Planner, read_planner
from embodied.processes import Processes


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Which planner to train.

    Args:
        model: a planner to go on with; a fresh one when not given.
        adapter_from: a planner whose adapter is taken instead of that of `model`, as when `words`
            and `align` ran side by side.
        preset: sizes of a fresh planner; small when not given.
        llm: its language model: a hub name <owner>/<name>, a directory, or a name of
            `embodied.weights`.
        vision: its vision tower: timm:<name>, open_clip:<arch>/<pretrained>, or a name of
            `embodied.weights`.
        adapter: what is trained of the language model.
        rank: LoRA's.
        quantize: how the frozen language model is stored; may change when going on.
    """

    model: Path | None = None
    adapter_from: Path | None = None
    preset: Preset | None = None
    llm: str | None = None
    vision: str | None = None
    adapter: AdapterKind | None = None
    rank: int | None = None
    quantize: QuantizeKind | None = None


def planner_to_train(options: StartOptions) -> Planner:
    """The planner that `options` name, on this process's device.

    Raises:
        ValueError: they contradict each other, or the planner that they go on with.
        CheckpointError: that one is damaged.
    """
    processes = Processes.here()
    if options.model is not None:
        has = _agreeing(options, options.model)
        device = processes.loading_device((options.quantize or has.quantize) != "none")
        planner = Planner.load(options.model, options.adapter_from, options.quantize, device)
        return ready_to_see(planner, processes)
    if options.adapter_from is not None:
        raise ValueError(
            "--adapter_from replaces the adapter of a planner; give its --model as well"
        )
    config = fresh_config(options)
    device = processes.loading_device(config.quantize != "none")
    return ready_to_see(Planner.build(config, device), processes)


def ready_to_see(planner: Planner, processes: Processes) -> Planner:
    """The planner with its vision tower on the process's device, wherever the rest still is."""
    planner.vision.to(processes.device)
    return planner


def fresh_config(options: StartOptions) -> ModelConfig:
    """A preset with the parts that were named in place of its own."""
    config = preset(options.preset or "small")
    if options.llm is not None:
        config = with_llm(config, options.llm)
    if options.vision is not None:
        config = with_vision(config, options.vision)
    config = with_adapter(config, options.adapter, options.rank)
    return replace(config, quantize=options.quantize or config.quantize)


def _agreeing(options: StartOptions, model: Path) -> ModelConfig:
    """The config of `model`, which cannot change its parts.

    Raises:
        ValueError: what is asked for beside it is not what it has.
    """
    config = read_planner(model)[1]
    adapter = read_planner(options.adapter_from)[1].adapter if options.adapter_from else None
    adapter = adapter or config.adapter
    rank = adapter.rank if adapter.kind in ("lora", "both") else None
    has = {"llm": config.llm, "vision": config.vision, "adapter": adapter.kind, "rank": rank}
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
