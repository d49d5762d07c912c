"""Tokens a second: a fine-tuning step of ours against the plain recipe, on the same samples.

Ours is the step of `embodied finetune --stage plan`: kinds of like length apart, bfloat16, logits
of answer tokens only, vision features from the cache. Plain: one batch padded to its longest
sample, float32, the logits of every token, features computed anew from the frames. Both train LoRA
and mapping of the small preset on records of data/egocot/sample and on requests. They take turns
within one run, so that what else the machine does falls on both. Takes 4 minutes, and up to 13 GB
of memory for the plain recipe's logits.

    .venv/bin/python scripts/bench_finetune.py [--n_steps N] [--batch_size N]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import json as json_format
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from embodied.cli.common import quiet_libraries
from embodied.cli.finetune_plan import Speech
from embodied.config import Preset, preset
from embodied.egocot.clips import read_clip
from embodied.egocot.conversations import ConversationSampler, Turns
from embodied.egocot.record_conversations import RecordSampler
from embodied.egocot.record_features import SeenRecord, load_records, see_records
from embodied.model import llm as llm_parts
from embodied.model.former import text_states
from embodied.model.planner import Planner
from embodied.sharing import scaled
from sims import language

SAMPLE = Path(__file__).resolve().parents[1] / "data/egocot/sample"
BAR = 4.0

Recipe = Literal["ours", "plain"]


@dataclass(frozen=True)
class BenchOptions:
    """How fast the language model is fine-tuned.

    Args:
        n_steps: with each recipe, after one that is not counted.
        batch_size: samples a step.
        preset: of the planner; tiny is for a quick look.
        features_dir: where frozen features are cached.
        json: print one JSON object and nothing else.
    """

    n_steps: int = 4
    batch_size: int = 29
    preset: Preset = "small"
    features_dir: Path = Path("outputs/features")
    json: bool = False


@dataclass
class Tally:
    """Seconds that the steps of one recipe took, by the clock and of the processor."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


class Plain:
    """The plain recipe over a planner in float32.

    Its turns have frames (B, 1, T, H, W, 3) in place of vision tokens.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

    def loss(self, batch: list[Turns]) -> Tensor:
        """Mean cross-entropy over the answer tokens of all samples."""
        planner = self._planner
        inputs, labels = [], []
        for turns in batch:
            visual = self._visual(turns)
            tokens = llm_parts.make_batch(planner.tokenizer, turns.prompts, turns.answers)
            words = planner.llm.get_input_embeddings()(tokens.ids)
            for i, mask in enumerate(tokens.mask):
                seen = words.new_zeros(0, words.shape[-1]) if visual is None else visual[i]
                inputs.append(torch.cat([seen, words[i][mask]]))
                said = tokens.ids[i].masked_fill(~tokens.answer[i], -100)[mask]
                labels.append(torch.cat([said.new_full((len(seen),), -100), said]))
        mask = pad_sequence([torch.ones(len(row)) for row in inputs], batch_first=True)
        return planner.llm(
            inputs_embeds=pad_sequence(inputs, batch_first=True),
            attention_mask=mask,
            labels=pad_sequence(labels, batch_first=True, padding_value=-100),
        ).loss

    def _visual(self, turns: Turns) -> Tensor | None:
        if turns.vision is None or turns.texts is None:
            return None
        planner = self._planner
        with torch.no_grad():
            vision = planner.see(turns.vision.numpy().astype(np.uint8))
            text = text_states(planner.former, planner.embed_texts, turns.texts)
            queries = planner.former(vision, text)
        return planner.mapping(queries)


Sampler = Callable[[int], list[Turns]]


def samplers(planner: Planner, options: BenchOptions) -> dict[Recipe, Sampler]:
    """The same samples for both, seen as cached features and as frames."""
    records = load_records(SAMPLE)
    cached = see_records(planner, SAMPLE, records, options.features_dir)
    n_frames = planner.config.n_frames
    frames = [
        read_clip(SAMPLE, r.clip, r.first_frame, r.last_frame, n_frames).frames for r in records
    ]
    shown = [SeenRecord(r, f[None]) for r, f in zip(records, frames, strict=True)]
    n_requests, *sizes = scaled((10, 7, 9, 3), options.batch_size)
    requests = ConversationSampler([], language.Phrases(()), (n_requests, 0, 0, 0))
    told = {
        name: RecordSampler(seen, (sizes[0], sizes[1], sizes[2]))
        for name, seen in {"ours": cached, "plain": shown}.items()
    }
    return {
        "ours": lambda step: [*requests(step), *told["ours"](step)],
        "plain": lambda step: [*requests(step), *told["plain"](step)],
    }


def measure(options: BenchOptions) -> tuple[dict[Recipe, Tally], list[int], dict[Recipe, float]]:
    """The recipes step by step in turn, and which goes first alternates too.

    Returns:
        Their seconds, the tokens of each step, and the loss of either on the first batch, as a mean
        over all answer tokens.
    """
    config = preset(options.preset)
    torch.manual_seed(0)
    planner = Planner.build(config)
    plain_planner = Planner.build(replace(config, dtype="float32"))
    plain_planner.load_trained(planner.trained_tensors())
    for one in (planner, plain_planner):
        one.former.requires_grad_(False)
        one.llm.train()
    ours, plain = Speech(planner), Plain(plain_planner)
    sample = samplers(planner, options)
    losses: dict[Recipe, Callable[[list[Turns]], Tensor]] = {
        "ours": lambda batch: ours.loss(batch)[0],
        "plain": plain.loss,
    }
    trained = {"ours": _trained(planner), "plain": _trained(plain_planner)}
    optimizers = {name: torch.optim.AdamW(p, lr=1e-4) for name, p in trained.items()}
    first: dict[Recipe, float] = {
        "ours": _mean_loss(ours, sample["ours"](0)),
        "plain": _no_grad_loss(plain, sample["plain"](0)),
    }
    tallies: dict[Recipe, Tally] = {"ours": Tally(), "plain": Tally()}
    n_tokens = []
    for step in range(options.n_steps + 1):
        order: list[Recipe] = ["ours", "plain"] if step % 2 else ["plain", "ours"]
        for name in order:
            batch = sample[name](step)
            wall, cpu = time.perf_counter(), time.process_time()
            _step(losses[name], batch, optimizers[name])
            if step:
                tallies[name].wall_s.append(time.perf_counter() - wall)
                tallies[name].cpu_s.append(time.process_time() - cpu)
        if step:
            n_tokens.append(_n_tokens(planner, sample["ours"](step)))
            times = {name: f"{tally.cpu_s[-1]:.1f}" for name, tally in tallies.items()}
            print(f"step {step} of {options.n_steps}: processor s {times}", file=sys.stderr)
    return tallies, n_tokens, first


def _trained(planner: Planner) -> list[torch.nn.Parameter]:
    return [*planner.mapping.parameters(), *llm_parts.trained_parameters(planner.llm)]


def _step(
    loss_of: Callable[[list[Turns]], Tensor], batch: list[Turns], optimizer: torch.optim.Optimizer
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss_of(batch).backward()
    optimizer.step()


@torch.no_grad()
def _mean_loss(ours: Speech, batch: list[Turns]) -> float:
    """Ours weighs the kinds the same; here the mean over all answer tokens."""
    counts, losses = ours.counts(batch), ours.loss(batch)[1]
    return sum(counts[kind] * losses[kind] for kind in counts) / sum(counts.values())


@torch.no_grad()
def _no_grad_loss(plain: Plain, batch: list[Turns]) -> float:
    return float(plain.loss(batch))


def _n_tokens(planner: Planner, batch: list[Turns]) -> int:
    """Tokens that the language model reads, without padding."""
    total = 0
    for turns in batch:
        tokens = llm_parts.make_batch(planner.tokenizer, turns.prompts, turns.answers)
        n_visual = 0 if turns.vision is None else planner.config.former.n_queries
        total += int(tokens.mask.sum()) + n_visual * len(turns.prompts)
    return total


def summary(tallies: dict[Recipe, Tally], n_tokens: list[int]) -> dict[str, Any]:
    """Tokens a second of either, and the ratio of each pair of steps with its spread."""
    told: dict[str, Any] = {
        name: sum(n_tokens) / sum(tally.wall_s) for name, tally in tallies.items()
    }
    for clock in ("wall_s", "cpu_s"):
        ours, plain = (getattr(tallies[name], clock) for name in ("ours", "plain"))
        ratios = sorted(p / o for p, o in zip(plain, ours, strict=True))
        told[f"ratio_{clock}"] = {
            "median": statistics.median(ratios),
            "lowest": ratios[0],
            "highest": ratios[-1],
        }
    return told


def main() -> None:
    options = tyro.cli(BenchOptions, use_underscores=True)
    quiet_libraries()
    tallies, n_tokens, first = measure(options)
    told = summary(tallies, n_tokens) | {"n_steps": options.n_steps, "first_loss": first}
    if options.json:
        print(json_format.dumps(told))
        return
    print(f"{options.preset}, {options.n_steps} steps of {options.batch_size} samples each")
    print(f"loss of the first batch: ours {first['ours']:.3f}, plain {first['plain']:.3f}")
    for name in ("ours", "plain"):
        print(f"{name:<6} {told[name]:8.0f} tokens/s")
    for clock, what in (("wall_s", "by the clock"), ("cpu_s", "of processor time")):
        r = told[f"ratio_{clock}"]
        print(
            f"ratio {what}: {r['median']:.1f} (median of pairs of steps; lowest {r['lowest']:.1f},"
            f" highest {r['highest']:.1f}; bar {BAR:.0f})"
        )


if __name__ == "__main__":
    main()
