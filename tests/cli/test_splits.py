"""What `--leave_out` keeps away: episodes, records, and planners that have seen it already."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from embodied import checkpoint
from embodied.cli.main import main
from embodied.cli.splits import (
    is_about,
    left_out_of,
    of_splits,
    records_without,
    still_left_out,
    without,
)
from embodied.egocot.conversations import ConversationSampler
from embodied.egocot.records import Record, read_records
from sims import language, scenes

SAMPLE = Path(__file__).parents[2] / "data" / "egocot" / "sample"
LEFT_OUT = scenes.resolve_tasks("mw5,fk5")


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return list(read_records(SAMPLE, clips=False))


def test_episodes_of_what_is_left_out_are_gone(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [("hammer",), ("reach",), ("kettle", "microwave"), ("kettle", "top burner")]
    episodes: list[Any] = [SimpleNamespace(tasks=t) for t in tasks]
    assert [e.tasks for e in without(episodes, LEFT_OUT)] == [tasks[1], tasks[3]]
    assert capsys.readouterr().err == "left out: 2 of 4 episodes\n"
    assert without(episodes, ()) == episodes and capsys.readouterr().err == ""


def test_no_request_for_it_is_drawn_in_2000() -> None:
    """As the stages draw them, sixteen at a time."""
    sampler = ConversationSampler([], language.Phrases(LEFT_OUT), (16, 0, 0, 0))
    answers = [said for step in range(125) for said in sampler(step)[0].answers]
    assert len(answers) == 2000
    assert not {task for said in answers for task in said.split(", ")} & set(LEFT_OUT)


def test_records_of_it_are_gone(records: list[Record]) -> None:
    kept = records_without(records, LEFT_OUT)
    assert 0 < len(kept) < len(records)
    for record in kept:
        source = record.provenance.episode
        assert "drawer-open" not in source and "button-press-topdown-v3" not in source
        if source.startswith("kitchen/"):
            assert "microwave" not in str(record.to_json()) and "light switch" not in source
    assert any(r.provenance.episode.startswith("metaworld/push-v3") for r in kept)


def test_closing_a_drawer_is_not_opening_it(records: list[Record]) -> None:
    closing = [r for r in records if "drawer-close" in r.provenance.episode]
    assert closing and not any(is_about(r, ["drawer-open"]) for r in closing)
    assert all(is_about(r, ["drawer-close"]) for r in closing)


def test_a_missing_split_says_what_there_is(records: list[Record]) -> None:
    assert of_splits(SAMPLE, records, "train, select") == records
    with pytest.raises(ValueError, match="no record of split train .* 64 of select: name another"):
        of_splits(SAMPLE, records, "train")


def _finetune(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    capfd.readouterr()
    assert main(["finetune", *argv]) == 2
    return capfd.readouterr().err


def test_a_planner_that_has_seen_it_is_refused(
    tiny_planner: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = ["--output_dir", str(tmp_path / "out"), "--model", str(tiny_planner)]
    said = _finetune(capfd, "--stage", "words", "--leave_out", "hammer", *out)
    assert "was trained on hammer or does not say; start from" in said
    said = _finetune(capfd, "--stage", "2", "--leave_out", "hamer", *out)
    assert "unknown task 'hamer'; did you mean 'hammer'" in said
    for number, stage in (("1", "align"), ("3", "plan")):
        said = _finetune(capfd, "--stage", number, *out)
        assert f"stage {stage} needs recorded episodes" in said and "--records" in said


def test_a_stage_on_records_keeps_what_it_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--preset", "tiny", "--records", str(SAMPLE), "--records_split", "select"]
    argv += ["--steps", "1", "--batch_size", "6", "--threads", "1", "--log_every", "0"]
    argv += ["--features_dir", str(tmp_path / "features"), "--leave_out", "fk5"]
    out = tmp_path / "out"
    assert main(["finetune", "--stage", "3", *argv, "--output_dir", str(out)]) == 0
    err = capfd.readouterr().err
    assert "64 records: 64 good, 0 quarantined" in err and "of 64 records" in err
    assert left_out_of(out / "planner") == scenes.resolve_tasks("fk5")
    assert (out / "quarantine_0.jsonl").read_text() == ""


def _checkpoint(folder: Path, *left_out: str) -> Path:
    checkpoint.save(folder, {"w": torch.zeros(1)}, {"left_out": left_out} if left_out else {})
    return folder


@pytest.mark.parametrize(
    ("init", "trained_on", "left"),
    [
        (None, (), ["hammer", "assembly"]),
        (None, ("hammer", "reach"), ["assembly"]),
        (("hammer", "reach"), (), ["hammer"]),
        ((), (), []),  # does not say what it has seen
    ],
)
def test_what_a_policy_has_still_not_seen(
    tmp_path: Path, init: tuple[str, ...] | None, trained_on: tuple[str, ...], left: list[str]
) -> None:
    planner = _checkpoint(tmp_path / "planner", "hammer", "assembly")
    policy = None if init is None else _checkpoint(tmp_path / "policy", *init)
    assert still_left_out((planner, policy), trained_on) == left


def test_nothing_is_known_of_no_checkpoint() -> None:
    assert still_left_out((None, None), ()) == []
