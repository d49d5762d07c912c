"""What goes wrong on purpose in the kitchen: told by its name, and from when on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from sims.experts import Fault, faults
from sims.experts.kitchen_demos import KitchenDemonstrator
from sims.kitchen import KitchenEnv
from sims.kitchen_elements import STRICT_TRAVEL
from sims.seeds import FIRST_SEED

SEED = FIRST_SEED["train"]
LIGHT = "light switch"


@pytest.fixture(scope="module")
def env() -> Iterator[KitchenEnv]:
    env = KitchenEnv(render=False, rule="strict")
    yield env
    env.close()


@dataclass
class Tried:
    """Per step: which fault was told, where the hand was, how far the elements were."""

    demonstrator: KitchenDemonstrator
    told: list[Fault]
    hands: np.ndarray
    travel: dict[str, np.ndarray]
    success: bool


def _try(
    env: KitchenEnv,
    fault: Fault,
    tasks: Sequence[str] = (LIGHT,),
    *,
    seed: int = SEED,
    fault_step: int = 0,
    after: int = 60,
) -> Tried:
    """Until success, or `after` steps after the hand has stopped or missed."""
    env.reset(seed=seed, options={"tasks": tuple(tasks)})
    demonstrator = KitchenDemonstrator(
        env, np.random.default_rng(seed), fault=fault, fault_step=fault_step
    )
    told, hands, travel = [], [], []
    info = {"success": False}
    for step in range(240):
        halted = demonstrator.happened in ("stopped", "missed")
        if info["success"] or (halted and step > demonstrator.fault_step + after):
            break
        demonstrator.disturb(step)
        _, executed = demonstrator.act()
        told.append(demonstrator.happened)
        hands.append(env.truth().hand)
        travel.append(env.truth().travel)
        info = env.step(executed)[-1]
    ways = {task: np.array([t[task] for t in travel]) for task in tasks}
    return Tried(demonstrator, told, np.array(hands), ways, bool(info["success"]))


def test_who_stops_early_has_failed_from_then_on(env: KitchenEnv) -> None:
    tried = _try(env, "stopped", fault_step=18)
    assert not tried.success and tried.travel[LIGHT].max() < STRICT_TRAVEL
    assert tried.told == ["none"] * 18 + ["stopped"] * (len(tried.told) - 18)
    assert np.ptp(tried.hands[26:], axis=0).max() < 0.02 < np.ptp(tried.hands[:18], axis=0).max()


@pytest.mark.parametrize("task", [LIGHT, "top burner", "kettle", "microwave"])
def test_who_misses_works_beside_the_handle(env: KitchenEnv, task: str) -> None:
    tried = _try(env, "missed", [task])
    since = tried.demonstrator.fault_step
    assert not tried.success and tried.travel[task].max() < 0.5
    assert tried.told[:since] == ["none"] * since and set(tried.told[since:]) == {"missed"}
    gap = env.truth().gaps_m[task]
    assert 0.04 < gap < 0.3  # it is there, and beside it


def test_a_handle_that_was_caught_after_all_was_not_missed(env: KitchenEnv) -> None:
    """Of a long handle one may miss the middle and still have the end."""
    tried = _try(env, "missed", ["microwave"], seed=SEED + 2)
    assert tried.success and tried.demonstrator.happened == "none"


@pytest.mark.parametrize("task", ["hinge cabinet", "slide cabinet"])
def test_what_is_called_a_miss_is_a_failure(env: KitchenEnv, task: str) -> None:
    for seed in range(SEED, SEED + 3):
        tried = _try(env, "missed", [task], seed=seed)
        assert tried.success == (tried.demonstrator.happened == "none")


def test_a_kettle_that_was_moved_away_is_fetched_there(env: KitchenEnv) -> None:
    tried = _try(env, "moved", ["kettle"], fault_step=20)
    since = tried.demonstrator.fault_step
    assert since >= 20 and tried.told == ["none"] * since + ["moved"] * (len(tried.told) - since)
    assert tried.demonstrator.fault_task == "kettle"
    assert abs(tried.travel["kettle"][since] - tried.travel["kettle"][since - 1]) > 0.005
    assert tried.travel["kettle"][since] < STRICT_TRAVEL and tried.success


def test_an_element_that_was_pushed_back_is_undone_and_done_again(env: KitchenEnv) -> None:
    tried = _try(env, "pushed_back", [LIGHT, "top burner"], fault_step=10)
    since = tried.demonstrator.fault_step
    assert tried.told == ["none"] * since + ["pushed_back"] * (len(tried.told) - since)
    assert tried.demonstrator.fault_task == LIGHT
    way = tried.travel[LIGHT]
    assert way[since - 1] > STRICT_TRAVEL and abs(way[since]) < 0.05
    assert tried.success and way[since:].max() > STRICT_TRAVEL
    assert len(way) - since > 20  # which takes its time


def test_nothing_that_could_not_happen_is_told(env: KitchenEnv) -> None:
    tried = _try(env, "pushed_back", fault_step=200)
    assert tried.success and set(tried.told) == {"none"}
    assert _try(env, "none").success
    env.reset(seed=SEED, options={"tasks": (LIGHT,)})
    assert faults(env) == ("stopped", "missed", "pushed_back")
    env.reset(seed=SEED, options={"tasks": (LIGHT, "kettle")})
    assert faults(env) == ("stopped", "missed", "pushed_back", "moved")
