"""`report`: every number on the page is one of eval_info.json, and every video is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest

from embodied import video
from embodied.cli import eval_info
from embodied.cli.main import main
from embodied.metrics import Paired, Rate
from embodied.report import succeeded_by

DRAWER, LIGHT = "metaworld/drawer-open-v3", "kitchen/light switch"
NASTY = "open <script>alert(1)</script> & \"the\" 'drawer'"


class Page(HTMLParser):
    """The text of every table's cells, the links, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.sources += [unquote(v) for k in ("src", "href") if (v := values.get(k)) is not None]
        match tag:
            case "table":
                self._table: list[list[str]] = []
                self.tables.setdefault(values["class"] or "", []).append(self._table)
            case "tr":
                self._table.append([])
            case "td" | "th":
                self._table[-1].append("")
                self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self._table[-1][-1] += data


def _record(env: str, seed: int, first: int | None, video_path: str | None) -> dict[str, Any]:
    return {
        "env": env,
        "seed": seed,
        "layout_sha": f"{seed:016x}",
        "instruction": NASTY,
        "outcome": "failure" if first is None else "success",
        "success": first is not None,
        "first_success_step": first,
        "n_steps": 60 if first is None else first + 1,
        "plan": ["reach(drawer handle)", "pull(drawer handle)"],
        "thought": "Thought: the handle is at (3, 4).",
        "refused": None,
        "verdicts": [
            {"step": 8, "subgoal": "reach(drawer handle)", "status": "done"}
            | {"reason": "the hand is there", "probability": 0.87}
        ],
        "sum_reward": 1.0,
        "max_reward": 1.0,
        "plan_s": 0.5,
        "wall_s": 2.0,
        "control_hz": 30.0,
        "video": video_path,
        "setup": {"success_rule": "any step", "horizon": 60, "train_seeds": [4, 9]}
        | {"render_flags": {}},
    }


def _run(folder: Path, firsts: dict[str, list[int | None]], n_videos: int = 1) -> Path:
    """An evaluation as `evaluate` writes it, with the step of each episode's success."""
    records = []
    for env, steps in firsts.items():
        for i, first in enumerate(steps):
            name = f"{env.replace('/', '_')}_{200_000 + i}.mp4"
            path = folder / "videos" / name if i < n_videos else None
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                video.write_mp4(path, np.zeros((3, 16, 16, 3), np.uint8), 10)
            records.append(_record(env, 200_000 + i, first, path and str(path)))
    settings = {"actor": "agent", "policy": {"name": "p", "sha256": "00ff"}, "rule": None}
    eval_info.write(folder, eval_info.summarise(records, settings))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    a = _run(tmp_path / "full", {DRAWER: [10, 20, None, 30], LIGHT: [5, None, None, None]})
    b = _run(tmp_path / "blind", {DRAWER: [None] * 4, LIGHT: [None, 7, None, None]})
    return [a, b]


def _page(folder: Path, runs: list[Path], *argv: str) -> Page:
    assert main(["report", *map(str, runs), "--output_dir", str(folder), *argv]) == 0
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def _row_of(rows: list[list[str]], name: str) -> list[str]:
    (row,) = (row for row in rows if row[0] == name)
    return row[1:]


def _numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", cell)]


def test_rates_are_those_of_eval_info(two: list[Path], tmp_path: Path) -> None:
    (rows,) = _page(tmp_path / "page", two).tables["tasks"]
    assert rows[0] == ["task", "full", "blind"]
    for column, run in enumerate(two):
        info = json.loads((run / "eval_info.json").read_text())
        shown = {task["env"]: task for task in info["per_task"]}
        for name, values in [*shown.items(), ("all episodes", info["overall"])]:
            expected = [values["k"], values["n"], values["pc_success"]]
            expected += [100 * bound for bound in values["wilson95"]]
            assert _numbers(_row_of(rows, name)[column]) == pytest.approx(expected, abs=0.051)
        mean = _numbers(_row_of(rows, "mean of tasks")[column])
        assert mean == pytest.approx([info["overall"]["pc_success_macro"]], abs=0.051)


def test_paired_differences_are_those_of_mcnemar(two: list[Path], tmp_path: Path) -> None:
    (rows,) = _page(tmp_path / "page", two).tables["paired"]
    (overall,) = (row for row in rows if row[1] == "all")
    paired = Paired(8, 4, 1)
    assert paired.difference is not None
    assert overall[0] == "full → blind"
    assert overall[2:6] == ["4/8", "1/8", "4", "1"]
    assert _numbers(overall[6]) == pytest.approx([100 * paired.difference], abs=0.051)
    assert _numbers(overall[7]) == pytest.approx([paired.p], abs=1e-4)
    detectable = paired.detectable_difference()
    assert detectable is not None
    assert _numbers(overall[8]) == pytest.approx([100 * detectable], abs=0.051)
    assert [row[1] for row in rows[1:]] == ["all", DRAWER, LIGHT]


def test_runs_that_cannot_be_paired_say_why(two: list[Path], tmp_path: Path) -> None:
    other = _run(tmp_path / "short", {DRAWER: [1, 2]})
    (rows,) = _page(tmp_path / "page", [two[0], other]).tables["paired"]
    assert "not paired: 6 layout(s) were tried on one side only" in rows[1][1]


def test_plans_verdicts_and_words_are_shown_and_nothing_runs(
    two: list[Path], tmp_path: Path
) -> None:
    page = _page(tmp_path / "page", two)
    assert NASTY in page.text and "script" not in page.tags
    drawer, _ = page.tables["episodes"]
    assert [row[0] for row in drawer] == ["seed", "200000", "200001", "200002", "200003"]
    for words in ("reach(drawer handle)pull(drawer handle)", "success, 11 steps", "0.87"):
        assert words in drawer[1][1]
    assert "failure, 60 steps" in drawer[1][2]
    assert not any(source.startswith(("http", "//", "/")) for source in page.sources)


def _missing_videos(folder: Path, runs: list[Path]) -> list[str]:
    """Episodes with a video in eval_info.json and none beside each other on the page."""
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    shown = {s for s in page.sources if (folder / s).is_file() and (folder / s).stat().st_size}
    told = [v for run in runs for v in json.loads(_text(run))["overall"]["video_paths"]]
    assert told and page.tags.count("video") == len(told)
    return [v for v in told if not any(s.endswith(Path(v).name) for s in shown)]


def _text(run: Path) -> str:
    return (run / "eval_info.json").read_text(encoding="utf-8")


def test_every_video_is_beside_the_page_and_plays(two: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "page"
    _page(folder, two)
    assert _missing_videos(folder, two) == []
    copied = sorted((folder / "videos").iterdir())
    assert len(copied) == 4 and all(len(video.read_mp4(path)) == 3 for path in copied)
    for path in copied:
        if DRAWER.replace("/", "_") in path.name:
            path.unlink()
    assert len(_missing_videos(folder, two)) == 2  # the check can fail


def test_a_missing_video_is_an_error(
    two: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (two[1] / "videos" / f"{DRAWER.replace('/', '_')}_200000.mp4").unlink()
    argv = ["report", *map(str, two), "--output_dir", str(tmp_path / "page")]
    assert main(argv) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f"a video of {DRAWER}, seed 200000" in err and "--without_videos" in err
    assert not (tmp_path / "page").exists()
    assert "video" not in _page(tmp_path / "page", two, "--without_videos").tags


def test_a_folder_that_was_moved_keeps_its_videos(two: list[Path], tmp_path: Path) -> None:
    moved = two[0].rename(tmp_path / "elsewhere")
    _page(tmp_path / "page", [moved])
    assert _missing_videos(tmp_path / "page", [moved]) == []


def _points(element: ElementTree.Element) -> Iterator[tuple[float, float]]:
    for point in element.attrib["points"].split():
        x, y = point.split(",")
        yield float(x), float(y)


def test_curves_rise_to_the_final_rate_within_their_bands(two: list[Path], tmp_path: Path) -> None:
    _page(tmp_path / "page", two)
    html = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    svg = html[html.index('<svg class="curves"') :]
    root = ElementTree.fromstring(svg[: svg.index("</svg>") + 6])
    lines, bands = root.findall("polyline"), root.findall("polygon")
    assert len(lines) == len(bands) == 2
    for line, band, final in zip(lines, bands, (Rate(4, 8), Rate(1, 8)), strict=True):
        heights = [y for _, y in _points(line)]
        assert heights == sorted(heights, reverse=True)  # y points down
        edges = [y for _, y in _points(band)]
        low, high = edges[: len(heights)], edges[len(heights) :][::-1]
        assert all(h <= y <= lo for lo, y, h in zip(low, heights, high, strict=True))
        last = [1 - (y - 12) / 260 for y in (low[-1], heights[-1], high[-1])]
        bounds = final.wilson95 or (0, 0)
        assert last == pytest.approx([bounds[0], final.value, bounds[1]], abs=1e-3)


def test_success_by_a_step_counts_the_steps_that_were_carried_out() -> None:
    records = [_record(DRAWER, i, first, None) for i, first in enumerate([0, 4, None])]
    counted = [succeeded_by(records, step).k for step in (0, 1, 4, 5, 60)]
    assert counted == [0, 1, 1, 2, 2]


def test_what_is_no_evaluation_is_refused(
    two: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    eval_info.write(old, {"per_task": []})
    page = ["--output_dir", str(tmp_path / "page")]
    assert main(["report", str(two[0]), str(old), *page]) == 2
    assert "lacks ['overall', 'settings']" in capfd.readouterr().err
    assert main(["report", str(two[0]), str(two[0] / "eval_info.json"), *page]) == 2
    assert "given twice" in capfd.readouterr().err


def test_runs_of_one_name_are_told_apart(two: list[Path], tmp_path: Path) -> None:
    twin = _run(tmp_path / "again" / "full", {DRAWER: [1]})
    (rows,) = _page(tmp_path / "page", [two[0], twin]).tables["tasks"]
    assert rows[0][1:] == [str(two[0]), str(twin)]
