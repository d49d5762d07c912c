"""The table of ablations: which rows, what is run for each, what the table says."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from embodied.cli.evaluate_plans import EvaluatePlansOptions
from embodied.cli.finetune import FinetuneOptions
from embodied.cli.main import _parse
from embodied.cli.start import _agreeing
from embodied.config import preset
from embodied.metrics import Rate
from tests.scripts import load_script

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["lora", "zero_shot", "blind", "ungrounded", "no_thought", "one_frame"]
NAMES += ["prefix", "both", "full"]


@pytest.fixture(scope="module")
def ablations() -> ModuleType:
    return load_script("ablations")


def _scores(k: int, grounded: bool = True) -> dict[str, Any]:
    rate = {"k": k, "n": 20, "pc": 5.0 * k, "wilson95": Rate(k, 20).wilson95}
    grounding: dict[str, Any] = {"value": None, "n": 0, "bootstrap95": None}
    if grounded:
        grounding = {"value": 7.25, "n": 31, "bootstrap95": [6.0, 8.5]}
    f1 = {"precision": 1.0, "recall": 1.0, "f1": k / 20}
    return {
        "plan_right": rate,
        "grounding_mean_px": grounding,
        "verdict_right": rate,
        "verdict_done": f1,
        "verdict_failed": f1,
        "question_right": rate,
    }


class Commands:
    """Stands in for `embodied`: keeps what is run, writes what it would write."""

    def __init__(self) -> None:
        self.run: list[list[str]] = []
        self.fails = False

    def __call__(self, command: list[str], **_: Any) -> Any:
        name, *argv = command[3:]
        self.run.append([name, *argv])
        if self.fails:
            return type("Done", (), {"returncode": 2, "stdout": ""})
        if name == "finetune":
            folder = Path(argv[argv.index("--output_dir") + 1])
            for part in ("planner", "training_state"):
                (folder / part).mkdir(parents=True)
                (folder / part / "config.json").write_text("{}")
        said = json.dumps(_scores(19, "no_thought" not in str(argv)))
        return type("Done", (), {"returncode": 0, "stdout": said + "\n"})


@pytest.fixture
def commands(ablations: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(ablations, "git_hash", lambda: "abc")
    monkeypatch.setattr(ablations.subprocess, "run", commands)
    return commands


def _options(ablations: ModuleType, out: Path, **changes: Any) -> Any:
    values = {"start": Path("align/planner"), "look_at": "a,b", "test": "c", "output_dir": out}
    return ablations.AblationOptions(**values | changes)


def test_the_rows_are_those_that_are_asked_for(ablations: ModuleType) -> None:
    assert [row.name for row in ablations.rows_of("")] == NAMES
    assert [row.name for row in ablations.rows_of("blind, lora")] == ["lora", "blind"]
    with pytest.raises(ValueError, match="no row loar; there are: lora, zero_shot, blind"):
        ablations.rows_of("loar,blind")


def test_every_command_is_understood_and_differs_from_lora_s_in_one_thing(
    ablations: ModuleType, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablations.run(_options(ablations, tmp_path), ablations.ROWS)
    trained, scored = {}, {}
    for name, *argv in commands.run:
        if name == "finetune":
            options = _parse(FinetuneOptions, name, argv)
            trained[options.output_dir.name] = options
        else:
            options = _parse(EvaluatePlansOptions, name, argv)
            assert options.plans == options.verdicts == options.questions == "c"
            scored[options.model.parent.name] = options
    assert sorted(trained) == sorted(set(NAMES) - {"zero_shot"})
    assert scored["align"].baseline == "zero_shot"
    assert sorted(scored) == sorted([*trained, "align"])
    usual = trained["lora"]
    differ = {
        name: {k for k in vars(usual) if getattr(options, k) != getattr(usual, k)} - {"output_dir"}
        for name, options in trained.items()
    }
    assert differ == {
        "lora": set(),
        "blind": {"sight"},
        "ungrounded": {"thought"},
        "no_thought": {"thought"},
        "one_frame": {"sight"},
        "prefix": {"adapter", "learning_rate"},
        "both": {"adapter"},
        "full": {"adapter", "learning_rate"},
    }
    assert usual.warmup < usual.steps and usual.fresh_adapter and usual.mix == "0,8,8,8"
    for options in trained.values():  # of whatever kind the adapter of the start is
        monkeypatch.setattr("embodied.cli.start.read_planner", lambda _: ({}, preset("small")))
        _agreeing(options, options.model)


def test_the_table_has_a_row_each_and_a_dash_where_there_is_nothing_to_measure(
    ablations: ModuleType, commands: Commands, tmp_path: Path
) -> None:
    options = _options(ablations, tmp_path)
    ablations.run(options, ablations.rows_of("lora,no_thought,zero_shot"))
    table = json.loads((tmp_path / "table.json").read_text())
    assert [row["name"] for row in table["rows"]] == ["lora", "zero_shot", "no_thought"]
    assert table["protocol"]["steps"] == 70 and {"commit", "title"} <= set(table["rows"][0])
    text = (tmp_path / "table.md").read_text()
    lora, zero_shot, no_thought = (
        next(line for line in text.splitlines() if f"| {title}" in line)
        for title in ("LoRA, grounded", "language model as it comes", "no thought")
    )
    right = "19/20 = 95 % [76, 99]"
    assert lora.split(" | ")[1:] == [
        "0.0007", right, "7.2 [6.0, 8.5], n 31", right, "0.95 / 0.95", f"{right} |"
    ]  # fmt: skip
    assert zero_shot.split(" | ")[1] == "–"
    assert no_thought.split(" | ")[3] == "–" != no_thought.split(" | ")[2]


def test_what_is_done_is_not_done_again_and_more_rows_join_the_table(
    ablations: ModuleType, commands: Commands, tmp_path: Path
) -> None:
    options = _options(ablations, tmp_path)
    ablations.run(options, ablations.rows_of("zero_shot,blind"))
    assert [c[0] for c in commands.run] == ["finetune", "evaluate-plans", "evaluate-plans"]
    assert not (tmp_path / "blind" / "training_state").exists()
    (tmp_path / "blind" / "scores.json").unlink()  # as when it was stopped before
    commands.run.clear()
    ablations.run(options, ablations.rows_of("zero_shot,blind"))
    assert [c[0] for c in commands.run] == ["evaluate-plans"]
    ablations.run(options, ablations.rows_of("full"))
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["zero_shot", "blind", "full"]


def test_a_command_that_fails_stops_it_and_leaves_no_scores(
    ablations: ModuleType, commands: Commands, tmp_path: Path
) -> None:
    commands.fails = True
    with pytest.raises(SystemExit) as stop:
        ablations.run(_options(ablations, tmp_path), ablations.rows_of("lora,blind"))
    assert stop.value.code == 2 and len(commands.run) == 1
    assert not list(tmp_path.rglob("scores.json"))


def test_one_folder_is_of_one_protocol(ablations: ModuleType, tmp_path: Path) -> None:
    ablations.check_protocol(_options(ablations, tmp_path))
    ablations.check_protocol(_options(ablations, tmp_path, rows="lora", workers=1))
    with pytest.raises(ValueError, match="begun with steps 70, now 9; name another --output_dir"):
        ablations.check_protocol(_options(ablations, tmp_path, steps=9))


def test_the_script_hands_its_options_on() -> None:
    script = ROOT / "scripts" / "ablations.sh"
    assert 'scripts/ablations.py "$@"' in script.read_text() and script.stat().st_mode & 0o100
