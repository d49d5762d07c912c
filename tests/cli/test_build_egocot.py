"""`embodied build-egocot`: from the command line to a folder that can be read, and again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from embodied.cli import build_egocot as command
from embodied.cli.main import main
from embodied.egocot.records import read_records
from embodied.video import write_mp4
from sims import language

ANSWER = "Task: take it\nPlan: Take the mug.\nActions:\n1. take(mug)\n"


def build(out: Path, *more: object) -> int:
    return main(["build-egocot", "--output_dir", str(out), *map(str, more)])


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "build.json").read_text())


# --- rollouts --------------------------------------------------------------------------------


def test_rollouts_of_the_real_expert(
    recorded_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "records"
    assert build(out, "--dataset", recorded_set, "--image_size", 32) == 0
    said = capsys.readouterr().out
    records = list(read_records(out))
    assert f"{len(records)} records: {len(records)} good, 0 quarantined" in said
    n_done = sum(r.verdict is not None and r.verdict.status == "done" for r in records)
    assert f"verdicts: {n_done} done, " in said
    known = {text for ways in language.instructions()["coffee-button"].values() for text in ways}
    starts = [r for r in records if "/start" in r.id]
    assert len(starts) == 4 and {r.instruction for r in starts} <= known
    assert {r.split for r in records} == {"train"}
    assert {r.verdict.status for r in records if r.verdict} == {"done", "progressing"}
    named = {r.clip for r in records}
    assert named == {f"clips/{p.name}" for p in (out / "clips").iterdir()}
    assert told(out)["n_records"] == len(records) and told(out)["similarity"] is None


def test_a_run_again_changes_nothing_and_fewer_leave_no_clips_behind(
    recorded_set: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for out in (first, second):
        assert build(out, "--dataset", recorded_set, "--n_records", 9, "--seed", 5) == 0
    assert (first / "records.jsonl").read_bytes() == (second / "records.jsonl").read_bytes()
    clips = {p.name: p.stat().st_mtime_ns for p in (first / "clips").iterdir()}
    before = (first / "records.jsonl").read_bytes()
    assert build(first, "--dataset", recorded_set, "--n_records", 9, "--seed", 5) == 0
    assert (first / "records.jsonl").read_bytes() == before
    assert {p.name: p.stat().st_mtime_ns for p in (first / "clips").iterdir()} == clips
    assert build(first, "--dataset", recorded_set, "--n_records", 3, "--seed", 5) == 0
    assert len(list((first / "clips").iterdir())) <= 3 == len(list(read_records(first)))


class Blind:
    """Sees nothing that a caption says."""

    name = "blind"

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def images(self, frames: np.ndarray) -> np.ndarray:
        return self._rng.normal(size=(len(frames), 16))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._rng.normal(size=(len(texts), 16))


def test_a_blind_clip_ends_in_one_line_and_keeps_what_there_was(
    recorded_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    out = tmp_path / "records"
    assert build(out, "--dataset", recorded_set) == 0
    before = (out / "records.jsonl").read_bytes()
    monkeypatch.setattr(command, "load_encoder", lambda name, device: Blind())
    capsys.readouterr()
    assert build(out, "--dataset", recorded_set, "--clip", "blind") == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "no threshold of it means anything" in printed.err
    assert "AUC" in printed.out and (out / "records.jsonl").read_bytes() == before


# --- narrated videos -------------------------------------------------------------------------


@pytest.fixture
def narrated(tmp_path: Path) -> list[object]:
    """Flags that name a made-up narration.json with six narrations, its video, and a prompt."""
    videos = tmp_path / "videos"
    greys = np.arange(70, dtype=np.uint8) * 3
    frames = np.broadcast_to(greys[:, None, None, None], (70, 32, 32, 3))
    write_mp4(videos / "v.mp4", frames, 10)
    rows = [
        {"timestamp_sec": 0.5 + t, "narration_text": f"#C C takes mug no. {t}"} for t in range(6)
    ]
    path = tmp_path / "narration.json"
    path.write_text(json.dumps({"v": {"narration_pass_1": {"narrations": rows}}}))
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "bare.txt").write_text("{narration}")
    flags = ["--source", "ego4d", "--narrations", path, "--videos", videos]
    return [*flags, "--prompts", prompts, "--generator", "x"]


class Model:
    """Knows what to do with every mug but one."""

    name = "model-1"

    def __init__(self, strange: str) -> None:
        self._strange, self.asked = strange, []  # type: ignore[var-annotated]

    def __call__(self, prompt: str) -> str:
        self.asked.append(prompt)
        return "no idea" if self._strange and self._strange in prompt else ANSWER


def use(monkeypatch: pytest.MonkeyPatch, strange: str = "") -> Model:
    """A model that the command then takes for the one that it is given."""
    model = Model(strange)
    monkeypatch.setattr(command, "_generator", lambda options: model)
    return model


def test_narrated_videos(
    narrated: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, model = tmp_path / "out", use(monkeypatch, strange="no. 4")
    assert build(out, *narrated) == 0
    said = capsys.readouterr()
    assert [r.caption[-2] for r in read_records(out)] == list("01235")
    assert "model-1: 6 asked, 6 answers kept" in said.out
    assert "6 records: 5 good, 1 quarantined" in said.out
    assert "1  answer: does not begin with 'Task: …'" in said.out
    assert said.err.count("narration.json:5: answer") == 1
    assert build(out, *narrated) == 0 and len(model.asked) == 6
    assert "0 asked, 6 answers kept" in capsys.readouterr().out
    assert build(tmp_path / "two", *narrated, "--n_records", 2) == 0 and len(model.asked) == 8


def test_nothing_good_is_a_failure(
    narrated: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, strange="mug")
    assert build(tmp_path / "out", *narrated) == 1


def test_ctrl_c_keeps_the_answers(
    narrated: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tired(Model):
        def __call__(self, prompt: str) -> str:
            if len(self.asked) == 4:
                raise KeyboardInterrupt
            return super().__call__(prompt)

    out = tmp_path / "out"
    monkeypatch.setattr(command, "_generator", lambda options: Tired(""))
    assert build(out, *narrated) == 130
    assert not (out / "records.jsonl").exists() and not list(out.glob(".*partial*"))
    model = use(monkeypatch)
    assert build(out, *narrated) == 0 and len(model.asked) == 2
    assert len(list(read_records(out))) == 6


class Reader:
    """Knows by the grey level which caption a clip has; narration 2's clip it takes for another."""

    name = "reader"

    def images(self, frames: np.ndarray) -> np.ndarray:
        middle = frames.mean((1, 2, 3)).mean() / 30  # three a frame, ten frames a second
        number = round(middle - 0.5) if round(middle - 0.5) != 2 else 5
        return np.tile(np.eye(8)[number], (len(frames), 1))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([np.eye(8)[int(text.rstrip(".")[-1])] for text in texts])


def test_what_does_not_fit_its_caption_is_dropped(
    narrated: list[object], tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch)
    monkeypatch.setattr(command, "load_encoder", lambda name, device: Reader())
    out = tmp_path / "out"
    flags = ["--clip", "reader", "--false_positive_rate", 0.1]
    assert build(out, *narrated, *flags) == 0
    said = capsys.readouterr().out
    records = list(read_records(out))
    assert [r.caption[-2] for r in records] == list("01345")
    assert all(r.score == pytest.approx(1) for r in records)
    assert "1  score: is below" in said and "AUC 0.9" in said
    assert len(list((out / "clips").iterdir())) == 5
    assert told(out)["similarity"]["encoder"] == "reader"


def test_what_a_killed_run_left_is_cleared_and_two_do_not_meet(
    recorded_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / ".build").mkdir(parents=True)  # killed before anything was written
    assert build(out, "--dataset", recorded_set, "--n_records", 2) == 0
    left = [out / ".quarantine.123.partial.jsonl", out / "clips" / ".a.123.partial.mp4"]
    for path in left:
        path.write_text("half")
    with FileLock(out / ".build" / "lock"):
        assert build(out, "--dataset", recorded_set, "--n_records", 2) == 2
    assert "another run is writing" in capsys.readouterr().err and left[0].exists()
    assert build(out, "--dataset", recorded_set, "--n_records", 2) == 0
    assert not any(path.exists() for path in left) and len(list(read_records(out))) == 2


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--source rollouts needs --dataset DIR[,DIR]"),
        (["--dataset", "/nowhere"], "/nowhere"),
        (["--dataset", "x", "--n_records", "0"], "--n_records is at least 1, got 0"),
        (["--dataset", "x", "--paraphrases", "0"], "--paraphrases is at least 1"),
        (["--dataset", "x", "--false_positive_rate", "1"], "--false_positive_rate is between"),
        (["--source", "ego4d"], "--source ego4d needs --narrations narration.json and --videos"),
        (
            ["--source", "ego4d", "--narrations", "n", "--videos", "/nowhere"],
            "no folder of videos at '/nowhere'",
        ),
        (
            ["--source", "ego4d", "--narrations", "/n.json", "--videos", "/"],
            "needs either --generator NAME or --endpoint URL",
        ),
        (
            ["--source", "ego4d", "--narrations", "/n.json", "--videos", "/", "--generator", "x"],
            "/n.json: No such file",
        ),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(tmp_path / "out", *flags) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and said.startswith("embodied: ")
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(
    recorded_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").touch()
    assert build(tmp_path, "--dataset", recorded_set) == 2
    assert "holds something else: give a new --output_dir" in capsys.readouterr().err
    out = tmp_path / "out"
    assert build(out, "--dataset", recorded_set, "--n_records", 2) == 0
    assert build(out, "--dataset", f"{recorded_set},{tmp_path}") == 2
    assert "holds records of other inputs" in capsys.readouterr().err
    assert build(out, "--dataset", recorded_set, "--n_records", 999) == 2
    assert "--n_records 999: there are " in capsys.readouterr().err
