"""`embodied finetune`: train the planner's own parts on recorded episodes, in three stages.

`align` trains the Embodied-former: places and verdicts, and a policy with it where there are
episodes to imitate.
`words` trains the adapter to tell from the words alone which task is meant, or to refuse.
`plan` trains mapping and adapter to say plans and verdicts as well; the former is frozen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import policies
from embodied.cli.assemble import save_policy
from embodied.config import preset
from embodied.egocot.dataset import AlignmentSampler, Recorded, load_recorded
from embodied.episodes import DatasetReader
from embodied.model.alignment import Alignment
from embodied.model.features import FeatureCache
from embodied.model.planner import Planner
from embodied.train import TrainOptions, train
from sims import language, scenes

AGENTS: dict[str, dict[str, Any]] = {
    "metaworld": {"execute": 4, "retreat": (0.0, 0.0, 0.8, -1.0), "retreat_steps": 10},
    "kitchen": {
        "execute": 4,
        "retreat": (0.0, -0.7, *[0.0] * 5, 1.0, 1.0),
        "retreat_steps": 8,
        "monitor": {"stall_steps": 16, "stall_range": 0.03, "patience_steps": 40},
    },
}
"""How the agent acts with a policy trained here, by simulator. To let go is to open the gripper;
Meta-World's hand rises as well, and the Panda leans back from its shoulder."""


_ACTING, _LOOKING = (48, 12, 16), (0, 24, 32)
"""Samples of control, plan and verdict in a batch of `align`, with and without a policy."""


@dataclass(frozen=True)
class FinetuneOptions:
    """What to train, on what.

    Args:
        stage: align, words or plan.
        dataset: data sets to imitate and to look at, comma-separated.
        look_at: more data sets, for plans and verdicts only, comma-separated.
        output_dir: where the log, the state and the result go.
        model: a planner to start from; a fresh small one when not given.
        adapter: a planner whose adapter is taken instead of that of `model`, as when `words` and
            `align` ran side by side.
        steps: optimiser steps.
        learning_rate: its peak.
        horizon: actions in a chunk.
        features_dir: where frozen features are cached.
        seed: of initial weights and batches.
        save_every: steps between saved states.
        threads: CPU threads; torch's own choice when 0.
    """

    stage: Literal["align", "words", "plan"]
    output_dir: Path
    dataset: str = ""
    look_at: str = ""
    model: Path | None = None
    adapter: Path | None = None
    steps: int = 4000
    learning_rate: float = 5e-4
    horizon: int = 8
    features_dir: Path = Path("outputs/features")
    seed: int = 0
    save_every: int = 100
    threads: int = 0


def load_datasets(planner: Planner, names: str, features_dir: Path) -> list[Recorded]:
    """Every episode of the comma-separated data sets, with cached features."""
    episodes: list[Recorded] = []
    for name in filter(None, names.split(",")):
        reader = DatasetReader(Path(name))
        episodes += load_recorded(reader, FeatureCache.build(planner, reader, features_dir))
    return episodes


def scene_families(episodes: Sequence[Recorded]) -> list[str]:
    """The simulators that the episodes are of, which a policy trained on them can act in."""
    return sorted({scenes.family(episode.meta.env_id) for episode in episodes})


def agent_settings(episodes: Sequence[Recorded]) -> dict[str, Any]:
    """How the agent is to act with a policy trained on `episodes`.

    Raises:
        ValueError: they are of two robots.
    """
    families = scene_families(episodes)
    if len(families) > 1:
        raise ValueError(f"one policy moves one robot; these episodes are of {families}")
    return AGENTS[families[0]]


def print_trained(module: torch.nn.Module) -> None:
    """Say which parts are trained and which are frozen, with their numbers of weights."""
    for name, child in module.named_children():
        trained = sum(p.numel() for p in child.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in child.parameters() if not p.requires_grad)
        print(f"{name:16s} trained {trained:>12,} frozen {frozen:>12,}", file=sys.stderr)


def state_statistics(episodes: Sequence[Recorded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the robot states, each (S,)."""
    states = torch.cat([torch.from_numpy(e.state) for e in episodes])
    return states.mean(0), states.std(0)


def finetune(options: FinetuneOptions) -> int:
    """Run one stage. Returns the exit status.

    Raises:
        ValueError: the stage needs a data set and none is given.
    """
    given = options.dataset or options.look_at
    if options.stage != "words" and not given:
        raise ValueError(
            f"stage {options.stage} needs recorded episodes; give --dataset or --look_at"
        )
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    planner = _planner(options)
    if options.stage == "align":
        return align(planner, options)
    from embodied.cli.finetune_plan import finetune_plan

    return finetune_plan(planner, options)


def _planner(options: FinetuneOptions) -> Planner:
    """What training starts from. Raises ValueError when there is an adapter and no planner."""
    if options.model is not None:
        return Planner.load(options.model, options.adapter)
    if options.adapter is not None:
        raise ValueError("--adapter replaces the adapter of a planner; give its --model as well")
    return Planner.build(preset("small"))


def align(planner: Planner, options: FinetuneOptions) -> int:
    """Stage 1: Embodied-former and policy."""
    act_on = load_datasets(planner, options.dataset, options.features_dir)
    extra = load_datasets(planner, options.look_at, options.features_dir)
    agent = agent_settings(act_on) if act_on else {}
    policy = _fresh_policy(planner, act_on, options.horizon) if act_on else None
    module = Alignment(planner.former, policy, planner.embed_texts, len(planner.config.cameras))
    print_trained(module)
    sampler = AlignmentSampler(
        act_on,
        [*act_on, *extra],
        language,
        options.horizon,
        sizes=_ACTING if act_on else _LOOKING,
        seed=options.seed,
    )
    figures = train(module, sampler, _train_options(options))
    notes: dict[str, Any] = {
        "trained_on": [options.dataset, options.look_at],
        "scenes": scene_families([*act_on, *extra]),
        "figures": figures,
    }
    planner.save(options.output_dir / "planner", **notes)
    if policy is not None:
        save_policy(options.output_dir / "policy", policy, None, agent=agent, **notes)
    return 0


def _fresh_policy(planner: Planner, episodes: Sequence[Recorded], horizon: int) -> Any:
    """A policy for the robot of `episodes`, to be trained together with the planner's former."""
    config = planner.config
    policy = policies.make(
        "mlp",
        n_queries=config.former.n_queries,
        width=config.former.width,
        global_width=config.global_width,
        state_size=episodes[0].state.shape[1],
        action_size=episodes[0].action.shape[1],
        horizon=horizon,
    )
    policy.set_state_statistics(*state_statistics(episodes))
    return policy


def _train_options(options: FinetuneOptions) -> TrainOptions:
    return TrainOptions(
        output_dir=options.output_dir,
        steps=options.steps,
        learning_rate=options.learning_rate,
        save_every=options.save_every,
        seed=options.seed,
    )
