"""What was looked at is kept with the weights, and no test layout may be among it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embodied.checkpoint import load
from embodied.cli.finetune import FinetuneOptions, finetune
from embodied.cli.main import main
from embodied.cli.records import layouts_of
from embodied.cli.train_policy import TrainPolicyOptions, train_policy
from embodied.cli.unseen import TrainLayouts, looked_at_notes
from embodied.egocot.records import read_records
from embodied.episodes import DatasetReader

if TYPE_CHECKING:
    from tests.cli.conftest import FakeAgent

ROOT = Path(__file__).resolve().parents[2]
COFFEE = "metaworld/coffee-button-v3"
Tune = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


def _config(folder: Path, **notes: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(notes))
    return folder


# --- what is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_ranges_are_the_seeds_and_no_others(seed: int, tmp_path: Path) -> None:
    drawn = np.random.default_rng(seed).choice(60, 30, replace=False).tolist()
    notes = looked_at_notes([("kitchen/kettle", s) for s in [*drawn, *drawn]])
    seen = TrainLayouts.of(_config(tmp_path / "planner", scenes=["metaworld"], **notes), tmp_path)
    assert sorted(seen.seeds["kitchen"]) == sorted(drawn)
    seen.check_seeds([("kitchen/4", s) for s in range(60) if s not in drawn])
    seen.check_seeds([("metaworld/push-v3", s) for s in drawn])  # another robot's
    for s in drawn:
        with pytest.raises(ValueError, match=f"kitchen, seed\\(s\\) {s}, by {tmp_path}/planner"):
            seen.check_seeds([("kitchen/2", s)])


def test_thousands_of_seeds_take_a_line() -> None:
    seeds = [*range(5000), 7000, *range(100_000, 104_000)]
    notes = looked_at_notes([("metaworld/push-v3", s) for s in seeds] + [("kitchen/4", 3)])
    assert notes == {"looked_at_seeds": {"kitchen": "3", "metaworld": "0:4999,7000,100000:103999"}}


def test_nothing_is_said_of_nothing(tmp_path: Path) -> None:
    older = _config(tmp_path / "older", trained_on=["a"])
    assert looked_at_notes([("", 0)], (None, older), ("",)) == {}  # from other software


def test_a_planner_has_seen_what_its_starts_had_seen(tmp_path: Path) -> None:
    first = looked_at_notes([("kitchen/4", 1), ("kitchen/4", 2)], (), ("ab",))
    second = looked_at_notes([("metaworld/push-v3", 9)])
    starts = (_config(tmp_path / "a", **first), None, _config(tmp_path / "b", **second))
    assert looked_at_notes([("kitchen/2", 3)], starts, ("cd",)) == {
        "looked_at_seeds": {"kitchen": "1:3", "metaworld": "9"},
        "looked_at_layouts": ["ab", "cd"],
    }


def test_records_tell_their_layouts() -> None:
    records = list(read_records(ROOT / "data" / "egocot" / "sample" / "records.jsonl"))
    seen = [SimpleNamespace(record=record) for record in records]
    layouts = layouts_of(seen)  # type: ignore[arg-type]
    assert len(layouts) == len(records) > 0
    for record, (env_id, seed) in zip(records, layouts, strict=True):
        assert f"/{env_id}/{seed}/" in record.id


# --- what is refused --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A demonstration on a training layout, and one on a test layout."""
    from embodied.cli.record import RecordOptions, record

    home = tmp_path_factory.mktemp("demos")
    few: dict[str, Any] = {"image_size": 32, "horizon": 90, "workers": 1}
    for family in ("train", "test"):
        assert record(RecordOptions(COFFEE, 1, home / family, family=family, **few)) == 0  # type: ignore[arg-type]
    return {family: home / family for family in ("train", "test")}


@pytest.fixture(scope="module")
def tune(tiny_planner: Path, tmp_path_factory: pytest.TempPathFactory) -> Tune:
    """One step of a stage; the planner that comes of it."""

    def tuned(stage: str, **more: Any) -> Path:
        folder = tmp_path_factory.mktemp(stage)
        usual: dict[str, Any] = {"model": tiny_planner, "steps": 1, "threads": 1}
        usual["features_dir"] = folder / "features"
        assert finetune(FinetuneOptions(stage, folder, **usual | more)) == 0  # type: ignore[arg-type]
        return folder / "planner"

    return tuned


def evaluate(folder: Path, planner: Path) -> int:
    policy = folder.parent / "policy"  # says nothing of what it was trained on
    policy.mkdir(exist_ok=True)
    argv = ["--env", COFFEE, "--n_episodes", "1", "--horizon", "3", "--n_videos", "0"]
    argv += ["--model", str(planner), "--policy", str(policy), "--output_dir", str(folder)]
    return main(["evaluate", *argv])


def test_a_planner_that_was_tuned_on_a_test_layout_is_refused(
    demos: dict[str, Path],
    tune: Tune,
    fake_agent: FakeAgent,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    good = tune("plan", look_at=str(demos["train"]), few_shot=1)
    assert evaluate(tmp_path / "good", good) == 0
    known_bad = tune("plan", look_at=str(demos["test"]), few_shot=1)
    later = tune("words", model=known_bad)
    for name, planner in {"bad": known_bad, "later": later}.items():
        capfd.readouterr()
        assert evaluate(tmp_path / name, planner) == 2
        err = capfd.readouterr().err
        assert f"metaworld, seed(s) 200000, by {planner}" in err and err.count("\n") == 1
        assert not (tmp_path / name).exists()


def test_its_layout_is_refused_under_another_seed_too(demos: dict[str, Path], tune: Tune) -> None:
    planner = tune("plan", dataset=str(demos["test"]), few_shot=1)
    (meta,) = DatasetReader(demos["test"]).episodes
    assert load(planner)[1]["looked_at_layouts"] == [meta.layout_sha]
    with pytest.raises(ValueError, match=f"seed 7 is layout {meta.layout_sha}, which {planner}"):
        TrainLayouts.of(planner, planner).check_layout(COFFEE, 7, meta.layout_sha)


def test_every_stage_and_the_policies_made_from_it_remember(
    demos: dict[str, Path], tune: Tune, tmp_path: Path
) -> None:
    both = {"dataset": str(demos["train"]), "look_at": str(demos["test"])}
    aligned = tune("align", **both)
    expected = {"metaworld": "0,200000"}
    for folder in (aligned, aligned.parent / "policy", tune("plan", **both)):
        config = load(folder)[1]
        assert config["looked_at_seeds"] == expected and "looked_at_layouts" not in config
    assert load(aligned.parent / "policy")[1]["train_seeds"] == [0]  # what it imitates
    few: dict[str, Any] = {"steps": 1, "batch_size": 4, "features_dir": tmp_path / "features"}
    options = TrainPolicyOptions(str(demos["train"]), tmp_path / "out", model=aligned, **few)
    assert train_policy(options) == 0
    config = load(tmp_path / "out" / "policy")[1]
    assert (config["train_seeds"], config["looked_at_seeds"]) == ([0], expected)


def test_a_planner_that_looked_at_nothing_says_nothing(tune: Tune) -> None:
    assert not [key for key in load(tune("words"))[1] if key.startswith("looked_at")]
