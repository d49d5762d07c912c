"""9. Perceive, plan, act, verify, replan: the agent. It holds no environment.

It sees images, robot state and words. Once per sub-goal the words go into the Embodied-former;
every few steps it looks, and the policy gives the next actions; the monitor says when to stop and
think.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from embodied.agent.agenda import Agenda
from embodied.agent.controller import Controller
from embodied.agent.memory import Memory
from embodied.agent.monitor import Look, Monitor, MonitorOptions
from embodied.agent.rollout import PICTURE_EVERY, Decision
from embodied.model.former import EmbodiedFormer
from embodied.model.motion import motion_text
from embodied.model.planner import Planner, stack_cameras
from embodied.model.routing import Route
from embodied.types import Observation, Plan, Policy, Subgoal, Verdict, Vocabulary

Ablation = Literal["none", "plan_zeroed", "plan_shuffled", "blind", "no_loop"]
ABLATIONS: tuple[Ablation, ...] = ("none", "plan_zeroed", "plan_shuffled", "blind", "no_loop")


@dataclass(frozen=True)
class Motor:
    """What moves one robot, and how.

    Args:
        former: the Embodied-former that the policy was trained with; the planner's own if shared.
        policy: features → action chunks.
        execute: actions of a chunk that are carried out before the next look.
        retreat: what the robot does to let go before it tries again, (A,) in its own units.
        retreat_steps: how long.
        monitor: see `MonitorOptions`.
        train_seeds: layout seeds that the policy was trained on, for the record beside a result.
    """

    former: EmbodiedFormer
    policy: Policy
    execute: int = 4
    retreat: tuple[float, ...] = ()
    retreat_steps: int = 10
    monitor: MonitorOptions = field(default_factory=MonitorOptions)
    train_seeds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("execute", "retreat_steps"):
            steps = getattr(self, name)
            if steps % PICTURE_EVERY:
                raise ValueError(f"{name} is a multiple of {PICTURE_EVERY} steps, got {steps}")

    @property
    def letting_go(self) -> list[np.ndarray]:
        """The actions, each (A,), by which the robot lets go; none where it has none."""
        action = np.array(self.retreat, np.float32)
        return [action] * self.retreat_steps if len(action) else []


@dataclass(frozen=True)
class AgentOptions:
    """What is taken away from the agent to see what it was worth.

    Args:
        ablate: "plan_zeroed": the former gets no
            words. "plan_shuffled": it gets another task's sub-goals. "blind": black pictures.
            "no_loop": the done head alone moves the plan on; nothing is judged or tried again.
        shuffled: for "plan_shuffled": task → the sub-goals that stand in for its own.
    """

    ablate: Ablation = "none"
    shuffled: dict[str, tuple[Subgoal, ...]] = field(default_factory=dict)


class Agent:
    """Acts on an instruction in one environment after the other; an `Actor` of the loop.

    Args:
        planner: plans and judges.
        motors: simulator, as environment ids name it before any "/" → what moves its robot.
        catalogue: environment id → what it offers: all that the agent may be asked for. An
            instruction is refused unless the scene at hand offers it.
        options: see `AgentOptions`.
    """

    def __init__(
        self,
        planner: Planner,
        motors: Mapping[str, Motor],
        catalogue: Mapping[str, Vocabulary],
        options: AgentOptions | None = None,
    ) -> None:
        self.planner = planner
        self.options = options or AgentOptions()
        self.motors = motors
        self._controllers = {
            name: Controller(planner, motor.former, motor.policy, motor.execute)
            for name, motor in motors.items()
        }
        self.catalogue = catalogue
        self._routes: dict[tuple[str, str | None], Route] = {}

    # --------------------------------------------------------------------------- the protocol

    def begin(self, observation: Observation, instruction: str, vocabulary: Vocabulary) -> Plan:
        """Forget the last episode, and plan this one. The plan says so when it is refused."""
        self._instruction, self._vocabulary = instruction, vocabulary
        self._memory = Memory()
        self._verdicts: list[dict[str, Any]] = []
        self._latency: dict[str, list[float]] = {"plan": [], "judge": []}
        span = (self.planner.config.n_frames - 1) * self.planner.config.clip_stride + 1
        self._seen: deque[Observation] = deque(maxlen=span)
        self._n_steps = 0
        self._plans: list[Plan] = []
        self._judged: tuple[int, dict[Subgoal, Verdict]] = (-1, {})  # at which step, and how
        env_ids = [e for e, offered in self.catalogue.items() if offered.tasks == vocabulary.tasks]
        if not env_ids:
            raise ValueError(f"no environment of the catalogue offers {list(vocabulary.tasks)}")
        robot = env_ids[0].partition("/")[0]
        self._motor, self._controller = self.motors[robot], self._controllers[robot]
        self._monitor = Monitor(self._motor.monitor)
        is_watched = self.options.ablate != "no_loop"
        self._agenda = Agenda(vocabulary, self._motor.monitor, self._judge, is_watched)
        route = self.route(instruction, env_ids[0])
        self._tasks = route.tasks
        if route.refused is not None:
            return Plan(instruction, "", (), refused=route.refused)
        observation = self._perceive(observation)
        self._seen.append(observation)
        return self._plan(observation)

    def route(self, instruction: str, env_id: str | None = None) -> Route:
        """What is asked for, and where: in the scene at hand or, without `env_id`, in any.

        Answers are remembered between episodes.

        Raises:
            ValueError: the agent was not trained for that scene.
        """
        if env_id is not None and env_id not in self.catalogue:
            families = ", ".join(dict.fromkeys(e.partition("/")[0] for e in self.catalogue))
            raise ValueError(f"these weights know nothing of {env_id}; they act in {families}")
        key = (instruction, env_id)
        if key not in self._routes:
            self._routes[key] = self.planner.route(instruction, self.catalogue, env_id)
        return self._routes[key]

    def act(self, observation: Observation) -> Decision:
        """The next action. Raises ValueError when the policy gives NaN."""
        observation = self._perceive(observation)
        if self._n_steps:  # the first one was seen when the plan was made
            self._seen.append(observation)
        command = self._controller.act(observation)
        look = self._monitor.watch(observation.state, command.done_probability)
        is_fresh = self._n_steps % PICTURE_EVERY == 0
        if look is not None and is_fresh and self._consider(look, observation):
            command = self._controller.act(observation)
        self._n_steps += 1
        return Decision(command.action, subgoal=self._recorded_index())

    def report(self) -> dict[str, Any]:
        """What happened in this episode besides its steps."""
        return {
            "n_replans": self._monitor.n_replans,
            "n_retries": self._monitor.n_retries,
            "n_put_off": self._agenda.n_put_off,
            "n_repeats": self._agenda.n_repeats,
            "verdicts": self._verdicts,
            "plans": [plan.text for plan in self._plans],
            "seen_done": [task for task in self._tasks if task in self._agenda.done_at_first],
            "latency_s": {k: float(np.mean(v)) if v else 0.0 for k, v in self._latency.items()},
        }

    def caption(self) -> list[str]:
        """What to write beside the picture now."""
        plan = self._plans[-1]
        steps = [
            f"{'>' if i == self._index else ' '} {i + 1}. {s.text}"
            for i, s in enumerate(plan.subgoals)
        ]
        told = [f"{v['subgoal']}: {v['status']} ({v['reason']})" for v in self._verdicts[-3:]]
        return [self._instruction, *filter(None, [plan.thought]), *steps, *told]

    # ------------------------------------------------------------------------------- planning

    def _perceive(self, observation: Observation) -> Observation:
        if self.options.ablate != "blind":
            return observation
        black = {name: np.zeros_like(image) for name, image in observation.images.items()}
        return Observation(black, observation.state)

    def _plan(self, observation: Observation, first: Sequence[np.ndarray] = ()) -> Plan:
        started = time.perf_counter()
        plan = self.planner.plan(
            observation,
            self._instruction,
            self._vocabulary,
            self._memory.experience,
            self._tasks,
        )
        self._latency["plan"].append(time.perf_counter() - started)
        self._plans.append(plan)
        self._agenda.follow(plan.subgoals)
        if self._n_steps == 0:
            self._agenda.look_first()
        self._begin_subgoal(self._agenda.first_open(0) or 0, first)
        return plan

    def _begin_subgoal(self, index: int, first: Sequence[np.ndarray] = ()) -> None:
        """Turn to a sub-goal of the current plan, with some actions to carry out first."""
        self._index = index
        self._agenda.turn_to(index)
        self._controller.begin(self._words(), first)
        self._monitor.begin_subgoal()

    def _words(self) -> Subgoal | None:
        """The sub-goal that the former is told, which an ablation may take away or mix up."""
        match self.options.ablate:
            case "plan_zeroed":
                return None
            case "plan_shuffled":
                first, _ = self._agenda.span(self._index)
                owner = self._vocabulary.owner(self._plans[-1].subgoals[first])
                others = self.options.shuffled[owner]
                return others[min(self._index - first, len(others) - 1)]
            case _:
                return self._plans[-1].subgoals[self._index]

    def _recorded_index(self) -> int:
        """The sub-goal's place in the episode's first plan, which is the one that is recorded."""
        return min(self._index, len(self._plans[0].subgoals) - 1)

    # ------------------------------------------------------------------------------ verifying

    def _consider(self, look: Look, observation: Observation) -> bool:
        """Judge the sub-goal and react. Returns whether another sub-goal was begun."""
        subgoal = self._plans[-1].subgoals[self._index]
        if self.options.ablate == "no_loop":
            if look == "stalled":
                return False
            verdict = Verdict("done", "not judged", 1.0)
        else:
            verdict = self._judge(subgoal)
        first, last = self._agenda.span(self._index)
        reaction = self._monitor.react(look, subgoal, verdict, ends_task=self._index == last)
        if reaction == "next":
            found = self._agenda.after(self._index)
            goes_back = found is not None and found <= self._index
            return self._turn_to(found, self._motor.letting_go if goes_back else ())
        if reaction == "go on":
            return False
        self._memory.learn(subgoal, verdict)
        if self._turn_to(self._agenda.instead(self._index), self._motor.letting_go):
            self._monitor.forget_failures()
        elif reaction == "replan":
            self._plan(observation, self._motor.letting_go)
        else:
            self._begin_subgoal(first, self._motor.letting_go)
        return True

    def _turn_to(self, index: int | None, first: Sequence[np.ndarray] = ()) -> bool:
        """Turn to a sub-goal, if to any. Returns whether it was."""
        if index is None:
            return False
        self._begin_subgoal(index, first)
        return True

    def _judge(self, subgoal: Subgoal) -> Verdict:
        """What the last frames show of `subgoal`; asked once a step."""
        if self._judged[0] != self._n_steps:
            self._judged = (self._n_steps, {})
        known = self._judged[1]
        if subgoal not in known:
            known[subgoal] = self._ask(subgoal)
        return known[subgoal]

    def _ask(self, subgoal: Subgoal) -> Verdict:
        started = time.perf_counter()
        verdict = self.planner.judge(self._clip(), subgoal, self._motion())
        self._latency["judge"].append(time.perf_counter() - started)
        self._verdicts.append(
            {
                "step": self._n_steps,
                "subgoal": subgoal.text,
                "status": verdict.status,
                "reason": verdict.reason,
                "probability": round(verdict.probability, 4),
            }
        )
        return verdict

    def _motion(self) -> str:
        """How the robot moved while the clip was seen; unknown before it was seen whole."""
        if len(self._seen) < (self._seen.maxlen or 0):
            return ""
        return motion_text(np.stack([seen.state for seen in self._seen]))

    def _clip(self) -> np.ndarray:
        """The last frames, uint8 (cameras, T, H, W, 3); the earliest repeats when few were seen."""
        config = self.planner.config
        seen = list(self._seen)
        back = range((config.n_frames - 1) * config.clip_stride, -1, -config.clip_stride)
        frames = [seen[max(0, len(seen) - 1 - k)] for k in back]
        return stack_cameras(frames, config.cameras)[0]
