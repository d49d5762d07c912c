"""The full size on a small machine: three optimiser steps of a 7-billion planner on a CPU.

A LLaMA-7B with random weights, nf4, made layer by layer so that its full-precision weights are
never there at once; a ViT-L/14; a 12-layer Embodied-former of BERT's size. It learns one batch of
clips of 8 frames from the sample of data/egocot by the code of `embodied finetune --stage plan`.
Prints losses and the process's peak memory; exit status 1 where a bar is missed.

    .venv/bin/python scripts/prove_7b.py --adapter lora|prefix
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import itertools
import json
import math
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from embodied import weights
from embodied.cli.common import quiet_libraries
from embodied.cli.finetune_plan import Speech
from embodied.config import ModelConfig, preset
from embodied.egocot.clips import read_clip
from embodied.egocot.conversations import Turns
from embodied.egocot.records import Record, read_records
from embodied.model import llm as llm_parts
from embodied.model.llm import AdapterConfig
from embodied.model.planner import PLAN_TEXT, Planner, plan_prompt
from embodied.model.vision import VisionEncoder
from embodied.random_weights import TOKENIZER
from embodied.train import TrainOptions, train

SAMPLE = Path(__file__).resolve().parents[1] / "data/egocot/sample"
MAX_MEMORY_GB = 10.0
LAYERS = 32

ADAPTERS = {
    "lora": AdapterConfig(kind="lora", rank=8, targets=("q_proj", "v_proj")),
    "prefix": AdapterConfig(kind="prefix", prefix_layers=30),
}


@dataclass(frozen=True)
class ProofOptions:
    """What to train, how long.

    Args:
        adapter: of the language model.
        batch_size: clips in the one batch.
        steps: optimiser steps.
        learning_rate: constant at first, then down along a cosine.
        n_layers: of the language model; 32 is the real thing, fewer are for a quick look.
        seed: of the random weights.
    """

    adapter: Literal["lora", "prefix"] = "lora"
    batch_size: int = 2
    steps: int = 3
    learning_rate: float = 1e-3
    n_layers: int = LAYERS
    seed: int = 0


def config_of(options: ProofOptions) -> ModelConfig:
    """EmbodiedGPT's sizes, with one camera and a ViT-L."""
    paper = preset("paper")
    return replace(
        paper,
        vision="random:vit_large_patch14_224",
        vision_layers=None,
        former=replace(paper.former, vision_width=1024),
        llm="random:llama-7b",
        adapter=ADAPTERS[options.adapter],
        cameras=("workspace",),
    )


def random_llama(n_layers: int, n_vocab: int) -> Any:
    """A LLaMA-7B of random weights in nf4, with `n_vocab` words instead of its 32,000."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    settings = llm_parts.quantization_config("nf4")
    shape = LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=n_layers,
        num_attention_heads=32,
        intermediate_size=11008,
        vocab_size=n_vocab,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(shape).to(torch.bfloat16)
        replace_with_bnb_linear(model, ["lm_head"], settings)
    for module in list(model.modules()):
        _fill(module)
    model.model.rotary_emb = type(model.model.rotary_emb)(shape)  # its tables are computed
    model.is_loaded_in_4bit = model.is_quantized = True  # as transformers marks what it loads
    model.config.quantization_config = settings
    return model.eval()


def _fill(module: Any) -> None:
    """Random weights for one module's own parameters; a linear layer's are quantised at once."""
    import bitsandbytes as bnb

    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.ndim == 1:  # of a norm
            values = torch.ones(parameter.shape, dtype=torch.bfloat16)
        else:
            values = torch.empty(parameter.shape, dtype=torch.bfloat16).normal_(std=0.02)
        if isinstance(module, bnb.nn.Linear4bit):
            quantised = bnb.nn.Params4bit(
                values,
                requires_grad=False,
                quant_type="nf4",
                compress_statistics=True,
                module=module,
            )
            setattr(module, name, quantised.to("cpu"))
        else:
            setattr(module, name, torch.nn.Parameter(values, requires_grad=False))


def build(options: ProofOptions) -> Planner:
    """The planner, put together as `Planner.build` does."""
    from transformers import AutoTokenizer

    config = config_of(options)
    vision = VisionEncoder.load(config.vision, config.image_size, None, torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(weights.resolve(TOKENIZER), local_files_only=True)
    language = random_llama(options.n_layers, len(tokenizer))
    if options.n_layers < LAYERS:
        adapter = replace(config.adapter, prefix_layers=options.n_layers)
        config = replace(config, adapter=adapter)
    planner = Planner(config, vision, language, tokenizer)
    llm_parts.use_gradient_checkpointing(planner.llm)
    return planner


def batch(planner: Planner, records: list[Record]) -> list[Turns]:
    """Plans to say of real clips, whose vision tokens are (B, cameras, T / 2, N, W)."""
    clips = [
        read_clip(SAMPLE, r.clip, r.first_frame, r.last_frame, planner.config.n_frames).frames
        for r in records
    ]
    vision: Tensor = planner.see(np.stack(clips)[:, None]).float()
    steps = [[f"{i}. {action}" for i, action in enumerate(r.actions, 1)] for r in records]
    return [
        Turns(
            "plan",
            [plan_prompt(r.instruction) for r in records],
            ["\n".join(lines) for lines in steps],
            vision,
            [PLAN_TEXT.format(r.instruction) for r in records],
        )
    ]


def losses_of(planner: Planner, turns: list[Turns], options: ProofOptions) -> list[float]:
    """The loss before each step, and after the last one."""
    planner.former.requires_grad_(False)
    module = Speech(planner)
    with tempfile.TemporaryDirectory() as folder:
        loop = TrainOptions(
            output_dir=Path(folder),
            steps=options.steps,
            learning_rate=options.learning_rate,
            warmup=1,
            ema_decay=0.0,
            save_every=0,
            log_every=1,
            seed=options.seed,
        )
        train(module, lambda step: turns, loop)
        lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    module.train()  # bitsandbytes packs weights anew for inference, which is not what is proved
    with torch.no_grad():
        last = float(module.loss(turns)[0])
    return [json.loads(line)["loss"] for line in lines] + [last]


def n_weights(module: torch.nn.Module) -> int:
    """How many weights; bitsandbytes packs two of nf4 into a byte."""
    return sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in module.parameters())


def peak_memory_gb() -> float:
    """The most memory that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> int:
    options = tyro.cli(ProofOptions, use_underscores=True)
    quiet_libraries()
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    planner = build(options)
    built_s = time.perf_counter() - started
    n_adapter = sum(p.numel() for p in llm_parts.trained_parameters(planner.llm))
    print(
        f"{options.adapter}: {n_weights(planner) / 1e9:.2f} billion weights, {n_adapter:,} of them"
        f" in the adapter; built in {built_s:.0f} s, {peak_memory_gb():.1f} GB at most so far",
        flush=True,
    )
    records = list(itertools.islice(_records(), options.batch_size))
    turns = batch(planner, records)
    seen = "x".join(map(str, turns[0].vision.shape)) if turns[0].vision is not None else ""
    started = time.perf_counter()
    losses = losses_of(planner, turns, options)
    step_s = (time.perf_counter() - started) / (options.steps + 1 / 3)  # the last is forward only
    falling = all(a > b for a, b in itertools.pairwise(losses))
    finite = all(map(math.isfinite, losses))
    peak = peak_memory_gb()
    good = finite and falling and peak <= MAX_MEMORY_GB
    print(f"vision tokens {seen}, losses {', '.join(f'{loss:.3f}' for loss in losses)}")
    print(
        f"{'finite' if finite else 'NOT FINITE'}, {'falling' if falling else 'NOT FALLING'};"
        f" {step_s:.0f} s a step; peak memory {peak:.2f} GB (bar {MAX_MEMORY_GB:.0f}):"
        f" {'passed' if good else 'FAILED'}"
    )
    return 0 if good else 1


def _records() -> Any:
    """Records of the sample with a plan in English, each of another task."""
    seen = set()
    for record in read_records(SAMPLE / "records.jsonl"):
        if record.actions and record.instruction.isascii() and record.actions not in seen:
            seen.add(record.actions)
            yield record


if __name__ == "__main__":
    sys.exit(main())
