"""Franka Kitchen as a gymnasium environment that shows images, robot state and words.

The scene, the physics and the benchmark's rule are Gymnasium-Robotics' own. Its episodes all start
in one state; here the start is a function of the seed, and carries a hash. What the simulator
knows about objects is in `truth()` and `labels()`, for labels and metrics; it is not in the
observation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from embodied.types import SimulatorFault, Subgoal, Vocabulary
from sims.kitchen_elements import (
    ELEMENTS,
    STRICT_TRAVEL,
    Completion,
    KitchenTracker,
    KitchenTruth,
    is_met,
    set_element,
)
from sims.kitchen_scene import CAMERA_NAMES, make_kitchen
from sims.kitchen_tasks import TASKS, VOCABULARY, check_tasks, plan_subgoals
from sims.rendering import Quality, SceneRenderer, render_flags
from sims.seeds import FAMILY_SIZE, FIRST_SEED

import mujoco  # isort: skip  (after sims.rendering, which picks the GL back end)

Rule = Literal["benchmark", "strict"]

FPS = 12.5
STEPS_PER_TASK = 280
CAMERAS = ("overview", "wrist")
STATE_NAMES = (*(f"joint_{i}" for i in range(1, 8)), "finger_1", "finger_2")
ACTION_NAMES = (*(f"joint_{i}_velocity" for i in range(1, 8)), "finger_1", "finger_2")
N_ROBOT = 9
N_ARM = 7

# RoboHive shifts the base by ±0.1 m in x and y. From FrankaKitchen's own place, though, the arm
# reaches only 3 cm beyond the hinge cabinet's handle and 7 cm beyond the microwave's: further away
# from them nothing can be done. And 0.1 m nearer to the stove the pedestal all but touches the
# kettle.
BASE_SHIFT_LOW_M, BASE_SHIFT_HIGH_M = (-0.1, -0.03), (0.05, 0.1)
JOINT_NOISE_RAD = 0.05
OPEN_CHANCE = 0.3
LEVELS = (0, 1, 2)
OPTIONS = ("tasks", "level", "opened", "qpos")
"""What `reset` may be told."""

_BAD = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
    mujoco.mjtWarning.mjWARN_BADCTRL,
)


class KitchenEnv(gym.Env[dict[str, Any], np.ndarray]):
    """Franka Kitchen with one or more of its seven tasks as the goal.

    Observation: {"images": {camera: uint8 (H, W, 3)}, "state": float32 (9,)}, the state being the
    arm's seven joints in rad and the two fingers in metres.
    Action: float32 (9,) in [-1, 1]: joint velocities, 1 being 2 rad/s for the arm.
    Success: with the rule "benchmark" every task of the goal has been within 0.3 of its goal at
    some step, as FrankaKitchen counts; with "strict" all of them were, at one step, at 90 % of
    their way for five steps. `info` tells both.

    Args:
        tasks: keys of `ELEMENTS`, in the order in which they are to be done; or how many, and
            which is a function of the seed.
        cameras: of "overview", "wrist", "left" and "right".
        image_size: pixels, pictures are square.
        horizon: control steps until truncation; 280 for each task when None.
        quality: see `sims.rendering`.
        render: whether observations carry pictures; recording experts without video turns it off.
        picture_every: control steps between pictures; those between show the last one again.
        level: 0: the robot's base and joints vary; 1: elements outside the goal may be open
            already; 2: those of the goal too, all but one.
        rule: which one is `success`.
        env_id: the id it was made by, for the record.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012
    state_names = STATE_NAMES
    action_names = ACTION_NAMES
    robot = "panda"

    def __init__(
        self,
        tasks: tuple[str, ...] | int = ("microwave",),
        *,
        cameras: tuple[str, ...] = CAMERAS,
        image_size: int = 224,
        horizon: int | None = None,
        quality: Quality = "fast",
        render: bool = True,
        picture_every: int = 1,
        level: int = 0,
        rule: Rule = "benchmark",
        env_id: str = "kitchen",
    ) -> None:
        if unknown := set(cameras) - set(CAMERA_NAMES):
            there_are = ", ".join(CAMERA_NAMES)
            raise ValueError(f"unknown cameras {sorted(unknown)}; there are: {there_are}")
        self.env_id = env_id
        self.tasks = _goal(tasks, seed=0)
        self.level = _check_level(level)
        self._defaults = tasks, self.level
        self._horizon = horizon
        self.rule: Rule = rule
        self.success_rule = rule
        self.render_mode = "rgb_array"
        self.cameras = cameras
        self.image_size = image_size
        self.quality: Quality = quality
        self._render_images = render
        self._picture_every = picture_every
        self._images: dict[str, np.ndarray] = {}
        self._kitchen = make_kitchen()
        self._init_qpos = self._kitchen.robot_env.init_qpos.copy()
        self._base_body = self.model.body("panda0_link0").parentid[0]
        self._base_pos = self.model.body_pos[self._base_body].copy()
        self._renderer = SceneRenderer(self.model)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (N_ROBOT,), np.float32)  # step() clips to it
        self.observation_space = self._make_observation_space()
        self._n_steps = 0

    def _make_observation_space(self) -> gym.spaces.Dict:
        shape = (self.image_size, self.image_size, 3)
        names = self.cameras if self._render_images else ()
        images: dict[str, gym.Space[Any]] = {
            name: gym.spaces.Box(0, 255, shape, np.uint8) for name in names
        }
        high = np.array([4.0] * N_ARM + [0.1] * (N_ROBOT - N_ARM), np.float32)
        state = gym.spaces.Box(-high, high, dtype=np.float32)
        return gym.spaces.Dict({"images": gym.spaces.Dict(images), "state": state})

    @property
    def model(self) -> Any:
        """The mujoco.MjModel; for experts and disturbances, never for a run-time decision."""
        return self._kitchen.model

    @property
    def data(self) -> Any:
        """The mujoco.MjData; for experts and disturbances, never for a run-time decision."""
        return self._kitchen.data

    @property
    def task(self) -> str:
        """The goal in FrankaKitchen's words."""
        return ", ".join(self.tasks)

    def tasks_of(self, seed: int) -> tuple[str, ...]:
        """The goal on the layout of `seed`."""
        return _goal(self._defaults[0], seed)

    @property
    def horizon(self) -> int:
        """Control steps until truncation."""
        return self._horizon or STEPS_PER_TASK * len(self.tasks)

    @property
    def vocabulary(self) -> Vocabulary:
        """All that the scene offers, whatever the goal."""
        return VOCABULARY

    @property
    def robot_base_shift(self) -> np.ndarray:
        """How far the robot's base is from FrankaKitchen's place, (x, y) metres."""
        return (self.model.body_pos[self._base_body] - self._base_pos)[:2]

    @property
    def render_flags(self) -> dict[str, Any]:
        """How the observations' pictures are drawn, for the record beside a result."""
        return {
            **render_flags(self.quality),
            "cameras": list(self.cameras),
            "px": self.image_size,
            "picture_every": self._picture_every,
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Lay out the scene of `seed`; without one, of a seed drawn from the train family.

        Args:
            options: "tasks" and "level" replace those of the constructor for this episode;
                "opened" names the elements that are open already, in place of the level's draw;
                "qpos" is the whole start, (30,) joints of robot and objects, whatever the seed.

        Raises:
            ValueError: an option, task or level is unknown, or "qpos" is no start.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - set(OPTIONS):
            raise ValueError(f"unknown options {sorted(unknown)}; there are: {', '.join(OPTIONS)}")
        if {"opened", "qpos"} <= set(options):
            raise ValueError("'qpos' tells what is open already: leave 'opened' out")
        if seed is None:
            seed = int(self.np_random.integers(FAMILY_SIZE)) + FIRST_SEED["train"]
        self.seed_ = seed
        self.tasks = _goal(options.get("tasks", self._defaults[0]), seed)
        self.level = _check_level(options.get("level", self._defaults[1]))
        self._n_steps = 0
        if "qpos" in options:
            self._start_from(options["qpos"])
        else:
            self._lay_out(np.random.default_rng(seed), options.get("opened"))
        self.tracker = KitchenTracker(self.tasks)
        self.completion = Completion(self.tasks)
        self._met_at_start = self.completion.update(self.data.qpos)
        self.tracker.update(self.truth())
        self.layout_sha = self._hash_layout()
        return self._observation(), self._info()

    def _lay_out(self, rng: np.random.Generator, opened: Iterable[str] | None) -> None:
        """Start the episode; draws the same numbers whatever the goal and the level."""
        shift = rng.uniform(BASE_SHIFT_LOW_M, BASE_SHIFT_HIGH_M)
        noise = rng.uniform(-JOINT_NOISE_RAD, JOINT_NOISE_RAD, N_ARM)
        is_open, spared = rng.random(len(TASKS)) < OPEN_CHANCE, rng.random(len(TASKS))
        if opened is None:
            opened = self._draw_opened(is_open, spared)
        self.opened = check_tasks(opened) if opened else ()
        self.model.body_pos[self._base_body, :2] = self._base_pos[:2] + shift
        qpos = self._init_qpos.copy()
        qpos[:N_ARM] += noise
        for name in self.opened:
            set_element(self.model, qpos, ELEMENTS[name], 1.0)
        self._start(qpos)

    def _start_from(self, qpos: Any) -> None:
        """Start the episode in a given state, with the robot's base in FrankaKitchen's place."""
        qpos = np.array(qpos, np.float64)
        if qpos.shape != self._init_qpos.shape or not np.isfinite(qpos).all():
            n = len(self._init_qpos)
            raise ValueError(f"a start is {n} finite joint positions, got {qpos.shape} {qpos}")
        mujoco.mj_normalizeQuat(self.model, qpos)
        self.opened = tuple(n for n, e in ELEMENTS.items() if e.travel(qpos) >= STRICT_TRAVEL)
        self.model.body_pos[self._base_body] = self._base_pos
        self._start(qpos)

    def _start(self, qpos: np.ndarray) -> None:
        """Start the episode in this state, (30,), the robot's joints clipped to their ranges."""
        qpos[:N_ROBOT] = np.clip(qpos[:N_ROBOT], *self.model.jnt_range[:N_ROBOT].T)
        self._kitchen.robot_env.init_qpos = qpos
        self._kitchen.reset()

    def _draw_opened(self, is_open: np.ndarray, spared: np.ndarray) -> list[str]:
        names = [name for name, drawn in zip(TASKS, is_open, strict=True) if drawn]
        if self.level == 0:
            return []
        if self.level == 1:
            return [name for name in names if name not in self.tasks]
        if set(self.tasks) <= set(names):  # something must be left to do
            names.remove(min(self.tasks, key=lambda task: spared[TASKS.index(task)]))
        return names

    def _hash_layout(self) -> str:
        places = np.concatenate([self.data.qpos, self.robot_base_shift])
        text = np.array2string(np.round(places, 5) + 0.0, separator=",", max_line_width=10**6)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action, clipped to the bounds. The reward counts newly completed tasks.

        Raises:
            ValueError: the action has a wrong shape, or a NaN or infinity in it.
            SimulatorFault: the physics diverged.
        """
        action = np.asarray(action, np.float32)
        if action.shape != (N_ROBOT,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {N_ROBOT} finite numbers, got {action!r}")
        self._kitchen.step(np.clip(action, -1.0, 1.0))
        self._n_steps += 1
        self._check_physics()
        reward = len(self.completion.update(self.data.qpos))
        self.tracker.update(self.truth())
        truncated = self._n_steps >= self.horizon
        return self._observation(), float(reward), self._success, truncated, self._info()

    def _check_physics(self) -> None:
        data = self.data
        warned = [w for w in _BAD if data.warning[w].number]
        if warned or not np.isfinite(data.qpos).all():
            for warning in data.warning:
                warning.number = 0
            raise SimulatorFault(f"the physics of {self.env_id} diverged at step {self._n_steps}")

    def _observation(self) -> dict[str, Any]:
        if self._n_steps % self._picture_every == 0:
            names = self.cameras if self._render_images else ()
            self._images = {name: self.picture(name) for name in names}
        images = {name: image.copy() for name, image in self._images.items()}
        return {"images": images, "state": self.data.qpos[:N_ROBOT].astype(np.float32)}

    def picture(
        self, camera: str, size: int | None = None, quality: Quality | None = None
    ) -> np.ndarray:
        """The present view of one camera, uint8 (size, size, 3)."""
        size = size or self.image_size
        return self._renderer.render(self.data, camera, size, size, quality or self.quality)

    def render(self) -> np.ndarray:
        """The first camera's view in high quality, for people."""
        return self.picture(self.cameras[0], size=480, quality="high")

    @property
    def _success(self) -> bool:
        counted = self.completion
        return counted.success if self.rule == "benchmark" else counted.success_strict

    def _info(self) -> dict[str, Any]:
        return {
            "success": self._success,
            "success_rule": self.success_rule,
            "success_benchmark": self.completion.success,
            "success_strict": self.completion.success_strict,
            "completed": list(self.completion.completed),
            "completed_strict": self.completion.completed_strict,
            "met_at_start": list(self._met_at_start),
            "horizon": self.horizon,
            "seed": self.seed_,
            "layout_sha": self.layout_sha,
        }

    def _places(self) -> dict[str, np.ndarray]:
        """Noun → where it is, (3,) metres."""
        places = {e.noun: self._site(e.site) for e in ELEMENTS.values()}
        places["top burner"] = self.data.body("Burner 4").xpos.copy()
        return {"gripper": self._site("end_effector"), **places}

    def _site(self, name: str) -> np.ndarray:
        return self.data.site(name).xpos.copy()

    def truth(self) -> KitchenTruth:
        """What the simulator knows; labels and metrics only, never a run-time decision."""
        return KitchenTruth.read(self.model, self.data)

    def labels(self) -> dict[str, Any]:
        """Truth for training: the current sub-goal's index, which hold, and pixel positions.

        The index and `met` are of `plan_subgoals(tasks)`.
        """
        truth = self.truth()
        pixels = {
            noun: {
                camera: self._renderer.project(self.data, camera, place) for camera in self.cameras
            }
            for noun, place in self._places().items()
        }
        met = [is_met(subgoal, truth) for subgoal in self.tracker.plan]
        return {"subgoal": self.tracker.index, "met": met, "pixels": pixels}

    @staticmethod
    def plan_subgoals(tasks: Iterable[str]) -> tuple[Subgoal, ...]:
        """The sub-goals of `tasks` one after the other. Raises ValueError for an unknown task."""
        return plan_subgoals(tasks)

    def is_met(self, subgoal: Subgoal) -> bool:
        """Whether `subgoal` holds now; a label, never a run-time decision."""
        return is_met(subgoal, self.truth())

    def close(self) -> None:
        self._renderer.close()


def _goal(tasks: Iterable[str] | int, seed: int) -> tuple[str, ...]:
    """`tasks`, or that many drawn by `seed`, by other numbers than the start."""
    if not isinstance(tasks, int):
        return check_tasks(tasks)
    if not 1 <= tasks <= len(TASKS):
        raise ValueError(f"a goal has 1 to {len(TASKS)} tasks, got {tasks}")
    order = np.random.default_rng([seed, 1]).permutation(len(TASKS))
    return tuple(TASKS[i] for i in order[:tasks])


def _check_level(level: int) -> int:
    if level not in LEVELS:
        raise ValueError(f"levels are {LEVELS}, got {level!r}")
    return level


def count_distinct(seeds: Iterable[int], level: int = 0) -> int:
    """How many different starts `seeds` have; n of them should be n."""
    env = KitchenEnv(render=False, level=level)
    shas = {env.reset(seed=seed)[1]["layout_sha"] for seed in seeds}
    env.close()
    return len(shas)
