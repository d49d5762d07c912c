"""Narrated videos become records. Narrations, videos and answers are all made up here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embodied.egocot.build import ego4d
from embodied.egocot.build.generators import Kept, LocalModel
from embodied.egocot.build.narrations import UNKNOWN, Entry, read_entries, sentence, understand
from embodied.egocot.build.prompts import PROMPTS, Template, load_templates, parse_answer
from embodied.egocot.clips import read_clip
from embodied.egocot.fields import RecordError
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.records import Record
from embodied.types import Subgoal
from embodied.video import write_mp4

ANSWER = """Task: put the mug on the shelf
Plan: Pick up the mug. Put the mug on the shelf.
Actions:
1. pick up(mug)
2. put on(mug, shelf)
"""
FPS, N_FRAMES_OF_VIDEO = 10, 60


def told(time_s: Any, text: Any = "#C C picks up the mug.") -> dict[str, Any]:
    return {"timestamp_sec": time_s, "timestamp_frame": 0, "narration_text": text}


def write_narrations(path: Path, **videos: list[Any]) -> Path:
    """In the layout of narration.json."""
    told = {v: {"narration_pass_1": {"narrations": rows}} for v, rows in videos.items()}
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


class Robot:
    """Answers what it is told to, and remembers what it was asked."""

    name = "robot-1"

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), []  # type: ignore[var-annotated]

    def __call__(self, prompt: str) -> str:
        self.asked.append(prompt)
        return self.answers[(len(self.asked) - 1) % len(self.answers)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video of six seconds, whose grey level is four times the frame's number."""
    folder = tmp_path_factory.mktemp("videos")
    greys = np.arange(N_FRAMES_OF_VIDEO, dtype=np.uint8) * 4
    frames = np.broadcast_to(greys[:, None, None, None], (N_FRAMES_OF_VIDEO, 48, 64, 3))
    write_mp4(folder / "kitchen-1.mp4", frames, FPS)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def settings(videos: Path, robot: Any) -> ego4d.Settings:
    return ego4d.Settings(videos, load_templates(PROMPTS), robot, side=32)


def build(
    path: Path, out: Path, made_by: ego4d.Settings
) -> tuple[list[Record], Quarantine, list[dict[str, Any]]]:
    with Quarantine(out / "quarantine.jsonl") as quarantine:
        drafts = list(ego4d.build(read_entries(path), path, out, made_by, quarantine))
    rows = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    return [draft.record for draft in drafts], quarantine, rows


# --- narrations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("#C C picks up the mug.", "The person picks up the mug."),
        ("#c C puts C's mug on the table", "The person puts the person's mug on the table."),
        ("  # C C  moves   vitamin C #tag", "The person moves vitamin the person."),
        ("打开抽屉", "打开抽屉."),
        ("Open the drawer.", "Open the drawer."),
    ],
)
def test_a_narration_in_words(raw: str, expected: str) -> None:
    assert sentence(told(0, raw)) == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("#O A man X walks", "narration_text: is not about the wearer"),
        ("#Summary C cooked", "narration_text: is not about the wearer"),
        ("#C C picks #unsure", "narration_text: is not certain"),
        ("#C .", "narration_text: is empty without its marks"),
        ("", "narration_text: must be text, got ''"),
        (None, "narration_text: must be text, got None"),
    ],
)
def test_narrations_that_say_nothing_of_the_wearer(raw: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        sentence(told(0, raw))


def entry(at: Any, before: Any = None, after: Any = None) -> Entry:
    return Entry("v", "1.0", 1, at, (before, after))


def test_the_part_of_the_video_reaches_half_way_to_the_neighbours() -> None:
    alone = understand(entry(told(10.0)), 4.0)
    assert (alone.first_s, alone.last_s) == (8, 12) and alone.before == alone.after == UNKNOWN
    between = understand(entry(told(10.0), told(8.5), told(11, "#O X sits")), 4.0)
    assert (between.first_s, between.last_s) == (9.25, 10.5)
    assert between.before == "The person picks up the mug." and between.after == UNKNOWN
    crowded = understand(entry(told(0.1), told(0.1), told(0.1)), 4.0)
    assert (crowded.first_s, crowded.last_s) == (0, 0.6)  # a second, as far as there is one
    with pytest.raises(RecordError, match="timestamp_sec: must be at least 0, got -1"):
        understand(entry(told(-1)), 4.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", r"must hold an object by video id, got \[\]"),
        ('{"v": 3}', "video 'v': must be an object, got 3"),
        ('{"v": {"narration_pass_1": []}}', "video 'v': narration_pass_1 has no list"),
        ('{"v": {"status": "redacted"}}', "has no narrations in narration_pass_1 or"),
    ],
)
def test_files_that_are_no_narrations(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "narration.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_entries(tmp_path / "narration.json")


# --- prompts and answers ---------------------------------------------------------------------


def test_our_prompts_have_all_places_and_show_an_answer_that_can_be_read() -> None:
    templates = load_templates(PROMPTS)
    assert len(templates) >= 3 and len({t.version for t in templates}) == len(templates)
    for template in templates:
        filled = template.fill("<now {x}>", "<before>", "<after>")
        assert all(part in filled for part in ("<now {x}>", "<before>", "<after>", "Task:"))
        if "1. reach(" in filled:  # two of them show the form by an example
            example = filled[filled.rindex("\nTask: ") : filled.rindex(")") + 1]
            assert parse_answer(example).actions[0].verb == "reach"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Plan it.", "it has none"),
        ("{narration} {video}", r"it has \{narration\}, \{video\}"),
        ("{narration} {", "is no template"),
    ],
)
def test_templates_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_templates(tmp_path)
    with pytest.raises(ValueError, match=r"no \*.txt in"):
        load_templates(tmp_path / "empty")


@pytest.mark.parametrize("form", ["{}", "```\n{}```", "**{}", "\r\n{}\n\n", "## {}"])
def test_answers_are_read_whatever_their_marks(form: str) -> None:
    planned = parse_answer(form.format(ANSWER).replace("**Task:", "**Task:**"))
    assert planned.task == "put the mug on the shelf" and len(planned.plan) == 2
    assert planned.actions == (Subgoal("pick up", ("mug",)), Subgoal("put on", ("mug", "shelf")))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "answer: does not begin with 'Task: …'"),
        ("Sure! " + ANSWER, "answer: does not begin with 'Task: …'"),
        ("Task: go\nPlan: go.", "planning: has no actions"),
        ("Task: go\nActions:\n1. go(door)", "answer: has no plan in words"),
        (ANSWER + "\nI hope this helps!", "planning: has something among its actions that is none"),
        (ANSWER.replace("2.", "3."), "planning: must number its actions"),
        (ANSWER.replace("mug, shelf", "a, b, c"), "planning: has an action without one or two"),
    ],
)
def test_answers_that_cannot_be_read(answer: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        parse_answer(answer)


# --- answers are kept ------------------------------------------------------------------------


def test_an_answer_is_asked_for_once_and_kept(tmp_path: Path) -> None:
    path, robot = tmp_path / "state" / "answers.jsonl", Robot("one", "zwei – 二")
    first = Kept(robot, path)
    assert [first("a"), first("b"), first("a")] == ["one", "zwei – 二", "one"]
    again = Kept(robot, path)
    assert [again("b"), again("a")] == ["zwei – 二", "one"] and len(again) == 2
    assert len(robot.asked) == 2 and (first.n_asked, again.n_asked) == (2, 0)
    other = Robot("three")
    other.name = "robot-2"
    assert Kept(other, path)("a") == "three"  # another model, another answer


def test_a_line_that_was_cut_short_is_asked_for_again(tmp_path: Path) -> None:
    path, robot = tmp_path / "answers.jsonl", Robot("one", "two", "two")
    kept = Kept(robot, path)
    kept("a"), kept("b")
    path.write_bytes(path.read_bytes()[:-10])
    again = Kept(robot, path)
    assert len(again) == 1 and again("b") == "two" and len(Kept(robot, path)) == 2
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"answers.jsonl, line 1 is no answer: delete that line"):
        Kept(robot, path)


# --- records ---------------------------------------------------------------------------------


def test_a_narration_becomes_a_record(videos: Path, tmp_path: Path) -> None:
    path = write_narrations(tmp_path / "narration.json", **{"kitchen-1": [told(3.0), told(5.5)]})
    robot = Robot(ANSWER)
    (first, last), quarantine, _ = build(path, tmp_path, settings(videos, robot))
    assert quarantine.counts.n_bad == 0 and len(robot.asked) == 2
    assert "The person picks up the mug." in robot.asked[0]
    assert first.id == "ego4d/kitchen-1/1.0" and first.caption == "The person picks up the mug."
    assert first.instruction == "put the mug on the shelf" and len(first.actions) == 2
    assert first.provenance.method == "model" and first.provenance.model == "robot-1"
    assert (first.provenance.prompt_version or "").startswith("plan_")
    assert "Ego4D licence" in first.provenance.licence
    assert first.questions[1].answer == "put on the mug (the shelf)"
    frames = read_clip(tmp_path, first.clip).frames
    assert frames.shape == (8, 24, 32, 3)
    shades = frames.mean((1, 2, 3)) / 4  # frame numbers: 1 to 4.25 s
    assert abs(shades[0] - 10) < 1.5 and abs(shades[-1] - 42) < 1.5 and (np.diff(shades) > 3).all()
    end = read_clip(tmp_path, last.clip).frames.mean((1, 2, 3)) / 4
    assert abs(end[-1] - 59) < 1.5  # the video ends before the narration's part does


def test_what_cannot_be_used_goes_to_the_quarantine(videos: Path, tmp_path: Path) -> None:
    rows = [told(1.0), told(2.0, "#O X waves"), told(500.0), told("soon"), 7, told(3.0)]
    videos_told = {"kitchen-1": rows, "missing": [told(1)], "broken": [told(1)], "a/b": [told(1)]}
    path = write_narrations(tmp_path / "narration.json", **videos_told)
    robot = Robot("I cannot.", ANSWER)
    records, quarantine, rejected = build(path, tmp_path, settings(videos, robot))
    assert len(records) == 1 and len(robot.asked) == 2  # only where there is something to see
    assert quarantine.counts.bad == {
        "timestamp_sec: must be a number": 2,
        "answer: does not begin with 'Task: …'": 1,
        "narration_text: is not about the wearer": 1,
        "timestamp_sec: lies behind the video's end": 1,
        "video: is missing": 1,
        "video: cannot be decoded": 1,
        "video: is no file's name": 1,
    }
    (unread,) = [row for row in rejected if row["field"] == "answer"]
    assert json.loads(unread["record"])["answer"] == "I cannot."


def test_a_run_that_was_stopped_goes_on(videos: Path, tmp_path: Path) -> None:
    path = write_narrations(tmp_path / "n.json", **{"kitchen-1": [told(1), told(3), told(5)]})

    class Tired(Robot):
        def __call__(self, prompt: str) -> str:
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().__call__(prompt)

    robot, kept_at = Tired(ANSWER), tmp_path / "answers.jsonl"
    made_by = settings(videos, Kept(robot, kept_at))
    with pytest.raises(KeyboardInterrupt):
        build(path, tmp_path, made_by)
    assert not list(tmp_path.glob("*quarantine*"))
    fresh = Robot(ANSWER)
    records, _, _ = build(path, tmp_path, replace(made_by, generator=Kept(fresh, kept_at)))
    assert len(records) == 3 and len(fresh.asked) == 1
    straight, _, _ = build(path, tmp_path / "b", settings(videos, Robot(ANSWER)))
    assert records == straight


def test_one_template_is_enough(videos: Path, tmp_path: Path) -> None:
    path = write_narrations(tmp_path / "n.json", **{"kitchen-1": [told(1)]})
    robot = Robot(ANSWER)
    made_by = replace(settings(videos, robot), templates=[Template("plan: {narration}", "mine 1")])
    ((record,), _, _) = build(path, tmp_path, made_by)
    assert robot.asked == ["plan: The person picks up the mug."]
    assert record.provenance.prompt_version == "mine 1"


def test_a_local_model_answers() -> None:
    model = LocalModel("random:tiny", max_tokens=4)
    assert isinstance(model("Say something."), str) and model.name == "random:tiny"
    assert model("Say something.") == model("Say something.")
