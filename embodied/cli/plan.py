"""`embodied plan`: from words and a picture of the scene to a plan, without carrying it out."""

from __future__ import annotations

import json as json_format
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from embodied.agent.rollout import RefusedTask, observe
from embodied.cli.common import check_instruction, stdout_to_stderr
from embodied.types import Plan
from sims import scenes
from sims.seeds import FIRST_SEED


@dataclass(frozen=True)
class PlanOptions:
    """Plan a task, or every task of a file, without carrying it out.

    Args:
        task: what to do, in plain words.
        batch: plan every line of a JSONL file instead: {"instruction", "env"?, "seed"?}.
        env: the environment; the one that fits the words when not given.
        seed: which layout of the scene.
        model: folder of a trained model instead of the shipped one.
        device: auto, cpu, cuda or cuda:N: where the networks are; a GPU where there is one if auto.
        json: print one JSON object and nothing else; with --batch one a line.
    """

    task: Annotated[Positional[str | None], arg(metavar="TASK")] = None
    batch: Path | None = None
    env: str | None = None
    seed: int = FIRST_SEED["test"]
    model: Path | None = None
    device: str = "auto"
    json: bool = False


@dataclass(frozen=True)
class Request:
    """One thing asked for, in checked words; without an `env` the agent picks the scene."""

    instruction: str
    env: str | None
    seed: int

    def __post_init__(self) -> None:
        if self.env is not None:
            scenes.check_env_id(self.env)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"a seed is 0 to 2^32 - 1, got {self.seed}")


@dataclass(frozen=True)
class Scene:
    """The scene and its tasks that fit the words, or why none does."""

    env: str | None
    tasks: tuple[str, ...]
    refused: str | None
    latency_s: float


def choose_scene(agent: Any, instruction: str, env: str | None) -> Scene:
    """The environment asked for if it offers what the words say; without one, whichever does."""
    started = time.perf_counter()
    route = agent.route(instruction, env)
    latency_s = time.perf_counter() - started
    if env is None and route.refused is None:
        print(f"scene: {route.env_id} (probability {route.probability:.2f})", file=sys.stderr)
    env_id = None if route.refused else route.env_id
    return Scene(env_id, route.tasks, route.refused, latency_s)


def plan_fields(
    request: Request, env: str | None, plan: Plan | None, refused: str | None, latency_s: float
) -> dict[str, Any]:
    """The JSON object of a plan or a refusal."""
    offered = plan if plan is not None and plan.refused is None else None
    steps = () if offered is None else offered.subgoals
    return {
        "instruction": request.instruction,
        "env": env,
        "seed": request.seed,
        "tasks": [] if offered is None else list(offered.tasks),
        "thought": "" if offered is None else offered.thought,
        "steps": [{"verb": s.verb, "args": list(s.args), "text": s.text} for s in steps],
        "refused": refused,
        "latency_s": round(latency_s, 4),
    }


class Planning:
    """An agent and the environment it looks at, kept from request to request."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._env: Any = None

    def __call__(self, request: Request) -> dict[str, Any]:
        """The plan of one request as its JSON object."""
        scene = choose_scene(self._agent, request.instruction, request.env)
        if scene.env is None:
            return plan_fields(request, request.env, None, scene.refused, scene.latency_s)
        env = self._open(scene.env)
        observation = observe(env.reset(seed=request.seed)[0])
        started = time.perf_counter()
        plan = self._agent.planner.plan(
            observation, request.instruction, env.vocabulary, tasks=scene.tasks
        )
        latency_s = scene.latency_s + time.perf_counter() - started
        return plan_fields(request, scene.env, plan, plan.refused, latency_s)

    def _open(self, env_id: str) -> Any:
        if self._env is None or self._env.env_id != env_id:
            self.close()
            self._env = scenes.make(env_id)
        return self._env

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


def plan(options: PlanOptions) -> int:
    """Plan what is asked for. Returns the exit status."""
    if (options.task is None) == (options.batch is None):
        raise ValueError("give either a task in words or --batch FILE.jsonl")
    requests = list(_requests(options))
    from embodied import devices
    from embodied.cli.assemble import load_agent

    with stdout_to_stderr():
        planning = Planning(load_agent(options.model, device=devices.pick(options.device)))
    with closing(planning):
        for request in requests:
            with stdout_to_stderr():
                fields = planning(request)
            if options.json:
                print(json_format.dumps(fields, ensure_ascii=False), flush=True)
            elif fields["refused"] is None or options.batch is not None:
                print(_in_words(fields), flush=True)
            if options.batch is None and fields["refused"] is not None:
                raise RefusedTask(fields["refused"])
    return 0


def _requests(options: PlanOptions) -> Iterator[Request]:
    if options.task is not None:
        yield Request(check_instruction(options.task), options.env, options.seed)
        return
    assert options.batch is not None
    lines = options.batch.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _request(line, options)
            except ValueError as error:
                raise ValueError(f"{options.batch}, line {number}: {error}") from None


def _request(line: str, options: PlanOptions) -> Request:
    """Read one line of a batch file; what it leaves out is as the options say."""
    try:
        read = json_format.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(read, dict) or not isinstance(read.get("instruction"), str):
        raise ValueError('expected {"instruction": "…"} with "env" and "seed" if wanted')
    env, seed = read.get("env"), read.get("seed")
    env, seed = options.env if env is None else env, options.seed if seed is None else seed
    if not isinstance(env, str | None) or not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f'"env" is a name and "seed" a whole number, got {env!r} and {seed!r}')
    return Request(check_instruction(read["instruction"]), env, seed)


def _in_words(fields: dict[str, Any]) -> str:
    if fields["refused"] is not None:
        return f"{fields['instruction']}\n  refused: {fields['refused']}"
    steps = [f"  {i}. {step['text']}" for i, step in enumerate(fields["steps"], 1)]
    thought = [f"  {fields['thought']}"] if fields["thought"] else []
    return "\n".join([fields["instruction"], f"  {fields['env']}", *thought, *steps])
