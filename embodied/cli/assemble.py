"""Puts planner, policy and agent together: the one place where they meet."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import policies
from embodied import checkpoint
from embodied.agent.agent import Ablation, Agent, AgentOptions, Motor
from embodied.agent.monitor import MonitorOptions
from embodied.cli.oracle import OraclePolicy
from embodied.model.former import EmbodiedFormer
from embodied.model.planner import Planner
from embodied.types import Fed, Subgoal
from sims import scenes

SHIPPED = Path(__file__).resolve().parent.parent / "pretrained" / "small"


def save_policy(folder: Path, policy: Any, former: EmbodiedFormer | None, **notes: Any) -> None:
    """Write a policy, with the former it was trained with unless that is the planner's own."""
    tensors = {f"policy.{k}": v for k, v in policy.state_dict().items()}
    if former is not None:
        tensors |= {f"former.{k}": v for k, v in former.state_dict().items()}
    half = {k: v.to(torch.bfloat16) if v.ndim >= 2 else v for k, v in tensors.items()}
    described = {"policy": policies.describe(policy), "fed": asdict(policy.fed)}
    config = {**described, "has_former": former is not None, **notes}
    checkpoint.save(folder, half, config)


def load_policy(folder: Path, planner: Planner) -> tuple[Any, EmbodiedFormer, dict[str, Any]]:
    """A saved policy, the former that belongs to it, both on the planner's device; its config.

    Raises:
        CheckpointError: damaged, or it does not fit the planner.
    """
    tensors, config = checkpoint.load(folder)
    if "policy" not in config:
        raise checkpoint.CheckpointError(f"{folder} holds no policy; give another folder")
    if config["policy"]["width"] != planner.config.former.width:
        raise checkpoint.CheckpointError(
            f"{folder} is a policy for a former of width {config['policy']['width']}, "
            f"the planner's is {planner.config.former.width}; give the --model it was trained with"
        )
    policy = policies.make(**config["policy"])
    policy.fed = _fed(config)
    _load(policy, tensors, "policy", folder)
    former = planner.former
    if config["has_former"]:
        former = EmbodiedFormer(planner.config.former)
        _load(former, tensors, "former", folder)
    device = planner.device
    return policy.to(device).eval(), former.to(device).eval(), config


def _fed(config: dict[str, Any]) -> Fed:
    """What the policy is fed; older ones do not say, and are fed everything."""
    told = config.get("fed", {})
    return Fed(**{**told, "cameras": tuple(told.get("cameras", ()))})


def _load(module: torch.nn.Module, tensors: dict[str, Any], part: str, folder: Path) -> None:
    prefix = f"{part}."
    state = {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise checkpoint.CheckpointError(f"{folder} does not hold this {part}: {first}") from None


def _shuffled_subgoals() -> dict[str, tuple[Subgoal, ...]]:
    """Task → another task's sub-goals: each the next in the list, so none keeps its own."""
    from sims import kitchen_tasks
    from sims.subgoals import MT10, TASKS

    steps = {task: spec.subgoals for task, spec in TASKS.items()} | kitchen_tasks.SUBGOALS
    rest = tuple(task for task in TASKS if task not in MT10)
    mixed: dict[str, tuple[Subgoal, ...]] = {}
    for group in (MT10, rest, kitchen_tasks.TASKS):
        for i, task in enumerate(group):
            others = (steps[o] for o in (*group[i + 1 :], *group[:i]))
            mixed[task] = next(other for other in others if not set(steps[task]) & set(other))
    return mixed


def load_agent(
    model_dir: Path | None = None,
    policy_dir: Path | None = None,
    *,
    ablate: Ablation = "none",
    device: torch.device | None = None,
) -> Agent:
    """The agent from saved folders; the shipped ones by default.

    Args:
        model_dir: a planner.
        policy_dir: a policy, or a folder of policies, each for another robot.
        ablate: see `AgentOptions`. A policy that was trained on other tasks' sub-goals is told
            such in any case.
        device: where all its networks are; the CPU when not given.

    Raises:
        CheckpointError: a folder is missing or damaged, or two policies are for one robot.
    """
    planner = Planner.load(model_dir or SHIPPED / "planner", device=device).for_inference()
    motors: dict[str, Motor] = {}
    told: set[str] = set()
    for folder in policy_folders(policy_dir or SHIPPED / "policies"):
        policy, former, config = load_policy(folder, planner)
        motor = make_motor(policy, former, config)
        told.add(policy.fed.ablate)
        for name in config.get("scenes", ("metaworld",)):
            if name in motors:
                raise checkpoint.CheckpointError(f"{folder} is a second policy for {name}")
            motors[name] = motor
    if "plan_shuffled" in told:
        if len(told) > 1:
            raise checkpoint.CheckpointError(
                f"{policy_dir} holds policies that were told other tasks' sub-goals and others "
                "that were not; give the folder of one policy"
            )
        ablate = "plan_shuffled"
    shuffled = _shuffled_subgoals() if ablate == "plan_shuffled" else {}
    options = AgentOptions(ablate, shuffled)
    return Agent(planner, motors, scenes.catalogue(tuple(motors)), options)


def policy_folders(folder: Path) -> list[Path]:
    """`folder` itself where it is a checkpoint, else the checkpoints in it, by name.

    Raises:
        CheckpointError: there is none.
    """
    if (folder / "config.json").is_file() or not folder.is_dir():
        return [folder]
    inside = sorted(path.parent for path in folder.glob("*/config.json"))
    if not inside:
        raise checkpoint.CheckpointError(f"{folder} holds no policy; give another folder")
    return inside


def make_motor(policy: Any, former: EmbodiedFormer, config: dict[str, Any]) -> Motor:
    """What moves one robot, as a saved policy's config.json says."""
    settings: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in config["agent"].items()
    }
    if "monitor" in settings:
        settings["monitor"] = MonitorOptions(**settings["monitor"])
    seeds = config.get("train_seeds")
    if policy.fed.features == "oracle":
        policy = OraclePolicy(policy)
    return Motor(former, policy, train_seeds=None if seeds is None else tuple(seeds), **settings)
