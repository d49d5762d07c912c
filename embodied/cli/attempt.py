"""One watched try at one layout: a crash is told from a failure, and a person can follow."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embodied import video
from embodied.agent.rollout import Actor, Decision, RefusedTask, run_episode
from embodied.panel import side_panel
from embodied.types import Episode, Observation, Outcome, Plan, Vocabulary

PICTURE_PX, PANEL_PX = 448, 384
STEPS_PER_FRAME = 3
VIDEO_FPS, GIF_STRIDE = 15, 2
END_S = 1.5
FINE_DRAWING_S = 20.0
_MARKS = ("▶", "→", ">")


@dataclass(frozen=True)
class Attempt:
    """What came of one try.

    Args:
        outcome: "crash" when the actor or the environment raised; its traceback is on stderr.
        episode: None after a crash or a refusal.
        plan: what the actor had planned; None when it did not come to that.
        n_steps: control steps executed.
        refused: why, when the actor refused a task; nothing was executed then.
        begin_s: time to the first plan.
        wall_s: from reset to the end, without the time taken to draw a video.
        control_hz: steps a second after the first plan: seeing, judging, acting and simulating.
    """

    outcome: Outcome
    episode: Episode | None
    plan: Plan | None
    n_steps: int
    refused: str | None
    begin_s: float
    wall_s: float
    control_hz: float | None

    @property
    def success(self) -> bool:
        return self.outcome == "success"

    @property
    def report(self) -> dict[str, Any]:
        """What the actor says of it: replans, verdicts, latencies …"""
        return {} if self.episode is None else dict(self.episode.info)


class _Watched:
    """An actor with a stopwatch; knows how far it came, for when it crashes."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.plan: Plan | None = None
        self.begin_s = 0.0
        self.n_steps = 0  # finished ones
        self._n_decisions = 0

    def begin(self, observation: Observation, instruction: str, vocabulary: Vocabulary) -> Plan:
        started = time.perf_counter()
        self.plan = self._actor.begin(observation, instruction, vocabulary)
        self.acting_since = time.perf_counter()
        self.begin_s = self.acting_since - started
        return self.plan

    def act(self, observation: Observation) -> Decision:
        self.n_steps = self._n_decisions
        self._n_decisions += 1
        return self._actor.act(observation)

    def report(self) -> dict[str, Any]:
        return self._actor.report()


def attempt(
    env: Any, actor: Actor, instruction: str, seed: int, recorder: Recorder | None = None
) -> Attempt:
    """Let `actor` try `instruction` on the layout of `seed`. Only Ctrl-C gets through."""
    watched = _Watched(actor)
    observers = () if recorder is None else (recorder,)
    outcome: Outcome = "crash"
    episode, refused = None, None
    started = time.perf_counter()
    try:
        episode = run_episode(env, watched, instruction, seed=seed, observers=observers)
        outcome = episode.outcome
    except RefusedTask as refusal:
        outcome, refused = "failure", str(refusal)
    except Exception:  # noqa: BLE001  whatever it was, it is a crash, and is shown
        print(f"crash on {env.env_id}, seed {seed}, '{instruction}':", file=sys.stderr)
        traceback.print_exc()
    ended = time.perf_counter()
    drawing_s = 0.0 if recorder is None else recorder.drawing_s
    n_steps = watched.n_steps if episode is None else len(episode.steps)
    acting_s = ended - watched.acting_since - drawing_s if n_steps else 0.0
    return Attempt(
        outcome=outcome,
        episode=episode,
        plan=watched.plan,
        n_steps=n_steps,
        refused=refused,
        begin_s=watched.begin_s,
        wall_s=ended - started - drawing_s,
        control_hz=n_steps / acting_s if acting_s > 0 else None,
    )


class Recorder:
    """Keeps every few steps' picture and the words beside it; an observer of `run_episode`.

    Args:
        words: the lines to write beside the picture now.
        fine: draw with shadows and smooth edges, until that has taken `FINE_DRAWING_S`.
    """

    def __init__(self, env: Any, words: Callable[[], list[str]], *, fine: bool) -> None:
        self._env, self._words, self._fine = env, words, fine
        self._frames: list[tuple[np.ndarray, list[str]]] = []
        self._n_steps = 0
        self.drawing_s = 0.0

    def __call__(self, observation: Observation, decision: Decision) -> None:
        if self._n_steps % STEPS_PER_FRAME == 0:
            self._draw([])
        self._n_steps += 1

    def _draw(self, more: list[str]) -> None:
        started = time.perf_counter()
        quality = "high" if self._fine and self.drawing_s < FINE_DRAWING_S else "fast"
        picture = self._env.picture(self._env.cameras[0], size=PICTURE_PX, quality=quality)
        self._frames.append((picture, [*self._words(), *more]))
        self.drawing_s += time.perf_counter() - started

    def finish(self, line: str) -> None:
        """Draw how the scene is left, with `line` below the words, and let it stand a while."""
        self._draw([line])
        self._frames += [self._frames[-1]] * round(END_S * VIDEO_FPS)

    def _composed(self, stride: int = 1) -> Iterator[np.ndarray]:
        for picture, lines in self._frames[::stride]:
            marked = [i for i, line in enumerate(lines) if line.lstrip().startswith(_MARKS)]
            yield side_panel(picture, lines, PANEL_PX, highlight=marked)

    def save_mp4(self, path: Path) -> None:
        video.write_mp4(path, self._composed(), VIDEO_FPS)

    def save_gif(self, path: Path) -> None:
        video.write_gif(path, list(self._composed(GIF_STRIDE)), VIDEO_FPS / GIF_STRIDE)


def outcome_line(attempt: Attempt) -> str:
    """How it ended, in words."""
    match attempt.outcome:
        case "success":
            return f"success after {attempt.n_steps} steps"
        case "sim_fault":
            return f"the simulator broke down after {attempt.n_steps} steps"
        case "crash":
            return f"the agent crashed after {attempt.n_steps} steps"
    if attempt.refused is not None:
        return f"refused: {attempt.refused}"
    return f"no success within {attempt.n_steps} steps"
