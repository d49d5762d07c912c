"""Properties of all 50 tasks: the interface, determinism, layouts, what may be seen, faults."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from embodied.types import Observation, SimulatorFault
from sims.metaworld import MetaWorldEnv, env_ids
from sims.seeds import FAMILY_SIZE, family_of, seeds
from sims.subgoals import TASKS

all_tasks = pytest.mark.parametrize("env", list(TASKS), indirect=True)
ROBOT_JOINTS = (*(f"right_j{i}" for i in range(7)), "r_close", "l_close")

Actions = Callable[[int], np.ndarray]


def _run(env: MetaWorldEnv, seed: int, actions: np.ndarray) -> dict[str, Any]:
    """Everything an episode shows, and the simulator's own state after every step."""
    observation, info = env.reset(seed=seed)
    steps = [env.step(action) for action in actions]
    states = np.stack([observation["state"], *(step[0]["state"] for step in steps)])
    return {
        "layout_sha": info["layout_sha"],
        "images": observation["images"],
        "last_images": steps[-1][0]["images"],
        "states": states,
        "rewards": np.array([step[1] for step in steps]),
        "qpos": env._sawyer.data.qpos.copy(),
        "raw_obs": env.raw_obs.copy(),
    }


@all_tasks
def test_gymnasium_accepts_it(env: MetaWorldEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # it wants a registered spec to try other render modes; there is one mode
        warnings.filterwarnings("ignore", message=".*Not able to test alternative render modes")
        # drawing for people is slow: once is enough
        check_env(env, skip_render_check=env.task != "drawer-open")


@all_tasks
def test_a_seed_fixes_the_whole_episode(env: MetaWorldEnv, random_actions: Actions) -> None:
    actions = random_actions(5)
    first = _run(env, 5, actions)
    _run(env, 200_009, -actions)  # another episode in between, on another layout
    again = _run(env, 5, actions)
    np.testing.assert_equal(again, first)


@all_tasks
def test_layouts_differ_within_and_between_families(env: MetaWorldEnv) -> None:
    drawn = [seed for family in ("train", "select", "test") for seed in seeds(family, 2)]
    shas = [env.reset(seed=seed)[1]["layout_sha"] for seed in drawn]
    assert len(set(shas)) == len(shas)


def test_layouts_that_nearly_meet_are_told_apart() -> None:
    """These windows are two micrometres from each other; 20 is for training, 200013 for tests."""
    with closing(MetaWorldEnv("window-close", cameras=())) as env:
        shas = {env.reset(seed=seed)[1]["layout_sha"] for seed in (20, 200_013)}
        assert len(shas) == 2
        assert env.reset(seed=20)[1]["layout_sha"] in shas


@all_tasks
def test_observations_and_rewards_keep_to_their_spaces(
    env: MetaWorldEnv, random_actions: Actions
) -> None:
    observation, info = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    assert set(info) >= {"success", "success_rule", "horizon", "seed", "layout_sha"}
    for action in random_actions(5):
        observation, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        assert np.isfinite(reward)
        assert (terminated, truncated) == (info["success"], False)
    Observation(observation["images"], observation["state"])  # the contract's own checks
    assert set(observation["images"]) == set(env.cameras)


@all_tasks
def test_the_state_knows_nothing_of_objects(env: MetaWorldEnv) -> None:
    env.reset(seed=2)
    before, objects = env._observation()["state"], env.raw_obs[4:].copy()
    sawyer = env._sawyer
    robot = [sawyer.model.joint(name).qposadr[0] for name in ROBOT_JOINTS]
    qpos = sawyer.data.qpos + 0.03
    qpos[robot] = sawyer.data.qpos[robot]
    sawyer.set_state(qpos, sawyer.data.qvel.copy())
    env.raw_obs = sawyer._get_obs()
    assert not np.allclose(env.raw_obs[4:], objects), "the objects did not move"
    np.testing.assert_array_equal(env._observation()["state"], before)


@all_tasks
def test_the_first_observation_is_of_the_layout_shown(env: MetaWorldEnv) -> None:
    """Meta-World draws the layout twice, and left the first one's objects in its observation."""
    env.reset(seed=0)
    first = env.raw_obs.copy()
    np.testing.assert_array_equal(first[:18], first[18:36])
    np.testing.assert_allclose(first[:18], env._sawyer._get_obs()[:18], atol=1e-9)
    np.testing.assert_array_equal(first[36:39], env._goal())


@all_tasks
def test_every_noun_of_the_plan_has_a_place(env: MetaWorldEnv) -> None:
    env.reset(seed=3)
    labels = env.labels()
    assert set(labels["pixels"]) >= set(env.vocabulary.nouns)
    assert labels["subgoal"] == 0
    assert len(labels["met"]) == len(env.vocabulary.subgoals)
    for places in labels["pixels"].values():
        assert np.isfinite(places["workspace"]).all()  # in front of the camera
    x, y = labels["pixels"]["gripper"]["workspace"]
    assert 0 <= x <= 1 and 0 <= y <= 1


@all_tasks
def test_divergence_is_a_fault_and_leaves_no_trace(
    env: MetaWorldEnv, random_actions: Actions
) -> None:
    actions = random_actions(2)
    sane = _run(env, 5, actions)
    env._sawyer.data.qvel[:] = 1e12
    with pytest.raises(SimulatorFault, match=f"{env.env_id} diverged at step 2"):
        env.step(np.zeros(4, np.float32))
    np.testing.assert_equal(_run(env, 5, actions), sane)


@pytest.fixture(scope="module")
def drawer() -> Iterator[MetaWorldEnv]:
    made = MetaWorldEnv("drawer-open", render=False, horizon=6)
    yield made
    made.close()


@pytest.mark.parametrize(
    "action",
    [
        np.array([0, np.nan, 0, 0], np.float32),
        np.array([np.inf, 0, 0, 0], np.float32),
        np.array([0, 0, 0, -np.inf], np.float32),
        np.zeros(3, np.float32),
        np.zeros(5, np.float32),
        np.zeros((1, 4), np.float32),
        np.float32(0),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(drawer: MetaWorldEnv, action: Any) -> None:
    drawer.reset(seed=0)
    before = drawer._sawyer.data.qpos.copy()
    with pytest.raises(ValueError, match="an action is 4 finite numbers, got"):
        drawer.step(action)
    np.testing.assert_array_equal(drawer._sawyer.data.qpos, before)


def test_actions_are_clipped_to_the_bounds(drawer: MetaWorldEnv) -> None:
    wild = np.array([[3, -7, 1e9, 2], [-5, 0.5, -1e9, -2]], np.float32)
    np.testing.assert_equal(_run(drawer, 0, wild), _run(drawer, 0, np.clip(wild, -1, 1)))


def test_the_horizon_truncates(drawer: MetaWorldEnv) -> None:
    for _ in range(2):  # and the count begins anew
        drawer.reset(seed=0)
        ends = [drawer.step(np.zeros(4, np.float32))[3] for _ in range(6)]
        assert ends == [False] * 5 + [True]


def test_without_a_seed_layouts_come_from_the_train_family(drawer: MetaWorldEnv) -> None:
    drawer.reset(seed=200_000)
    drawn = [drawer.reset()[1]["seed"] for _ in range(5)]
    assert len(set(drawn)) == 5
    assert {family_of(seed) for seed in drawn} == {"train"}


def test_without_rendering_there_are_no_pictures(drawer: MetaWorldEnv) -> None:
    assert drawer.reset(seed=0)[0]["images"] == {}


def test_families_of_seeds_are_disjoint() -> None:
    families = {family: set(seeds(family, FAMILY_SIZE)) for family in ("train", "select", "test")}
    assert len(set().union(*families.values())) == 3 * FAMILY_SIZE
    for family, members in families.items():
        assert {family_of(seed) for seed in (min(members), max(members))} == {family}
    assert list(seeds("select", 2, offset=3)) == [100_003, 100_004]


def test_seeds_outside_a_family_are_refused() -> None:
    with pytest.raises(ValueError, match="a family has 100000 seeds"):
        seeds("train", 2, offset=FAMILY_SIZE - 1)
    with pytest.raises(ValueError, match="in no family"):
        family_of(3 * FAMILY_SIZE)
    with pytest.raises(ValueError, match="in no family"):
        family_of(-1)


def test_unknown_tasks_and_cameras_are_named() -> None:
    with pytest.raises(ValueError, match="unknown Meta-World task 'drawer'.*drawer-open"):
        MetaWorldEnv("drawer")
    with pytest.raises(ValueError, match=r"unknown cameras \['roof'\].*workspace"):
        MetaWorldEnv("drawer-open", cameras=("workspace", "roof"))


def test_there_are_fifty() -> None:
    assert len(env_ids()) == len(set(env_ids())) == 50
