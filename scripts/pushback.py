"""What watching oneself is worth: an element of the kitchen falls shut again while the agent works.

Two elements are asked for. Some steps after the first of them is done, it is set back to its start.
The same test starts are tried three times: by the agent as it is, by the agent without its monitor
(the policy's done head alone moves the plan on), and with an oracle that judges by the simulator's
truth in place of the language model. The oracle is no agent: it is the ceiling of any detector.

    .venv/bin/python scripts/pushback.py [--n_episodes N] [--output_dir D]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import json as json_format
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from embodied.agent.agent import Agent, AgentOptions
from embodied.agent.rollout import PICTURE_EVERY, run_episode
from embodied.cli.assemble import load_agent
from embodied.metrics import Paired, Rate
from embodied.types import Subgoal, Verdict
from sims import language, scenes
from sims.kitchen import KitchenEnv
from sims.kitchen_disturbances import push_back
from sims.kitchen_elements import is_met
from sims.seeds import FIRST_SEED

MODES = ("full loop", "no monitor", "oracle")
_AFTER_STEPS = 15


@dataclass(frozen=True)
class PushbackOptions:
    """How often both elements are open at the end although one was pushed back.

    Args:
        env: two or more elements of the kitchen.
        n_episodes: test starts, each tried in every mode.
        horizon: control steps an episode.
        model, policy: folders of trained weights instead of the shipped ones.
        output_dir: where the outcomes go, a JSON line a start; what is there is not run again.
    """

    env: str = "kitchen/2"
    n_episodes: int = 20
    horizon: int = 700
    model: Path | None = None
    policy: Path | None = None
    output_dir: Path = Path("outputs/pushback")


class PushedBack:
    """Sets the first element that is done back to its start, once, some steps later."""

    def __init__(self, env: KitchenEnv) -> None:
        self._env = env
        self._element: str | None = None
        self._wait = _AFTER_STEPS
        self.step: int | None = None

    def __call__(self, step: int) -> None:
        if self._element is None:
            done = self._env.completion.completed_strict
            self._element = done[0] if done else None
            return
        self._wait -= 1
        if self._wait < 0 and self.step is None and push_back(self._env, self._element):
            self.step = step


class OracleAgent(Agent):
    """Judges by the simulator's truth: what a perfect detector would reach, and no agent."""

    env: KitchenEnv

    def _judge(self, subgoal: Subgoal) -> Verdict:
        done = is_met(subgoal, self.env.truth())
        return Verdict("done" if done else "progressing", "so it is", 1.0)


def run_one(env: Any, agent: Agent, seed: int) -> dict[str, Any]:
    """One start in one mode. What counts is both elements at once, after the push."""
    said, pushed = language.canonical(env.tasks_of(seed)), PushedBack(env)
    episode = run_episode(env, agent, said, seed=seed, before_step=pushed)
    return {
        "seed": seed,
        "layout_sha": env.layout_sha,
        "tasks": list(env.tasks),
        "pushed_at": pushed.step,
        "success": episode.success,
        "n_steps": len(episode.steps),
    }


def measure(options: PushbackOptions) -> dict[str, list[dict[str, Any]]]:
    """Every start in every mode; outcomes are kept as they come."""
    options.output_dir.mkdir(parents=True, exist_ok=True)
    log = options.output_dir / "episodes.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    records = [json_format.loads(line) for line in lines]
    there = {(r["mode"], r["seed"]) for r in records}
    whole = load_agent(options.model, options.policy)
    parts = whole.planner, whole.motors, whole.catalogue
    agents: dict[str, Agent] = {
        "full loop": whole,
        "no monitor": Agent(*parts, AgentOptions("no_loop")),
        "oracle": OracleAgent(*parts),
    }
    env = scenes.make(
        options.env, horizon=options.horizon, rule="strict", picture_every=PICTURE_EVERY
    )
    assert isinstance(env, KitchenEnv)
    agents["oracle"].env = env  # type: ignore[attr-defined]
    with closing(env), log.open("a", encoding="utf-8") as file:
        for i in range(options.n_episodes):
            for mode in MODES:
                seed = FIRST_SEED["test"] + i
                if (mode, seed) in there:
                    continue
                record = {"mode": mode, **run_one(env, agents[mode], seed)}
                records.append(record)
                file.write(json_format.dumps(record) + "\n")
                file.flush()
                print(f"start {i + 1}, {mode}: {record['success']}", file=sys.stderr)
    return {mode: [r for r in records if r["mode"] == mode] for mode in MODES}


def main() -> None:
    options = tyro.cli(PushbackOptions, use_underscores=True)
    records = measure(options)
    outcomes = {
        mode: [r["success"] for r in sorted(of, key=lambda r: r["seed"])][: options.n_episodes]
        for mode, of in records.items()
    }
    for mode, successes in outcomes.items():
        n_pushed = sum(r["pushed_at"] is not None for r in records[mode])
        print(f"{mode:<12} {Rate.of(successes)}; pushed back in {n_pushed}")
    for other in MODES[1:]:
        paired = Paired.of(outcomes[other], outcomes["full loop"])
        print(f"full loop less {other}: {paired.difference:+.2f}, McNemar p = {paired.p:.4f}")


if __name__ == "__main__":
    main()
