"""Pictures: upright, cheap when fast, and labels that fall where things are drawn."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from sims import rendering
from sims.disturbances import free_joint_address
from sims.metaworld import MetaWorldEnv

# tasks whose goal is drawn in plain view, and what the plan calls it
GOALS = {
    "coffee-pull": "goal",
    "hand-insert": "hole",
    "pick-place": "goal",
    "pick-place-wall": "goal",
    "push": "goal",
    "push-back": "goal",
    "reach": "goal",
    "reach-wall": "goal",
    "shelf-place": "shelf",
    "soccer": "goal net",
}
FINGERTIPS = ("rightEndEffector", "leftEndEffector")
one_task = pytest.mark.parametrize("env", ["drawer-open"], indirect=True)


@pytest.fixture(scope="module")
def env(request: pytest.FixtureRequest) -> Iterator[MetaWorldEnv]:
    """The environment of the task in `request.param`, in pictures in which details can be found."""
    made = MetaWorldEnv(request.param, cameras=("workspace", "wrist", "corner2"), image_size=224)
    yield made
    made.close()


def _drawn_at(
    env: MetaWorldEnv, camera: str, shown: np.ndarray, rgba: np.ndarray, members: Any
) -> tuple[float, float]:
    """Where something is in the picture `shown`: the pixels that change when it is hidden.

    Args:
        rgba: the model's colours, (n, 4); the alpha of `members` is zero for a moment.

    Returns:
        The centre of those pixels, as fractions of the width and height.
    """
    kept = rgba.copy()
    rgba[members, 3] = 0
    changed = (env.picture(camera) != shown).any(axis=-1)
    rgba[:] = kept
    assert changed.sum() >= 3, "it cannot be seen"
    y, x = np.nonzero(changed)
    return (x.mean() + 0.5) / shown.shape[1], (y.mean() + 0.5) / shown.shape[0]


def _fingertips_drawn_at(env: MetaWorldEnv, camera: str) -> tuple[float, float]:
    """The middle between the red dots on the fingertips."""
    model, shown = env._sawyer.model, env.picture(camera)
    tips = [model.site(name).id for name in FINGERTIPS]
    x, y = np.mean([_drawn_at(env, camera, shown, model.site_rgba, tip) for tip in tips], axis=0)
    return float(x), float(y)


@pytest.mark.parametrize("env", list(GOALS), indirect=True)
def test_the_goal_is_drawn_where_its_label_says_from_the_first_picture_on(
    env: MetaWorldEnv,
) -> None:
    """Meta-World draws the layout twice, and left the first one's goal in the picture."""
    model = env._sawyer.model
    goals = [i for i in range(model.nsite) if "goal" in model.site(i).name]
    for seed in (1, 2):
        observation, _ = env.reset(seed=seed)
        for _ in range(2):
            shown = observation["images"]["workspace"]
            drawn = _drawn_at(env, "workspace", shown, model.site_rgba, goals)
            label = env.labels()["pixels"][GOALS[env.task]]["workspace"]
            assert math.dist(drawn, label) < 0.015
            observation = env.step(np.zeros(4, np.float32))[0]


@pytest.mark.parametrize("env", ["pick-place", "soccer", "coffee-pull", "push"], indirect=True)
def test_the_thing_is_drawn_where_its_label_says(env: MetaWorldEnv) -> None:
    model = env._sawyer.model
    joint = np.flatnonzero(model.jnt_qposadr == free_joint_address(env))[0]
    geoms = model.body_rootid[model.geom_bodyid] == model.jnt_bodyid[joint]
    for seed in (1, 2):
        shown = env.reset(seed=seed)[0]["images"]["workspace"]
        drawn = _drawn_at(env, "workspace", shown, model.geom_rgba, geoms)
        label = env.labels()["pixels"][env.spec_.thing]["workspace"]
        assert math.dist(drawn, label) < 0.04


@one_task
@pytest.mark.parametrize("camera", ["workspace", "wrist", "corner2"])
def test_the_gripper_label_falls_on_the_gripper(env: MetaWorldEnv, camera: str) -> None:
    env.reset(seed=0)
    moves = np.array([[-1, 0, 0.5, -1], [1, -0.5, -0.5, 1]], np.float32)
    for move in (np.zeros(4, np.float32), *moves):
        for _ in range(8):
            env.step(move)
        label = env.labels()["pixels"]["gripper"][camera]
        assert math.dist(_fingertips_drawn_at(env, camera), label) < 0.03


@one_task
@pytest.mark.parametrize("camera", ["workspace", "corner2"])
def test_pictures_are_upright(env: MetaWorldEnv, camera: str) -> None:
    env.reset(seed=0)
    before = _fingertips_drawn_at(env, camera)
    for _ in range(20):
        env.step(np.array([0, 0, 1, -1], np.float32))
    after = _fingertips_drawn_at(env, camera)
    assert after[1] < before[1] - 0.05, "the hand went up, and down in the picture"
    assert abs(after[0] - before[0]) < 0.03


@one_task
def test_a_point_behind_the_camera_has_no_place(env: MetaWorldEnv) -> None:
    env.reset(seed=0)
    data = env._sawyer.data
    camera = data.cam("corner4")
    backward = camera.xmat.reshape(3, 3)[:, 2]
    x, y = env._renderer.project(data, "corner4", camera.xpos + backward)
    assert math.isnan(x) and math.isnan(y)
    ahead = env._renderer.project(data, "corner4", camera.xpos - backward)
    assert ahead == pytest.approx((0.5, 0.5))


@one_task
def test_a_picture_is_the_callers_own_and_the_same_every_time(env: MetaWorldEnv) -> None:
    env.reset(seed=0)
    first = env.picture("workspace")
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(env.picture("workspace"), kept)
    assert env.picture("workspace", size=32).shape == (32, 32, 3)
    assert len({env.picture(camera).tobytes() for camera in env.cameras}) == len(env.cameras)


@one_task
def test_fast_pictures_are_fast_and_show_the_same(env: MetaWorldEnv) -> None:
    env.reset(seed=0)
    best: dict[rendering.Quality, float] = {"fast": math.inf, "high": math.inf}
    pictures = {}
    for _ in range(5):
        for quality in best:
            started = time.perf_counter()
            pictures[quality] = env.picture("workspace", quality=quality)
            best[quality] = min(best[quality], time.perf_counter() - started)
    assert best["high"] > 2 * best["fast"]
    difference = np.abs(pictures["high"].astype(float) - pictures["fast"])
    assert 0 < difference.mean() < 20


@one_task
def test_render_is_for_people(env: MetaWorldEnv) -> None:
    env.reset(seed=0)
    assert env.render().shape == (480, 480, 3)


@one_task
def test_closed_renderers_can_be_used_again(env: MetaWorldEnv) -> None:
    env.reset(seed=0)
    before = env.picture("workspace")
    env.close()
    np.testing.assert_array_equal(env.picture("workspace"), before)


def test_the_record_says_how_pictures_were_made() -> None:
    fast, high = rendering.render_flags("fast"), rendering.render_flags("high")
    assert fast == {**high, "quality": "fast"} | {
        "shadows": False,
        "reflections": False,
        "multisamples": 0,
        "fine_meshes": False,
    }
    assert high["shadows"] and high["reflections"] and high["multisamples"] == 4


def test_a_placed_camera_looks_at_its_target() -> None:
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><camera name="slot"/></worldbody></mujoco>'
    )
    pose = rendering.CameraPose(eye=(1.0, -2.0, 1.5), target=(0.2, 0.3, 0.1), fovy_deg=30.0)
    rendering.place_camera(model, "slot", pose)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = rendering.SceneRenderer(model)
    target = np.asarray(pose.target)
    assert renderer.project(data, "slot", target) == pytest.approx((0.5, 0.5))
    x, y = renderer.project(data, "slot", target + [0, 0, 0.1])
    assert x == pytest.approx(0.5) and y < 0.5
    corner = data.cam("slot").xmat.reshape(3, 3) @ [0, math.tan(math.radians(15)), -1]
    assert renderer.project(data, "slot", pose.eye + corner)[1] == pytest.approx(0)


@pytest.fixture
def no_choice_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("EMBODIED_CACHE", str(tmp_path))
    return monkeypatch


def test_the_users_gl_back_end_is_kept(no_choice_yet: pytest.MonkeyPatch) -> None:
    no_choice_yet.setenv("MUJOCO_GL", "mine")
    no_choice_yet.setattr(rendering, "probe_gl_backend", lambda _: pytest.fail("probed"))
    assert rendering.select_gl_backend() == "mine"


def test_the_first_gl_back_end_that_works_is_noted(
    no_choice_yet: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_choice_yet.setattr(rendering, "probe_gl_backend", lambda backend: backend == "osmesa")
    assert rendering.select_gl_backend() == "osmesa"
    no_choice_yet.delenv("MUJOCO_GL")
    no_choice_yet.setattr(rendering, "probe_gl_backend", lambda _: pytest.fail("probed again"))
    assert rendering.select_gl_backend() == "osmesa"
    assert (tmp_path / "gl_backend").read_text() == "osmesa"


def test_without_any_gl_back_end_the_error_names_the_packages(
    no_choice_yet: pytest.MonkeyPatch,
) -> None:
    no_choice_yet.setattr(rendering, "probe_gl_backend", lambda _: False)
    with pytest.raises(OSError, match=r"tried egl, osmesa, glfw.*apt-get install libegl1"):
        rendering.select_gl_backend()
