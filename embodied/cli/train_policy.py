"""`embodied train-policy`: a policy from demonstrations, on frozen vision features."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import policies
from embodied.cli.assemble import SHIPPED, load_policy, save_policy
from embodied.cli.finetune import agent_settings, load_datasets, print_trained, scene_families
from embodied.cli.finetune import state_statistics as statistics_of
from embodied.egocot.dataset import AlignmentSampler, Recorded, is_imitable
from embodied.model.alignment import Alignment
from embodied.model.former import EmbodiedFormer
from embodied.model.planner import Planner
from embodied.train import TrainOptions, train
from sims import language

_BATCH = 64


@dataclass(frozen=True)
class TrainPolicyOptions:
    """What to train, on what.

    Args:
        dataset: a LeRobotDataset of demonstrations; several, comma-separated.
        output_dir: where the log, the state to resume from and the policy go.
        model: the planner whose vision encoder and Embodied-former are used; the shipped one.
        policy: the kind of policy network.
        init: a trained policy to go on from; a fresh one when not given.
        n_demos: successful demonstrations per task, in the data set's order; all when 0.
        train_former: whether a copy of the Embodied-former is trained along, and saved beside.
        horizon: actions in a chunk.
        steps: optimiser steps.
        batch_size: samples a step.
        learning_rate: its peak.
        seed: of initial weights and batches.
        features_dir: where frozen features are cached.
        save_every: steps between saved states.
    """

    dataset: str
    output_dir: Path
    model: Path = SHIPPED / "planner"
    policy: Literal["mlp"] = "mlp"
    init: Path | None = None
    n_demos: int = 0
    train_former: bool = True
    horizon: int = 8
    steps: int = 3000
    batch_size: int = _BATCH
    learning_rate: float = 5e-4
    seed: int = 0
    features_dir: Path = Path("outputs/features")
    save_every: int = 100


def choose_demos(episodes: list[Recorded], n_demos: int) -> list[Recorded]:
    """The first `n_demos` successes of every task.

    Raises:
        ValueError: a task has fewer, or none has any.
    """
    chosen: dict[str, list[Recorded]] = {}
    for episode in episodes:
        found = chosen.setdefault(episode.meta.task, [])
        if is_imitable(episode.meta):
            found.append(episode)
    few = {task: len(found) for task, found in chosen.items() if len(found) < max(1, n_demos)}
    if (few and n_demos) or len(few) == len(chosen):
        asked = n_demos or "all"
        raise ValueError(f"{asked} successful demonstrations a task were asked for, got {few}")
    return [e for found in chosen.values() for e in found[: n_demos or None]]


def _start(
    options: TrainPolicyOptions, planner: Planner, demos: list[Recorded]
) -> tuple[Any, EmbodiedFormer]:
    """The policy and its former, as training finds them: a copy when it is to be trained."""
    config = planner.config
    if options.init is not None:
        policy, former, _ = load_policy(options.init, planner)
    else:
        former = planner.former
        policy = policies.make(
            options.policy,
            n_queries=config.former.n_queries,
            width=config.former.width,
            global_width=config.global_width,
            state_size=demos[0].state.shape[1],
            action_size=demos[0].action.shape[1],
            horizon=options.horizon,
        )
        policy.set_state_statistics(*statistics_of(demos))
    if not options.train_former:
        return policy, former.requires_grad_(False)
    return policy, copy.deepcopy(former).requires_grad_(True)


def train_policy(options: TrainPolicyOptions) -> int:
    """Train, or go on where `output_dir` left off. Returns the exit status."""
    torch.manual_seed(options.seed)
    planner = Planner.load(options.model)
    config = planner.config
    found = load_datasets(planner, options.dataset, options.features_dir)
    demos = choose_demos(found, options.n_demos)
    agent = agent_settings(demos)
    print(f"{len(demos)} demonstrations", file=sys.stderr)
    policy, former = _start(options, planner, demos)
    module = Alignment(former, policy, planner.embed_texts, len(config.cameras))
    print_trained(module)
    sampler = AlignmentSampler(
        demos,
        demos,
        language,
        policy.horizon,
        sizes=(options.batch_size, 0, 0),
        seed=options.seed,
    )
    train_options = TrainOptions(
        options.output_dir,
        steps=options.steps,
        learning_rate=options.learning_rate,
        save_every=options.save_every,
        seed=options.seed,
    )
    figures = train(module, sampler, train_options)
    notes: dict[str, Any] = {
        "trained_on": options.dataset,
        "n_demos": options.n_demos,
        "scenes": scene_families(demos),
        "train_seeds": sorted({e.meta.seed for e in demos}),
        "figures": figures,
    }
    save_policy(
        options.output_dir / "policy",
        policy,
        None if former is planner.former else former,
        agent=agent,
        **notes,
    )
    print(f"saved {options.output_dir / 'policy'}", file=sys.stderr)
    return 0
