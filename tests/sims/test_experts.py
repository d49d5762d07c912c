"""The experts succeed by their plan, fail when told to, and recover from what is done to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from sims.disturbances import free_joint_address, move_object
from sims.experts.metaworld import Fault, MetaWorldExpert
from sims.metaworld import MetaWorldEnv
from sims.subgoals import MT10, TASKS

pytestmark = pytest.mark.filterwarnings("ignore:Constant.s. may be too high:UserWarning")
all_tasks = pytest.mark.parametrize("env", list(TASKS), indirect=True)


@dataclass
class Attempt:
    """What an expert's episode came to.

    Args:
        met_at: for each sub-goal, the first step after which it held.
        indices: the tracker's index after every step.
    """

    success: bool = False
    met_at: dict[int, int] = field(default_factory=dict)
    indices: list[int] = field(default_factory=list)
    differed: int = 0


def _attempt(
    env: MetaWorldEnv,
    seed: int,
    *,
    fault: Fault = "none",
    fault_step: int = 0,
    burst_rate: float = 0.0,
    before_step: Callable[[int], object] = lambda step: None,
) -> Attempt:
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    expert = MetaWorldExpert(env, rng, burst_rate=burst_rate, fault=fault, fault_step=fault_step)
    attempt = Attempt()
    for step in range(env.horizon):
        before_step(step)
        label, executed = expert.act()
        for action in (label, executed):
            assert env.action_space.contains(action)
        attempt.differed += not np.array_equal(label, executed)
        env.step(executed)
        attempt.indices.append(env.tracker.index)
        for i, subgoal in enumerate(env.vocabulary.subgoals):
            if env.is_met(subgoal):
                attempt.met_at.setdefault(i, step)
        if env._success:
            attempt.success = True
            break
    return attempt


def _check_by_the_plan(env: MetaWorldEnv, attempt: Attempt) -> None:
    """Success, with every sub-goal met, each not before the one before it."""
    n = len(env.vocabulary.subgoals)
    assert attempt.success
    assert sorted(attempt.met_at) == list(range(n))
    assert [attempt.met_at[i] for i in range(n)] == sorted(attempt.met_at.values())
    assert attempt.indices[-1] == n - 1


@all_tasks
def test_the_expert_solves_every_task_by_its_plan(blind_env: MetaWorldEnv) -> None:
    _check_by_the_plan(blind_env, _attempt(blind_env, 1))
    if blind_env.task in MT10:
        _check_by_the_plan(blind_env, _attempt(blind_env, 200_001))


@pytest.mark.parametrize("env", ["door-close"], indirect=True)
def test_the_door_counts_as_reached(blind_env: MetaWorldEnv) -> None:
    """The hand pushes it at places up to 22 cm from the handle's point of reference."""
    for seed in range(2, 10):
        _check_by_the_plan(blind_env, _attempt(blind_env, seed))


@pytest.mark.parametrize("fault", ["stopped", "missed"])
@pytest.mark.parametrize("env", ["drawer-open", "pick-place", "reach"], indirect=True)
def test_early_faults_end_in_failure(blind_env: MetaWorldEnv, fault: Fault) -> None:
    for seed in (0, 1):
        assert not _attempt(blind_env, seed, fault=fault, fault_step=5).success


@pytest.mark.parametrize("env", ["drawer-open"], indirect=True)
def test_late_faults_do_not(blind_env: MetaWorldEnv) -> None:
    """Until its step, a fault changes nothing."""
    sane = _attempt(blind_env, 1)
    assert _attempt(blind_env, 1, fault="stopped", fault_step=399) == sane


@pytest.mark.parametrize("env", ["drawer-open", "pick-place"], indirect=True)
def test_a_stopped_hand_stays_where_it_is(blind_env: MetaWorldEnv) -> None:
    places = []
    _attempt(
        blind_env,
        1,
        fault="stopped",
        fault_step=5,
        before_step=lambda _: places.append(blind_env.raw_obs[:3].copy()),
    )
    assert np.ptp(places[15:], axis=0).max() < 0.005


@pytest.mark.parametrize("env", ["drawer-open", "pick-place"], indirect=True)
def test_disturbed_experts_still_succeed(blind_env: MetaWorldEnv) -> None:
    for seed in (1, 3):
        attempt = _attempt(blind_env, seed, burst_rate=0.03)
        assert attempt.success and attempt.differed > 0


@pytest.mark.parametrize("env", ["drawer-open"], indirect=True)
def test_the_same_generator_gives_the_same_disturbances(blind_env: MetaWorldEnv) -> None:
    first = _attempt(blind_env, 3, burst_rate=0.05)
    assert _attempt(blind_env, 3, burst_rate=0.05) == first


@pytest.mark.parametrize("env", ["pick-place"], indirect=True)
def test_the_expert_recovers_a_thing_that_was_moved(blind_env: MetaWorldEnv) -> None:
    n_begun_again = 0
    for seed in (1, 2, 3):
        rng = np.random.default_rng(seed)
        attempt = _attempt(
            blind_env,
            seed,
            fault="moved",
            fault_step=32,
            before_step=lambda step, rng=rng: step == 32 and move_object(blind_env, rng),
        )
        assert attempt.success
        assert len(attempt.indices) > 80  # undisturbed it takes 60
        n_begun_again += bool((np.diff(attempt.indices) < 0).any())
    assert n_begun_again >= 2  # labelled so, unless the thing landed near the hand


@all_tasks
def test_things_are_moved_by_5_to_10_cm_or_not_at_all(blind_env: MetaWorldEnv) -> None:
    n_moved = 0
    for seed in range(4):
        blind_env.reset(seed=seed)
        for _ in range(3):
            blind_env.step(np.zeros(4, np.float32))
        thing, qpos = blind_env._thing().copy(), blind_env._sawyer.data.qpos.copy()
        if move_object(blind_env, np.random.default_rng(seed)):
            n_moved += 1
            after = blind_env._thing()
            assert 0.0499 < np.linalg.norm((after - thing)[:2]) < 0.1001
            assert abs(after[2] - blind_env._thing_start[2]) < 0.011
            blind_env.step(np.zeros(4, np.float32))  # and the physics can go on
        else:
            np.testing.assert_array_equal(blind_env._sawyer.data.qpos, qpos)
    free = free_joint_address(blind_env) is not None
    movable = free and blind_env.task not in ("reach", "reach-wall", "coffee-button")
    assert n_moved == (4 if movable else 0)
