"""`embodied train-policy`: a policy from demonstrations, on frozen vision features."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import policies
from embodied.agent.rollout import PICTURE_EVERY
from embodied.cli.assemble import SHIPPED, load_policy, save_policy
from embodied.cli.finetune import AGENTS, print_trained
from embodied.cli.lerobot_layout import publish
from embodied.cli.splits import LEFT_OUT, still_left_out
from embodied.cli.start import ready_to_see
from embodied.cli.training import run_training
from embodied.cli.unseen import looked_at_notes, seen_notes
from embodied.egocot.dataset import Recorded, nouns_at_hand, places_at
from embodied.egocot.demos import Source, choose_demos, load_demos, sources_of
from embodied.egocot.former_batches import AlignmentSampler
from embodied.episodes import DatasetReader
from embodied.model.features import global_feature, usual_cameras
from embodied.model.former import EmbodiedFormer
from embodied.model.imitation import (
    Imitation,
    ImitationSampler,
    oracle_state,
    other_tasks_texts,
)
from embodied.model.planner import CONTROL_TEXT, Planner
from embodied.processes import Processes
from embodied.train import LoopOptions
from embodied.training_state import seed_all
from embodied.types import Features, Fed, FedAblation
from policies.diffusion import Denoiser
from policies.schedule import Sampler
from sims import language, scenes

_BATCH = 64
_HORIZON = {"mlp": 8, "transformer": 16, "diffusion": 16, "r3m": 1}
_EXECUTE = {"transformer": PICTURE_EVERY, "diffusion": 8}
"""Actions carried out before the next look, where that is not the robot's usual."""

Kind = Literal["mlp", "transformer", "diffusion"]


def _default_folder() -> Path:
    return Path("outputs/train") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}_policy"


@dataclass(frozen=True)
class TrainPolicyOptions(LoopOptions):
    """What to train, on what.

    Args:
        dataset: a LeRobotDataset of demonstrations, v3.0 or v2.1; several, comma-separated.
        output_dir: where the log, the state to resume from and the policy go;
            outputs/train/<date>/<time>_policy when not given.
        model: the planner whose vision encoder and Embodied-former are used; the shipped one.
        policy: the kind of policy network.
        features: what it acts on: "former": z_instance, z_global and the robot's state. Baselines:
            "r3m": R3M's head on z_global and state; "global": those without the Embodied-former;
            "blind": black pictures; "state": the robot's state alone; "oracle": state and true
            pixel positions of the sub-goal's things: a ceiling.
        ablate: "plan_zeroed": the Embodied-former gets no words. "plan_shuffled": those of other
            tasks, drawn anew for each sample. At run time the policy is fed the same.
        cameras: names, comma-separated; the planner's own when not given.
        tasks: names, comma-separated; all of the data set's when not given.
        init: a trained policy to go on from; a fresh one when not given.
        n_demos: successful demonstrations per task, in the data set's order; all when 0.
        corrections: more data sets, comma-separated, all episodes of which are trained on besides:
            a policy acted, and the expert said what it would have done (`record --policy`).
        augment: altered copies of every picture to train on besides, at random moved by up to 4 %
            and in other colours.
        train_former: whether a copy of the Embodied-former is trained along, and saved beside.
        horizon: actions in a chunk; 8 for mlp, 16 for transformer and diffusion.
        execute: actions of a chunk that the agent carries out before it looks again, an even
            number; 2 for transformer, 8 for diffusion, else 4.
        believe_above: the probability from which the agent believes its planner's "done" at the
            end of a task; below it the work goes on.
        ensemble: transformer: m of temporal ensembling; negative for none.
        denoiser: diffusion: a 1-D U-Net or a transformer.
        sampler: diffusion: how noise is taken away.
        n_inference_steps: diffusion: denoiser calls an action chunk.
        steps: optimiser steps.
        batch_size: samples a step.
        features_dir: where frozen features are cached.
        save_every: steps between saved states; 0 to save at the end only.
    """

    dataset: str
    output_dir: Path = field(default_factory=_default_folder)
    _: KW_ONLY
    model: Path = SHIPPED / "planner"
    policy: Kind = "mlp"
    features: Features = "former"
    ablate: FedAblation = "none"
    cameras: str = ""
    tasks: str = ""
    init: Path | None = None
    n_demos: int = 0
    corrections: str = ""
    augment: int = 0
    train_former: bool = True
    horizon: int | None = None
    execute: int | None = None
    believe_above: float = 0.0
    ensemble: float = 0.01
    denoiser: Denoiser = "unet"
    sampler: Sampler = "ddim"
    n_inference_steps: int = 10
    steps: int = 3000
    batch_size: int = _BATCH
    features_dir: Path = Path("outputs/features")
    save_every: int = 100

    def __post_init__(self) -> None:
        if self.features == "r3m" and self.policy != "mlp":
            raise ValueError(
                f"--features r3m has a head of its own; leave out --policy {self.policy}"
            )
        for name in ("n_demos", "augment"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} is at least 0, got {getattr(self, name)}")
        if self.execute is not None and (self.execute < 1 or self.execute % PICTURE_EVERY):
            raise ValueError(f"--execute is a multiple of {PICTURE_EVERY}, got {self.execute}")
        if not 0 <= self.believe_above < 1:
            raise ValueError(f"--believe_above is at least 0 and below 1, got {self.believe_above}")


# --- on what ----------------------------------------------------------------------------------


def _sources(names: str) -> list[Source]:
    """Every episode of the comma-separated data sets."""
    readers = [DatasetReader(Path(name)) for name in names.split(",") if name]
    return [source for reader in readers for source in sources_of(reader)]


def _corrections(options: TrainPolicyOptions) -> list[Source]:
    """The episodes of `options.corrections`. ValueError for one in which no policy acted."""
    sources = _of_tasks(_sources(options.corrections), options.tasks if options.corrections else "")
    if odd := [source for source in sources if "acted" not in source.meta.info]:
        raise ValueError(
            f"--corrections {odd[0].reader.root}: in episode {odd[0].meta.index} the expert acted; "
            "demonstrations are given as --dataset"
        )
    return sources


def _of_tasks(sources: list[Source], names: str) -> list[Source]:
    """Those of the comma-separated tasks; all without names. ValueError for one that has none."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    there = dict.fromkeys(source.meta.task for source in sources)
    if unknown := [name for name in wanted if name not in there]:
        raise ValueError(f"no episodes of {unknown}; the data set's tasks are {[*there]}")
    return [source for source in sources if not wanted or source.meta.task in wanted]


def _cameras(planner: Planner, sources: list[Source], names: str) -> tuple[str, ...]:
    """The data sets' cameras to learn from, in order.

    Raises:
        ValueError: they do not all have them, or the former takes fewer.
    """
    readers = list(dict.fromkeys(source.reader for source in sources))
    wanted = tuple(name.strip() for name in names.split(",") if name.strip())
    cameras = wanted or usual_cameras(planner.config, readers[0]) or tuple(readers[0].cameras)
    for reader in readers:
        if unknown := set(cameras) - set(reader.cameras):
            there = [*reader.cameras]
            raise ValueError(f"{reader.root} has no cameras {sorted(unknown)}; it has {there}")
    most = planner.config.former.max_cameras
    if not 1 <= len(cameras) <= most or len(set(cameras)) < len(cameras):
        raise ValueError(f"give 1 to {most} different --cameras, got {list(cameras)}")
    return cameras


def _print_demos(demos: list[Source]) -> None:
    """Say which were chosen."""
    seeds: dict[str, list[int]] = {}
    for source in demos:
        seeds.setdefault(source.meta.task, []).append(source.meta.seed)
    print(f"{len(demos)} demonstrations", file=sys.stderr)
    for task, of in seeds.items():
        print(f"  {task}: {len(of)}, of seeds {', '.join(map(str, of))}", file=sys.stderr)


def _families(demos: Sequence[Source]) -> list[str]:
    """The simulators here that the episodes are of."""
    return sorted({scenes.family(d.meta.env_id) for d in demos} & set(AGENTS))


def _robot_settings(demos: Sequence[Source], believe_above: float) -> dict[str, Any]:
    """How the agent is to act with the demonstrations' robot.

    Raises:
        ValueError: they are of two robots.
    """
    families = _families(demos)
    if len(families) > 1:
        raise ValueError(f"one policy moves one robot; these episodes are of {families}")
    agent: dict[str, Any] = AGENTS[families[0]] if families else {"execute": 4}
    if not believe_above:
        return agent
    return {**agent, "monitor": {**agent.get("monitor", {}), "believe_above": believe_above}}


# --- what -------------------------------------------------------------------------------------


def _start(
    options: TrainPolicyOptions, planner: Planner, demos: list[Recorded], fed: Fed, n_cameras: int
) -> tuple[Any, EmbodiedFormer]:
    """The policy and its former, as training finds them: a copy when it is to be trained.

    Raises:
        ValueError: the policy to go on from was fed something else.
    """
    former = planner.former
    if options.init is not None:
        policy, former, _ = load_policy(options.init, planner)
        if policy.fed != fed:
            raise ValueError(f"{options.init} was fed {policy.fed}, not {fed}; give the same flags")
    else:
        policy = _fresh(options, planner, demos, n_cameras)
        policy.fed = fed
    if not fed.reads_words or not options.train_former:
        return policy, former.requires_grad_(False)
    return policy, copy.deepcopy(former).requires_grad_(True)


def _fresh(
    options: TrainPolicyOptions, planner: Planner, demos: list[Recorded], n_cameras: int
) -> policies.AnyPolicy:
    kind, config = _kind(options), planner.config.former
    match kind:
        case "transformer":
            own: dict[str, Any] = {"ensemble": None if options.ensemble < 0 else options.ensemble}
        case "diffusion":
            own = {name: getattr(options, name) for name in ("denoiser", "sampler")}
            own["n_inference_steps"] = options.n_inference_steps
        case _:
            own = {}
    states = torch.cat([_states(e, options.features) for e in demos])
    policy = policies.make(
        kind,
        n_queries=config.n_queries,
        width=config.width,
        global_width=config.vision_width * n_cameras,
        state_size=states.shape[1],
        action_size=demos[0].action.shape[1],
        horizon=options.horizon or _HORIZON[kind],
        **own,
    )
    actions = torch.cat([torch.from_numpy(e.action) for e in demos])
    pooled = torch.cat([_pooled(e) for e in demos]) if kind == "r3m" else torch.empty(0)
    policy.set_statistics(states, actions, pooled)
    return policy


def _kind(options: TrainPolicyOptions) -> str:
    return "r3m" if options.features == "r3m" else options.policy


def _states(episode: Recorded, features: Features) -> torch.Tensor:
    """The states (T, S) of one episode, as the policy is fed them."""
    state = torch.from_numpy(episode.state)
    if features != "oracle":
        return state
    subgoals = [episode.meta.plan.subgoals[index] for index in episode.subgoal]
    places = [places_at(episode, nouns_at_hand(s), t) for t, s in enumerate(subgoals)]
    return oracle_state(state, torch.from_numpy(np.stack(places)))


def _pooled(episode: Recorded) -> torch.Tensor:
    """z_global (pictures, C) of one episode."""
    first, last = episode.span.image(0), episode.span.image(episode.span.length - 1)
    tokens = np.array(episode.cache.images[first : last + 1])  # (pictures, cameras, N, W)
    return global_feature(torch.from_numpy(tokens)[:, :, None])


def _own_cameras(former: EmbodiedFormer, order: list[int]) -> EmbodiedFormer:
    """A copy of the former that knows its `order`-th cameras as the first ones."""
    former = copy.deepcopy(former)
    embedding = former.camera_embedding.data
    embedding[: len(order)] = embedding[order].clone()
    return former


def _sampler(
    options: TrainPolicyOptions, demos: list[Recorded], policy: policies.AnyPolicy
) -> ImitationSampler:
    draw = AlignmentSampler(
        demos, demos, language, policy.horizon, (options.batch_size, 0, 0, 0), options.seed
    )
    others = None
    if policy.fed.ablate == "plan_shuffled":
        offered = scenes.catalogue(tuple(scenes.family(d.meta.env_id) for d in demos))
        others = other_tasks_texts(list(offered.values()))
        texts = {CONTROL_TEXT.format(s.text) for d in demos for s in d.meta.plan.subgoals}
        if alone := [text for text in texts if not others.get(text)]:
            raise ValueError(f"no other task's sub-goals to mix up with {alone}")
    return ImitationSampler(draw, policy.fed.features, options.seed, others)


def _black(planner: Planner, n_cameras: int) -> torch.Tensor:
    """Vision tokens (1, cameras, 1, N, W) of black pictures."""
    size = planner.config.image_size
    return planner.see(np.zeros((1, n_cameras, 1, size, size, 3), np.uint8)).float()


def train_policy(options: TrainPolicyOptions) -> int:
    """Train, or go on where `output_dir` left off. Returns the exit status."""
    seed_all(options.seed)
    processes = Processes.here()
    planner = Planner.load(options.model, device=processes.loading_device())
    planner = ready_to_see(planner, processes)
    sources = _of_tasks(_sources(options.dataset), options.tasks)
    chosen = choose_demos(sources, options.n_demos) + _corrections(options)
    agent = _robot_settings(chosen, options.believe_above)
    cameras = _cameras(planner, chosen, options.cameras)
    usual = usual_cameras(planner.config, chosen[0].reader)
    fed = Fed(options.features, () if cameras == usual else cameras, options.ablate)
    is_main = processes.is_main
    if is_main:
        _print_demos(chosen)
    with processes.main_first():  # the others find what it has computed
        demos = load_demos(planner, chosen, cameras, options.features_dir, options.augment)
    policy, former = _start(options, planner, demos, fed, len(cameras))
    order = [usual.index(camera) for camera in cameras if camera in usual]
    if options.init is None and fed.reads_words and order != list(range(len(order))):
        former = _own_cameras(former, order)
    execute = options.execute or _EXECUTE.get(policy.kind, agent["execute"])
    black = _black(planner, len(cameras)) if fed.features == "blind" else None
    module = Imitation(former, policy, planner.embed_texts, len(cameras), black)
    print_trained(planner, module)
    figures = run_training("train-policy", module, _sampler(options, demos, policy), options)
    if is_main:
        own = None if former is planner.former else former
        _save(options, policy, own, chosen, {**agent, "execute": execute}, figures)
    return 0


def _save(
    options: TrainPolicyOptions,
    policy: policies.AnyPolicy,
    former: EmbodiedFormer | None,
    demos: list[Source],
    agent: dict[str, Any],
    figures: dict[str, float],
) -> None:
    """Write the policy, and LeRobot's folders beside it."""
    tasks = {task for demo in demos for task in demo.meta.plan.tasks or (demo.meta.task,)}
    notes: dict[str, Any] = {
        "trained_on": ",".join(filter(None, (options.dataset, options.corrections))),
        "n_demos": options.n_demos,
        "scenes": _families(demos),
        LEFT_OUT: still_left_out((options.model, options.init), tasks),
        **seen_notes((demo.meta for demo in demos), options.init),
        **looked_at_notes((), (options.model, options.init)),  # its former has looked at them
        "figures": figures,
    }
    folder = options.output_dir / "policy"
    save_policy(folder, policy, former, agent=agent, **notes)
    publish(options.output_dir, options.steps)
    print(f"saved {folder}", file=sys.stderr)
