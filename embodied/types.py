"""What passes between the stages of the data path; every contract is checked where it is made.

Letters used for shapes everywhere: B batch, T frames, N patches, Q queries, L text tokens,
D width, H action horizon, A action size, S state size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

Status = Literal["done", "progressing", "failed"]
Outcome = Literal["success", "failure", "sim_fault", "crash"]
Features = Literal["former", "r3m", "global", "blind", "state", "oracle"]
FedAblation = Literal["none", "plan_zeroed", "plan_shuffled"]
FEATURES: tuple[Features, ...] = ("former", "r3m", "global", "blind", "state", "oracle")
STATUSES: tuple[Status, ...] = ("done", "progressing", "failed")

MAX_SUBGOALS = 16
"""The most sub-goals that a plan has; all seven tasks of the kitchen take 15."""

_SUBGOAL = re.compile(r"^\s*([a-z][a-z ]*?)\s*\(\s*([^()]*?)\s*\)\s*$")


def _check_image(image: np.ndarray, ndim: int, what: str) -> None:
    if image.dtype != np.uint8 or image.ndim != ndim or image.shape[-1] != 3:
        shape = "(H, W, 3)" if ndim == 3 else "(T, H, W, 3)"
        raise ValueError(f"{what} must be uint8 {shape}, got {image.dtype} {image.shape}")


@dataclass(frozen=True)
class Observation:
    """What the agent may see of one moment.

    Args:
        images: camera name → uint8 (H, W, 3) RGB, upright.
        state: float32 (S,), what the robot itself can know; finite.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray

    def __post_init__(self) -> None:
        for name, image in self.images.items():
            _check_image(image, 3, f"image of camera '{name}'")
        if self.state.dtype != np.float32 or self.state.ndim != 1:
            got = f"{self.state.dtype} {self.state.shape}"
            raise ValueError(f"state must be float32 (S,), got {got}")
        if not np.isfinite(self.state).all():
            raise ValueError(f"state must be finite, got {self.state}")


@dataclass(frozen=True)
class Clip:
    """A short video: uint8 (T, H, W, 3) RGB; T = 8 for plans and verdicts, 1 for control."""

    frames: np.ndarray

    def __post_init__(self) -> None:
        _check_image(self.frames, 4, "clip")

    def __len__(self) -> int:
        return int(self.frames.shape[0])


@dataclass(frozen=True)
class Subgoal:
    """One step of a plan, `verb(noun[, noun])`."""

    verb: str
    args: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.verb or not 1 <= len(self.args) <= 2 or not all(self.args):
            raise ValueError(f"a sub-goal is verb(noun[, noun]), got {self.verb!r} {self.args!r}")

    @property
    def text(self) -> str:
        return f"{self.verb}({', '.join(self.args)})"

    @classmethod
    def parse(cls, text: str) -> Subgoal:
        """Read `verb(noun[, noun])`. Raises ValueError that quotes what came."""
        match = _SUBGOAL.match(text)
        if match is None:
            raise ValueError(f"expected a sub-goal like 'pull(drawer handle)', got {text!r}")
        args = tuple(arg.strip() for arg in match.group(2).split(","))
        return cls(match.group(1), args)


@dataclass(frozen=True)
class Vocabulary:
    """What a scene offers: its tasks by name, and every sub-goal that can be carried out in it.

    Args:
        tasks: by the environment's own names.
        subgoals: of all tasks.
        owners: the task that each sub-goal serves; every one the only task when empty.
    """

    tasks: tuple[str, ...]
    subgoals: tuple[Subgoal, ...]
    owners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.tasks) > 1 and len(self.owners) != len(self.subgoals):
            raise ValueError(
                f"a scene of {len(self.tasks)} tasks says which one each of its "
                f"{len(self.subgoals)} sub-goals serves, got {len(self.owners)} owners"
            )
        if unknown := set(self.owners) - set(self.tasks):
            raise ValueError(f"owners {sorted(unknown)} are not among {list(self.tasks)}")

    @property
    def verbs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.verb for s in self.subgoals))

    @property
    def nouns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(noun for s in self.subgoals for noun in s.args))

    def owner(self, subgoal: Subgoal) -> str:
        """The task that `subgoal` serves. Raises ValueError when the scene does not offer it."""
        index = self.subgoals.index(subgoal)
        return self.owners[index] if self.owners else self.tasks[0]

    def narrowed(self, tasks: Sequence[str]) -> Vocabulary:
        """The part of it that serves `tasks`, in their order.

        Raises:
            ValueError: the scene does not offer one of them.
        """
        if unknown := [task for task in tasks if task not in self.tasks]:
            raise ValueError(f"the scene offers {list(self.tasks)}, not {unknown}")
        served = [(s, t) for t in tasks for s in self.subgoals if self.owner(s) == t]
        return Vocabulary(
            tuple(tasks), tuple(s for s, _ in served), tuple(task for _, task in served)
        )


@dataclass(frozen=True)
class Plan:
    """A grounded thought and 1–16 sub-goals; or, when refused, the reason and no sub-goals.

    The thought is empty where the planner was trained without one.
    """

    instruction: str
    thought: str
    subgoals: tuple[Subgoal, ...]
    tasks: tuple[str, ...] = ()
    refused: str | None = None

    def __post_init__(self) -> None:
        if self.refused is None and not 1 <= len(self.subgoals) <= MAX_SUBGOALS:
            raise ValueError(
                f"a plan has 1 to {MAX_SUBGOALS} sub-goals, got {len(self.subgoals)}: "
                "ask for fewer tasks at once"
            )
        if self.refused is not None and self.subgoals:
            raise ValueError("a refused plan has no sub-goals")

    @property
    def text(self) -> str:
        steps = "\n".join(f"{i}. {s.text}" for i, s in enumerate(self.subgoals, 1))
        return "\n".join(filter(None, [self.thought, steps]))


@dataclass(frozen=True)
class ActionChunk:
    """The next H actions, float32 (H, A), finite, in the environment's own units."""

    actions: np.ndarray

    def __post_init__(self) -> None:
        a = self.actions
        if a.dtype != np.float32 or a.ndim != 2:
            raise ValueError(f"an action chunk must be float32 (H, A), got {a.dtype} {a.shape}")
        if not np.isfinite(a).all():
            raise ValueError("an action chunk must be finite, got NaN or infinity")


@dataclass(frozen=True)
class Verdict:
    """What the monitor concluded about a sub-goal from its execution clip."""

    status: Status
    reason: str
    probability: float

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"a verdict is one of {STATUSES}, got {self.status!r}")
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"a probability is within 0..1, got {self.probability}")


@dataclass(frozen=True)
class Step:
    """One control step of an episode, as recorded.

    Args:
        observation: what was seen before the action.
        action: float32 (A,), as sent to the environment.
        subgoal: index of the current sub-goal in the plan.
        pixels: noun → (camera → (x, y) in 0..1 of the image's width and height), labels for
            training only.
        done: whether the current sub-goal's predicate held before the action; a label.
        met: bit i says whether that of sub-goal i of the plan did; a label.
        reward, success: the environment's own, after the action; labels.
    """

    observation: Observation
    action: np.ndarray
    subgoal: int
    done: bool = False
    reward: float = 0.0
    success: bool = False
    pixels: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    met: int = 0


@dataclass(frozen=True)
class Episode:
    """One attempt at one task, from reset to end."""

    env_id: str
    task: str
    instruction: str
    seed: int
    layout_sha: str
    plan: Plan
    steps: Sequence[Step]
    outcome: Outcome
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        return self.outcome == "success"

    @property
    def first_success_step(self) -> int | None:
        return next((i for i, step in enumerate(self.steps) if step.success), None)


@dataclass(frozen=True)
class Fed:
    """What a policy was trained to act on, and is therefore fed at run time.

    Args:
        features: "former": z_instance, z_global and the robot's state: the whole system. The rest
            are baselines, zeros in place of what is missing. "r3m", "global": z_global and state.
            "blind": all, of black pictures. "state": the robot's state alone. "oracle": the state
            and where the sub-goal's things truly are in the pictures; a ceiling, no fair peer.
        cameras: names, in their order; those of the planner when empty.
        ablate: what the former was told: the sub-goals, nothing, or those of other tasks.
    """

    features: Features = "former"
    cameras: tuple[str, ...] = ()
    ablate: FedAblation = "none"

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise ValueError(f"features are one of {FEATURES}, got {self.features!r}")
        if self.ablate != "none" and not self.reads_words:
            raise ValueError(f"{self.features!r} reads no plan: nothing to ablate")

    @property
    def reads_words(self) -> bool:
        """Whether the Embodied-former is used, and with it the sub-goal's words."""
        return self.features in ("former", "blind")


@runtime_checkable
class Policy(Protocol):
    """A light policy network: features of the current sub-goal → the next actions.

    Attributes:
        horizon: H, actions in a chunk.
        fed: what it expects to be fed.
        ensemble: the m of temporal ensembling (see `embodied.agent.chunking`); None to carry
            chunks out as they come.
    """

    horizon: int
    fed: Fed
    ensemble: float | None

    def act(self, z_instance: Any, z_global: Any, state: Any, generator: Any = None) -> Any:
        """(B, Q, D), (B, C), (B, S) torch tensors → actions (B, H, A) and done logits (B,).

        Args:
            generator: a `torch.Generator`, for policies that draw their actions.
        """
        ...


class SimulatorFault(RuntimeError):
    """The physics itself broke (NaN, divergence): neither a success nor a failure of the agent."""
