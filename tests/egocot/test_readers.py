"""Other layouts become records: the official EgoCOT, LeRobotDatasets, columns. All made up here."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embodied.egocot.clips import read_clip
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.readers import (
    read_folder,
    read_official,
    read_records,
)
from embodied.egocot.readers.official import split_of
from embodied.egocot.readers.planning import parse_planning
from embodied.egocot.records import Record, RecordError, write_records
from embodied.egocot.records import main as check_records
from embodied.types import Subgoal

# --- plans of the official layout ------------------------------------------------------------

TEA = ("take the kettle", "Pour the water into the pot")
TAKE, POUR = Subgoal("take", ("kettle",)), Subgoal("pour into", ("water", "pot"))
PROSE = "take the kettle. Pour the water into the pot."


@pytest.mark.parametrize(
    "text",
    [
        PROSE + "\nactions:\n1. take(kettle)\n2. pour into(water, pot)",
        " " + PROSE + "\nActions:\n1) take (kettle)\n2) pour into (water , pot).\n",
        PROSE + " actions: 1. take(kettle) 2. pour into(water, pot)",
        PROSE + "\r\nAction:\r\n1: Take(kettle)\r\n2: Pour Into(water, pot)",
        PROSE + "\nACTIONS\n- take(kettle)\n- pour into(water, pot)",
        PROSE + "\nactions:\n(1) take(kettle);\n(2) pour_into(water, 'pot');",
        PROSE + "\nactions:\nStep 1: take(kettle)\nStep 2: pour-into(water, pot)",
        PROSE + "\nactions：\n1、take（kettle）\n2、pour into（water，pot）",
        PROSE + "\n\n1. take(kettle)\n2. pour into(water, pot)",
        PROSE + "\ntake(kettle)\npour into(water, pot)",
        "Plan: 1. take the kettle. 2. Pour the water into the pot.\nactions:\n"
        "take(kettle), pour into(water, pot)",
        "1. take the kettle\n2. Pour the water\tinto the pot\nactions: 1 take(kettle)\n"
        "2 pour into(water, pot)",
    ],
)
def test_plans_are_read_in_all_their_forms(text: str) -> None:
    assert parse_planning(text) == (TEA, (TAKE, POUR))


@pytest.mark.parametrize(
    ("listing", "problem"),
    [
        ("", "has no actions"),
        ("1. take(kettle)\n2. then pour", "something among its actions that is none, got '2. then"),
        ("1. take(kettle) and pour it", "something among its actions that is none"),
        ("1. take(kettle)\nNote: all done", "something among its actions that is none"),
        ("1. take()", "without one or two nouns, got 'take()'"),
        ("1. take(kettle, )", "without one or two nouns"),
        ("1. put(kettle, stove, left)", "without one or two nouns"),
        ("1. take(kettle)\n3. stir(tea)", "must number its actions 1, 2, 3 and so on, or not at"),
        ("1. take(kettle)\nstir(tea)", "must number its actions 1, 2, 3 and so on, or not at all"),
        ("1. take(pot (blue))", "something among its actions that is none"),
        ("1. 拿(水壶)", "something among its actions that is none"),
        ("x" * 4001, "is longer than 4000 characters"),
    ],
)
def test_plans_are_not_made_to_fit(listing: str, problem: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_planning(f"{PROSE}\nactions:\n{listing}")
    assert caught.value.field == "planning" and problem in str(caught.value)


def test_words_in_brackets_are_no_action() -> None:
    with pytest.raises(RecordError, match="has no actions"):
        parse_planning("1. Take the cup (the blue one).\n2. Drink (slowly).")


def test_no_plan_takes_long_or_raises_something_else() -> None:
    rng, pieces = np.random.default_rng(0), ["a", " ", "(", ")", "1.", "actions:", "\n", ",", "步"]
    for _ in range(300):
        try:
            parse_planning("".join(rng.choice(pieces, rng.integers(1, 60))))
        except RecordError:
            pass
    for nasty in (" " * 3999, "a " * 1999, "actions:" + "a" * 3900, "1" * 3999, "a(" * 1999):
        with pytest.raises(RecordError):
            parse_planning(nasty)


# --- the official layout ---------------------------------------------------------------------

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 24), np.uint8)


def entry(number: int, **changes: Any) -> dict[str, Any]:
    text = PROSE + "\nactions:\n1. take(kettle)\n2. pour into(water, pot)"
    made = {"image": f"EGO_{number}.npy", "caption": " C makes\ntea 🫖", "planing": text}
    return {k: v for k, v in {**made, "score": 0.25, **changes}.items() if v is not ...}


def official(folder: Path, entries: list[Any]) -> tuple[list[Record], list[dict[str, Any]]]:
    for number in range(40):
        np.save(folder / f"EGO_{number}.npy", FRAMES)
    (folder / "results.json").write_text(json.dumps(entries))
    with Quarantine(folder / "bad.jsonl") as quarantine:
        found = list(read_official(folder, quarantine))
    return found, [json.loads(line) for line in (folder / "bad.jsonl").read_text().splitlines()]


def test_the_official_layout_becomes_records(tmp_path: Path) -> None:
    planing = entry(2)["planing"]
    entries = [entry(1), entry(2, planing=..., planning=planing), entry(3, planning=planing)]
    found, bad = official(tmp_path, entries)
    assert not bad and [record.id for record in found] == [f"egocot/EGO_{i}" for i in (1, 2, 3)]
    for record in found:
        assert record.plan == TEA and record.actions == (TAKE, POUR)
        assert record.caption == "C makes tea 🫖" and record.score == 0.25
        assert record.provenance.method == "model" and "Ego4D" in record.provenance.licence
        clip = read_clip(tmp_path, record.clip)
        assert np.array_equal(clip.frames, np.moveaxis(FRAMES, 1, -1))
    write_records(tmp_path / "records.jsonl", found)
    assert list(read_records(tmp_path / "records.jsonl")) == found  # the clips as well


def test_only_scores_below_the_threshold_are_left_out(tmp_path: Path) -> None:
    below = float(np.nextafter(0.2, 0))
    found, bad = official(tmp_path, [entry(1, score=0.2), entry(2, score=below), entry(3, score=1)])
    assert [record.score for record in found] == [0.2, 1.0]
    assert bad[0]["line"] == 2 and bad[0]["field"] == "score"
    assert "is below the threshold of 0.2" in bad[0]["reason"]
    with Quarantine() as quarantine:
        assert len(list(read_official(tmp_path / "results.json", quarantine, threshold=0.1))) == 3


def test_bad_entries_are_located(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    normal = rng.uniform(-1.7, 1.9, (8, 3, 16, 16)).astype(np.float32)
    (tmp_path / "EgoCOT_clear").mkdir()
    np.save(tmp_path / "EgoCOT_clear/fine.npy", normal)
    np.save(tmp_path / "range.npy", normal * 40)
    np.save(tmp_path / "shape.npy", FRAMES[:7])
    (tmp_path / "corrupt.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', (")
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    cases: list[tuple[Any, str, str]] = [
        (7, "record", "must be an object"),
        (entry(1, image=...), "image", "must be text"),
        (entry(2, image="../EGO_2.npy"), "image", "must be an .npy's path in the folder"),
        (entry(3, image="EGO_3.mp4"), "image", "must be an .npy's path in the folder"),
        (entry(4, image="none.npy"), "image", "is missing"),
        (entry(5, image="x" * 390 + ".npy"), "image", "is missing"),
        (entry(6, image="a\x00.npy"), "image", "is missing"),
        (entry(7, image="corrupt.npy"), "image", "cannot be read as frames"),
        (entry(8, image="pickle.npy"), "image", "cannot be read as frames"),
        (entry(9, image="shape.npy"), "image", "must hold (8, 3, H, W), got (7, 3, 16, 24)"),
        (entry(10, image="range.npy"), "image", "are no bytes, no fractions"),
        (entry(11, planing=...), "planning", "is missing, in either spelling"),
        (entry(12, planning="other"), "planning", "says something else in each spelling"),
        (entry(13, planing=["take"]), "planing", "must be text"),
        (entry(14, planing=PROSE), "planning", "has no actions"),
        (entry(15, planing="actions:" + "1. a(b)\n" * 2), "planning", "must number its actions"),
        (entry(16, planing="actions:" + "- a(b)\n" * 17), "actions", "has more than 16 entries"),
        (entry(17, score="0.3"), "score", "must be a number"),
        (entry(18, score=float("nan")), "score", "must lie within -1..1"),
        (entry(19, score=10**400), "score", "must lie within -1..1"),
        (entry(20, caption=" \n"), "caption", "is empty"),
        (entry(21, caption="\ud800"), "caption", "has a control character"),
        (entry(0), "id", "is given twice"),
    ]
    wrong = [made for made, _, _ in cases]
    found, bad = official(tmp_path, [entry(0), entry(0, image="fine.npy"), *wrong])
    assert [record.clip for record in found] == ["EGO_0.npy", "EgoCOT_clear/fine.npy"]
    assert [row["line"] for row in bad] == list(range(3, len(cases) + 3))
    for row, (made, field, problem) in zip(bad, cases, strict=True):
        assert (row["field"], row["record"]) == (field, json.dumps(made)) and problem in row[
            "reason"
        ]


def test_a_hash_of_the_id_is_the_split(tmp_path: Path) -> None:
    """By the documented rule, for one's own lists of them; the examples never change."""
    splits = Counter(split_of(f"egocot/EGO_{i}") for i in range(5000))
    assert 0.09 < splits["test"] / 5000 < 0.11 and 0.09 < splits["select"] / 5000 < 0.11
    digest = hashlib.sha256(b"egocot/EGO_76").hexdigest()
    assert int(digest[:8], 16) / 2**32 < 0.1 and split_of("egocot/EGO_76") == "test"
    entries = [entry(i) for i in range(40)]
    found, _ = official(tmp_path, entries)
    alone, _ = official(tmp_path, entries[::-7])
    told = {record.id: record.split for record in found}
    assert len(set(told.values())) > 1
    assert all(record.split == told[record.id] for record in alone)
    with Quarantine() as quarantine:
        mine = list(read_official(tmp_path, quarantine, split="select"))
    assert {record.split for record in mine} == {"select"}


def test_a_folder_is_read_by_its_layout(tmp_path: Path) -> None:
    found, _ = official(tmp_path, [entry(1), entry(2, score=0.1)])
    (tmp_path / "ours").mkdir()
    np.save(tmp_path / "ours" / "EGO_1.npy", FRAMES)
    write_records(tmp_path / "ours" / "records.jsonl", found)
    with Quarantine() as quarantine:
        assert list(read_folder(tmp_path, quarantine)) == found
        assert list(read_folder(tmp_path / "results.json", Quarantine())) == found
    assert quarantine.counts.n_bad == 1
    assert len(list(read_folder(tmp_path, Quarantine(), threshold=0.1))) == 2
    assert list(read_folder(tmp_path / "ours")) == found
    assert list(read_folder(tmp_path / "ours", Quarantine(), threshold=0.9)) == []
    assert check_records([str(tmp_path), "--min_score", "0.05"]) == 0
    assert check_records([str(tmp_path)]) == 1


def test_a_file_that_is_no_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_official(tmp_path))
    for text, problem in (("{", "is not JSON"), ("[" * 10**5, "is not JSON"), ("{}", "a list of")):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match=problem):
            list(read_official(tmp_path))
