"""scripts/pushback.py: what is pushed when, what the oracle is told, what counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embodied.agent.agent import Motor
from embodied.metrics import Paired
from embodied.types import Observation
from sims.kitchen_elements import KitchenTruth
from sims.kitchen_tasks import TASKS, VOCABULARY
from tests.agent.test_agent import SILENT, CountingFormer, FakePolicy
from tests.agent.test_several_tasks import SceneWatcher
from tests.scripts import load_script

LIGHT, DOOR = "light switch", "microwave"


@pytest.fixture(scope="module")
def pushback() -> ModuleType:
    return load_script("pushback")


# --- the push --------------------------------------------------------------------------------


def test_the_first_element_that_is_done_is_pushed_back_once_and_later(
    pushback: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def push(env: Any, element: str) -> bool:
        tried.append(element)
        return len(tried) == 3  # the robot is in the way twice

    monkeypatch.setattr(pushback, "push_back", push)
    env = SimpleNamespace(completion=SimpleNamespace(completed_strict=[]))
    pushed = pushback.PushedBack(env)
    for step in range(60):
        if step == 10:
            env.completion.completed_strict = [DOOR]
        if step == 12:
            env.completion.completed_strict = [LIGHT, DOOR]
        pushed(step)
    assert tried == [DOOR] * 3
    assert pushed.step == 10 + 15 + 1 + 2


# --- the oracle ------------------------------------------------------------------------------


class FakeKitchen:
    """Says what the test says; the hand is far from everything until it is put elsewhere."""

    tasks = (LIGHT, DOOR)

    def __init__(self) -> None:
        self.travel = dict.fromkeys(TASKS, 0.0)
        self.gaps_m = dict.fromkeys(TASKS, 0.5)

    @property
    def completion(self) -> Any:
        return SimpleNamespace(completed_strict=[t for t in self.tasks if self.travel[t] >= 0.9])

    def truth(self) -> KitchenTruth:
        return KitchenTruth(np.zeros(3), {}, dict(self.gaps_m), dict(self.travel), False)


class Told:
    """An oracle's agent in a kitchen of the test's own; its policy never claims anything."""

    def __init__(self, pushback: ModuleType) -> None:
        planner: Any = SceneWatcher(FakeKitchen.tasks)
        motor = Motor(CountingFormer().eval(), FakePolicy(SILENT))
        self.agent = pushback.OracleAgent(planner, {"kitchen": motor}, {"kitchen": VOCABULARY})
        self.env = self.agent.env = FakeKitchen()
        self.planner = planner
        self.n_steps = 0
        self.agent.begin(self._observation(), "light, then microwave", VOCABULARY)

    def _observation(self) -> Observation:
        images = dict.fromkeys(("workspace", "wrist"), np.zeros((8, 8, 3), np.uint8))
        return Observation(images, np.full(4, 0.1 * self.n_steps, np.float32))

    def steps(self, n: int) -> str:
        """Returns the sub-goal that is worked on then."""
        for _ in range(n):
            self.agent.act(self._observation())
            self.n_steps += 1
        return self.agent._plans[-1].subgoals[self.agent._index].text


def test_the_oracle_knows_at_the_next_picture(pushback: ModuleType) -> None:
    told = Told(pushback)
    assert told.steps(1) == "reach(light switch)"
    told.env.gaps_m[LIGHT] = 0.01
    assert told.steps(2) == "flip(light switch)"
    told.env.travel[LIGHT] = 0.95
    assert told.steps(2) == "reach(microwave handle)"
    told.env.travel[LIGHT] = 0.0  # pushed back
    told.env.gaps_m[DOOR] = 0.01
    assert told.steps(2) == "pull(microwave handle)"
    told.env.travel[DOOR] = 0.95
    assert told.steps(2) == "reach(light switch)"
    told.env.travel[LIGHT] = 0.95
    told.steps(4)
    assert told.planner.judged == [] and told.agent.report()["n_retries"] == 0


def test_the_oracle_says_when_the_handle_was_lost(pushback: ModuleType) -> None:
    told = Told(pushback)
    told.env.gaps_m[LIGHT] = 0.01
    assert told.steps(3) == "flip(light switch)"
    told.env.gaps_m[LIGHT] = 0.3
    assert told.steps(2) == "reach(light switch)"
    assert told.agent.report()["n_retries"] == 1


def test_the_oracle_says_when_the_hand_comes_no_nearer(pushback: ModuleType) -> None:
    told = Told(pushback)
    for _ in range(60):
        told.env.gaps_m[LIGHT] -= 0.006
        told.steps(1)
    assert told.agent.report()["n_retries"] == 0
    told.steps(60)
    assert told.agent.report()["n_retries"] == 1


def test_the_oracle_lets_go_of_what_has_stayed_open_only(pushback: ModuleType) -> None:
    told = Told(pushback)
    told.env.gaps_m[LIGHT] = 0.01
    told.steps(3)
    open_for_a_moment = SimpleNamespace(completed_strict=[])
    told.env.travel[LIGHT] = 0.95
    kitchen = type("Brief", (FakeKitchen,), {"completion": open_for_a_moment})
    told.env.__class__ = kitchen
    assert told.steps(4) == "flip(light switch)"


# --- what counts -----------------------------------------------------------------------------


def _record(seed: int, mode: str, success: bool, pushed: bool = True, **more: Any) -> Any:
    outcome = "success" if success else "failure"
    told = {"seed": seed, "mode": mode, "pushed_at": 40 if pushed else None, "success": success}
    return told | {"outcome": outcome, "env": "kitchen/2"} | more


def test_only_starts_that_were_pushed_back_in_both_count(pushback: ModuleType) -> None:
    full, without, oracle = pushback.MODES
    records = [_record(i, full, True) for i in range(10)]
    records += [_record(i, without, i < 2, pushed=i != 9) for i in range(10)]
    records += [_record(i, oracle, i != 0) for i in range(8)]
    records += [_record(i, oracle, False, outcome="sim_fault") for i in (8, 9)]
    assert pushback.uplift(records, full, without) == Paired(9, 0, 7)
    assert pushback.uplift(records, oracle, full) == Paired(8, 1, 0)
    lines = pushback.table(records).splitlines()
    assert "pushed back in 10 of 10 starts; then 10/10" in lines[0]
    assert "pushed back in 9 of 10 starts; then 2/9" in lines[1]
    assert "pushed back in 8 of 8 starts; then 7/8" in lines[2] and "2 simulator" in lines[2]
    low, high = Paired(9, 0, 7).interval95 or (0.0, 0.0)
    interval = f"[{100 * low:+.0f}, {100 * high:+.0f}]"
    assert f"full loop less no monitor: +78 points {interval} on the 9 starts" in lines[3]
    assert "(7 against 0, p = 0.0156)" in lines[3]
    assert lines[4].startswith("oracle less full loop: -12 points")


def test_nothing_pushed_is_said_so(pushback: ModuleType) -> None:
    records = [_record(0, mode, True, pushed=False) for mode in pushback.MODES]
    told = pushback.table(records)
    assert told.count("no start was pushed back in both") == 2 and "in 0 of 1 starts" in told


# --- the run ---------------------------------------------------------------------------------


class FakePusher:
    tried: list[tuple[int, str]] = []  # noqa: RUF012  of all of them

    def __init__(self, options: Any) -> None:
        self._options = options

    def work(self, job: tuple[int, str]) -> Iterator[dict[str, Any]]:
        self.tried.append(job)
        yield self._options.settings | _record(*job, True)

    def close(self) -> None: ...


def test_it_goes_on_where_it_stopped_and_with_the_same_settings_only(
    pushback: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pushback, "Pusher", FakePusher)
    FakePusher.tried.clear()

    def options(**changes: Any) -> Any:
        plain = {"seeds": "200003:200004", "workers": 1, "output_dir": tmp_path}
        return pushback.PushbackOptions(**plain | changes)

    assert len(pushback.measure(options(n_episodes=1))) == 3
    found = pushback.measure(options())
    jobs = [(seed, mode) for seed in (200_003, 200_004) for mode in pushback.MODES]
    assert FakePusher.tried == [(r["seed"], r["mode"]) for r in found] == jobs
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found
    assert len(pushback.measure(options(n_episodes=1))) == 3  # what was not asked for is left out
    with pytest.raises(ValueError, match=r"other settings \(horizon was 700\)"):
        pushback.measure(options(horizon=500))
    for env in ("kitchen/1", "kitchen/kettle", "kitchen", "metaworld/reach-v3"):
        with pytest.raises(ValueError, match="two or more elements"):
            pushback.measure(options(env=env))
    with pytest.raises(ValueError, match="were trained on"):
        pushback.measure(options(seeds="0:3"))


def test_without_flags_it_tries_starts_of_the_test_family(pushback: ModuleType) -> None:
    layouts = pushback.PushbackOptions().layouts
    assert layouts == list(range(200_000, 200_045))
    assert pushback.PushbackOptions(n_episodes=100).layouts[-1] == 200_099
