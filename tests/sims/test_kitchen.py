"""Franka Kitchen: starts, both rules of success, sub-goals, what may be seen, cameras, faults."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium_robotics.envs.franka_kitchen import KitchenEnv as FrankaKitchen

from embodied.types import Observation, SimulatorFault, Subgoal
from sims.kitchen import (
    BASE_SHIFT_HIGH_M,
    BASE_SHIFT_LOW_M,
    N_ROBOT,
    STEPS_PER_TASK,
    KitchenEnv,
    count_distinct,
)
from sims.kitchen_disturbances import move_kettle, push_back
from sims.kitchen_elements import ELEMENTS, STRICT_STEPS, STRICT_TRAVEL, KitchenTracker, set_element
from sims.kitchen_tasks import FK5, OWNER, SUBGOALS, TASKS, VOCABULARY, plan_subgoals
from sims.seeds import family_of, seeds

every_element = pytest.mark.parametrize("name", TASKS)
STILL = np.zeros(N_ROBOT, np.float32)


@pytest.fixture(scope="module")
def kitchen() -> Iterator[KitchenEnv]:
    """One environment for all tests; each resets it with its own goal."""
    made = KitchenEnv(cameras=("overview",), image_size=32)
    yield made
    made.close()


@pytest.fixture
def blind(kitchen: KitchenEnv) -> Iterator[KitchenEnv]:
    """The same without pictures."""
    kitchen._render_images = False
    yield kitchen
    kitchen._render_images = True


def _actions(n: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (n, N_ROBOT)).astype(np.float32)


def _run(env: KitchenEnv, seed: int, actions: np.ndarray) -> dict[str, Any]:
    """Everything an episode shows, and the simulator's own state at its end."""
    observation, info = env.reset(seed=seed)
    steps = [env.step(action) for action in actions]
    return {
        "layout_sha": info["layout_sha"],
        "first": observation,
        "last": steps[-1][0],
        "states": np.stack([step[0]["state"] for step in steps]),
        "qpos": env.data.qpos.copy(),
        "qvel": env.data.qvel.copy(),
    }


def _set(env: KitchenEnv, name: str, part: float) -> None:
    """Put an element part of its way along, in the running simulation."""
    set_element(env.model, env.data.qpos, ELEMENTS[name], part)
    env.data.qvel[:] = 0
    mujoco.mj_forward(env.model, env.data)


# ---- the interface --------------------------------------------------------------------------


def test_gymnasium_accepts_it(kitchen: KitchenEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # it wants a registered spec to try other render modes; there is one mode
        warnings.filterwarnings("ignore", message=".*Not able to test alternative render modes")
        check_env(kitchen, skip_render_check=True)  # drawing for people takes seconds


def test_observations_keep_to_their_spaces(kitchen: KitchenEnv) -> None:
    observation, info = kitchen.reset(seed=1)
    assert kitchen.observation_space.contains(observation)
    assert set(info) >= {"success", "success_strict", "success_rule", "horizon", "seed"}
    for action in _actions(3):
        observation, reward, _, _, info = kitchen.step(action)
        assert kitchen.observation_space.contains(observation)
        assert np.isfinite(reward)
    Observation(observation["images"], observation["state"])  # the contract's own checks
    assert set(observation["images"]) == {"overview"}


def test_the_vocabulary_does_not_depend_on_the_goal(blind: KitchenEnv) -> None:
    blind.reset(seed=0, options={"tasks": ["kettle", "light switch"]})
    assert blind.task == "kettle, light switch"
    assert blind.vocabulary == VOCABULARY
    assert blind.vocabulary.tasks == TASKS == tuple(ELEMENTS)
    blind.reset(seed=0)  # an option is for one episode
    assert blind.task == "microwave"


def test_a_number_of_tasks_is_drawn_by_the_seed(blind: KitchenEnv) -> None:
    goals = []
    for seed in [*range(20), *range(20)]:
        blind.reset(seed=seed, options={"tasks": 3})
        assert len(set(blind.tasks)) == 3
        goals.append(blind.tasks)
    assert goals[:20] == goals[20:] and len(set(goals)) > 10
    assert {task for goal in goals for task in goal} == set(TASKS)
    with pytest.raises(ValueError, match="a goal has 1 to 7 tasks, got 8"):
        KitchenEnv(8)


@pytest.mark.parametrize(
    "action",
    [
        np.full(9, np.nan, np.float32),
        np.array([0, 0, np.inf, 0, 0, 0, 0, 0, 0], np.float32),
        np.zeros(8, np.float32),
        np.zeros((1, 9), np.float32),
        np.float32(0),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(blind: KitchenEnv, action: Any) -> None:
    blind.reset(seed=0)
    before = blind.data.qpos.copy()
    with pytest.raises(ValueError, match="an action is 9 finite numbers, got"):
        blind.step(action)
    np.testing.assert_array_equal(blind.data.qpos, before)


def test_actions_are_clipped_to_the_bounds(blind: KitchenEnv) -> None:
    wild = 5 * _actions(3)
    np.testing.assert_equal(_run(blind, 0, wild), _run(blind, 0, np.clip(wild, -1, 1)))


def test_divergence_is_a_fault_and_leaves_no_trace(blind: KitchenEnv) -> None:
    sane = _run(blind, 5, _actions(2))
    blind.data.qvel[:] = 1e12
    with pytest.raises(SimulatorFault, match="kitchen diverged at step 3"):
        blind.step(STILL)
    np.testing.assert_equal(_run(blind, 5, _actions(2)), sane)


def test_the_horizon_grows_with_the_goal_and_truncates(blind: KitchenEnv) -> None:
    assert blind.reset(seed=0, options={"tasks": TASKS[:3]})[1]["horizon"] == 3 * STEPS_PER_TASK
    blind._horizon = 3
    try:
        for _ in range(2):  # and the count begins anew
            blind.reset(seed=0)
            assert [blind.step(STILL)[3] for _ in range(3)] == [False, False, True]
    finally:
        blind._horizon = None


def test_what_is_unknown_is_named(blind: KitchenEnv) -> None:
    with pytest.raises(ValueError, match=r"each once, of: microwave, .*; got \['oven'\]"):
        KitchenEnv(("oven",))
    with pytest.raises(ValueError, match=r"unknown cameras \['roof'\].*overview"):
        KitchenEnv(cameras=("roof",))
    with pytest.raises(ValueError, match=r"levels are \(0, 1, 2\), got 3"):
        KitchenEnv(level=3)
    with pytest.raises(ValueError, match=r"unknown options \['task'\]"):
        blind.reset(seed=0, options={"task": "kettle"})
    with pytest.raises(ValueError, match=r"each once, of: .*; got \['kettle', 'kettle'\]"):
        blind.reset(seed=0, options={"opened": ["kettle", "kettle"]})
    with pytest.raises(ValueError, match=r"no sub-goal 'reach\(oven\)'; there are: reach"):
        blind.is_met(Subgoal.parse("reach(oven)"))


# ---- starts ---------------------------------------------------------------------------------


def test_a_seed_fixes_the_whole_episode(kitchen: KitchenEnv) -> None:
    first = _run(kitchen, 5, _actions(3))
    _run(kitchen, 200_009, -_actions(3))  # another episode in between
    np.testing.assert_equal(_run(kitchen, 5, _actions(3)), first)


@pytest.mark.parametrize("level", [0, 2])
def test_starts_differ_within_and_between_families(level: int) -> None:
    drawn = [seed for family in ("train", "select", "test") for seed in seeds(family, 20)]
    assert count_distinct(drawn, level) == len(drawn)


def test_the_start_does_not_depend_on_the_goal(blind: KitchenEnv) -> None:
    goals = [["kettle"], ["microwave", "light switch"], 1, 7]
    shas = {blind.reset(seed=7, options={"tasks": goal})[1]["layout_sha"] for goal in goals}
    assert len(shas) == 1


def test_starts_are_as_far_apart_as_told(blind: KitchenEnv) -> None:
    shifts = []
    for seed in range(50):
        blind.reset(seed=seed)
        shifts.append(blind.robot_base_shift)
        robot = blind.data.qpos[:N_ROBOT]
        limits = blind.model.jnt_range[:N_ROBOT]
        assert np.all(np.abs(robot - np.clip(blind._init_qpos[:9], *limits.T)) <= 0.05 + 1e-9)
        touching = {int(blind.model.geom_bodyid[g]) for c in blind.data.contact for g in c.geom}
        assert not any(blind.model.body(b).name.startswith("panda") for b in touching)
    low, high = np.min(shifts, axis=0), np.max(shifts, axis=0)
    assert np.all(low >= BASE_SHIFT_LOW_M) and np.all(high <= BASE_SHIFT_HIGH_M)
    assert np.all(high - low > 0.1)


def test_without_a_seed_starts_come_from_the_train_family(blind: KitchenEnv) -> None:
    blind.reset(seed=200_000)
    drawn = [blind.reset()[1]["seed"] for _ in range(5)]
    assert len(set(drawn)) == 5
    assert {family_of(seed) for seed in drawn} == {"train"}


def test_level_1_opens_what_is_not_the_goal_and_level_2_the_goal_too(blind: KitchenEnv) -> None:
    goal = ["kettle", "top burner"]
    opened: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    for level, found in opened.items():
        for seed in range(40):
            _, info = blind.reset(seed=seed, options={"tasks": goal, "level": level})
            truth = blind.truth()
            assert {name for name in TASKS if truth.is_open(name)} == set(blind.opened)
            assert not set(goal) <= set(blind.opened)  # something is left to do
            assert info["completed"] == [t for t in goal if t in blind.opened]
            assert info["met_at_start"] == info["completed"]
            found |= set(blind.opened)
    assert opened == {0: set(), 1: set(TASKS) - set(goal), 2: set(TASKS)}


def test_a_start_may_be_given_whole(blind: KitchenEnv) -> None:
    by_seed = blind.reset(seed=3)[1]["layout_sha"]
    qpos = blind.data.qpos.copy()
    qpos[7] = 0.05  # as an observation with noise has it; a finger goes to 0.04
    qpos[26:30] *= 1.01
    set_element(blind.model, qpos, ELEMENTS["microwave"], 1.0)
    given = qpos.copy()
    shas = set()
    for seed in (3, 4):
        observation, info = blind.reset(seed=seed, options={"qpos": qpos, "tasks": ["kettle"]})
        shas.add(info["layout_sha"])
        assert blind.opened == ("microwave",) and blind.task == "kettle" and info["seed"] == seed
        np.testing.assert_array_equal(blind.robot_base_shift, 0)
        expected = qpos.copy()
        expected[7] = 0.04
        expected[26:30] /= np.linalg.norm(qpos[26:30])
        np.testing.assert_allclose(blind.data.qpos, expected, atol=1e-12)
        np.testing.assert_array_equal(observation["state"], expected[:N_ROBOT].astype(np.float32))
    np.testing.assert_array_equal(qpos, given)
    qpos[0] += 0.01
    shas.add(blind.reset(seed=3, options={"qpos": qpos})[1]["layout_sha"])
    shas.add(blind.reset(seed=3)[1]["layout_sha"])  # an option is for one episode
    assert len(shas) == 3 and by_seed in shas


def test_what_is_no_start_is_refused(blind: KitchenEnv) -> None:
    blind.reset(seed=0)
    qpos = blind.data.qpos.copy()
    for bad in (qpos[:9], np.full(30, np.nan), qpos[None]):
        with pytest.raises(ValueError, match="a start is 30 finite joint positions, got"):
            blind.reset(seed=0, options={"qpos": bad})
    with pytest.raises(ValueError, match="leave 'opened' out"):
        blind.reset(seed=0, options={"qpos": qpos, "opened": ["kettle"]})


def test_the_physics_is_frankakitchens_own(blind: KitchenEnv) -> None:
    """Our cameras, and nothing else, were added to the model."""
    reference = FrankaKitchen(robot_noise_ratio=0.0, object_noise_ratio=0.0)
    blind.reset(seed=0)
    reference.robot_env.init_qpos = blind.data.qpos.copy()
    reference.model.body_pos[blind._base_body, :2] += blind.robot_base_shift
    reference.reset()
    for action in _actions(5):
        blind.step(action)
        reference.step(action)
    np.testing.assert_allclose(blind.data.qpos, reference.data.qpos, atol=1e-9)
    reference.close()


# ---- when an element is done ------------------------------------------------------------------


@every_element
def test_at_its_goal_an_element_is_done_by_both_rules(blind: KitchenEnv, name: str) -> None:
    blind.reset(seed=3, options={"tasks": [name]})
    _set(blind, name, 1.0)
    infos = [blind.step(STILL)[4] for _ in range(STRICT_STEPS)]
    assert [info["completed"] for info in infos] == [[name]] * STRICT_STEPS
    assert [info["success"] for info in infos] == [True] * STRICT_STEPS
    held = [info["success_strict"] for info in infos]
    assert held == [False] * (STRICT_STEPS - 1) + [True]
    assert infos[-1]["completed_strict"] == [name]
    assert all(blind.is_met(subgoal) for subgoal in SUBGOALS[name])


@every_element
def test_a_little_way_is_not_enough_for_the_strict_rule(blind: KitchenEnv, name: str) -> None:
    blind.reset(seed=3, options={"tasks": [name]})
    _set(blind, name, 0.2)
    for _ in range(STRICT_STEPS + 1):
        info = blind.step(STILL)[4]
    assert info["completed_strict"] == [] and not info["success_strict"]
    # the benchmark is content with 0.07 m of 0.37 m here
    assert info["completed"] == (["slide cabinet"] if name == "slide cabinet" else [])
    assert blind.truth().travel[name] == pytest.approx(0.2, abs=0.03)
    assert not blind.is_met(SUBGOALS[name][-1])


@every_element
def test_the_benchmarks_rule_is_frankakitchens_own(blind: KitchenEnv, name: str) -> None:
    blind.reset(seed=3)
    for part in (0.0, 0.2, 0.5, 0.7, 1.0):
        _set(blind, name, part)
        blind.step(STILL)
        done = [task for task in TASKS if ELEMENTS[task].is_complete(blind.data.qpos)]
        assert sorted(blind._kitchen.step_task_completions) == sorted(done)


def test_the_strict_rule_is_the_published_one() -> None:
    assert (STRICT_TRAVEL, STRICT_STEPS) == (0.9, 5)


def test_a_kettle_on_its_side_is_not_done_by_the_strict_rule(blind: KitchenEnv) -> None:
    kettle = ELEMENTS["kettle"]
    blind.reset(seed=0)
    qpos = blind.data.qpos.copy()
    qpos[kettle.indices] = kettle.at(1.0)
    qpos[kettle.indices[3:]] = [np.cos(0.3), np.sin(0.3), 0, 0]
    assert kettle.travel(qpos) == 0.0


def test_elements_outside_the_goal_do_not_count(blind: KitchenEnv) -> None:
    others = TASKS[1:]
    _, info = blind.reset(seed=0, options={"tasks": ["microwave"], "opened": others})
    for _ in range(STRICT_STEPS + 1):
        _, reward, _, _, info = blind.step(STILL)
        assert (reward, info["completed"], info["completed_strict"]) == (0.0, [], [])
        assert not info["success"] and not info["success_strict"]


def test_the_strict_rule_wants_all_at_once_and_the_benchmark_each_once(blind: KitchenEnv) -> None:
    blind.reset(seed=0, options={"tasks": ["microwave", "slide cabinet"]})
    rewards = []
    for name in ("slide cabinet", "microwave"):
        _set(blind, name, 1.0)
        rewards += [blind.step(STILL)[1] for _ in range(STRICT_STEPS)]
        assert push_back(blind, name)
    info = blind.step(STILL)[4]
    assert info["success"] and info["completed"] == ["slide cabinet", "microwave"]
    assert not info["success_strict"] and info["completed_strict"] == []
    assert sum(rewards) == 2.0


def test_the_strict_rule_can_be_the_one_that_counts() -> None:
    env = KitchenEnv(("slide cabinet",), render=False, rule="strict")
    env.reset(seed=0)
    _set(env, "slide cabinet", 0.5)
    _, _, terminated, _, info = env.step(STILL)
    assert info["success_benchmark"] and not info["success"] and not terminated
    _set(env, "slide cabinet", 1.0)
    ends = [env.step(STILL)[2] for _ in range(STRICT_STEPS)]
    assert ends == [False] * (STRICT_STEPS - 1) + [True]
    env.close()


def test_what_was_returned_does_not_change_later(kitchen: KitchenEnv) -> None:
    """Gymnasium-Robotics#336: the lists in `info` are the environment's own."""
    returned = [kitchen.reset(seed=0, options={"tasks": ["slide cabinet", "microwave"]})]
    _set(kitchen, "slide cabinet", 1.0)
    returned += [(step[0], step[4]) for step in (kitchen.step(a) for a in _actions(2))]
    kept = copy.deepcopy(returned)
    _set(kitchen, "microwave", 1.0)
    for action in _actions(STRICT_STEPS):
        kitchen.step(action)
    kitchen.reset(seed=1)
    np.testing.assert_equal(returned, kept)
    returned[-1][1]["completed"].append("nonsense")
    assert kitchen.step(STILL)[4]["completed"] == []


# ---- sub-goals --------------------------------------------------------------------------------


def test_every_subgoal_belongs_to_one_task() -> None:
    texts = [subgoal.text for steps in SUBGOALS.values() for subgoal in steps]
    assert len(set(texts)) == len(texts) == len(OWNER) == len(VOCABULARY.subgoals)
    assert all(steps[0].verb == "reach" for steps in SUBGOALS.values())
    assert set(FK5) < set(TASKS)
    steps = plan_subgoals(["light switch", "kettle"])
    assert steps == SUBGOALS["light switch"] + SUBGOALS["kettle"]


def test_labels_follow_the_plan(blind: KitchenEnv) -> None:
    tasks = ["kettle", "hinge cabinet"]
    blind.reset(seed=3, options={"tasks": tasks})
    labels = blind.labels()
    assert labels["subgoal"] == 0
    assert labels["met"] == [False] * len(plan_subgoals(tasks))
    assert set(labels["pixels"]) == {"gripper", *VOCABULARY.nouns}
    _set(blind, "kettle", 1.0)
    blind.step(STILL)
    labels = blind.labels()
    assert labels["subgoal"] == 3
    assert labels["met"] == [True, True, True, False, False]


def test_an_element_that_is_open_already_is_passed_over(blind: KitchenEnv) -> None:
    options = {"tasks": ["microwave", "light switch"], "opened": ["microwave"]}
    blind.reset(seed=3, options=options)
    assert blind.labels()["subgoal"] == 2


@every_element
def test_the_tracker_goes_on_when_reached_and_back_when_lost(blind: KitchenEnv, name: str) -> None:
    blind.reset(seed=3, options={"tasks": [name]})
    handle = blind.data.site(ELEMENTS[name].site)
    blind.data.site("end_effector").xpos[:] = handle.xpos + [0.0, -0.05, 0.0]
    tracker = KitchenTracker((name,))
    tracker.update(blind.truth())
    assert tracker.index == 1
    assert blind.is_met(SUBGOALS[name][0])
    blind.data.site("end_effector").xpos[:] = handle.xpos + [0.0, -0.2, 0.0]
    tracker.update(blind.truth())
    assert tracker.index == 0


def test_an_element_that_falls_shut_is_worked_on_again(blind: KitchenEnv) -> None:
    blind.reset(seed=0, options={"tasks": ["microwave", "top burner"], "opened": ["microwave"]})
    assert blind.tracker.index == 2
    assert push_back(blind, "microwave")
    blind.step(STILL)
    assert blind.tracker.index == 0


def test_the_kettle_is_held_when_both_fingers_touch_it(blind: KitchenEnv) -> None:
    blind.reset(seed=0, options={"tasks": ["kettle"]})
    assert not blind.truth().holds_kettle
    tip = blind.data.site("end_effector").xpos + 0.03 * blind.data.site("end_effector").xmat[2::3]
    blind.data.qpos[7:9] = 0.02
    handle = blind.data.site("kettle_site").xpos - blind.data.qpos[23:26]
    blind.data.qpos[23:26] = tip - handle
    mujoco.mj_forward(blind.model, blind.data)
    assert blind.truth().holds_kettle
    assert blind.is_met(Subgoal.parse("grasp(kettle, gripper)"))


# ---- what may be seen ---------------------------------------------------------------------------


def test_the_state_knows_nothing_of_objects(blind: KitchenEnv) -> None:
    before = blind.reset(seed=2)[0]["state"]
    assert before.shape == (N_ROBOT,)
    np.testing.assert_array_equal(before, blind.data.qpos[:N_ROBOT].astype(np.float32))
    blind.data.qpos[N_ROBOT:] -= 0.01
    mujoco.mj_forward(blind.model, blind.data)
    np.testing.assert_array_equal(blind._observation()["state"], before)


def test_frames_are_the_callers_own(kitchen: KitchenEnv) -> None:
    frame = kitchen.reset(seed=0)[0]["images"]["overview"]
    kept = frame.copy()
    _set(kitchen, "hinge cabinet", 1.0)
    again = kitchen.step(STILL)[0]["images"]["overview"]
    np.testing.assert_array_equal(frame, kept)
    assert not np.array_equal(again, kept)


def test_everything_is_in_the_overview(blind: KitchenEnv) -> None:
    for seed in range(20):
        for opened in ((), TASKS):
            blind.reset(seed=seed, options={"opened": opened})
            for noun, places in blind.labels()["pixels"].items():
                u, v = places["overview"]
                assert 0.02 < u < 0.98 and 0.02 < v < 0.98, (seed, noun)


@pytest.mark.parametrize("camera", ["overview", "left", "right"])
def test_what_is_higher_is_higher_in_the_picture(blind: KitchenEnv, camera: str) -> None:
    blind.reset(seed=0)
    low = blind.data.site("knob2_site").xpos
    _, below = blind._renderer.project(blind.data, camera, low)
    _, above = blind._renderer.project(blind.data, camera, low + [0, 0, 0.1])
    assert above < below


@pytest.mark.parametrize("camera", ["overview", "left", "right", "wrist"])
def test_pictures_are_upright_and_agree_with_the_projection(
    kitchen: KitchenEnv, camera: str
) -> None:
    """What changes when the kettle is taken away lies around where the kettle is said to be."""
    kitchen.reset(seed=0)
    middle = kitchen.data.body("kettle").xpos + [0, 0, 0.15]
    expected = kitchen._renderer.project(kitchen.data, camera, middle)
    before = kitchen.picture(camera, size=64).astype(int)
    kitchen.data.qpos[23:26] += [0, 0, 5]
    mujoco.mj_forward(kitchen.model, kitchen.data)
    after = kitchen.picture(camera, size=64).astype(int)
    rows, columns = np.nonzero(np.abs(after - before).sum(-1) > 60)
    found = np.array([columns.mean(), rows.mean()]) / 64
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=0.12)


def test_the_wrist_camera_moves_with_the_hand(blind: KitchenEnv) -> None:
    blind.reset(seed=0)
    hand = blind.data.body("panda0_link7")
    fingers = [blind.data.body(f"panda0_{side}finger").xpos for side in ("left", "right")]
    for q in (0.0, 1.0):
        blind.data.qpos[3] -= q
        mujoco.mj_forward(blind.model, blind.data)
        ahead = np.mean(fingers, axis=0) + 0.08 * hand.xmat.reshape(3, 3)[:, 2]
        u, v = blind._renderer.project(blind.data, "wrist", ahead)
        assert u == pytest.approx(0.5, abs=0.02) and 0.5 < v < 0.8


# ---- disturbances -------------------------------------------------------------------------------


@every_element
def test_pushing_back_shuts_an_open_element(blind: KitchenEnv, name: str) -> None:
    blind.reset(seed=0, options={"tasks": [name], "opened": [name]})
    assert push_back(blind, name)
    blind.step(STILL)
    assert blind.truth().travel[name] == pytest.approx(0.0, abs=0.02)


def test_nothing_is_pushed_into_the_hand(blind: KitchenEnv) -> None:
    blind.reset(seed=0, options={"opened": ["kettle"]})
    qpos = blind.data.qpos
    place = blind.data.site("end_effector").xpos - [0.0, 0.0, 0.1]
    kettle = ELEMENTS["kettle"]
    blind.model.body_pos[blind._base_body, :2] += kettle.start[:2] - place[:2]  # arm over its start
    blind.model.body_pos[blind._base_body, 2] += kettle.start[2] - place[2]
    mujoco.mj_forward(blind.model, blind.data)
    before = qpos.copy()
    try:
        assert not push_back(blind, "kettle")
        np.testing.assert_array_equal(blind.data.qpos, before)
    finally:
        blind.model.body_pos[blind._base_body] = blind._base_pos


def test_the_kettle_is_moved_and_stands(blind: KitchenEnv) -> None:
    moved = 0
    for seed in range(5):
        blind.reset(seed=seed)
        before = blind.data.qpos[23:25].copy()
        if not move_kettle(blind, np.random.default_rng(seed)):
            np.testing.assert_array_equal(blind.data.qpos[23:25], before)
            continue
        moved += 1
        for _ in range(5):
            blind.step(STILL)
        assert 0.07 < np.linalg.norm(blind.data.qpos[23:25] - before) < 0.21
        assert blind.data.qpos[25] == pytest.approx(ELEMENTS["kettle"].start[2], abs=0.01)
    assert moved >= 3
