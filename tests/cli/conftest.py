"""A stand-in agent that needs no weights, the real one where its weights are there, tiny data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from embodied.agent.rollout import Decision
from embodied.types import Observation, Plan, Subgoal, Vocabulary


@dataclass
class FakeRoute:
    env_id: str | None
    tasks: tuple[str, ...] = ()
    refused: str | None = None
    nearest: tuple[str, ...] = ()
    probability: float = 0.9


class FakePlanner:
    """Knows drawers only."""

    def plan(
        self,
        observation: Observation,
        instruction: str,
        vocabulary: Vocabulary,
        experience: str = "",
        tasks: Sequence[str] = (),
    ) -> Plan:
        print("chatter on stdout")  # as libraries do
        if "drawer" not in instruction:
            return Plan(instruction, "", (), refused=f"this scene cannot '{instruction}'")
        return Plan(instruction, "Thought: a handle.", vocabulary.subgoals, vocabulary.tasks)


@dataclass
class FakeAgent:
    """Pulls back, whatever it sees; `act` may be replaced to make trouble."""

    planner: FakePlanner = field(default_factory=FakePlanner)
    trouble: Callable[[], Any] | None = None
    n_acts: int = 0

    def route(self, instruction: str, env_id: str | None = None) -> FakeRoute:
        env_id = env_id or "metaworld/drawer-open-v3"
        if "drawer" in instruction and "drawer" in env_id:
            return FakeRoute(env_id)
        nearest = ("drawer-open", "drawer-close", "door-open")
        reason = f"no scene offers '{instruction}'; the nearest are {', '.join(nearest)}"
        return FakeRoute(None, refused=reason, nearest=nearest)

    def begin(self, observation: Observation, instruction: str, vocabulary: Vocabulary) -> Plan:
        self.n_acts = 0
        self._plan = self.planner.plan(observation, instruction, vocabulary)
        return self._plan

    def act(self, observation: Observation) -> Decision:
        self.n_acts += 1
        if self.trouble is not None and self.n_acts == 3:
            self.trouble()
        return Decision(np.array([0.0, -1.0, 0.0, 0.0], np.float32))

    def report(self) -> dict[str, Any]:
        subgoal = Subgoal.parse("reach(drawer handle)").text
        verdict = {"step": 2, "subgoal": subgoal, "status": "progressing"}
        verdicts = [verdict | {"reason": "the work is going on", "probability": 0.75}]
        return {"n_replans": 1, "n_retries": 2, "verdicts": verdicts, "plans": [self._plan.text]}

    def caption(self) -> list[str]:
        return ["open the drawer", "> 1. reach(drawer handle)"]


@pytest.fixture
def fake_agent(monkeypatch: pytest.MonkeyPatch) -> FakeAgent:
    """What `load_agent` then returns, to this process."""
    agent = FakeAgent()
    module = ModuleType("embodied.cli.assemble")
    module.load_agent = lambda *_, **__: agent  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "embodied.cli.assemble", module)
    return agent


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name a whole agent of tiny random networks, saved as a trained one would be."""
    import policies
    from embodied.cli.assemble import save_policy
    from embodied.config import preset
    from embodied.model.planner import Planner

    folder = tmp_path_factory.mktemp("tiny")
    planner = Planner.build(preset("tiny"))
    planner.save(folder / "planner")
    sizes = {
        "n_queries": planner.config.former.n_queries,
        "width": planner.config.former.width,
        "global_width": planner.config.global_width,
    }
    policy = policies.make("mlp", **sizes, state_size=4, action_size=4, horizon=8)
    save_policy(folder / "policy", policy, None, agent={"execute": 4})
    return ["--model", str(folder / "planner"), "--policy", str(folder / "policy")]


@pytest.fixture(scope="session")
def real_agent() -> Any:
    """The shipped agent, loaded once."""
    from embodied.checkpoint import CheckpointError
    from embodied.cli.assemble import SHIPPED, load_agent

    if not any(SHIPPED.glob("*/SHA256SUMS")):
        pytest.skip("needs the shipped weights")
    try:
        return load_agent()
    except CheckpointError as error:
        pytest.fail(f"the shipped weights are damaged: {error}")


@pytest.fixture
def shipped_agent(real_agent: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`load_agent` then returns the one agent that is loaded already."""
    monkeypatch.setattr("embodied.cli.assemble.load_agent", lambda *_, **__: real_agent)
    return real_agent


@pytest.fixture(scope="session")
def tiny_planner(tiny_weights: list[str]) -> Path:
    """The folder of the tiny random planner."""
    return Path(tiny_weights[1])


@pytest.fixture(scope="session")
def recorded_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two successes of the expert, of about fifty steps and two sub-goals, in tiny pictures."""
    from embodied.cli.record import RecordOptions, record

    folder = tmp_path_factory.mktemp("recorded") / "set"
    env = "metaworld/coffee-button-v3"
    assert record(RecordOptions(env, 2, folder, image_size=32, horizon=90, workers=1)) == 0
    return folder


@pytest.fixture(scope="session")
def features_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the features of `recorded_set` are kept once they are computed."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")  # so that it comes before what a module's fixtures train
def one_thread() -> Iterator[None]:
    """On one thread sums are added up in one order, so results are equal to the bit."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
