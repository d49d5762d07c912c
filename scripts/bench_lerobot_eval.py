"""Episodes an hour: `lerobot-eval` as it is installed, and our loop. See bench_lerobot_eval.sh.

lerobot-eval   its own Meta-World environment, 480 pixels, one camera, drawn at every step as the
               simulator does by default; an ACT policy with random weights
our loop, ACT  our environment, 224 pixels, one camera; the same kind of policy, with as many
               weights, in a process of its own that gets every picture through a pipe
our agent      our environment, our cameras; planner, policy and monitor, as `embodied evaluate`

Every episode lasts to the horizon of lerobot's environment: random weights do not solve a task, and
our agent is not told when it has. What making environments and loading weights takes is left out on
all sides. The processor's seconds stand beside those of the clock, for machines that have other
work to do.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import json as json_format
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro
from lerobot_peer import LeRobotActor, server_command

from embodied.agent.rollout import PICTURE_EVERY
from embodied.cli.attempt import attempt
from sims import language, scenes
from sims.rendering import select_gl_backend
from sims.seeds import FIRST_SEED

_SPEED = Path(__file__).with_name("lerobot_eval_speed.py")
_CAMERA, _PX = "corner2", 224


@dataclass(frozen=True)
class SpeedOptions:
    """How fast episodes are evaluated.

    Args:
        lerobot: the Python of the virtual environment that has lerobot.
        env: one of Meta-World's environments.
        n_episodes: on each side.
        videos: let `lerobot-eval` draw its videos of the first ten episodes too.
        model, policy: folders of our trained weights instead of the shipped ones.
        json: print one JSON object and nothing else.
    """

    lerobot: Path
    env: str = "metaworld/drawer-open-v3"
    n_episodes: int = 4
    videos: bool = False
    model: Path | None = None
    policy: Path | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if scenes.family(scenes.check_env_id(self.env)) != "metaworld":
            raise ValueError(f"--env is one of Meta-World's, got '{self.env}'")


@dataclass(frozen=True)
class Speed:
    """What episodes took together."""

    name: str
    n_episodes: int
    n_steps: int
    wall_s: float
    cpu_s: float

    def summary(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "n_episodes": self.n_episodes,
            "steps_per_episode": self.n_steps / self.n_episodes,
            "wall_s_per_episode": self.wall_s / self.n_episodes,
            "cpu_s_per_episode": self.cpu_s / self.n_episodes,
            "episodes_per_hour": 3600 * self.n_episodes / self.wall_s,
            "episodes_per_cpu_hour": 3600 * self.n_episodes / self.cpu_s,
        }


class Endless:
    """An environment that keeps its success to itself, so that episodes last to the horizon."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        raw, reward, _, truncated, info = self._env.step(action)
        return raw, reward, False, truncated, {**info, "success": False}


def in_lerobot(options: SpeedOptions, *argv: str) -> dict[str, Any]:
    """Run lerobot_eval_speed.py. Returns the JSON object that it prints last."""
    command = [str(options.lerobot), str(_SPEED), *argv]
    print(" ".join(command), file=sys.stderr, flush=True)
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(done.returncode)
    told: dict[str, Any] = json_format.loads(done.stdout.splitlines()[-1])
    return told


def their_speed(options: SpeedOptions, folder: Path) -> tuple[Speed, int]:
    """`lerobot-eval`'s. Returns also the horizon of its environment."""
    argv = ["measure", "--output", str(folder), "--task", options.env.partition("/")[2]]
    argv += ["--n_episodes", str(options.n_episodes), *["--videos"] * options.videos]
    told = in_lerobot(options, *argv)
    if told["pc_success"]:
        raise SystemExit(f"random weights solved the task: episodes were cut short ({told})")
    n, horizon = told["n_episodes"], told["horizon"]
    return Speed("lerobot-eval", n, n * horizon, told["wall_s"], told["cpu_s"]), horizon


def our_speed(
    name: str, env: Any, actor: Any, n_episodes: int, cpu_s: Callable[[], float]
) -> Speed:
    """The loop's, with `actor` in `env`."""
    env.reset(seed=0)  # makes the GL contexts
    n_steps, wall_s, before_s = 0, 0.0, cpu_s()
    for i in range(n_episodes):
        seed = FIRST_SEED["test"] + i
        tried = attempt(Endless(env), actor, language.canonical(env.tasks), seed)
        if tried.n_steps != env.horizon:
            raise SystemExit(f"{name}: {tried.n_steps} steps of {env.horizon}: {tried.outcome}")
        n_steps, wall_s = n_steps + tried.n_steps, wall_s + tried.wall_s
        print(f"{name}: episode {i + 1}, {tried.wall_s:.1f} s", file=sys.stderr, flush=True)
    return Speed(name, n_episodes, n_steps, wall_s, cpu_s() - before_s)


def _cpu_s(*pids: int) -> float:
    """Of this process and of others."""
    times = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), *pids)]
    return sum(t.user + t.system for t in times)


def act_in_our_loop(options: SpeedOptions, folder: Path, horizon: int) -> Speed:
    """An ACT policy with random weights, one camera."""
    in_lerobot(options, "make", "--output", str(folder), "--camera", _CAMERA, "--px", str(_PX))
    with ExitStack() as stack:
        command = server_command(options.lerobot, folder)
        actor = stack.enter_context(closing(LeRobotActor(command, "ACT")))
        env = scenes.make(options.env, horizon=horizon, cameras=(_CAMERA,), image_size=_PX)
        stack.enter_context(closing(env))
        return our_speed("our loop, ACT", env, actor, options.n_episodes, lambda: _cpu_s(actor.pid))


def our_agent(options: SpeedOptions, horizon: int) -> Speed:
    """The whole agent as `embodied evaluate` runs it."""
    from embodied.cli.assemble import load_agent

    agent = load_agent(options.model, options.policy)
    env = scenes.make(options.env, horizon=horizon, picture_every=PICTURE_EVERY)
    with closing(env):
        return our_speed("our agent", env, agent, options.n_episodes, _cpu_s)


def main() -> None:
    options = tyro.cli(SpeedOptions, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True)
    select_gl_backend()  # theirs gets the same one, through the environment
    with tempfile.TemporaryDirectory() as name:
        theirs, horizon = their_speed(options, Path(name) / "eval")
        ours = [act_in_our_loop(options, Path(name) / "act", horizon), our_agent(options, horizon)]
    summaries = [speed.summary() for speed in (theirs, *ours)]
    if options.json:
        print(json_format.dumps({"env": options.env, "horizon": horizon, "sides": summaries}))
        return
    print(f"{options.env}, {options.n_episodes} episodes of {horizon} steps each")
    for s in summaries:
        ratios = [
            s[key] / summaries[0][key] for key in ("episodes_per_hour", "episodes_per_cpu_hour")
        ]
        print(
            f"{s['name']:<14} {s['episodes_per_hour']:7.1f} episodes/hour ({ratios[0]:.2f} times)  "
            f"{s['episodes_per_cpu_hour']:7.1f} per processor hour ({ratios[1]:.2f} times)"
        )


if __name__ == "__main__":
    main()
