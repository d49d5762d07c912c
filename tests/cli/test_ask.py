"""`embodied ask`: what is looked at, what is printed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embodied.cli.main import main
from embodied.model.planner import Planner
from embodied.video import read_mp4, sample_indices, write_mp4

ASKED = "what is the robot holding?"


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The planner answers "a nut"; filled with the clips that it is shown."""
    seen: list[np.ndarray] = []

    def answer(self: Planner, clip: np.ndarray, question: str) -> str:
        assert question == ASKED
        seen.append(clip)
        print("chatter")
        return "a nut"

    monkeypatch.setattr(Planner, "answer", answer)
    return seen


def _ask(capfd: pytest.CaptureFixture[str], planner: Path, *argv: str) -> dict[str, Any]:
    assert main(["ask", f" {ASKED} ", "--model", str(planner), "--json", *argv]) == 0
    out, _ = capfd.readouterr()
    assert out.count("\n") == 1
    return json.loads(out)


def test_a_video_is_one_camera_and_eight_of_its_frames(
    tiny_planner: Path, clips: list[np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    frames = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None, None] * 6, 32, 1)
    write_mp4(tmp_path / "v.mp4", np.repeat(np.repeat(frames, 32, 2), 3, 3), 10)
    fields = _ask(capfd, tiny_planner, "--video", str(tmp_path / "v.mp4"))
    assert fields["answer"] == "a nut" and fields["question"] == ASKED
    assert fields["video"] == str(tmp_path / "v.mp4") and fields["latency_s"] >= 0
    wanted = read_mp4(tmp_path / "v.mp4", sample_indices(40, 8))
    assert np.array_equal(clips[0], wanted[None])


def test_a_scene_at_first_and_after_some_steps(
    tiny_planner: Path, clips: list[np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    scene = ("--env", "metaworld/reach-v3", "--seed", "200003")
    fields = _ask(capfd, tiny_planner, *scene)
    assert (fields["env"], fields["seed"], fields["steps"]) == ("metaworld/reach-v3", 200003, 0)
    _ask(capfd, tiny_planner, *scene, "--steps", "20")
    still, moving = clips
    assert still.shape == moving.shape and still.shape[:2] == (2, 8)
    assert (still == still[:, :1]).all()
    assert (moving[:, 0] != moving[:, -1]).any() and not np.array_equal(moving[:, -1], still[:, -1])


def test_the_answer_alone_for_people(
    tiny_planner: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole path, with nothing of it replaced."""
    np.save(tmp_path / "v.npy", np.zeros((8, 32, 32, 3), np.uint8))
    argv = ["ask", ASKED, "--model", str(tiny_planner), "--video", str(tmp_path / "v.npy")]
    assert main(argv) == 0
    assert capfd.readouterr().out.endswith("\n")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([ASKED], "either --video FILE or --env ID"),
        ([ASKED, "--env", "kitchen", "--video", "v.mp4"], "either --video FILE or --env ID"),
        ([" ", "--env", "kitchen"], "the question is empty: ask something like"),
        (["x" * 401, "--env", "kitchen"], "the question has 401 characters"),
        ([ASKED, "--env", "metaworld/hamer-v3"], "unknown environment 'metaworld/hamer-v3'"),
        ([ASKED, "--env", "kitchen", "--steps", "-1"], "--steps is 0 or more, got -1"),
        ([ASKED, "--video", "none.mp4"], "none.mp4"),
    ],
)
def test_what_cannot_be_asked(
    argv: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
