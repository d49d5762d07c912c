"""`embodied ask`: a question about a video, or about a scene of the simulators, and its answer."""

from __future__ import annotations

import json as json_format
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from embodied.agent.rollout import PICTURE_EVERY, observe
from embodied.cli.common import check_words, stdout_to_stderr
from embodied.egocot.clips import read_clip
from embodied.types import Observation
from sims import scenes
from sims.seeds import FIRST_SEED


@dataclass(frozen=True)
class AskOptions:
    """Ask about what is to be seen. The answer comes from the pictures alone.

    Args:
        question: in plain words, like "what is the robot holding?".
        video: an .mp4, or an .npy of frames; the clip is spread over all of it.
        env: a scene to look at instead of a video.
        seed: which layout of the scene.
        steps: how long its expert acts before the question is asked; the first picture when 0.
        model: folder of a trained planner instead of the shipped one.
        device: auto, cpu, cuda or cuda:N: where the networks are; a GPU where there is one if auto.
        json: print one JSON object and nothing else.
    """

    question: Annotated[Positional[str], arg(metavar="QUESTION")]
    video: Path | None = None
    env: str | None = None
    seed: int = FIRST_SEED["test"]
    steps: int = 0
    model: Path | None = None
    device: str = "auto"
    json: bool = False

    def __post_init__(self) -> None:
        if (self.video is None) == (self.env is None):
            raise ValueError("give what to look at: either --video FILE or --env ID")
        if self.env is not None:
            scenes.check_env_id(self.env)
        if self.steps < 0:
            raise ValueError(f"--steps is 0 or more, got {self.steps}")


def ask(options: AskOptions) -> int:
    """Answer one question. Returns the exit status."""
    example = "ask something like 'what is the robot holding?'"
    question = check_words(options.question, "question", example)
    with stdout_to_stderr():
        fields = _answered(question, options)
    print(json_format.dumps(fields, ensure_ascii=False) if options.json else fields["answer"])
    return 0


def _answered(question: str, options: AskOptions) -> dict[str, Any]:
    clip = _video_clip(options.video) if options.video is not None else None
    from embodied import devices
    from embodied.cli.assemble import SHIPPED
    from embodied.model.planner import Planner

    folder, device = options.model or SHIPPED / "planner", devices.pick(options.device)
    planner = Planner.load(folder, device=device).for_inference()
    if clip is None:
        clip = _scene_clip(planner, options)
    started = time.perf_counter()
    answer = planner.answer(clip, question)
    latency_s = round(time.perf_counter() - started, 4)
    seen: dict[str, Any] = {"video": str(options.video)}
    if options.env is not None:
        seen = {"env": options.env, "seed": options.seed, "steps": options.steps}
    return {"question": question, "answer": answer, **seen, "latency_s": latency_s}


def _video_clip(path: Path) -> np.ndarray:
    """uint8 (1, 8, H, W, 3): a video shows one camera."""
    return read_clip(path.parent, path.name).frames[None]


def _scene_clip(planner: Any, options: AskOptions) -> np.ndarray:
    """uint8 (cameras, T, H, W, 3) of the expert's last steps; its first picture if it has none."""
    from embodied.model.planner import stack_cameras

    n_frames = planner.config.n_frames
    seen: deque[Observation] = deque(maxlen=n_frames)
    assert options.env is not None
    with closing(scenes.make(options.env, picture_every=PICTURE_EVERY)) as env:
        seen.append(observe(env.reset(seed=options.seed)[0]))
        if options.steps:
            _let_act(env, options, seen)
    pictures = [*[seen[0]] * (n_frames - len(seen)), *seen]
    return stack_cameras(pictures, planner.config.cameras)[0]


def _let_act(env: Any, options: AskOptions, seen: deque[Observation]) -> None:
    """The expert acts; every second picture is seen, as by the agent."""
    from sims import experts

    expert = experts.demonstrator(env, np.random.default_rng(options.seed))
    for step in range(1, options.steps + 1):
        raw, _, _, truncated, _ = env.step(expert.act()[1])
        if step % PICTURE_EVERY == 0:
            seen.append(observe(raw))
        if truncated:
            break
