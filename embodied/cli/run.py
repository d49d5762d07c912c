"""`embodied run`: tell the agent a task, watch it plan, act, check itself and correct itself."""

from __future__ import annotations

import json as json_format
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from embodied.agent.rollout import PICTURE_EVERY, RefusedTask
from embodied.cli.attempt import Attempt, Recorder, attempt, outcome_line
from embodied.cli.common import check_instruction, stdout_to_stderr, writable_dir
from embodied.cli.plan import Request, choose_scene, plan_fields
from embodied.cli.trials import cameras_for, kitchen_options
from sims import scenes
from sims.seeds import FIRST_SEED


@dataclass(frozen=True)
class RunOptions:
    """Give the simulated agent a task. Exit status: 0 it succeeded, 1 it failed, 2 refused.

    Args:
        task: what to do, in plain words.
        env: the environment; the one that fits the words when not given.
        seed: which layout of the scene.
        model: folder of a trained model instead of the shipped one.
        policy: folder of a trained policy instead of the shipped one.
        output_dir: where the video goes, as mp4 and GIF.
        level: of the kitchen's start: 1, elements that are not asked for may be open; 2, those
            too, all but one.
        horizon: control steps after which it is stopped; the environment's own when not given.
        device: auto, cpu, cuda or cuda:N: where the networks are; a GPU where there is one if auto.
        json: print one JSON object and nothing else.
    """

    task: Annotated[Positional[str], arg(metavar="TASK")]
    env: str | None = None
    seed: int = FIRST_SEED["test"]
    model: Path | None = None
    policy: Path | None = None
    output_dir: Path = Path("outputs/run")
    level: int = 0
    horizon: int | None = None
    device: str = "auto"
    json: bool = False


def run(options: RunOptions) -> int:
    """Carry out one task on one layout. Returns the exit status."""
    request = Request(check_instruction(options.task), options.env, options.seed)
    folder = writable_dir(options.output_dir)
    with stdout_to_stderr():
        fields = _run(request, folder, options)
    if options.json:
        print(json_format.dumps(fields, ensure_ascii=False))
    elif fields["refused"] is None:
        print(_in_words(fields))
    if fields["refused"] is not None:
        raise RefusedTask(fields["refused"])
    return 0 if fields["success"] else 1


def _run(request: Request, folder: Path, options: RunOptions) -> dict[str, Any]:
    from embodied import devices
    from embodied.cli.assemble import load_agent

    agent = load_agent(options.model, options.policy, device=devices.pick(options.device))
    scene = choose_scene(agent, request.instruction, request.env)
    if scene.env is None:
        return _refusal(request, request.env, scene.refused, scene.latency_s)
    # whoever asks for an open cabinet wants it open, not a fifth of the way
    goal = {"tasks": scene.tasks, "rule": "strict"} if scene.env == scenes.KITCHEN else {}
    more: dict[str, Any] = {"horizon": options.horizon, "picture_every": PICTURE_EVERY, **goal}
    more |= kitchen_options(scene.env, None, options.level)
    more["cameras"] = cameras_for(agent, scene.env)
    with closing(scenes.make(scene.env, **more)) as env:
        recorder = Recorder(env, agent.caption, fine=True)
        tried = attempt(env, agent, request.instruction, request.seed, recorder)
        if tried.refused is not None:
            return _refusal(request, scene.env, tried.refused, scene.latency_s + tried.begin_s)
        video = None
        if tried.n_steps:
            recorder.finish(outcome_line(tried))
            name = env.task.replace(", ", "+").replace(" ", "-")
            video = folder / f"{name}_{request.seed}.mp4"
            recorder.save_mp4(video)
            recorder.save_gif(video.with_suffix(".gif"))
    return _fields(request, scene.env, tried, scene.latency_s, video)


def _refusal(
    request: Request, env: str | None, refused: str | None, latency_s: float
) -> dict[str, Any]:
    nothing = {"success": False, "outcome": "failure", "n_steps": 0, "n_replans": 0}
    nothing |= {"verdicts": [], "video": None, "wall_s": 0.0}
    return plan_fields(request, env, None, refused, latency_s) | nothing


def _fields(
    request: Request, env: str, tried: Attempt, routing_s: float, video: Path | None
) -> dict[str, Any]:
    report = tried.report
    rules = ("completed", "completed_strict")
    how_far: dict[str, Any] = {name: report[name] for name in rules if name in report}
    return plan_fields(request, env, tried.plan, None, routing_s + tried.begin_s) | {
        "success": tried.success,
        "outcome": tried.outcome,
        "n_steps": tried.n_steps,
        "n_replans": report.get("n_replans", 0),
        "verdicts": report.get("verdicts", []),
        "met_at_start": report.get("met_at_start", []),
        **how_far,
        "video": None if video is None else str(video),
        "wall_s": round(tried.wall_s, 3),
        "control_hz": tried.control_hz,
        "result": outcome_line(tried),
    }


def _in_words(fields: dict[str, Any]) -> str:
    steps = [f"  {i}. {step['text']}" for i, step in enumerate(fields["steps"], 1)]
    verdicts = [f"  step {v['step']}: {v['subgoal']} {v['status']}" for v in fields["verdicts"]]
    met = [f"done already at the start: {', '.join(fields['met_at_start'])}"]
    shown = [f"video: {fields['video']} and .gif"] if fields["video"] else []
    thought = [fields["thought"]] if fields["thought"] else []
    before = [f"scene: {fields['env']}", *thought, *steps, *(met if fields["met_at_start"] else [])]
    return "\n".join([*before, *verdicts, *_how_far(fields), fields["result"], *shown])


def _how_far(fields: dict[str, Any]) -> list[str]:
    """What was done and what was not quite, where the scene has two rules and it was no success."""
    if fields["success"] or "completed" not in fields:
        return []
    by_rule = ("completed", "FrankaKitchen's rule"), ("completed_strict", "strictly")
    told = [f"{rule}: {', '.join(fields[name]) or 'nothing'}" for name, rule in by_rule]
    return [f"done by {told[0]}; {told[1]} (which counts here)"]
