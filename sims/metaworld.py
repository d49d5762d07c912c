"""Meta-World's 50 tasks as gymnasium environments that show images, robot state and words.

Layouts are a function of the seed (Meta-World's own `reset(seed)` is ignored, and its
benchmark objects only ever yield 50 layouts), and carry a hash. What the simulator knows about
objects is in `truth()` and `labels()`, for labels and metrics; it is not in the observation.
"""

from __future__ import annotations

import hashlib
from typing import Any

import gymnasium as gym
import numpy as np

from embodied.types import SimulatorFault, Subgoal, Vocabulary
from sims.language import instructions as instructions
from sims.rendering import CameraPose, Quality, SceneRenderer, place_camera, render_flags
from sims.seeds import FAMILY_SIZE, FIRST_SEED
from sims.subgoals import TASKS, SceneTruth, SubgoalTracker, TaskSpec, is_met

import mujoco  # isort: skip  (after sims.rendering, which picks the GL back end)
import metaworld  # noqa: F401  isort: skip
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # isort: skip

FPS = 80
HORIZON = 400
CAMERAS = ("workspace", "wrist")
STATE_NAMES = ("gripper_x", "gripper_y", "gripper_z", "gripper_opening")
ACTION_NAMES = ("dx", "dy", "dz", "grip")

_SLOTS = {"workspace": "corner4", "wrist": "gripperPOV", "corner2": "corner2"}
_WORKSPACE = CameraPose(eye=(0.75, 0.075, 0.7), target=(-0.05, 0.67, 0.10), fovy_deg=40.0)
_LAYOUT_DECIMALS = 7
"""Places are hashed to a tenth of a micrometre: the windows differ in one number only, and of a
few hundred layouts two are now and then within 0.01 mm."""
_CORNER2_MOVED = (0.75, 0.075, 0.7)
_BAD = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
    mujoco.mjtWarning.mjWARN_BADCTRL,
)


def env_ids() -> list[str]:
    """All 50 environment ids, `metaworld/<task>-v3`."""
    return [f"metaworld/{task}-v3" for task in TASKS]


def _make_sawyer(task: str) -> Any:
    sawyer = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    sawyer._partially_observable = False  # the scripted expert must see the goal
    sawyer.__dict__.pop("sawyer_observation_space", None)  # cached with the goal clipped to zero
    sawyer._freeze_rand_vec = False
    sawyer.seeded_rand_vec = True
    sawyer._set_task_called = True
    return sawyer


class MetaWorldEnv(gym.Env[dict[str, Any], np.ndarray]):
    """One Meta-World task.

    Observation: {"images": {camera: uint8 (H, W, 3)}, "state": float32 (4,)}, the state being
    the gripper's position in metres and its opening in 0..1.
    Action: float32 (4,) in [-1, 1]: the hand's displacement in centimetres, and grip effort.
    Success: the benchmark's own flag, at any step within the horizon; it ends the episode.

    Args:
        task: a key of `sims.subgoals.TASKS`.
        cameras: of "workspace" (close view from the side), "wrist", and "corner2" (the moved
            corner camera that published results use).
        image_size: pixels, pictures are square.
        horizon: control steps until truncation; 400 when None.
        quality: see `sims.rendering`.
        render: whether observations carry pictures; recording experts without video turns it off.
        picture_every: control steps between pictures; those between show the last one again.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012
    success_rule = "any_step"
    state_names = STATE_NAMES
    action_names = ACTION_NAMES
    robot = "sawyer"

    def __init__(
        self,
        task: str,
        *,
        cameras: tuple[str, ...] = CAMERAS,
        image_size: int = 224,
        horizon: int | None = None,
        quality: Quality = "fast",
        render: bool = True,
        picture_every: int = 1,
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"unknown Meta-World task {task!r}; there are: {', '.join(TASKS)}")
        if unknown := set(cameras) - set(_SLOTS):
            raise ValueError(f"unknown cameras {sorted(unknown)}; there are: {', '.join(_SLOTS)}")
        self.task = task
        self.env_id = f"metaworld/{task}-v3"
        self.spec_: TaskSpec = TASKS[task]
        self.horizon = horizon or HORIZON
        self.render_mode = "rgb_array"
        self.cameras = cameras
        self.image_size = image_size
        self.quality: Quality = quality
        self._render_images = render
        self._picture_every = picture_every
        self._images: dict[str, np.ndarray] = {}
        self._sawyer = _make_sawyer(task)
        place_camera(self._sawyer.model, "corner4", _WORKSPACE)
        self._sawyer.model.cam_pos[self._sawyer.model.camera("corner2").id] = _CORNER2_MOVED
        self._renderer = SceneRenderer(self._sawyer.model, flipped=("corner2",))
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)  # step() clips to it
        self.observation_space = self._make_observation_space()
        self._n_steps = 0

    def _make_observation_space(self) -> gym.spaces.Dict:
        shape = (self.image_size, self.image_size, 3)
        names = self.cameras if self._render_images else ()
        images: dict[str, gym.Space[Any]] = {
            name: gym.spaces.Box(0, 255, shape, np.uint8) for name in names
        }
        low = np.array([-1.0, -1.0, -1.0, 0.0], np.float32)
        state = gym.spaces.Box(low, np.full(4, 2.0, np.float32), dtype=np.float32)
        return gym.spaces.Dict({"images": gym.spaces.Dict(images), "state": state})

    @property
    def tasks(self) -> tuple[str, ...]:
        """The goal: the one task of this scene."""
        return (self.task,)

    def tasks_of(self, seed: int) -> tuple[str, ...]:
        """The goal on the layout of `seed`; here always the same."""
        return self.tasks

    @property
    def vocabulary(self) -> Vocabulary:
        """The task and the sub-goals that this scene offers."""
        return Vocabulary((self.task,), self.spec_.subgoals)

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
        """Lay out the scene of `seed`; without one, of a seed drawn from the train family."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(FAMILY_SIZE)) + FIRST_SEED["train"]
        self.seed_ = seed
        self._sawyer.seed(seed)
        self._sawyer.reset()
        # Meta-World draws the layout twice; the picture and the first observation of several tasks
        # are left with the first one's goal and object
        mujoco.mj_forward(self._sawyer.model, self._sawyer.data)
        self.raw_obs = self._first_obs()
        self._n_steps = 0
        self._success = False
        self._thing_start = self._thing().copy()
        self.tracker = SubgoalTracker(self.spec_)
        self.layout_sha = self._hash_layout()
        return self._observation(), self._info()

    def _first_obs(self) -> np.ndarray:
        """Meta-World's 39 numbers at rest: the frame before is the present one."""
        self._sawyer._get_obs()  # makes the present frame the one before
        return np.asarray(self._sawyer._get_obs())

    def _hash_layout(self) -> str:
        places = np.concatenate([self._sawyer._last_rand_vec, self._thing(), self._goal()])
        text = self.task + np.array2string(
            np.round(places, _LAYOUT_DECIMALS), separator=",", max_line_width=10**6
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action, clipped to the bounds.

        Raises:
            ValueError: the action has a wrong shape, or a NaN or infinity in it.
            SimulatorFault: the physics diverged.
        """
        action = np.asarray(action, np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"an action is 4 finite numbers, got {action!r}")
        action = np.clip(action, -1.0, 1.0)
        self._sawyer.max_path_length = self.horizon + 1
        self.raw_obs, reward, _, _, info = self._sawyer.step(action)
        self._check_physics()
        self._n_steps += 1
        if self._n_steps == 1:  # several objects settle, or are moved, in the first step
            self._thing_start = self._thing().copy()
        self._success = bool(info["success"])
        self.tracker.update(self.truth())
        truncated = self._n_steps >= self.horizon
        return self._observation(), float(reward), self._success, truncated, self._info()

    def _check_physics(self) -> None:
        data = self._sawyer.data
        warned = [w for w in _BAD if data.warning[w].number]
        if warned or not np.isfinite(data.qpos).all() or not np.isfinite(self.raw_obs).all():
            for warning in data.warning:
                warning.number = 0
            raise SimulatorFault(f"the physics of {self.env_id} diverged at step {self._n_steps}")

    def _observation(self) -> dict[str, Any]:
        if self._n_steps % self._picture_every == 0:
            names = self.cameras if self._render_images else ()
            self._images = {name: self.picture(name) for name in names}
        images = {name: image.copy() for name, image in self._images.items()}
        return {"images": images, "state": self.raw_obs[:4].astype(np.float32)}

    def picture(
        self, camera: str, size: int | None = None, quality: Quality | None = None
    ) -> np.ndarray:
        """The present view of one camera, uint8 (size, size, 3)."""
        size = size or self.image_size
        quality = quality or self.quality
        return self._renderer.render(self._sawyer.data, _SLOTS[camera], size, size, quality)

    def render(self) -> np.ndarray:
        """The first camera's view in high quality, for people."""
        return self.picture(self.cameras[0], size=480, quality="high")

    def _info(self) -> dict[str, Any]:
        return {
            "success": self._success,
            "success_rule": self.success_rule,
            "horizon": self.horizon,
            "seed": self.seed_,
            "layout_sha": self.layout_sha,
        }

    def _thing(self) -> np.ndarray:
        if self.spec_.other is not None and self.spec_.thing == self.spec_.other:
            return self._goal()
        return np.asarray(self._sawyer._get_pos_objects()[:3])

    def _goal(self) -> np.ndarray:
        return np.asarray(self._sawyer._get_pos_goal())

    def _places(self) -> dict[str, np.ndarray]:
        """Noun → where it is, (3,) metres."""
        places = {"gripper": np.asarray(self._sawyer.tcp_center), self.spec_.thing: self._thing()}
        if self.spec_.other is not None and self.spec_.other != self.spec_.thing:
            second = np.asarray(self._sawyer._get_pos_objects()[3:6])
            places[self.spec_.other] = self._goal() if self.spec_.other_is_goal else second
        return places

    def truth(self) -> SceneTruth:
        """What the simulator knows; labels and metrics only, never a run-time decision."""
        opening = float(self.raw_obs[3])
        fingers = np.asarray(self._sawyer.tcp_center)
        return SceneTruth(fingers, self._thing(), self._thing_start, opening, self._success)

    def labels(self) -> dict[str, Any]:
        """Truth for training: the current sub-goal's index, which hold, and pixel positions."""
        truth = self.truth()
        pixels = {
            noun: {
                camera: self._renderer.project(self._sawyer.data, _SLOTS[camera], place)
                for camera in self.cameras
            }
            for noun, place in self._places().items()
        }
        met = [is_met(s, self.spec_, truth) for s in self.spec_.subgoals]
        return {"subgoal": self.tracker.index, "met": met, "pixels": pixels}

    def is_met(self, subgoal: Subgoal) -> bool:
        """Whether `subgoal` holds now; a label, never a run-time decision."""
        return is_met(subgoal, self.spec_, self.truth())

    def close(self) -> None:
        self._renderer.close()
