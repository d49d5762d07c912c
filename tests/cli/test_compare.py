"""`compare`: what is paired with what, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from embodied.cli.main import main
from embodied.metrics import Paired
from tests.cli.evaluations import DRAWER, REACH, record, told, write


def test_compare_pairs_layouts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a", [record(i, i < 4) for i in range(20)])
    b = [record(i, i < 14) for i in range(19, -1, -1)]  # in another order
    b = write(tmp_path / "b", [*b, record(99, True)])
    assert main(["compare", a, b, "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "1 layout(s) were tried on one side only" in err and "--shared" in err
    assert main(["compare", a, b, "--shared", "--json"]) == 0
    out, err = capfd.readouterr()
    overall = json.loads(out)["overall"]
    assert (overall["n"], overall["k_a"], overall["k_b"]) == (20, 4, 14)
    assert (overall["only_a"], overall["only_b"]) == (0, 10)
    assert overall["mcnemar_p"] == pytest.approx(2 / 2**10)
    assert overall["smallest_difference"] == 8 / 20  # 9 against 1
    assert overall["detectable_difference"] == Paired(20, 0, 10).detectable_difference()
    assert "1 episode(s)" in err
    assert main(["compare", a, b, "--shared"]) == 0
    out = capfd.readouterr().out
    assert "B - A = +50.0 points" in out and "4/20" in out
    assert "find a true one of 43.1 points in 4 of 5 cases" in out


def test_compare_sets_crashes_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a", [record(0, True), record(1, True)])
    b = write(tmp_path / "b", [record(0, True), record(1, False, outcome="crash")])
    assert main(["compare", a, b, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["overall"]["n"], result["n_set_apart"]) == (1, 1)
    assert main(["compare", a, b]) == 0
    assert "1 pairs are too few" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 7}, "no layouts are shared"),
        ({"env": REACH}, "no layouts are shared"),
        ({"layout_sha": "x"}, "1 layout(s) differ although their seeds are the same"),
    ],
)
def test_compare_refuses_other_layouts(
    change: dict[str, Any], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", [record(0, True)])
    b = write(tmp_path / "b", [record(0, True) | change])
    assert main(["compare", a, b, "--shared"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and reason in err


def _seeds(tmp_path: Path, side: str, wins: dict[str, list[int]], env: str = DRAWER) -> str:
    """Evaluations of ten layouts, comma-separated: name → seeds of the layouts that it won."""
    runs = {
        name: write(tmp_path / f"{side}_{name}", [record(i, i in won, env=env) for i in range(10)])
        for name, won in wins.items()
    }
    return ",".join(runs.values())


def test_compare_puts_folders_together_one_by_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a = {"s0": [0, 1, 2], "s1": [0, 1], "s2": [0, 5]}
    b = {"s0": [0, 1, 2, 3, 4, 5], "s1": [0, 3, 4, 5], "s2": [0, 1, 3, 4]}
    many = _seeds(tmp_path, "a", a), _seeds(tmp_path, "b", b)
    kitchen = [
        _seeds(tmp_path, "ka", {"s": []}, "kitchen/kettle"),
        _seeds(tmp_path, "kb", {"s": [7]}, "kitchen/kettle"),
    ]
    assert (
        main(["compare", *(f"{x},{y}" for x, y in zip(many, kitchen, strict=True)), "--json"]) == 0
    )
    result = told(capfd)
    overall, (drawer, kettle) = result["overall"], result["per_task"]
    by_hand = [(i in b[s]) - (i in a[s]) for s in a for i in range(10)]
    only_a, only_b = by_hand.count(-1), by_hand.count(1)
    assert (drawer["n"], drawer["only_a"], drawer["only_b"]) == (30, only_a, only_b) == (30, 2, 9)
    assert (overall["n"], overall["only_a"], overall["only_b"]) == (40, only_a, only_b + 1)
    assert overall["mcnemar_p"] == pytest.approx(Paired(40, only_a, only_b + 1).p)
    assert overall["detectable_difference"] == Paired(40, 2, 10).detectable_difference()
    assert (drawer["n_layouts"], kettle["n_layouts"], overall["n_layouts"]) == (10, 10, 20)
    sums = np.reshape(by_hand, (3, 10)).sum(0)
    flips = stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert drawer["layouts_p"] == pytest.approx(flips)
    assert kettle["layouts_p"] == kettle["mcnemar_p"] == 1.0
    assert overall["student95_seeds"] is None  # one kitchen policy tells nothing of others
    low, high = overall["bootstrap95_layouts"]
    assert low < overall["difference"] == 0.2 < high

    assert main(["compare", *many, "--json"]) == 0
    student = stats.ttest_1samp(np.reshape(by_hand, (3, 10)).mean(1), 0).confidence_interval()
    assert told(capfd)["overall"]["student95_seeds"] == pytest.approx([student.low, student.high])
    assert main(["compare", *many]) == 0
    text = capfd.readouterr().out
    assert "30 on 10 layouts" in text and f"p = {flips:.4f} (exact sign-flip test)" in text
    assert "(Student, 3 folders)" in text and "(bootstrap within each task)" in text


def test_compare_of_one_folder_says_nothing_of_seeds(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = (_seeds(tmp_path, side, {"s": list(won)}) for side, won in (("a", "1"), ("b", "23")))
    assert main(["compare", a, b]) == 0
    text = capfd.readouterr().out
    assert "layouts" not in text and "seeds" not in text


def test_compare_pairs_folders_by_their_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a = _seeds(tmp_path, "a", {"s0": [0], "s1": [1]})
    b = _seeds(tmp_path, "b", {"s0": [0], "s1": [1]})
    assert main(["compare", a, b, "--json"]) == 0
    assert told(capfd)["overall"]["only_a"] == 0
    turned = ",".join(reversed(b.split(",")))
    assert main(["compare", a, turned, "--json"]) == 0
    overall = told(capfd)["overall"]
    assert (overall["only_a"], overall["only_b"]) == (2, 2)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("s0,s1", "s0", "A names 2 evaluation(s) and B 1"),
        ("s0,s0", "s1,s1", "named twice in the same place"),
        (",", ",", "A names 0 evaluation(s)"),
    ],
)
def test_compare_refuses_folders_that_do_not_pair_up(
    a: str, b: str, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _seeds(tmp_path, "a", {"s0": [], "s1": [1]})
    sides = [",".join(s and str(tmp_path / f"a_{s}") for s in side.split(",")) for side in (a, b)]
    assert main(["compare", *sides]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and reason in err


def test_a_folder_may_have_a_comma(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "one,two", [record(0, True)])
    assert main(["compare", a, a, "--json"]) == 0
    assert told(capfd)["overall"]["n_folders"] == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"per_task": 1}', '{"per_task": [{}]}'])
def test_compare_refuses_what_is_no_evaluation(
    content: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "eval_info.json"
    path.write_text(content)
    assert main(["compare", str(path), str(path)]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "is no eval_info.json" in err
