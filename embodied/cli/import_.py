"""`embodied import`: what people demonstrated elsewhere, replayed, as a LeRobotDataset v3.0.

    file → demonstrations → replay without pictures: what was done when → replay with pictures
         → episodes, as `embodied record` writes them

`demonstrations.py` reads the file. What was decided:

*Replay.* D4RL's robot goes an action's way from where it **observed** its joints, so what it did
has the observations' noise in it: up to 0.01 rad (fingers: 0.01 m), 6 % of the largest step.
`--replay targets`, the default, sends each joint where D4RL's robot sent it: the executed action is
the file's plus what the noise added to it, and the file's own is recorded, as the clean label of a
disturbed action always is. The robot then stays within the noise of the file. `--replay actions`
executes the file's actions as they are; small errors add up, and some of the last tasks are missed.
Either is open-loop: nothing that happens to an object changes what is done.

*Tasks.* The plan and the instruction name the tasks that the replay completed, by FrankaKitchen's
rule, in the order in which it did, whatever the goal says: D4RL writes one goal over demonstrations
of other tasks. An episode that completed nothing has the goal's tasks and is a failure. Of more
than four tasks, which no sentence asks for, the first four are told.

*Sub-goals.* A person works on a task until its element is open by the strict rule, or, where they
leave it short of that, nearly as far as they ever bring it. (`KitchenTracker`, which knows the
strict rule only, would go back to a kettle that stands 5 cm short, for good.) What is met is told
by the same predicates as in every other recording.

*End.* An episode ends with the file's, but no more than 10 steps after the last task that it
completed: what comes then served a task that is not in the plan.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional, arg

from embodied.agent.rollout import Decision, run_episode
from embodied.cli.demonstrations import N_ROBOT, ORIGINS, Demonstration, read_demonstrations
from embodied.episodes import DatasetWriter
from embodied.model.plan import grounded_nouns, thought_text
from embodied.types import Episode, Observation, Plan, Vocabulary
from sims import kitchen_tasks, language, scenes

_SPEED = 2.0  # of an action of 1, rad/s and for the fingers m/s
_LINGER_STEPS = 10
_NEARLY = 0.95


@dataclass(frozen=True)
class ImportOptions:
    """Replay people's demonstrations in the simulator and record them.

    Args:
        file: the demonstrations.
        output_dir: where the data set goes; a new folder.
        format: what the file holds. relay-kitchen: .npz with obs, act and starts, or D4RL's .hdf5.
        image_size: pixels of the square pictures.
        render: whether to record pictures; without, states and actions only, which is quick.
        replay: targets: each joint goes where it was sent; actions: by the file's actions alone.
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    output_dir: Path
    format: Literal["relay-kitchen"] = "relay-kitchen"
    image_size: int = 224
    render: Literal["true", "false"] = "true"
    replay: Literal["targets", "actions"] = "targets"


# ---- the replay ---------------------------------------------------------------------------------


def completions(qpos: np.ndarray) -> dict[str, int]:
    """(T, 30) → task → the step at which FrankaKitchen first counts it, in that order.

    What is done at the start is left out.
    """
    from sims.kitchen_elements import ELEMENTS

    done = {name: [e.is_complete(q) for q in qpos] for name, e in ELEMENTS.items()}
    first = {name: hits.index(True) for name, hits in done.items() if any(hits) and not hits[0]}
    return dict(sorted(first.items(), key=lambda item: item[1]))


def task_ends(qpos: np.ndarray, tasks: Sequence[str]) -> list[int]:
    """(T, 30) → for each of `tasks`, one after the other, the step at which its work is over."""
    from sims.kitchen_elements import ELEMENTS, STRICT_TRAVEL

    ends = []
    for task in tasks:
        travel = np.array([ELEMENTS[task].travel(q) for q in qpos])
        far = travel >= min(STRICT_TRAVEL, _NEARLY * float(travel.max()))
        ends.append(int(far.argmax()))
    return np.maximum.accumulate(np.array(ends, int)).tolist()


class Stage:
    """The kitchen, found as the person found it, and by hindsight which task they are at.

    All that is not here is the environment's own.

    Args:
        env: the environment.
        start: (30,) joints of the first state.
        tasks: what is to be done, in order.
        ends: for each of them, the step at which its work is over; the environment says which one
            is being worked on when empty.
        with_pixels: whether labels have the places in the pictures.
    """

    def __init__(
        self,
        env: Any,
        start: np.ndarray,
        tasks: tuple[str, ...],
        ends: Sequence[int] = (),
        with_pixels: bool = True,
    ) -> None:
        self._env, self._start = env, start
        self._tasks, self._ends = tasks, ends
        self._with_pixels = with_pixels
        self.env_id = f"{scenes.KITCHEN}/{'+'.join(tasks)}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        from sims.kitchen_elements import KitchenTracker

        self._step = 0
        self._trackers = [KitchenTracker((task,)) for task in self._tasks]
        return self._env.reset(seed=seed, options={"qpos": self._start, "tasks": self._tasks})

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict]:
        self._step += 1
        return self._env.step(action)

    def labels(self) -> dict[str, Any]:
        """The environment's, with the sub-goal that the person is at."""
        labels = self._env.labels()
        if self._ends:
            labels["subgoal"] = self._subgoal()
        return labels if self._with_pixels else {**labels, "pixels": {}}

    def _subgoal(self) -> int:
        over = int(np.searchsorted(self._ends, self._step, side="right"))
        now = min(over, len(self._tasks) - 1)
        self._trackers[now].update(self._env.truth())
        before = sum(len(kitchen_tasks.SUBGOALS[task]) for task in self._tasks[:now])
        return before + self._trackers[now].index


class Person:
    """Acts as the person did, behind the loop's protocol.

    Args:
        env: the environment, for the thought's places.
        demo: what they did.
        n_steps: how much of it.
        reach: how far an action of 1 moves a joint's target, rad; None when the file's actions
            are executed as they are.
        told: what to keep beside the episode.
    """

    def __init__(
        self,
        env: Any,
        demo: Demonstration,
        n_steps: int,
        reach: float | None,
        told: Mapping[str, Any],
    ) -> None:
        self._env, self._demo, self._n_steps = env, demo, n_steps
        self._reach, self._told = reach, told

    def begin(self, observation: Observation, instruction: str, vocabulary: Vocabulary) -> Plan:
        self._step = 0
        wanted = vocabulary.narrowed(self._env.tasks)
        pixels = self._env.labels()["pixels"]
        places = {noun: pixels[noun][self._env.cameras[0]] for noun in grounded_nouns(wanted)}
        return Plan(instruction, thought_text(places), wanted.subgoals, wanted.tasks)

    def act(self, observation: Observation) -> Decision:
        step, self._step = self._step, self._step + 1
        if step == self._n_steps:
            return Decision(np.zeros(N_ROBOT, np.float32), stop=True)
        action = self._demo.actions[step]
        if self._reach is None:
            return Decision(action)
        away = self._demo.joints[step, :N_ROBOT] - observation.state
        return Decision(np.clip(action + away / self._reach, -1, 1), label=action)

    def report(self) -> dict[str, Any]:
        return dict(self._told)


@dataclass(frozen=True)
class Importer:
    """Demonstrations into episodes.

    Args:
        env: where they are recorded.
        blind: where it is found out what they do; the same, without pictures.
        reach: as for `Person`.
        told: what to keep beside every episode.
    """

    env: Any
    blind: Any
    reach: float | None
    told: Mapping[str, Any]

    @property
    def shows(self) -> bool:
        """Whether there are pictures."""
        return bool(self.env.observation_space["images"])

    def episode(self, demo: Demonstration) -> Episode:
        """The demonstration, replayed; its info says what was completed when."""
        qpos = self.rehearse(demo)
        done = completions(qpos)
        tasks = (tuple(done) or demo.goal)[: language.MAX_TASKS]
        ends = task_ends(qpos, tasks) if done else []
        length = len(demo.actions)
        n_steps = min(length, ends[-1] + _LINGER_STEPS) if ends else length
        told = {
            **self.told,
            "file_episode": demo.index,
            "goal": demo.goal,
            "completed": done,
            "completed_in_file": completions(demo.joints),
            "n_left_out": length - n_steps,
        }
        return run_episode(
            Stage(self.env, demo.joints[0], tasks, ends, self.shows),
            Person(self.env, demo, n_steps, self.reach, told),
            language.canonical(tasks),
            seed=demo.index,
            labelled=True,
            keep_images=True,
            linger_steps=length,
        )

    def rehearse(self, demo: Demonstration) -> np.ndarray:
        """(T + 1, 30): every state that the replay goes through."""
        seen: list[np.ndarray] = []
        length, first = len(demo.actions), demo.goal[:1]  # what is asked for changes nothing
        run_episode(
            Stage(self.blind, demo.joints[0], first),
            Person(self.blind, demo, length, self.reach, {}),
            language.canonical(first),
            seed=demo.index,
            linger_steps=length,
            before_step=lambda _: seen.append(self.blind.data.qpos.copy()),
        )
        return np.stack(seen)


# ---- the command --------------------------------------------------------------------------------


def import_(options: ImportOptions) -> int:
    """Import a file of demonstrations. Returns the exit status."""
    demos = read_demonstrations(options.file)
    out, size = options.output_dir, options.image_size
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"'{out}' exists: import into a new --output_dir")
    if size < 2 or size % 2:
        raise ValueError(f"--image_size is even and at least 2, got {size}")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with _open_importer(demos, options) as importer:
            done = _import_all(importer, demos, partial)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{out}: {_summary(done)}")
    return 0


@contextmanager
def _open_importer(demos: Sequence[Demonstration], options: ImportOptions) -> Iterator[Importer]:
    """The simulators, closed in the end."""
    horizon = 1 + max(len(demo.actions) for demo in demos)
    blind = scenes.make(scenes.KITCHEN, horizon=horizon, render=False)
    env = blind
    if options.render == "true":
        env = scenes.make(scenes.KITCHEN, horizon=horizon, image_size=options.image_size)
    source, licence = ORIGINS[options.file.suffix]
    sha256 = hashlib.sha256(options.file.read_bytes()).hexdigest()
    told = {
        "tag": f"human {sha256[:8]}",  # tells episodes of two files apart
        "source": source,
        "licence": licence,
        "file": options.file.name,
        "file_sha256": sha256,
        "replay": options.replay,
        "success_rule": env.success_rule,
    }
    reach = _SPEED / env.metadata["render_fps"] if options.replay == "targets" else None
    try:
        yield Importer(env, blind, reach, told)
    finally:
        env.close()
        blind.close()


def _open_writer(root: Path, importer: Importer) -> DatasetWriter:
    env, rate_hz = importer.env, importer.env.metadata["render_fps"]
    cameras = env.cameras if importer.shows else ()
    told = {key: value for key, value in importer.told.items() if key != "tag"}
    return DatasetWriter(
        root,
        fps=round(rate_hz),  # LeRobot knows whole ones only
        cameras=dict.fromkeys(cameras, (env.image_size, env.image_size)),
        state_names=env.state_names,
        action_names=env.action_names,
        robot_type=env.robot,
        extra={"render_flags": env.render_flags, "control_hz": rate_hz, **told},
    )


@dataclass(frozen=True)
class _Done:
    """What came of a demonstration: which of the goal's tasks, how many steps, and how it ended."""

    index: int
    n_goal: int
    n_completed: int
    n_steps: int
    outcome: str


def _import_all(importer: Importer, demos: Sequence[Demonstration], root: Path) -> list[_Done]:
    """Record every demonstration into `root`, and say what each completes."""
    done = []
    with _open_writer(root, importer) as writer:
        for demo in demos:
            episode = importer.episode(demo)
            writer.add(episode)
            print(_line(demo, episode), flush=True)
            n_completed = len(set(demo.goal) & set(episode.info["completed"]))
            counted = (demo.index, len(demo.goal), n_completed, len(episode.steps))
            done.append(_Done(*counted, episode.outcome))
    return done


def _line(demo: Demonstration, episode: Episode) -> str:
    """`episode 2: 3 of 4: microwave (step 43), …; in the file also slide cabinet (step 179)`."""

    def steps(done: Mapping[str, int]) -> str:
        return ", ".join(f"{task} (step {step})" for task, step in done.items())

    done, told = episode.info["completed"], episode.info["completed_in_file"]
    n_goal = len(set(demo.goal) & set(done))
    line = f"episode {demo.index}: {n_goal} of {len(demo.goal)}"
    line += f": {steps(done)}" if done else ", kept as a failure"
    if lost := {task: step for task, step in told.items() if task not in done}:
        line += f"; in the file also {steps(lost)}"
    if episode.info["n_left_out"]:
        line += f"; without the last {episode.info['n_left_out']} steps"
    if episode.outcome == "sim_fault":
        line += f"; the physics diverged at step {len(episode.steps)}"
    return line


def _summary(done: Sequence[_Done]) -> str:
    n_completed, n_goal = sum(d.n_completed for d in done), sum(d.n_goal for d in done)
    n_steps = sum(d.n_steps for d in done)
    text = f"{len(done)} episodes, {n_completed} of {n_goal} tasks, {n_steps} steps"
    if failed := [str(d.index) for d in done if d.outcome != "success"]:
        text += f"; {len(failed)} without success: {', '.join(failed)}"
    return text
