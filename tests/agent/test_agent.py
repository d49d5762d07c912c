"""The agent's loop with a planner and a policy that say what the test wants them to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embodied.agent.agent import Ablation, Agent, AgentOptions, Motor
from embodied.agent.memory import lesson
from embodied.config import preset
from embodied.model.former import EmbodiedFormer, TextState
from embodied.model.plan import REASONS
from embodied.model.planner import CONTROL_TEXT
from embodied.model.routing import Route
from embodied.types import Fed, Observation, Plan, Status, Subgoal, Verdict, Vocabulary

CONFIG = preset("tiny")
REACH, PULL = Subgoal("reach", ("drawer handle",)), Subgoal("pull", ("drawer handle",))
VOCABULARY = Vocabulary(("drawer-open",), (REACH, PULL))
CATALOGUE = {"metaworld/drawer-open-v3": VOCABULARY}
RETREAT = (0.0, 0.0, 0.5, -1.0)
CLAIMS, SILENT = 5.0, -5.0


class FakePlanner:
    """Plans the vocabulary's sub-goals; verdicts come from a list, the last one again and again."""

    config = CONFIG

    def __init__(self, verdicts: Sequence[Status] = ("progressing",), refused: str | None = None):
        self._verdicts, self._refused = list(verdicts), refused
        self.routed: list[str] = []
        self.experiences: list[str] = []
        self.judged: list[tuple[np.ndarray, Subgoal]] = []
        self.motions: list[str] = []
        self.seen: list[np.ndarray] = []
        self.texts: list[str] = []

    def route(self, instruction: str, catalogue: Any, env_id: str | None = None) -> Route:
        self.routed.append(instruction)
        return Route(env_id, ("drawer-open",), self._refused, ("drawer-open",), 0.9)

    def plan(
        self,
        observation: Observation,
        instruction: str,
        vocabulary: Vocabulary,
        experience: str,
        tasks: Sequence[str] = (),
    ) -> Plan:
        self.seen.append(observation.images["workspace"])
        self.experiences.append(experience)
        offered = vocabulary.narrowed(tasks)
        return Plan(instruction, "Thought: here.", offered.subgoals, offered.tasks)

    def judge(self, clip: np.ndarray, subgoal: Subgoal, motion: str) -> Verdict:
        self.judged.append((clip, subgoal))
        self.motions.append(motion)
        status = self._verdicts.pop(0) if len(self._verdicts) > 1 else self._verdicts[0]
        return Verdict(status, REASONS[status][0], 0.8)

    def see(self, frames: np.ndarray) -> Tensor:
        self.seen.append(frames)
        bright = torch.from_numpy(frames).float().mean((3, 4, 5))[..., None, None] / 255
        return bright * torch.ones(1, 1, 1, 16, 192)

    def embed_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.texts += texts
        words = torch.zeros(len(texts), 48, 64)
        for row, text in enumerate(texts):
            for place, letter in enumerate(text.encode()):
                words[row, place, letter % 64] = 1.0
        return words, words.any(2)


class FakePolicy:
    """Says where it is in its own count of actions; claims what it is told to."""

    horizon = 8
    fed = Fed()
    ensemble = None

    def __init__(self, done: float = SILENT, bad: float | None = None) -> None:
        self.done, self.bad = done, bad
        self.instances: list[Tensor] = []

    def act(
        self, z_instance: Tensor, z_global: Tensor, state: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        self.instances.append(z_instance.clone())
        actions = torch.zeros(1, self.horizon, 4)
        actions[0, :, 0] = len(self.instances) + torch.arange(self.horizon) / 10
        if self.bad is not None:
            actions[0, 2, 1] = self.bad
        return actions, torch.tensor([self.done])


class CountingFormer(EmbodiedFormer):
    """The tiny former, which remembers the texts that it was given."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(CONFIG.former)
        self.given: list[tuple[Tensor, Tensor]] = []

    def encode_text(self, embedded: Tensor, mask: Tensor) -> TextState:
        self.given.append((embedded.clone(), mask.clone()))
        return super().encode_text(embedded, mask)


class Setting:
    """An agent, its parts, and a robot that moves unless it is told to stand still."""

    def __init__(
        self,
        verdicts: Sequence[Status] = ("progressing",),
        done: float = SILENT,
        ablate: Ablation = "none",
        refused: str | None = None,
        **options: Any,
    ) -> None:
        self.planner, self.policy = FakePlanner(verdicts, refused), FakePolicy(done)
        self.former = CountingFormer().eval()
        shuffled = {"shuffled": options.pop("shuffled")} if "shuffled" in options else {}
        motor = Motor(self.former, self.policy, retreat=RETREAT, retreat_steps=6, **options)
        planner: Any = self.planner
        settings = AgentOptions(ablate, **shuffled)
        self.agent = Agent(planner, {"metaworld": motor}, CATALOGUE, settings)
        self.n_steps = 0
        self.still = False

    def observation(self) -> Observation:
        """Pictures whose brightness is the step's number."""
        picture = np.full((8, 8, 3), self.n_steps % 256, np.uint8)
        state = np.full(4, 0.0 if self.still else 0.1 * self.n_steps, np.float32)
        return Observation({"workspace": picture, "wrist": picture}, state)

    def begin(self) -> Plan:
        self.n_steps = 0
        return self.agent.begin(self.observation(), "open the drawer", VOCABULARY)

    def steps(self, n: int) -> list[tuple[np.ndarray, int]]:
        taken = []
        for _ in range(n):
            decision = self.agent.act(self.observation())
            assert decision.action.dtype == np.float32 and np.isfinite(decision.action).all()
            taken.append((decision.action, decision.subgoal))
            self.n_steps += 1
        return taken

    def until_judged(self, n: int = 1, most: int = 200) -> list[tuple[np.ndarray, int]]:
        """Act until `n` verdicts were given in all."""
        taken = []
        while len(self.planner.judged) < n:
            assert len(taken) < most
            taken += self.steps(1)
        return taken


# --- acting ----------------------------------------------------------------------------------


def test_it_looks_again_after_every_few_actions_of_a_chunk() -> None:
    setting = Setting(execute=2)
    setting.begin()
    firsts = [round(float(action[0]), 1) for action, _ in setting.steps(5)]
    assert firsts == [1.0, 1.1, 2.0, 2.1, 3.0]
    assert all(index == 0 for _, index in setting.steps(20))


@pytest.mark.parametrize("odd", [{"execute": 3}, {"retreat_steps": 5}])
def test_it_would_look_when_no_picture_is_drawn(odd: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="multiple of 2 steps"):
        Motor(CountingFormer(), FakePolicy(SILENT), **odd)


def test_the_policys_features_come_from_the_newest_picture() -> None:
    setting = Setting()
    setting.begin()
    setting.steps(9)
    frames = [f for f in setting.planner.seen if f.ndim == 6]
    assert [int(f[0, 0, 0, 0, 0, 0]) for f in frames] == [0, 4, 8]
    assert {f.shape for f in frames} == {(1, 2, 1, 8, 8, 3)}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_action_never_leaves_the_agent(bad: float) -> None:
    setting = Setting()
    setting.begin()
    setting.steps(4)
    setting.policy.bad = bad
    with pytest.raises(ValueError, match="an action chunk must be finite"):
        setting.steps(1)


# --- the loop --------------------------------------------------------------------------------


def test_it_advances_when_the_claim_is_confirmed() -> None:
    setting = Setting(verdicts=["done", "progressing"], done=CLAIMS)
    setting.begin()
    taken = setting.until_judged()
    assert [subgoal for _, subgoal in setting.planner.judged] == [REACH]
    assert [index for _, index in taken] == [0] * (len(taken) - 1) + [1]
    fresh = float(taken[-1][0][0])
    assert fresh == int(fresh)  # the first action of a new chunk: old ones are not carried on
    setting.until_judged(2)
    assert setting.planner.judged[-1][1] == PULL
    report = setting.agent.report()
    assert [v["status"] for v in report["verdicts"]] == ["done", "progressing"]
    assert (report["n_replans"], report["n_retries"]) == (0, 0)


def test_a_claim_that_is_not_confirmed_changes_nothing() -> None:
    setting = Setting(verdicts=["progressing"], done=CLAIMS)
    setting.begin()
    taken = setting.until_judged(4)
    assert {index for _, index in taken} == {0} and len(setting.planner.experiences) == 1


def test_the_judge_is_told_how_the_robot_moved_once_a_whole_clip_was_seen() -> None:
    setting = Setting(verdicts=["progressing"], done=CLAIMS)
    setting.begin()
    setting.until_judged(4)
    span = (CONFIG.n_frames - 1) * CONFIG.clip_stride + 1
    steps = [verdict["step"] for verdict in setting.agent.report()["verdicts"]]
    assert min(steps) < span - 1 <= max(steps)
    told = zip(steps, setting.planner.motions, strict=True)
    assert all((motion == "") == (step < span - 1) for step, motion in told)
    assert set(setting.planner.motions) <= {"", "stands still", "hardly moves", "moves"}


def test_the_last_sub_goal_is_pursued_to_the_end() -> None:
    setting = Setting(verdicts=["done"], done=CLAIMS)
    setting.begin()
    assert [index for _, index in setting.until_judged(5)][-10:] == [1] * 10


def test_it_lets_go_and_tries_again_after_a_failure() -> None:
    setting = Setting(verdicts=["done", "failed", "progressing"], done=CLAIMS)
    setting.begin()
    taken = setting.until_judged(2)
    retreat = [taken[-1], *setting.steps(5)]
    assert all(action.tolist() == list(RETREAT) for action, _ in retreat)
    assert [index for _, index in retreat] == [0] * 6  # from the first sub-goal on
    assert setting.steps(1)[0][0].tolist() != list(RETREAT)
    report = setting.agent.report()
    assert (report["n_retries"], report["n_replans"]) == (1, 0)
    assert len(setting.planner.experiences) == 1


def test_it_plans_anew_with_what_it_learnt() -> None:
    setting = Setting(verdicts=["failed", "failed", "progressing"], done=CLAIMS)
    setting.begin()
    setting.until_judged(2)
    learnt = lesson(REACH, REASONS["failed"][0])
    assert setting.planner.experiences == ["", f"{learnt} {learnt}"]
    report = setting.agent.report()
    assert (report["n_retries"], report["n_replans"], len(report["plans"])) == (1, 1, 2)
    setting.begin()
    assert setting.planner.experiences[-1] == ""  # another episode knows nothing of it
    assert setting.agent.report()["n_replans"] == 0


def test_a_standstill_is_looked_at_and_ended() -> None:
    setting = Setting(verdicts=["progressing"])
    setting.still = True
    setting.begin()
    setting.until_judged(2)
    assert setting.agent.report()["n_retries"] == 1
    setting.until_judged(4)
    assert setting.planner.experiences[-1].endswith("failed: nothing moves.")


def test_budgets_end_the_replanning_but_not_the_episode() -> None:
    setting = Setting(verdicts=["failed"], done=CLAIMS)
    setting.begin()
    setting.steps(600)
    report = setting.agent.report()
    assert (report["n_replans"], len(setting.planner.experiences)) == (3, 4)


def test_the_words_go_into_the_former_once_per_sub_goal() -> None:
    setting = Setting(verdicts=["progressing"])
    setting.begin()
    setting.steps(40)
    assert len(setting.former.given) == 1
    setting = Setting(verdicts=["done", "failed", "failed", "progressing"], done=CLAIMS)
    setting.begin()
    for judged, encoded in ((1, 2), (2, 3), (3, 4)):  # next; retry; plan anew or retry
        setting.until_judged(judged)
        assert len(setting.former.given) == encoded
    told = [CONTROL_TEXT.format(s.text) for s in (REACH, PULL, REACH, REACH)]
    assert setting.planner.texts == told


def test_the_clip_holds_the_last_frames_and_the_earliest_again() -> None:
    setting = Setting(verdicts=["progressing"], done=CLAIMS)
    setting.begin()
    setting.until_judged(3)
    for (clip, _), verdict in zip(
        setting.planner.judged, setting.agent.report()["verdicts"], strict=True
    ):
        assert clip.shape == (2, 8, 8, 8, 3)
        now = verdict["step"]
        expected = [max(0, now - back) for back in range(14, -1, -2)]
        assert clip[0, :, 0, 0, 0].tolist() == expected


# --- refusing --------------------------------------------------------------------------------


def test_what_the_scene_cannot_do_is_refused_before_anything_is_planned() -> None:
    setting = Setting(refused="there is no drawer")
    plan = setting.begin()
    assert plan.refused == "there is no drawer" and plan.subgoals == ()
    assert setting.planner.experiences == []


def test_an_instruction_is_routed_once() -> None:
    setting = Setting()
    for _ in range(3):
        setting.begin()
    assert setting.planner.routed == ["open the drawer"]


def test_a_scene_that_the_weights_were_not_trained_for() -> None:
    with pytest.raises(ValueError, match="know nothing of kitchen; they act in metaworld"):
        Setting().agent.route("open the microwave", "kitchen")


def test_a_scene_that_is_not_in_the_catalogue() -> None:
    other = Vocabulary(("fly",), (Subgoal("fly", ("moon",)),))
    setting = Setting()
    with pytest.raises(ValueError, match=r"no environment of the catalogue offers \['fly'\]"):
        setting.agent.begin(setting.observation(), "fly", other)


# --- what is taken away ----------------------------------------------------------------------


@torch.no_grad()
def test_plan_zeroed_carries_no_words() -> None:
    setting = Setting(verdicts=["done", "progressing"], done=CLAIMS, ablate="plan_zeroed")
    setting.begin()
    setting.until_judged()
    setting.steps(4)
    assert len(setting.former.given) == 2
    for embedded, mask in setting.former.given:
        assert not embedded.any() and not mask.any()
    assert all(z.isfinite().all() for z in setting.policy.instances)
    vision = torch.ones(1, 2, 1, 16, 192)
    outs = [setting.former(vision, setting.agent._controller._text)]
    setting.agent._begin_subgoal(0)
    outs.append(setting.former(vision, setting.agent._controller._text))
    assert torch.equal(outs[0], outs[1])
    plain = Setting()
    plain.begin()
    assert not torch.allclose(
        plain.former(vision, plain.agent._controller._text), outs[0], atol=1e-4
    )


def test_plan_shuffled_tells_the_former_another_tasks_sub_goals() -> None:
    turn = Subgoal("turn", ("dial",))
    setting = Setting(
        verdicts=["done", "progressing"],
        done=CLAIMS,
        ablate="plan_shuffled",
        shuffled={"drawer-open": (turn,)},
    )
    assert setting.begin().subgoals == VOCABULARY.subgoals
    setting.until_judged()
    assert setting.planner.texts == [CONTROL_TEXT.format(turn.text)] * 2
    assert setting.planner.judged[0][1] == REACH


def test_blind_sees_black_everywhere() -> None:
    setting = Setting(verdicts=["progressing"], done=CLAIMS, ablate="blind")
    setting.n_steps = 7
    setting.agent.begin(setting.observation(), "open the drawer", VOCABULARY)
    setting.until_judged()
    assert not any(frames.any() for frames in setting.planner.seen)
    assert not setting.planner.judged[0][0].any()


def test_no_loop_follows_the_done_head_alone() -> None:
    setting = Setting(verdicts=["failed"], done=CLAIMS, ablate="no_loop")
    setting.begin()
    assert setting.steps(40)[-1][1] == 1
    setting.policy.done = SILENT
    setting.still = True
    taken = setting.steps(200)
    assert not any(action.tolist() == list(RETREAT) for action, _ in taken)
    report = setting.agent.report()
    assert setting.planner.judged == [] and report["verdicts"] == []
    assert (report["n_retries"], report["n_replans"]) == (0, 0)


# --- what it says of itself ------------------------------------------------------------------


def test_caption_marks_the_current_sub_goal() -> None:
    setting = Setting(verdicts=["done", "progressing"], done=CLAIMS)
    setting.begin()
    setting.until_judged()
    assert setting.agent.caption() == [
        "open the drawer",
        "Thought: here.",
        "  1. reach(drawer handle)",
        "> 2. pull(drawer handle)",
        "reach(drawer handle): done (it is achieved)",
    ]


def test_report_times_what_it_did() -> None:
    setting = Setting(verdicts=["progressing"], done=CLAIMS)
    setting.begin()
    assert setting.agent.report()["latency_s"]["judge"] == 0.0
    setting.until_judged()
    assert all(seconds > 0 for seconds in setting.agent.report()["latency_s"].values())
