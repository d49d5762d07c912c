"""Episodes an hour: the loop with our rendering against the same loop with the simulator's own.

Same cameras, same picture size, same layouts, taken in turn within one run. The simulator's
default draws shadow maps and reflections, smooths edges (quality "high"), and draws at every
control step; ours draws what the agent looks at, which is every second step.

    .venv/bin/python scripts/bench_rollout.py [--actor expert] [--env ID] [--n_episodes N]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import json as json_format
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from embodied.agent.rollout import PICTURE_EVERY
from embodied.cli.attempt import attempt
from embodied.cli.trials import scripted_expert
from sims import language, scenes
from sims.rendering import Quality
from sims.seeds import FIRST_SEED

NAMES: dict[Quality, str] = {"fast": "our rendering", "high": "simulator's default"}


@dataclass(frozen=True)
class BenchOptions:
    """How fast the closed loop runs with either rendering.

    Args:
        actor: who acts.
        env: in which environment.
        n_episodes: with each rendering.
        horizon: control steps an episode.
        model, policy: folders of trained weights instead of the shipped ones.
        json: print one JSON object and nothing else.
    """

    actor: Literal["agent", "expert"] = "agent"
    env: str = "metaworld/drawer-open-v3"
    n_episodes: int = 4
    horizon: int = 400
    model: Path | None = None
    policy: Path | None = None
    json: bool = False


@dataclass
class Tally:
    """What episodes with one rendering took."""

    wall_s: list[float] = field(default_factory=list)
    hz: list[float] = field(default_factory=list)
    n_steps: list[int] = field(default_factory=list)
    n_success: int = 0

    def summary(self) -> dict[str, float]:
        n = len(self.wall_s)
        return {
            "episodes_per_hour": 3600 * n / sum(self.wall_s),
            "control_hz": sum(self.hz) / n,
            "steps_per_episode": sum(self.n_steps) / n,
            "n_success": self.n_success,
            "n_episodes": n,
        }


def measure(options: BenchOptions) -> dict[Quality, Tally]:
    """Run the episodes in turn; which rendering goes first alternates too."""
    agent = _load(options)
    tallies: dict[Quality, Tally] = {quality: Tally() for quality in NAMES}
    with ExitStack() as stack:
        envs = {
            quality: stack.enter_context(
                closing(
                    scenes.make(
                        options.env,
                        horizon=options.horizon,
                        quality=quality,
                        picture_every=PICTURE_EVERY if quality == "fast" else 1,
                    )
                )
            )
            for quality in NAMES
        }
        for env in envs.values():
            env.reset(seed=0)  # makes the GL contexts
        for i in range(options.n_episodes):
            order = list(NAMES) if i % 2 == 0 else list(reversed(NAMES))
            for quality in order:
                _time_one(envs[quality], agent, FIRST_SEED["test"] + i, tallies[quality])
                print(f"episode {i + 1}, {NAMES[quality]}", file=sys.stderr)
    return tallies


def _load(options: BenchOptions) -> Any:
    if options.actor == "expert":
        return None
    from embodied.cli.assemble import load_agent

    return load_agent(options.model, options.policy)


def _time_one(env: Any, agent: Any, seed: int, tally: Tally) -> None:
    actor = scripted_expert(env, seed) if agent is None else agent
    tried = attempt(env, actor, language.canonical(env.tasks), seed)
    if tried.control_hz is None:
        raise SystemExit(f"no step was made on seed {seed}: {tried.outcome} {tried.refused or ''}")
    tally.wall_s.append(tried.wall_s)
    tally.hz.append(tried.control_hz)
    tally.n_steps.append(tried.n_steps)
    tally.n_success += tried.success


def main() -> None:
    options = tyro.cli(BenchOptions, use_underscores=True)
    summaries = {quality: tally.summary() for quality, tally in measure(options).items()}
    ratio = {
        key: summaries["fast"][key] / summaries["high"][key]
        for key in ("episodes_per_hour", "control_hz")
    }
    if options.json:
        named = {NAMES[quality]: summary for quality, summary in summaries.items()}
        told = {"actor": options.actor, "env": options.env, **named, "ratio": ratio}
        print(json_format.dumps(told))
        return
    print(f"{options.env}, {options.actor}, {options.n_episodes} episodes each")
    for quality, s in summaries.items():
        print(
            f"{NAMES[quality]:<20} {s['episodes_per_hour']:7.0f} episodes/hour  "
            f"{s['control_hz']:6.1f} control steps/s  {s['steps_per_episode']:5.0f} steps/episode  "
            f"{s['n_success']:.0f}/{s['n_episodes']:.0f} successes"
        )
    for key, factor in ratio.items():
        print(f"ratio, {key}: {factor:.1f}")


if __name__ == "__main__":
    main()
