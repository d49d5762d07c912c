"""Recorded episodes become records: what is said of them is what was recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embodied.egocot.build import questions, rollouts
from embodied.egocot.build.cutting import N_FRAMES, clip_name, remove_others, shrunk
from embodied.egocot.build.moments import UNCLEAR, at_hand, held, moments
from embodied.egocot.build.selection import TURNS, choose
from embodied.egocot.clips import ClipChecker, read_clip
from embodied.egocot.dataset import Recorded, is_clear, verdict_of
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.records import Judgement, Record
from embodied.episodes import DatasetError, DatasetWriter
from embodied.model.plan import REASONS
from embodied.types import Episode, Observation, Plan, Step, Subgoal

Make = Callable[..., Recorded]

REACH, PULL = Subgoal("reach", ("drawer handle",)), Subgoal("pull", ("drawer handle",))
PLAN = Plan("open it", "Thought: nothing in view.", (REACH, PULL), ("drawer-open",))
LENGTH, SHADE = 40, 6
DONE = Judgement("done", REASONS["done"][0])


class Phrases:
    """Knows one task, which it asks for in three ways."""

    def ask(self, rng: np.random.Generator, tasks: Sequence[str]) -> str:
        return str(rng.choice({("drawer-open",): ["open it", "打开抽屉", "pull!"]}[tuple(tasks)]))

    def request(self, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        raise AssertionError("nobody asks without a scene")


SETTINGS = rollouts.Settings(Phrases(), lambda meta: "test")


def episode(seed: int, *, outcome: Any = "success", **changes: Any) -> Episode:
    """Reaches until the middle, then pulls; the grey level says which step it is."""
    steps = []
    for t in range(LENGTH):
        grey = np.full((32, 48, 3), SHADE * t, np.uint8)
        success = outcome == "success" and t >= 30
        pixels = {"drawer handle": {"side": (0.25, t / LENGTH)}, "gripper": {"side": (0.5, 1.25)}}
        observation = Observation({"wrist": grey, "side": grey}, np.zeros(2, np.float32))
        done = outcome == "success" and t > 30
        action = np.zeros(2, np.float32)
        steps.append(Step(observation, action, int(t >= 20), done, 0.0, success, pixels))
    info = {"tag": changes.pop("tag", "none"), "fault_step": changes.pop("fault_step", 0)}
    env_id, task = "metaworld/drawer-open-v3", "drawer-open"
    made = Episode(env_id, task, "open it", seed, "sha", PLAN, steps, outcome)
    return replace(made, info=info, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "drawers"
    cameras, names = {"side": (32, 48), "wrist": (32, 48)}, {"state_names": ["x", "y"]}
    with DatasetWriter(root, fps=10, cameras=cameras, action_names=["dx", "dy"], **names) as writer:
        writer.add(episode(0))
        writer.add(episode(1, outcome="failure", tag="stopped", fault_step=22))
        writer.add(episode(2, outcome="crash"))
        writer.add(episode(3, plan=replace(PLAN, tasks=("door-open",))))
    return root


def build(
    root: Path, out: Path, settings: rollouts.Settings = SETTINGS
) -> tuple[list[Record], Quarantine, Counter[str]]:
    with Quarantine() as quarantine:
        found, left_out = rollouts.candidates([root], settings, quarantine)
        drafts = list(rollouts.build(found, out, settings, quarantine))
    return [draft.record for draft in drafts], quarantine, left_out


def test_what_is_made_of_a_success(root: Path, tmp_path: Path) -> None:
    records, quarantine, _ = build(root, tmp_path)
    assert quarantine.counts.bad == {
        "outcome: must be success or failure": 1,
        "tasks: are not in the phrasebook": 1,
    }
    of_first = [r for r in records if r.provenance.episode.endswith("/0/none")]
    starts = [r for r in of_first if "/start" in r.id]
    assert len({r.instruction for r in starts}) == 2 and len({r.clip for r in starts}) == 1
    assert all(r.actions == (REACH, PULL) and r.verdict is None for r in starts)
    assert starts[0].places == {"drawer handle": (0.25, 0.0)}  # the gripper is out of view
    asked = {a.question: a.answer for a in starts[0].questions}
    assert asked["Where is the drawer handle?"] == "at (56, 0)"
    assert asked["Where is the gripper?"] == "out of view"
    assert asked["What is the first step?"] == "reach the drawer handle"
    assert asked["Which object is moved?"] == "the drawer handle"
    (whole,) = [r for r in of_first if "/episode" in r.id]
    assert whole.verdict == DONE and whole.caption.endswith("The robot pulls the drawer handle.")
    assert {r.split for r in records} == {"test"} and len({r.id for r in records}) == len(records)


def test_verdicts_are_those_that_training_has(root: Path, tmp_path: Path) -> None:
    records, _, left_out = build(root, tmp_path)
    steps = [r for r in records if "/step" in r.id]
    reasons = Counter((r.verdict.status, r.verdict.reason) for r in steps if r.verdict)
    assert {status for status, _ in reasons} == {"done", "progressing", "failed"}
    assert left_out == {UNCLEAR: 2}  # steps 24 and 32, less than 16 after the hand stopped
    (failed,) = [r for r in steps if r.verdict and r.verdict.status == "failed"]
    assert failed.actions == (PULL,) and failed.provenance.segment == "step 1 25-39.0"
    assert failed.caption == (
        "The robot tries to pull the drawer handle, but the gripper stopped short."
    )
    answers = {a.question: a.answer for a in failed.questions}
    assert answers["Is this done: pull the drawer handle?"] == "no, the gripper stopped short"
    assert "What is the robot pulling?" not in answers  # it stands still


def test_a_clip_has_the_pictures_of_its_steps(root: Path, tmp_path: Path) -> None:
    records, _, _ = build(root, tmp_path)
    checker = ClipChecker(tmp_path)
    for record in records:
        checker.check(record.clip, None)
        name, _, steps = (record.provenance.segment or "").rpartition(" ")
        first, _, last = steps.partition(".")[0].partition("-")
        shades = read_clip(tmp_path, record.clip).frames[:, 16, 24].mean(-1)
        assert len(shades) == N_FRAMES and (np.diff(shades) >= -2).all()
        assert abs(shades[0] - SHADE * int(first)) < 4 and abs(shades[-1] - SHADE * int(last)) < 4
        thought = record.places["drawer handle"]
        assert thought[1] == pytest.approx(int(first) / LENGTH, abs=1e-6), name


def test_the_same_seed_gives_the_same_records_and_clips(root: Path, tmp_path: Path) -> None:
    first, _, _ = build(root, tmp_path / "a")
    second, _, _ = build(root, tmp_path / "b")
    other, _, _ = build(root, tmp_path / "c", replace(SETTINGS, seed=3))
    assert first == second and first != other
    for clip in {record.clip for record in first}:
        assert (tmp_path / "a" / clip).read_bytes() == (tmp_path / "b" / clip).read_bytes()


def test_an_unknown_camera_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no camera 'top' in '.*drawers': it has \['side', "):
        build(root, tmp_path, replace(SETTINGS, camera="top"))


# --- moments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["none", "stopped", "missed", "moved"])
def test_every_verdict_of_a_moment_is_clear_and_true(make: Make, tag: str) -> None:
    outcome = "failure" if tag in ("stopped", "missed") else "success"
    made = make("metaworld/hammer-v3", 4, 90, tag=tag, fault_step=40, outcome=outcome)
    found, _ = moments(made, np.zeros(90, bool), 1)
    steps = [m for m in found if m.kind == "step"]
    assert len(steps) > 5
    for moment in steps:
        (index,), last = moment.indices, moment.steps[-1]
        assert len(moment.steps) == N_FRAMES and index in at_hand(made, last)
        assert is_clear(made, last) and moment.verdict is not None
        status, reason = verdict_of(made, index, last)
        assert (moment.verdict.status, moment.verdict.reason) == (status, reason)


def test_what_came_undone_is_at_hand(make: Make) -> None:
    made = make("kitchen/microwave+light switch", 1, 80, tag="pushed_back", fault_step=60)
    bits = np.where(np.arange(80) < 60, 0b0011, 0)  # the microwave is open until step 60
    made = replace(made, met_bits=bits)
    assert 1 in at_hand(made, 66) and made.met(1, 59)
    assert verdict_of(made, 1, 66) == ("failed", "it has come undone")


def test_what_is_in_the_hand_is_told_only_where_it_is_known(make: Make) -> None:
    made = make("metaworld/hammer-v3", 0, 90)  # reach, grasp, hit; 30 steps each
    assert [held(made, step) for step in (5, 45, 75)] == [
        (True, None),
        (True, None),
        (True, "hammer"),
    ]
    assert held(made, 88) == (False, "hammer")  # it may have let go
    assert not any(held(make(), step)[0] for step in range(40))  # a drawer's handle is hooked


# --- questions -------------------------------------------------------------------------------


def test_doing() -> None:
    verbs = ["reach", "move", "hit", "drop", "flip", "press down", "pull up", "unplug", "see"]
    assert [questions.doing(verb) for verb in verbs] == [
        *("reaching", "moving", "hitting", "dropping", "flipping"),
        *("pressing down", "pulling up", "unplugging", "seeing"),
    ]


def test_what_is_moved() -> None:
    told = {
        "reach(nut)": None,
        "grasp(nut, gripper)": None,
        "place(nut, peg)": "nut",
        "push with(stick, thermos)": "thermos",
        "turn(dial)": "dial",
    }
    assert {text: questions.moved_by(Subgoal.parse(text)) for text in told} == told
    (work, moved) = questions.about_work(Subgoal.parse("push with(stick, thermos)"))
    assert (work.question, work.answer) == ("What is the robot pushing?", "the thermos")
    assert moved.answer == "the thermos"


def test_a_step_that_comes_twice_is_not_asked_about() -> None:
    steps = [Subgoal.parse(text) for text in ("reach(a)", "pull(a)", "reach(a)", "push(a)")]
    asked = [answer.question for answer in questions.about_plan(steps)]
    assert not any("reach the a?" in question for question in asked) and len(asked) == 3


def test_sides_are_told_only_when_they_are_plain() -> None:
    places = {"mug": (0.1, 0.5), "cup": (0.49, 0.5), "pot": (1.2, 0.5), "gripper": (0.5, 0.5)}
    told = {a.question: a.answer for a in questions.about_places(places)}
    assert told["Is the mug left or right of the gripper?"] == "left of it"
    assert "Is the cup left or right of the gripper?" not in told
    assert told["Where is the pot?"] == "out of view" and len(told) == 5


# --- selection and clips ---------------------------------------------------------------------


def test_chosen_records_are_of_every_kind_reason_and_group() -> None:
    rng = np.random.default_rng(0)
    items = [("failed", "rare", "a")] + [("failed", "common", g) for g in "ab" * 40]
    items += [(kind, "", group) for kind in ("start", "done") for group in "abc" * 10]
    chosen = choose(rng, items, 14, lambda item: item)
    assert len(chosen) == 14 and ("failed", "rare", "a") in chosen
    counts = Counter(kind for kind, _, _ in chosen)
    assert min(counts.values()) >= 3 and set(counts) <= set(TURNS)
    assert {g for kind, _, g in chosen if kind == "done"} == {"a", "b", "c"}
    again = choose(np.random.default_rng(0), items, 14, lambda item: item)
    assert chosen == again and len(choose(rng, items, len(items), lambda item: item)) == len(items)
    with pytest.raises(ValueError, match=r"--n_records 200: there are 141; leave it out"):
        choose(rng, items, 200, lambda item: item)


def test_pictures_are_made_smaller_and_never_larger() -> None:
    frames = np.zeros((2, 480, 640, 3), np.uint8)
    assert shrunk(frames, 224).shape == (2, 168, 224, 3) and shrunk(frames, 999) is frames
    assert shrunk(np.zeros((1, 31, 47, 3), np.uint8), 224).shape == (1, 30, 46, 3)


def test_clips_that_no_record_names_are_removed(tmp_path: Path) -> None:
    names = [clip_name("a/b c/微", k) for k in range(3)]
    assert len(set(names)) == 3 and names[0].startswith("clips/a-b-c-")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert remove_others(tmp_path, {names[1]}) == 2 and (tmp_path / names[1]).exists()
