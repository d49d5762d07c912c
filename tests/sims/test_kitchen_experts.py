"""The kitchen's experts open what they are asked to, smoothly, and come back when disturbed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from sims.experts.ik import ArmServo, Pose
from sims.experts.kitchen import KitchenExpert
from sims.experts.kitchen_demos import KitchenDemonstrator
from sims.kitchen import KitchenEnv
from sims.kitchen_elements import ELEMENTS, set_element
from sims.seeds import FIRST_SEED

SEED = FIRST_SEED["train"]


@pytest.fixture(scope="module")
def env() -> Iterator[KitchenEnv]:
    env = KitchenEnv(render=False)
    yield env
    env.close()


def _start(env: KitchenEnv, tasks: Sequence[str], seed: int = SEED) -> KitchenExpert:
    env.reset(seed=seed, options={"tasks": tuple(tasks)})
    return KitchenExpert(env, np.random.default_rng(seed))


def _run(env: KitchenEnv, expert: KitchenExpert, steps: int) -> tuple[list[str], np.ndarray]:
    """Returns what is done by the strict rule at the end, and the actions (N, 9)."""
    actions, info = [], {}
    for _ in range(steps):
        if expert.element is None:
            break
        actions.append(expert.act())
        info = env.step(actions[-1])[-1]
    return info["completed_strict"], np.stack(actions)


@pytest.mark.parametrize("element", list(ELEMENTS))
def test_opens_each_element_with_smooth_actions(env: KitchenEnv, element: str) -> None:
    done, actions = _run(env, _start(env, [element]), 160)
    assert done == [element]
    assert actions.dtype == np.float32 and actions.shape[1] == 9
    assert np.isfinite(actions).all() and np.abs(actions).max() <= 1
    assert np.abs(np.diff(actions[:, :7], axis=0)).max() < 0.8


def test_carries_out_a_sequence_in_order(env: KitchenEnv) -> None:
    expert = _start(env, ["kettle", "light switch"])
    assert expert.element == "kettle"
    done, _ = _run(env, expert, 320)
    assert done == ["kettle", "light switch"] and expert.element is None
    assert np.isfinite(expert.act()).all()  # holds still when there is nothing left


def test_working_beside_the_handle_opens_nothing(env: KitchenEnv) -> None:
    env.reset(seed=SEED, options={"tasks": ("microwave",)})
    miss = np.array([0.0, 0.0, 0.3])
    expert = KitchenExpert(env, np.random.default_rng(SEED), miss_m=miss)
    assert _run(env, expert, 120)[0] == []


def test_holds_the_arm_where_it_is(env: KitchenEnv) -> None:
    expert = _start(env, ["microwave"])
    before = env.data.qpos[:7].copy()
    for _ in range(20):
        env.step(expert.hold())
    np.testing.assert_allclose(env.data.qpos[:7], before, atol=0.02)


def test_standing_still_opens_nothing(env: KitchenEnv) -> None:
    env.reset(seed=SEED, options={"tasks": ("light switch",)})
    for _ in range(60):
        info = env.step(np.zeros(9, np.float32))[-1]
    assert not info["completed_strict"] and not info["completed"]


def test_works_again_at_what_was_pushed_back(env: KitchenEnv) -> None:
    expert = _start(env, ["light switch"])
    for _ in range(35):
        env.step(expert.act())
    qpos = env.data.qpos.copy()
    set_element(env.model, qpos, ELEMENTS["light switch"], 0.0)
    env.data.qpos[:] = qpos
    assert _run(env, expert, 200)[0] == ["light switch"]


def test_recovers_from_states_that_others_reached(env: KitchenEnv) -> None:
    expert, rng = _start(env, ["top burner"]), np.random.default_rng(1)
    for step in range(40):
        push = rng.uniform(-0.5, 0.5, 9) if step % 20 < 8 else 0.0
        env.step(np.clip(expert.act() + push, -1, 1))
    expert.resync()
    assert _run(env, expert, 200)[0] == ["top burner"]


@pytest.mark.parametrize("task", ["kettle", "light switch", "slide cabinet"])
def test_the_state_alone_says_what_to_do(env: KitchenEnv, task: str) -> None:
    """Told anew in every step, as when it labels what another policy does."""
    env.reset(seed=SEED, options={"tasks": (task,)})
    demonstrator = KitchenDemonstrator(env, np.random.default_rng(SEED), follows=True)
    for _ in range(200):
        info = env.step(demonstrator.act()[0])[-1]
        if info["success_strict"]:
            break
    assert info["completed_strict"] == [task]


def test_the_same_seeds_give_the_same_actions(env: KitchenEnv) -> None:
    first, second = (_run(env, _start(env, ["kettle"]), 12)[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_unknown_elements_are_named(env: KitchenEnv) -> None:
    with pytest.raises(ValueError, match="toaster"):
        KitchenExpert(env, np.random.default_rng(0), ["toaster"])


def test_servo_reaches_a_pose(env: KitchenEnv) -> None:
    env.reset(seed=SEED)
    servo = ArmServo(env.model, env.data, env.data.qpos[:7].copy())
    pose = Pose(servo.tip + [0.05, 0.05, 0.05])
    for _ in range(30):
        env.step(servo.action(pose, 1.0, 0.03))
    metres, radians = servo.distance(pose)
    assert metres < 0.01 and radians < 0.1
