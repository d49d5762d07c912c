"""One episode against an environment that does what the test wants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embodied.agent.rollout import Decision, RefusedTask, run_episode
from embodied.types import Observation, Plan, SimulatorFault, Subgoal, Vocabulary

SUBGOALS = (Subgoal("reach", ("goal",)), Subgoal("push", ("puck", "goal")))


class FakeEnv:
    """Succeeds, breaks down or runs out of time when told to; refuses NaN loudly."""

    env_id, task, layout_sha, action_space = "fake/push", "push", "abc", None
    vocabulary = Vocabulary(("push",), SUBGOALS)

    def __init__(self, success_at: int = 99, fault_at: int = 99, horizon: int = 12) -> None:
        self.success_at, self.fault_at, self.horizon = success_at, fault_at, horizon
        self.actions: list[np.ndarray] = []
        self.seeds: list[int | None] = []

    def _observation(self) -> dict[str, Any]:
        n = len(self.actions)
        picture = np.full((4, 4, 3), n, np.uint8)
        return {"images": {"workspace": picture}, "state": np.full(3, n, np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self.seeds.append(seed)
        self.actions = []
        return self._observation(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert np.isfinite(action).all()
        if len(self.actions) == self.fault_at:
            raise SimulatorFault("diverged")
        self.actions.append(action)
        n = len(self.actions)
        done = n == self.success_at
        return self._observation(), float(n), done, n >= self.horizon, {"success": done}

    def labels(self) -> dict[str, Any]:
        n = len(self.actions)
        index = int(n >= 2)
        pixels = {"puck": {"workspace": (n / 100, 0.5)}}
        return {"subgoal": index, "met": [n >= 2, n >= 4], "pixels": pixels}


class FakeActor:
    """Acts by counting; claims to work on sub-goal 7 throughout."""

    def __init__(self, stop_at: int = 99, refused: str | None = None, bad: Any = None) -> None:
        self.stop_at, self.refused, self.bad = stop_at, refused, bad
        self.seen: list[Observation] = []

    def begin(self, observation: Observation, instruction: str, vocabulary: Vocabulary) -> Plan:
        if self.refused:
            return Plan(instruction, "", (), refused=self.refused)
        return Plan(instruction, "Thought.", vocabulary.subgoals, vocabulary.tasks)

    def act(self, observation: Observation) -> Decision:
        self.seen.append(observation)
        n = len(self.seen)
        action = np.full(2, n, np.float32)
        if self.bad is not None and n == 3:
            action[1] = self.bad
        label = -action if n == 2 else None
        return Decision(action, subgoal=7, label=label, stop=n > self.stop_at)

    def report(self) -> dict[str, Any]:
        return {"n_replans": 2}


def _run(env: FakeEnv, actor: FakeActor | None = None, **options: Any) -> Any:
    actor = actor or FakeActor()
    return run_episode(env, actor, "push the puck", seed=31, **options)


# --- how it ends -----------------------------------------------------------------------------


def test_success_ends_it() -> None:
    env = FakeEnv(success_at=5)
    episode = _run(env)
    assert (episode.outcome, episode.success, len(episode.steps)) == ("success", True, 5)
    assert episode.first_success_step == 4 and env.seeds == [31]


def test_it_lingers_after_success_when_asked() -> None:
    episode = _run(FakeEnv(success_at=5), linger_steps=3)
    assert (episode.outcome, len(episode.steps)) == ("success", 8)
    assert [step.success for step in episode.steps] == [False] * 4 + [True] + [False] * 3
    assert len(_run(FakeEnv(success_at=5, horizon=6), linger_steps=3).steps) == 6


def test_the_horizon_is_a_failure() -> None:
    episode = _run(FakeEnv())
    assert (episode.outcome, len(episode.steps)) == ("failure", 12)
    assert episode.first_success_step is None


def test_success_at_the_last_moment_is_success() -> None:
    assert _run(FakeEnv(success_at=12)).outcome == "success"


def test_the_actor_may_give_up() -> None:
    env = FakeEnv()
    episode = _run(env, FakeActor(stop_at=4))
    assert (episode.outcome, len(episode.steps), len(env.actions)) == ("failure", 4, 4)


def test_a_broken_simulator_is_an_outcome_of_its_own() -> None:
    episode = _run(FakeEnv(fault_at=3))
    assert (episode.outcome, episode.success, len(episode.steps)) == ("sim_fault", False, 3)
    assert episode.info["n_replans"] == 2


def test_a_refusal_executes_nothing() -> None:
    env, actor = FakeEnv(), FakeActor(refused="there is no puck")
    with pytest.raises(RefusedTask, match="there is no puck"):
        _run(env, actor)
    assert env.actions == [] and actor.seen == []


def test_an_actors_own_error_is_not_scored_as_a_failure() -> None:
    class Broken(FakeActor):
        def act(self, observation: Observation) -> Decision:
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        _run(FakeEnv(), Broken())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_environment_never_gets_a_bad_action(bad: float) -> None:
    env = FakeEnv()
    with pytest.raises(ValueError, match="an action must be finite, got"):
        _run(env, FakeActor(bad=bad))
    assert len(env.actions) == 2


# --- what is recorded ------------------------------------------------------------------------


def test_steps_hold_what_was_seen_before_and_came_after() -> None:
    episode = _run(FakeEnv(success_at=3))
    assert [float(step.observation.state[0]) for step in episode.steps] == [0, 1, 2]
    assert [step.reward for step in episode.steps] == [1, 2, 3]
    assert [step.subgoal for step in episode.steps] == [7, 7, 7]
    assert all(step.observation.images == {} for step in episode.steps)
    assert (episode.env_id, episode.task, episode.seed) == ("fake/push", "push", 31)
    assert (episode.layout_sha, episode.instruction) == ("abc", "push the puck")
    assert episode.info["wall_s"] > 0 and episode.plan.subgoals == SUBGOALS


def test_a_label_is_recorded_in_place_of_what_was_executed() -> None:
    env = FakeEnv(success_at=3)
    episode = _run(env)
    assert [float(step.action[0]) for step in episode.steps] == [1, -2, 3]
    assert [float(action[0]) for action in env.actions] == [1, 2, 3]


def test_labels_are_of_the_moment_that_is_seen() -> None:
    episode = _run(FakeEnv(success_at=6), labelled=True)
    assert [step.subgoal for step in episode.steps] == [0, 0, 1, 1, 1, 1]
    assert [step.done for step in episode.steps] == [False] * 4 + [True] * 2
    places = [step.pixels["puck"]["workspace"][0] for step in episode.steps]
    assert places == [float(step.observation.state[0]) / 100 for step in episode.steps]


def test_without_labels_nothing_of_the_truth_is_asked() -> None:
    class Secretive(FakeEnv):
        def labels(self) -> dict[str, Any]:
            raise AssertionError("the truth was asked for")

    assert not any(step.done or step.pixels for step in _run(Secretive()).steps)


def test_pictures_are_kept_when_asked() -> None:
    episode = _run(FakeEnv(success_at=3), keep_images=True)
    assert [int(s.observation.images["workspace"][0, 0, 0]) for s in episode.steps] == [0, 1, 2]


def test_observers_and_disturbances_are_called_at_every_step() -> None:
    watched: list[tuple[float, float]] = []
    disturbed: list[int] = []
    _run(
        FakeEnv(success_at=3),
        observers=[lambda o, d: watched.append((float(o.state[0]), float(d.action[0])))],
        before_step=disturbed.append,
    )
    assert watched == [(0, 1), (1, 2), (2, 3)] and disturbed == [0, 1, 2]
