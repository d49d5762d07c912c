"""`embodied record`: the scripted expert's episodes as a LeRobotDataset v3.0."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from embodied import engines
from embodied.agent.rollout import Decision, run_episode
from embodied.engines import Engine
from embodied.episodes import DatasetError, DatasetReader, DatasetWriter, merge
from embodied.model.plan import grounded_nouns, thought_text
from embodied.types import Episode, Observation, Plan, Vocabulary
from embodied.video import replacing
from sims import experts
from sims.experts import Fault

_LINGER_STEPS = 10
_STOP_STEPS = 28
_FAULT_STEPS = (10, 60)
_STRETCH_STEPS = 20
_LATE, _LATE_STEPS = 0.5, 24
_PATIENCE_STEPS = (50, 110)


@dataclass(frozen=True)
class RecordOptions:
    """What to record.

    Args:
        env: environment ids, comma-separated, or a set: mt10, mt50, mw5, kitchen, fk5; kitchen/N
            for N tasks that the layout's seed draws.
        n_episodes: episodes per environment.
        output_dir: where the data set goes; what is there already is kept and completed.
        seed: first layout seed, counted from the start of the family.
        family: which family of layouts.
        noise: chance per step that a random push of the hand begins (recovery data).
        fault_fraction: share of the episodes in which something goes wrong, for verdicts.
        image_size: pixels of the square pictures.
        cameras: names, comma-separated; the environment's own when not given.
        horizon: control steps an episode at most; the environment's own when not given.
        level: the kitchen's: 1, elements that are not asked for may be open; 2, those too.
        workers: processes; the machine's cores when 0.
        engine: what starts them: this machine, or Ray where it is installed. Ray joins the cluster
            that RAY_ADDRESS names, or starts on this machine.
        model: the planner beside `policy`; the shipped one when not given.
        policy: one that acts while the expert labels what it would have done (DAgger, arXiv
            1011.0686); the expert itself acts when not given.
        beta: with a policy, the share of stretches of 20 steps in which the expert acts after all,
            so that later parts of the task are seen too.
        device: of the policy: auto, cpu, cuda or cuda:N; a GPU where there is one if auto.
    """

    env: str
    n_episodes: int
    output_dir: Path
    seed: int = 0
    family: Literal["train", "select", "test"] = "train"
    noise: float = 0.0
    fault_fraction: float = 0.0
    image_size: int = 224
    cameras: str = ""
    horizon: int | None = None
    level: int = 0
    workers: int = 0
    engine: Engine = "process"
    model: Path | None = None
    policy: Path | None = None
    beta: float = 0.0
    device: str = "auto"


class ExpertActor:
    """The scripted expert behind the loop's protocol."""

    recovers = True

    def __init__(self, env: Any, seed: int, options: RecordOptions) -> None:
        self._env, self._options = env, options
        self._rng = np.random.default_rng([seed, zlib.crc32(env.env_id.encode())])
        self.tag: Fault = "none"

    def _draw_fault(self) -> Fault:
        if self._rng.random() >= self._options.fault_fraction:
            return "none"
        possible = experts.faults(self._env)
        return possible[int(self._rng.integers(len(possible)))]

    def _draw_fault_step(self) -> int:
        first, last = _FAULT_STEPS
        return int(self._rng.integers(first, last * len(self._env.tasks)))

    def begin(self, observation: Observation, instruction: str, vocabulary: Vocabulary) -> Plan:
        self._step = 0
        self.tag = self._draw_fault()
        self._expert = experts.demonstrator(
            self._env,
            self._rng,
            burst_rate=self._options.noise,
            fault=self.tag,
            fault_step=self._draw_fault_step(),
            recover=self.recovers,
        )
        pixels = self._env.labels()["pixels"]
        camera = self._env.cameras[0]
        wanted = vocabulary.narrowed(self._env.tasks)
        places = {noun: pixels[noun][camera] for noun in grounded_nouns(wanted)}
        return Plan(instruction, thought_text(places), wanted.subgoals, wanted.tasks)

    def disturb(self, step: int) -> None:
        """Change the scene when this episode's fault says so."""
        self._expert.disturb(step)

    def act(self, observation: Observation) -> Decision:
        label, executed = self._expert.act()
        self._step += 1
        halted = self._expert.happened in ("stopped", "missed")
        over = halted and self._step > self._expert.fault_step + 2 * _STOP_STEPS
        return Decision(executed, label=label, stop=over)

    def report(self) -> dict[str, Any]:
        expert = self._expert
        told = {"fault_task": expert.fault_task} if expert.fault_task else {}
        return {"tag": expert.happened, "fault_step": expert.fault_step, **told}


class CorrectedActor(ExpertActor):
    """A trained policy acts, told the true sub-goal; the expert labels every step.

    As with the agent, the next sub-goal may begin late, and one that takes long is begun again
    after letting go.
    """

    recovers = False

    def _draw_fault(self) -> Fault:
        return "none"

    def __init__(self, env: Any, seed: int, options: RecordOptions) -> None:
        super().__init__(env, seed, options)
        self._controller, self._retreat = _load_controller(options)

    def begin(self, observation: Observation, instruction: str, vocabulary: Vocabulary) -> Plan:
        plan = super().begin(observation, instruction, vocabulary)
        self._subgoals, self._is_guided = plan.subgoals, False
        self._turn_to(self._env.tracker.index)
        return plan

    def act(self, observation: Observation) -> Decision:
        self._turn()
        executed = self._controller.act(observation).action
        label, _ = self._expert.act()
        if self._step % _STRETCH_STEPS == 0:
            self._is_guided = self._rng.random() < self._options.beta
        self._step += 1
        return Decision(label if self._is_guided else np.clip(executed, -1, 1), label=label)

    def _turn(self) -> None:
        """To the true sub-goal once its time has come, or to the same again."""
        self._left -= 1
        if self._env.tracker.index == self._index:
            self._late = 0
            if self._left == 0:
                self._turn_to(self._index, self._retreat)
        elif self._late == 0 and self._rng.random() < _LATE:
            self._late = int(self._rng.integers(2, _LATE_STEPS))
        elif self._late <= 1:
            self._turn_to(self._env.tracker.index)
        else:
            self._late -= 1

    def _turn_to(self, index: int, first: Sequence[np.ndarray] = ()) -> None:
        self._index, self._late = index, 0
        self._left: int = int(self._rng.integers(*_PATIENCE_STEPS))
        self._controller.begin(self._subgoals[index], first)

    def report(self) -> dict[str, Any]:
        return {**super().report(), "acted": str(self._options.policy)}


@cache
def _load_controller(options: RecordOptions) -> tuple[Any, list[np.ndarray]]:
    """What turns sub-goals into actions, and the actions by which the robot lets go."""
    import torch

    from embodied import devices
    from embodied.agent.controller import Controller
    from embodied.cli.assemble import SHIPPED, load_policy, make_motor
    from embodied.model.planner import Planner

    assert options.policy is not None
    torch.set_num_threads(1)
    planner = Planner.load(
        options.model or SHIPPED / "planner", device=devices.pick(options.device)
    )
    policy, former, config = load_policy(options.policy, planner)
    motor = make_motor(policy, former, config)
    return Controller(planner, former, policy, motor.execute), motor.letting_go


_env: Any = None  # a worker's environment, kept between its episodes of one task


def _make(env_id: str, options: RecordOptions) -> Any:
    global _env
    from sims import scenes

    if _env is None or _env.env_id != env_id:
        if _env is not None:
            _env.close()
        # the kitchen's own rule counts a cabinet that is a fifth open; demonstrations go on
        in_kitchen = scenes.family(env_id) == scenes.KITCHEN
        more = {"rule": "strict", "level": options.level} if in_kitchen else {}
        names = tuple(name.strip() for name in options.cameras.split(",") if name.strip())
        _env = scenes.make(
            env_id,
            image_size=options.image_size,
            cameras=names or scenes.cameras(env_id),
            horizon=options.horizon,
            **more,
        )
    return _env


def record_episode(env_id: str, seed: int, options: RecordOptions) -> Episode:
    """One expert episode on one layout, with labels and pictures."""
    from sims import language

    env = _make(env_id, options)
    kind = ExpertActor if options.policy is None else CorrectedActor
    actor = kind(env, seed, options)
    instruction = language.ask(np.random.default_rng([seed, 2]), env.tasks_of(seed))
    return run_episode(
        env,
        actor,
        instruction,
        seed=seed,
        labelled=True,
        keep_images=True,
        linger_steps=_LINGER_STEPS,
        before_step=actor.disturb,
    )


def _open_writer(part: Path, env_id: str, options: RecordOptions) -> DatasetWriter:
    if part.exists():
        return DatasetWriter.resume(part)
    env = _make(env_id, options)
    size = (options.image_size, options.image_size)
    return DatasetWriter(
        part,
        fps=round(env.metadata["render_fps"]),  # the format stores whole ones
        cameras=dict.fromkeys(env.cameras, size),
        state_names=env.state_names,
        action_names=env.action_names,
        robot_type=env.robot,
        extra={
            "control_hz": env.metadata["render_fps"],
            "render_flags": env.render_flags,
            "horizon": env.horizon,
        },
    )


Share = tuple[Path, list[tuple[str, int]]]  # where to, and the (environment id, seed) to record


class PartRecorder:
    """Records shares of the episodes, each into a data set of its own."""

    def __init__(self, options: RecordOptions) -> None:
        self._options = options

    def work(self, share: Share) -> Iterator[int]:
        """Record what is missing of a share; 1 after each episode that is there."""
        part, jobs = share
        with _open_writer(part, jobs[0][0], self._options) as writer:
            recorded = {(env_id, seed) for env_id, seed, _ in writer.recorded}
            for env_id, seed in jobs:
                if (env_id, seed) not in recorded:
                    writer.add(record_episode(env_id, seed, self._options))
                yield 1

    def close(self) -> None:
        global _env
        if _env is not None:
            _env.close()
            _env = None


def record(options: RecordOptions) -> int:
    """Record, resume, or find that everything is there. Returns the exit status."""
    from sims import scenes, seeds

    engines.check(options.engine)
    env_ids = scenes.resolve_env_ids(options.env)
    wanted = seeds.seeds(options.family, options.n_episodes, options.seed)
    jobs = [(env_id, seed) for env_id in env_ids for seed in wanted]
    out = options.output_dir
    if out.exists():
        reader = DatasetReader(out)
        missing = set(jobs) - {(e.env_id, e.seed) for e in reader.episodes}
        if missing:
            raise DatasetError(
                f"{out} is finished and lacks {len(missing)} of the episodes asked for: "
                "record them into another --output_dir and merge, or delete it"
            )
        print(f"{out} holds all {len(jobs)} episodes already", file=sys.stderr)
        return 0
    parts_root = out.with_name(out.name + ".parts")
    _check_same_jobs(parts_root, jobs)
    begun = sum(part.is_dir() for part in parts_root.iterdir())
    n_workers = begun or options.workers or os.cpu_count() or 1  # a resumed run keeps its shares
    parts = [parts_root / f"{k:02d}" for k in range(n_workers)]
    _run_workers(parts, jobs, options)
    merge([part for part in parts if part.exists()], out)
    shutil.rmtree(parts_root)
    reader = DatasetReader(out)
    n_steps = sum(episode.length for episode in reader.episodes)
    n_good = sum(episode.success for episode in reader.episodes)
    print(f"{out}: {len(reader)} episodes, {n_good} successes, {n_steps} steps", file=sys.stderr)
    return 0


def _check_same_jobs(parts_root: Path, jobs: list[tuple[str, int]]) -> None:
    """Note what a recording is of; raises DatasetError when one of something else was begun."""
    noted = parts_root / "jobs.json"
    wanted = json.dumps(jobs)
    if noted.is_file() and noted.read_text() != wanted:
        raise DatasetError(
            f"{parts_root} was begun with other --env, --n_episodes, --seed or --family: go on"
            " with those, or delete it"
        )
    with replacing(noted) as new:
        new.write_text(wanted)


def _run_workers(parts: list[Path], jobs: list[tuple[str, int]], options: RecordOptions) -> None:
    """Which part an episode goes to is fixed, so that the data set has the same order again."""
    shares = [(part, jobs[k :: len(parts)]) for k, part in enumerate(parts)]
    shares = [share for share in shares if share[1]]
    make, on_gpus = partial(PartRecorder, options), options.policy is not None
    results = engines.run(options.engine, make, shares, len(shares), on_gpus)
    with tqdm(total=len(jobs), unit="episode", desc="record") as bar, closing(results):
        for finished in results:
            bar.update(finished)
