"""Training and evaluating on records: the official EgoCOT's layout, made up here, and bad ones."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embodied.cli import score_records
from embodied.cli.evaluate_plans import EvaluatePlansOptions, evaluate_plans
from embodied.cli.main import main
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.readers.official import split_of
from embodied.egocot.record_features import load_records
from embodied.egocot.records import Record, read_records, write_records
from embodied.model.planner import Planner

SAMPLE = Path(__file__).parents[2] / "data" / "egocot" / "sample"
NUMBERS = range(40, 64)  # among which every split comes up
N_GOOD = len(NUMBERS)

pytestmark = pytest.mark.usefixtures("one_thread", "brief")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny planner, whose language model is random, would never come to an end."""
    monkeypatch.setattr(score_records, "_PLAN_TOKENS", 2)
    monkeypatch.setattr(Planner, "answer_tokens", lambda *_: "a cup")


def _entry(number: int, **changes: Any) -> dict[str, Any]:
    plan = f"Take the cup {number}.\nactions:\n1. take(cup)\n2. pour into(water, cup)"
    made = {"image": f"EGO_{number}.npy", "caption": f"C takes cup {number}", "planing": plan}
    return {**made, "score": 0.3, **changes}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """24 good entries, one of a low score, one without its frames, one without actions."""
    folder, rng = tmp_path / "EgoCOT", np.random.default_rng(0)
    folder.mkdir()
    entries = [_entry(i) for i in NUMBERS]
    entries += [_entry(76, score=0.1), _entry(91, image="none.npy"), _entry(92, planing="rest")]
    for entry in entries[:-2]:
        np.save(folder / entry["image"], rng.integers(0, 256, (8, 3, 32, 40), np.uint8))
    np.save(folder / "EGO_92.npy", np.zeros((8, 3, 32, 40), np.uint8))
    (folder / "results.json").write_text(json.dumps(entries))
    return folder


def _scores(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[dict[str, Any], str]:
    """What is printed as one JSON object, and what went to stderr."""
    capfd.readouterr()
    assert main(["evaluate-plans", "--json", *argv]) == 0
    out, err = capfd.readouterr()
    return json.loads(out), err


def _n_plans(scores: dict[str, Any]) -> int:
    return scores["records"]["seen_tasks"]["plan_right"]["n"]


def test_the_official_layout_is_evaluated_as_it_is(
    official: Path, tiny_planner: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    splits = Counter(split_of(f"egocot/EGO_{i}") for i in NUMBERS)
    assert set(splits) == {"train", "select", "test"}
    argv = ["--model", str(tiny_planner), "--records", str(official)]
    argv += ["--features_dir", str(tmp_path / "features")]
    scores, err = _scores(capfd, *argv)
    assert _n_plans(scores) == splits["test"]
    assert f"27 records: {N_GOOD} good, 3 quarantined" in err
    assert "1  score: is below the threshold of 0.2" in err
    assert not list(tmp_path.rglob("quarantine*"))
    both = [*argv, "--records_split", "test,select", "--output_dir", str(tmp_path / "out")]
    assert _n_plans(_scores(capfd, *both)[0]) == splits["test"] + splits["select"]
    lines = (tmp_path / "out" / "quarantine_0.jsonl").read_text().splitlines()
    bad = [json.loads(line) for line in lines]
    assert [(row["line"], row["field"]) for row in bad] == [
        (25, "score"),
        (26, "image"),
        (27, "planning"),
    ]


def test_the_score_that_is_good_enough_is_the_users(
    official: Path, tiny_planner: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", str(tiny_planner), "--records", str(official)]
    argv += ["--records_split", split_of("egocot/EGO_76")]
    argv += ["--features_dir", str(tmp_path / "features")]
    usual = _n_plans(_scores(capfd, *argv)[0])
    assert _n_plans(_scores(capfd, *argv, "--min_score", "0.05")[0]) == usual + 1
    assert main(["evaluate-plans", *argv, "--min_score", "0.5"]) == 2
    (told,) = [line for line in capfd.readouterr().err.splitlines() if "no good record" in line]
    assert "(27 × score: is below the threshold of 0.5); python -m" in told
    assert main(["evaluate-plans", *argv, "--min_score", "2"]) == 2
    assert "--min_score is a similarity from -1 to 1, got 2" in capfd.readouterr().err
    out = ["--output_dir", str(tmp_path / "out"), "--stage", "plan", "--records", str(official)]
    assert main(["finetune", "--preset", "tiny", *out, "--min_score", "-7"]) == 2
    assert "--min_score is a similarity from -1 to 1, got -7" in capfd.readouterr().err


def test_scores_of_our_own_records_count_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    rows = [r.to_json() for r in list(read_records(SAMPLE))[:3]]
    for row, score in zip(rows, (None, 0.1, 0.4), strict=True):
        shutil.copy(SAMPLE / row["clip"], tmp_path / row["clip"])
        row["score"] = score
    write_records(tmp_path / "records.jsonl", map(Record.from_json, rows))
    assert len(load_records(tmp_path)) == 3
    with Quarantine() as quarantine:
        kept = load_records(tmp_path, quarantine, 0.4)
    assert [r.score for r in kept] == [None, 0.4]
    assert quarantine.counts.bad == {"score: is below the threshold of 0.4": 1}


def test_the_official_layout_is_trained_on_as_it_is(
    official: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--stage", "plan", "--preset", "tiny", "--records", str(official), "--steps", "1"]
    argv += ["--features_dir", str(tmp_path / "features"), "--threads", "1", "--batch_size", "4"]
    out = tmp_path / "out"
    assert main(["finetune", *argv, "--output_dir", str(out)]) == 0
    assert (out / "planner" / "model.safetensors").is_file()
    assert len((out / "quarantine_0.jsonl").read_text().splitlines()) == 3
    features = np.load(next((tmp_path / "features").glob("*/clips.npy")), mmap_mode="r")
    n_train = sum(split_of(f"egocot/EGO_{i}") == "train" for i in NUMBERS)
    assert len(features) == n_train < N_GOOD
    assert main(["finetune", *argv, "--records_split", "dev", "--output_dir", str(out / "b")]) == 2
    told = capfd.readouterr().err
    assert f"no record of split dev in '{official}', it has " in told
    assert f"{n_train} of train" in told and "name another with --records_split" in told


# --- bad records of one's own -----------------------------------------------------------------


@pytest.fixture
def partly_bad(tmp_path: Path) -> Path:
    """Four records: one good, one with a typo, one whose .npy and one whose .mp4 breaks off."""
    folder = tmp_path / "mine"
    (folder / "clips").mkdir(parents=True)
    rows = [r.to_json() for r in list(read_records(SAMPLE)) if len(r.actions) > 1][:4]
    for row in rows:
        shutil.copy(SAMPLE / row["clip"], folder / row["clip"])
    rows[1]["plann"] = rows[1].pop("plan")
    rows[2] |= {"clip": "clips/range.npy", "first_frame": None, "last_frame": None}
    np.save(folder / "clips/range.npy", np.full((8, 32, 32, 3), 1e6, np.float32))
    rows[3] |= {"clip": "clips/cut.mp4", "first_frame": None, "last_frame": None}
    content = bytearray((SAMPLE / rows[0]["clip"]).read_bytes())
    start = content.index(b"mdat")
    content[start + 8 : start + 4000] = bytes(3992)
    (folder / "clips/cut.mp4").write_bytes(content)
    lines = [json.dumps(row) for row in rows]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_bad_records_do_not_end_an_evaluation(
    partly_bad: Path, tiny_planner: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", str(tiny_planner), "--records", str(partly_bad), "--records_split", "select"]
    argv += ["--features_dir", str(tmp_path / "features"), "--output_dir", str(tmp_path / "out")]
    for _ in range(2):  # the second time with the features of the good one kept
        scores, err = _scores(capfd, *argv)
        assert _n_plans(scores) == 1
        assert "4 records: 3 good, 1 quarantined" in err
        assert "its clips read: 4 records: 1 good, 3 quarantined" in err
        lines = (tmp_path / "out" / "quarantine_0.jsonl").read_text().splitlines()
        bad = [json.loads(line) for line in lines]
        assert [(row["line"], row["field"]) for row in bad] == [
            (2, "record"),
            (3, "clip"),
            (4, "clip"),
        ]
        assert "are no bytes, no fractions" in bad[1]["reason"] and "cut.mp4" in bad[2]["reason"]


def test_when_no_clip_can_be_read_that_is_one_line(
    partly_bad: Path, tiny_planner: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = (partly_bad / "records.jsonl").read_text().splitlines()
    (partly_bad / "records.jsonl").write_text("\n".join(lines[2:]) + "\n")
    options = EvaluatePlansOptions(
        records=str(partly_bad),
        records_split="select",
        model=tiny_planner,
        features_dir=tmp_path / "features",
    )
    with pytest.raises(ValueError, match="no clip of '.*mine' can be read; the first: values from"):
        evaluate_plans(options)
