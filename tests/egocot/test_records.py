"""Records: what is written comes back; whatever is wrong is found, located and never dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from good_record import GOOD, TOGETHER, WRONG, changed, corrupt

from embodied.egocot import records as module
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.records import (
    Place,
    Provenance,
    Record,
    RecordError,
    read_records,
    write_records,
)
from embodied.model.plan import thought_text
from embodied.types import Subgoal
from embodied.video import write_mp4


def write_lines(path: Path, lines: list[Any]) -> Path:
    raw = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def read(path: Path, **more: Any) -> tuple[list[Record], list[dict[str, Any]], Quarantine]:
    out = path.parent / "quarantine.jsonl"
    with Quarantine(out) as quarantine:
        found = list(read_records(path, quarantine, **{"clips": False, **more}))
    return found, [json.loads(line) for line in out.read_text().splitlines()], quarantine


# --- round trips -----------------------------------------------------------------------------


def test_a_record_comes_back_from_json_and_from_disk(tmp_path: Path) -> None:
    record = Record.from_json(GOOD)
    assert record.to_json() == GOOD and list(record.to_json()) == list(GOOD)
    assert record.actions[1] == Subgoal("grasp", ("drawer handle", "gripper"))
    expected = "Thought: drawer handle at (56, 223), gripper at (0, 112)."
    assert thought_text(record.places) == expected
    assert write_records(tmp_path / "records.jsonl", [record]) == 1
    assert list(read_records(tmp_path, clips=False)) == [record]
    assert "打开抽屉" in (tmp_path / "records.jsonl").read_text("utf-8")


def test_whole_numbers_may_be_written_either_way() -> None:
    record = Record.from_json({**GOOD, "first_frame": 3.0, "score": 1})
    assert record.first_frame == 3 and type(record.first_frame) is int
    assert type(record.score) is float and '"score": 1.0' in json.dumps(record.to_json())


def test_writing_leaves_nothing_half_done(tmp_path: Path) -> None:
    path, record = tmp_path / "records.jsonl", Record.from_json(GOOD)
    write_records(path, [record])
    with pytest.raises(ValueError, match="id: is given twice"):
        write_records(path, [record, record])

    def failing() -> Iterator[Record]:
        yield record
        raise KeyError("the source broke")

    with pytest.raises(KeyError):
        write_records(path, failing())
    with pytest.raises(KeyError), Quarantine(path) as quarantine:
        quarantine.reject(RecordError("id", "is odd"), "a", 1, "")
        raise KeyError
    assert list(read_records(path, clips=False)) == [record]
    assert [p.name for p in tmp_path.iterdir()] == ["records.jsonl"]


# --- what is wrong, and where ----------------------------------------------------------------


@pytest.mark.parametrize(("path", "value", "field", "problem"), WRONG)
def test_what_is_wrong_is_located(path: str, value: Any, field: str, problem: str) -> None:
    with pytest.raises(RecordError) as caught:
        Record.from_json(changed(path, value))
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: {problem}")


@pytest.mark.parametrize("name", list(GOOD))
def test_every_field_has_to_be_there(name: str) -> None:
    with pytest.raises(RecordError, match=f"^{name}: is missing$"):
        Record.from_json({k: v for k, v in GOOD.items() if k != name})


def test_records_made_in_python_are_checked_as_well() -> None:
    with pytest.raises(RecordError, match="^x: must lie within"):
        Place("cup", 1.5, 0.5)
    with pytest.raises(RecordError, match="^prompt_version: must be null unless"):
        Provenance("a", "b", "c", None, "simulator", None, "1")
    fields = {name: getattr(Record.from_json(GOOD), name) for name in GOOD}
    with pytest.raises(RecordError, match="^plan: must be a list"):
        Record(**{**fields, "plan": ["go"]})
    with pytest.raises(RecordError, match="^actions\\[0\\]: has a noun with a comma"):
        Record(**{**fields, "actions": (Subgoal("put", ("a, b",)),)})


# --- reading ---------------------------------------------------------------------------------


def test_bad_lines_go_to_quarantine_and_are_counted(tmp_path: Path) -> None:
    twice = b'{"id": "a", "id": "b"}'
    lines = [GOOD, b"{", b"", b"\xff", twice, b'{"score": NaN}', b"[" * 10**5, GOOD, b"7"]
    lines += [changed("thought[0].x", 2), changed("thought[1].x", 3)]
    path = write_lines(tmp_path / "records.jsonl", lines)
    good, bad, quarantine = read(path)
    assert [record.to_json() for record in good] == [GOOD]
    assert [(row["file"], row["line"]) for row in bad] == [(str(path), n) for n in range(2, 12)]
    fields = ["line"] * 6 + ["id", "record", "thought[0].x", "thought[1].x"]
    assert [row["field"] for row in bad] == fields
    assert bad[6]["reason"] == f"id: is given twice, got 'kitchen/1', {path}:1"
    assert bad[0]["record"] == "{" and json.loads(bad[-1]["record"]) == lines[-1]
    counts = quarantine.counts
    assert counts.good == 1 and counts.n_bad == 10
    assert counts.bad["line: is not JSON"] == 3
    assert counts.bad["thought[].x: must lie within 0..1, without 1"] == 2
    assert str(counts).startswith(
        "11 records: 1 good, 10 quarantined\n      3  line: is not JSON\n"
    )
    with pytest.raises(ValueError, match=r"records.jsonl:2: line: is not JSON.*Quarantine"):
        list(read_records(path, clips=False))


def test_all_files_of_a_folder_share_their_ids(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", [GOOD, {**GOOD, "id": "b"}])
    write_lines(tmp_path / "a.jsonl", [GOOD])
    write_lines(tmp_path / "quarantine-old.jsonl", [b"nonsense"])
    (tmp_path / "notes.txt").write_text("no record")
    with Quarantine() as quarantine:
        found = [record.id for record in read_records(tmp_path, quarantine, clips=False)]
    assert found == ["kitchen/1", "b"] and quarantine.counts.bad == {"id: is given twice": 1}
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        list(read_records(tmp_path / "none"))
    with (
        pytest.raises(ValueError, match="give the quarantine another file"),
        Quarantine(tmp_path / "a.jsonl") as quarantine,
    ):
        next(read_records(tmp_path, quarantine))
    assert (tmp_path / "a.jsonl").read_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \*.jsonl in"):
        list(read_records(tmp_path / "empty"))


def test_clips_are_looked_for(tmp_path: Path) -> None:
    write_mp4(tmp_path / "clips/a.mp4", np.zeros((10, 16, 16, 3), np.uint8), 10)
    (tmp_path / "clips/bad.mp4").write_bytes(b"no video")
    names = ["clips/a.mp4", "clips/a.mp4", "clips/none.mp4", "clips/bad.mp4", "x" * 300 + ".mp4"]
    lines = [{**GOOD, "id": str(i), "clip": name} for i, name in enumerate(names)]
    lines[1]["last_frame"] = 10
    good, bad, _ = read(write_lines(tmp_path / "records.jsonl", lines), clips=True)
    assert [record.id for record in good] == ["0"]
    assert [row["field"] for row in bad] == ["last_frame", "clip", "clip", "clip"]
    assert bad[0]["reason"] == "last_frame: lies behind the clip's end, got 10 of 10 frames"
    assert bad[1]["reason"].startswith("clip: is missing") and "bad.mp4" in bad[2]["reason"]


# --- random corruption -----------------------------------------------------------------------


def test_a_corrupted_record_is_still_good_or_is_located(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = [corrupt(rng) for _ in range(2000)]
    for i, (record, field) in enumerate(drawn):
        if field != "id":
            record["id"] = str(i)
    path = write_lines(tmp_path / "records.jsonl", [record for record, _ in drawn])
    good, bad, quarantine = read(path)
    assert len(good) + len(bad) == len(drawn) == quarantine.counts.good + len(bad)
    assert len(good) > 200 and len(bad) > 700
    for row in bad:
        record, field = drawn[row["line"] - 1]
        found = re.match(r"\w+", row["field"])
        assert found and found[0] in (field, TOGETHER.get(field)), (row, field)
        assert row["record"] == json.dumps(record)
    rewritten = tmp_path / "again.jsonl"
    write_records(rewritten, good)
    assert list(read_records(rewritten, clips=False)) == good


def test_flipped_bytes_never_raise_and_spoil_their_line_only(tmp_path: Path) -> None:
    rng, lines = np.random.default_rng(1), []
    for i in range(1000):
        raw = bytearray(json.dumps({**GOOD, "id": f"bad {i}"}, ensure_ascii=False).encode())
        for at in rng.integers(len(raw), size=rng.integers(1, 4)):
            raw[at] = rng.choice([b for b in range(256) if b != 10])
        lines += [bytes(raw[: rng.integers(len(raw))] if i % 4 == 0 else raw)]
        lines += [{**GOOD, "id": f"good {i}"}]
    good, bad, _ = read(write_lines(tmp_path / "records.jsonl", lines))
    assert len(good) + len(bad) == 2000
    assert {row["line"] % 2 for row in bad} == {1}


def test_the_command_checks_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "records.jsonl", [GOOD])
    assert module.main([str(tmp_path), "--no_clips"]) == 0
    assert capsys.readouterr().out == "1 records: 1 good, 0 quarantined\n"
    out = tmp_path / "quarantine.jsonl"
    assert module.main([str(tmp_path), "--quarantine", str(out)]) == 1
    said = capsys.readouterr()
    assert "records.jsonl:1: clip: is missing" in said.err and "1 quarantined" in said.out
    assert json.loads(out.read_text())["field"] == "clip"
    assert module.main([str(tmp_path / "none")]) == 2
    assert "no file or folder" in capsys.readouterr().err
