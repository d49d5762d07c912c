"""`embodied evaluate-plans`: scores counted by hand, and planners known to be good or bad."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embodied.cli import evaluate_plans as scoring
from embodied.cli import score_plans
from embodied.cli.baselines import ZeroShot
from embodied.cli.evaluate_plans import EvaluatePlansOptions, evaluate_plans
from embodied.cli.main import main
from embodied.egocot.dataset import Recorded, verdict_of
from embodied.egocot.questions import Asked
from embodied.egocot.record_conversations import judged, plan_answer, verdict_prompt
from embodied.egocot.records import read_records, write_records
from embodied.metrics import Rate
from embodied.model.plan import GRID, thought_text
from embodied.model.planner import Planner, plan_prompt
from embodied.model.routing import Route
from embodied.types import STATUSES, Plan, Status, Subgoal, Verdict, Vocabulary

LINES = [
    {"instruction": "open the drawer", "lang": "en", "task": "drawer-open"},
    {"instruction": "hit the nail", "lang": "en", "task": "hammer"},
    {"instruction": "打开抽屉", "lang": "zh", "task": "drawer-open"},
    {"instruction": "关上窗户", "lang": "zh", "task": "window-close"},
    {"instruction": "sing", "lang": "en", "task": None},
    {"instruction": "唱歌", "lang": "zh", "task": None},
    {"instruction": "make coffee for two", "lang": "en", "task": None},
]
SAID = {
    "open the drawer": ("drawer-open",),
    "hit the nail": (),  # a false refusal
    "打开抽屉": ("drawer-close",),  # wrong
    "关上窗户": ("window-close",),
    "sing": (),
    "唱歌": (),
    "make coffee for two": ("coffee-pull",),  # ought to be refused
}


class FakePlanner:
    """Sees as the tiny planner does; what it says is given, or decided by the test.

    Args:
        said: instruction → tasks, none for a refusal; refuses everything that is not in it.
    """

    def __init__(self, tiny: Planner, said: dict[str, tuple[str, ...]] | None = None) -> None:
        self.config, self.see, self._said = tiny.config, tiny.see, said or {}
        self.catalogue: dict[str, Vocabulary] = {}

    def for_inference(self) -> FakePlanner:
        return self

    def route(self, instruction: str, catalogue: dict[str, Vocabulary]) -> Route:
        print("chatter on stdout")  # as libraries do
        self.catalogue = catalogue
        tasks = self._said.get(instruction, ())
        return (
            Route("somewhere", tasks, None, (), 0.75) if tasks else Route(None, (), "no", (), 0.9)
        )


@pytest.fixture(scope="module")
def tiny(tiny_planner: Path) -> Planner:
    return Planner.load(tiny_planner)


Score = Callable[..., dict[str, Any]]


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Score:
    """A planner and options → what is printed as one JSON object."""

    def scored(planner: Any, **options: Any) -> dict[str, Any]:
        monkeypatch.setattr(scoring.Planner, "load", lambda _, **__: planner)
        assert evaluate_plans(EvaluatePlansOptions(**options, json=True)) == 0
        out, _ = capfd.readouterr()
        assert out.count("\n") == 1
        return json.loads(out)

    return scored


def _write(folder: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path = folder / "asked.jsonl"
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(text + "\n\n", encoding="utf-8")
    return path


def _kn(scores: dict[str, Any], *names: str) -> list[tuple[int, int]]:
    return [(scores[name]["k"], scores[name]["n"]) for name in names]


# --- instructions ----------------------------------------------------------------------------


def test_instructions_are_counted_right(tiny: Planner, score: Score, tmp_path: Path) -> None:
    scores = score(FakePlanner(tiny, SAID), instructions=_write(tmp_path, LINES))
    names = ("right_task", "right_task_en", "right_task_zh", "false_refusals", "refused")
    assert _kn(scores, *names) == [(2, 4), (1, 2), (1, 2), (1, 4), (2, 3)]
    assert scores["right_task"]["pc"] == 50.0 and scores["refused"]["pc"] == 66.7
    assert scores["refused"]["wilson95"] == pytest.approx(Rate(2, 3).wilson95)
    assert scores["route_s"] >= 0


def test_tasks_in_order_are_right_as_a_whole_only(
    tiny: Planner, score: Score, tmp_path: Path
) -> None:
    both = ["kettle", "microwave"]
    said = [("kettle", "microwave"), ("microwave", "kettle"), ("kettle",), (*both, "light switch")]
    lines: list[dict[str, Any]] = [{"instruction": str(s), "tasks": both} for s in said]
    lines += [{"instruction": "('microwave',)", "tasks": ["microwave"]}]
    lines += [{"instruction": "fly", "tasks": None}]
    told = {str(s): s for s in said} | {"('microwave',)": ("microwave", "kettle")}
    planner = FakePlanner(tiny, told)
    scores = score(planner, instructions=_write(tmp_path, lines), scenes="kitchen")
    assert _kn(scores, "right_task", "false_refusals", "refused") == [(1, 5), (0, 5), (1, 1)]
    assert _kn(scores, "right_task_en") == [(0, 0)] and scores["right_task_en"]["pc"] is None
    assert list(planner.catalogue) == ["kitchen"]


def test_who_always_refuses_is_right_about_nothing(
    tiny: Planner, score: Score, tmp_path: Path
) -> None:
    scores = score(FakePlanner(tiny), instructions=_write(tmp_path, LINES))
    percent = {name: scores[name]["pc"] for name in ("right_task", "false_refusals", "refused")}
    assert percent == {"right_task": 0.0, "false_refusals": 100.0, "refused": 100.0}


def test_who_never_refuses_and_who_knows_it_all(
    tiny: Planner, score: Score, tmp_path: Path
) -> None:
    path = _write(tmp_path, LINES)
    always = dict.fromkeys(SAID, ("drawer-open",))
    scores = score(FakePlanner(tiny, always), instructions=path)
    assert _kn(scores, "right_task", "false_refusals", "refused") == [(2, 4), (0, 4), (0, 3)]
    right = {str(row["instruction"]): (row["task"],) if row["task"] else () for row in LINES}
    scores = score(FakePlanner(tiny, right), instructions=path)  # type: ignore[arg-type]
    assert _kn(scores, "right_task", "false_refusals", "refused") == [(4, 4), (0, 4), (3, 3)]


def test_every_answer_is_written_down(tiny: Planner, score: Score, tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    score(FakePlanner(tiny, SAID), instructions=_write(tmp_path, LINES), output_dir=out)
    answers = [json.loads(line) for line in (out / "instructions.jsonl").read_text().splitlines()]
    assert [a["instruction"] for a in answers] == [row["instruction"] for row in LINES]
    assert [tuple(a["said"]) for a in answers] == [SAID[a["instruction"]] for a in answers]
    assert [a["wanted"] for a in answers[3:5]] == [["window-close"], []]


def test_for_people_a_line_a_score(
    tiny: Planner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scoring.Planner, "load", lambda _, **__: FakePlanner(tiny, SAID))
    assert evaluate_plans(EvaluatePlansOptions(instructions=_write(tmp_path, LINES))) == 0
    out, err = capfd.readouterr()
    assert out.startswith("scored: planner\nright_task: {'k': 2, 'n': 4") and out.count("\n") == 7
    assert "chatter" in err


# --- plans and verdicts -----------------------------------------------------------------------


@pytest.fixture
def episodes(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Filled with the episodes that are scored, once they are loaded."""
    found: list[Recorded] = []
    load = scoring.load_datasets

    def keep(*args: Any) -> list[Recorded]:
        found[:] = load(*args)
        return found

    monkeypatch.setattr(scoring, "load_datasets", keep)
    return found


class Seer(FakePlanner):
    """Plans as the expert did, but for a step left out or places that are `off_px` off."""

    def __init__(
        self, tiny: Planner, episodes: list[Recorded], n_left_out: int = 0, off_px: float = 0
    ) -> None:
        super().__init__(tiny)
        self._episodes, self._n_left_out, self._off = episodes, n_left_out, off_px / GRID

    def plan_tokens(
        self, vision: Tensor, said: str, vocabulary: Vocabulary, tasks: Sequence[str]
    ) -> Plan:
        first = [e.cache.images[e.span.image(0)] for e in self._episodes]
        (episode,) = (
            e
            for e, tokens in zip(self._episodes, first, strict=True)
            if np.array_equal(tokens, vision[0, :, 0].numpy())
        )
        assert tuple(tasks) == episode.tasks == vocabulary.tasks
        places = {noun: xy[0, 0] + (self._off, 0) for noun, xy in episode.places.items()}
        subgoals = episode.meta.plan.subgoals[self._n_left_out :]
        return Plan(said, thought_text(places), subgoals, tuple(tasks))  # type: ignore[arg-type]


def _plans(recorded_set: Path, features_dir: Path) -> dict[str, Any]:
    return {"plans": str(recorded_set), "features_dir": features_dir}


def test_the_experts_plans_are_right_and_things_are_where_they_are(
    tiny: Planner, score: Score, recorded_set: Path, features_dir: Path, episodes: list[Recorded]
) -> None:
    scores = score(Seer(tiny, episodes), **_plans(recorded_set, features_dir))
    assert _kn(scores, "plan_right", "grounding_within_10_px") == [(2, 2), (4, 4)]
    assert 0 <= scores["grounding_median_px"] <= 1.5  # it speaks in whole pixels


@pytest.mark.parametrize(("off_px", "n_within"), [(8, 4), (12, 0)])
def test_wrong_steps_and_wrong_places_are_seen(
    tiny: Planner,
    score: Score,
    recorded_set: Path,
    features_dir: Path,
    episodes: list[Recorded],
    off_px: float,
    n_within: int,
) -> None:
    seer = Seer(tiny, episodes, n_left_out=1, off_px=off_px)
    scores = score(seer, **_plans(recorded_set, features_dir))
    assert _kn(scores, "plan_right", "grounding_within_10_px") == [(0, 2), (n_within, 4)]
    assert scores["grounding_median_px"] == pytest.approx(off_px, abs=1.5)


class Judge(FakePlanner):
    """Says what `decide` says."""

    def __init__(self, tiny: Planner, decide: Callable[[], Status]) -> None:
        super().__init__(tiny)
        self._decide = decide

    def judge_tokens(self, vision: Tensor, subgoal: Subgoal, motion: str) -> Verdict:
        return Verdict(self._decide(), "for some reason", 0.5)


@pytest.fixture
def true_verdicts(monkeypatch: pytest.MonkeyPatch) -> list[Status]:
    """Filled with the truth about each clip that is drawn."""
    truth: list[Status] = []
    draw = scoring.draw_verdict

    def keep(*args: Any) -> tuple[Recorded, int, int]:
        episode, step, index = draw(*args)
        truth.append(verdict_of(episode, index, step)[0])
        return episode, step, index

    monkeypatch.setattr(scoring, "draw_verdict", keep)
    return truth


def _verdicts(recorded_set: Path, features_dir: Path) -> dict[str, Any]:
    return {"verdicts": str(recorded_set), "features_dir": features_dir, "n_verdicts": 40}


def test_true_verdicts_are_all_right(
    tiny: Planner, score: Score, recorded_set: Path, features_dir: Path, true_verdicts: list[Status]
) -> None:
    judge = Judge(tiny, lambda: true_verdicts[-1])
    scores = score(judge, **_verdicts(recorded_set, features_dir))
    assert _kn(scores, "verdict_right") == [(40, 40)]
    for status in set(true_verdicts):
        assert scores[f"verdict_{status}"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert {"done", "progressing"} <= set(true_verdicts)


def test_who_always_says_done_is_found_out(
    tiny: Planner, score: Score, recorded_set: Path, features_dir: Path, true_verdicts: list[Status]
) -> None:
    scores = score(Judge(tiny, lambda: "done"), **_verdicts(recorded_set, features_dir))
    n_done = true_verdicts.count("done")
    assert _kn(scores, "verdict_right") == [(n_done, 40)] and 0 < n_done < 40
    assert scores["verdict_done"]["recall"] == 1.0
    assert scores["verdict_done"]["precision"] == pytest.approx(n_done / 40, abs=1e-3)
    assert scores["verdict_progressing"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_a_model_that_knows_nothing_is_scored_all_the_same(
    tiny_planner: Path, tmp_path: Path, recorded_set: Path, features_dir: Path, score: Score
) -> None:
    """The whole path, with nothing of it replaced."""
    model = Planner.load(tiny_planner)
    options = _verdicts(recorded_set, features_dir) | _plans(recorded_set, features_dir)
    options |= {"instructions": _write(tmp_path, LINES), "n_verdicts": 6, "n_plans": 1}
    scores = score(model, **options)
    names = ("right_task", "refused", "plan_right", "verdict_right")
    assert [scores[name]["n"] for name in names] == [4, 3, 1, 6]
    assert {f"verdict_{status}" for status in STATUSES} < set(scores)


# --- splits, baselines, questions, records ------------------------------------------------------


def test_plans_by_split(
    tiny: Planner,
    score: Score,
    recorded_set: Path,
    features_dir: Path,
    episodes: list[Recorded],
    tmp_path: Path,
) -> None:
    ways = _write(tmp_path, [{"instruction": "coffee, now", "task": "coffee-button"}])
    options = _plans(recorded_set, features_dir) | {"paraphrases": ways, "unseen_tasks": ""}
    by_split = score(Seer(tiny, episodes, n_left_out=1), **options)["plans"]
    assert list(by_split) == ["new_layouts", "unseen_paraphrases"]
    for figures in by_split.values():
        assert _kn(figures, "plan_right") == [(0, 2)]
        assert figures["step_f1"]["value"] == figures["step_order"]["value"] == 0.667
        assert 0 < figures["rouge_l"]["value"] < 1 and figures["step_f1"]["n"] == 2
    scores = score(Seer(tiny, episodes), **options | {"unseen_tasks": "coffee-button,hammer"})
    assert list(scores["plans"]) == ["unseen_tasks"]
    assert _kn(scores["plans"]["unseen_tasks"], "plan_right") == [(2, 2)]
    assert scores["bleu4"]["value"] == 100 and scores["rouge_l"]["value"] == 1


class Router(Seer):
    """Understands every other instruction."""

    n_routed = 0

    def route(self, instruction: str, catalogue: dict[str, Vocabulary], scene: str) -> Route:  # type: ignore[override]
        self.n_routed += 1
        tasks = catalogue[scene].tasks if self.n_routed % 2 else ()
        return Route(scene, tasks, None, (), 1.0)


def test_routed_plans_are_refused_when_words_are_not_understood(
    tiny: Planner, score: Score, recorded_set: Path, features_dir: Path, episodes: list[Recorded]
) -> None:
    options = _plans(recorded_set, features_dir) | {"routed": True, "unseen_tasks": ""}
    assert _kn(score(Router(tiny, episodes), **options), "plan_right") == [(1, 2)]


def test_the_nearest_neighbour_of_an_episode_is_itself(
    tiny: Planner, score: Score, recorded_set: Path, features_dir: Path
) -> None:
    options = _plans(recorded_set, features_dir) | {"baseline": "nearest_neighbour"}
    options |= {"trained_on": str(recorded_set), "unseen_tasks": ""}
    scores = score(tiny, **options)
    assert _kn(scores, "plan_right") == [(2, 2)]  # of the same task, whatever the words


def test_zero_shot_plans_without_looking(
    tiny_planner: Path, tiny: Planner, score: Score, recorded_set: Path, features_dir: Path
) -> None:
    untrained = ZeroShot.of(tiny.config, torch.device("cpu"))
    assert untrained.visual_tokens(torch.zeros(1, 2, 1, 16, 192), "plan: it").shape[:2] == (1, 0)
    assert not [p for p in untrained.llm.parameters() if p.requires_grad]
    options = _plans(recorded_set, features_dir) | {"baseline": "zero_shot", "unseen_tasks": ""}
    assert score(Planner.load(tiny_planner), **options)["plan_right"]["n"] == 2


def test_it_is_said_what_is_scored(
    tiny: Planner,
    score: Score,
    recorded_set: Path,
    features_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = tiny.config
    options = _plans(recorded_set, features_dir) | {"unseen_tasks": "", "n_plans": 1}
    nearest = {"baseline": "nearest_neighbour", "trained_on": str(recorded_set)}
    assert score(tiny, **options, **nearest)["scored"] == "baseline nearest_neighbour"
    assert score(tiny, **options, baseline="zero_shot")["scored"] == "baseline zero_shot"
    for changes, said in (
        ({}, "planner"),
        ({"thought": "none"}, "planner, thought none"),
        ({"thought": "ungrounded", "sight": "picture"}, "planner, thought ungrounded, one picture"),
        ({"sight": "none"}, "planner, blind"),
    ):
        monkeypatch.setattr(tiny, "config", replace(usual, **changes))  # type: ignore[arg-type]
        scores = score(tiny, **options)
        assert scores["scored"] == said
        assert bool(scores["grounding_mean_px"]["n"]) <= ("thought" not in changes)


def test_blind_every_picture_is_black(
    tiny_planner: Path,
    score: Score,
    recorded_set: Path,
    features_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the former is shown in plans, verdicts and answers."""
    options = _plans(recorded_set, features_dir) | {"unseen_tasks": "", "n_plans": 2}
    options |= _verdicts(recorded_set, features_dir) | {"n_verdicts": 3}
    options |= {"questions": str(recorded_set), "n_questions": 3}
    planner = Planner.load(tiny_planner)
    size = planner.config.image_size
    black = planner.see(np.zeros((1, 1, 1, size, size, 3), np.uint8))[0, 0, 0].float()
    is_black: list[bool] = []
    forward = planner.former.forward

    def keep(vision: Tensor, text: Any) -> Tensor:
        is_black.append(torch.allclose(vision, black.expand_as(vision), atol=1e-2))
        return forward(vision, text)

    monkeypatch.setattr(planner.former, "forward", keep)
    assert score(planner, **options, blind=True)["scored"] == "planner, blind"
    assert len(is_black) == 8 and all(is_black)
    planner.config = replace(planner.config, sight="clip")
    assert score(planner, **options)["scored"] == "planner"
    assert len(is_black) == 16 and not any(is_black[8:])


class Witness(FakePlanner):
    """Knows the true answers, or says the same to everything."""

    def __init__(self, tiny: Planner, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(tiny)
        draw = score_plans.draw_question

        def keep(*args: Any) -> Asked:
            self.asked = draw(*args)
            return self.asked

        monkeypatch.setattr(score_plans, "draw_question", keep)
        self._always = said

    def answer_tokens(self, vision: Tensor, question: str) -> str:
        assert question == self.asked.question and vision.shape[:3] == (1, 2, 4)
        return self.asked.answer if self._always is None else self._always


def test_who_answers_truly_and_who_always_says_yes(
    tiny: Planner,
    score: Score,
    recorded_set: Path,
    features_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"questions": str(recorded_set), "features_dir": features_dir, "n_questions": 120}
    with monkeypatch.context() as patch:
        scores = score(Witness(tiny, None, patch), **options)
    n = scores["question_right"]["n"]
    assert scores["question_right"]["k"] == n > 60
    assert scores["captions"]["exact"]["n"] == 120 - n
    assert scores["captions"]["rouge_l"]["value"] == 1
    with monkeypatch.context() as patch:
        scores = score(Witness(tiny, "yes", patch), **options)
    assert 0 < scores["question_right"]["pc"] < 40
    assert scores["question_right"]["k"] < scores["question_blind"]["k"]
    assert scores["captions"]["rouge_l"]["value"] == 0


SAMPLE = Path(__file__).parents[2] / "data" / "egocot" / "sample"


@pytest.fixture
def few_records(tmp_path: Path) -> Path:
    """Four of the sample's, one of them with a verdict."""
    records = [r for r in read_records(SAMPLE) if len(r.actions) > 1][:3]
    records += [r for r in read_records(SAMPLE) if r.verdict][:1]
    (tmp_path / "clips").mkdir()
    for record in records:
        shutil.copy(SAMPLE / record.clip, tmp_path / record.clip)
    write_records(tmp_path / "records.jsonl", records)
    return tmp_path


class Reader:
    """Says what stands in the records, whichever way it is asked."""

    def __init__(self, tiny: Planner, folder: Path) -> None:
        self.config, self.see, self.vision, self.decoder = tiny.config, tiny.see, tiny.vision, self
        self._records = list(read_records(folder))

    def for_inference(self) -> Reader:
        return self

    def visual_tokens(self, vision: Tensor, text: str) -> None:
        assert vision.shape[:3] == (1, 1, 4)

    def speak(self, visual: None, prompt: str, max_tokens: int) -> str:
        (record, *_) = (r for r in self._records if prompt == plan_prompt(r.instruction))
        return plan_answer(record)

    def score(self, visual: None, prompt: str, options: Sequence[str], closed: Any) -> Tensor:
        (record,) = (r for r in self._records if r.verdict and prompt == verdict_prompt(judged(r)))
        assert record.verdict is not None
        return torch.tensor([float(option == record.verdict.status) for option in options])

    def answer_tokens(self, vision: Tensor, question: str) -> str:
        return "whatever"


def test_records_are_scored_against_their_own_words(
    tiny: Planner, score: Score, few_records: Path, features_dir: Path
) -> None:
    options = {"records": str(few_records), "records_split": "select", "unseen_tasks": ""}
    scores = score(Reader(tiny, few_records), **options, features_dir=features_dir)
    figures = scores["records"]["seen_tasks"]
    n = sum(r.verdict is not None for r in read_records(few_records))
    assert n and _kn(figures, "plan_right", "verdict_right") == [(4, 4), (n, n)]
    assert figures["bleu4"]["value"] == 100 and figures["grounding_mean_px"]["value"] <= 1
    assert figures["question_right"]["k"] == 0 < figures["question_right"]["n"]


def test_the_tiny_planner_is_scored_on_records_too(
    tiny_planner: Path, score: Score, few_records: Path, features_dir: Path
) -> None:
    options = {"records": str(few_records), "records_split": "select", "unseen_tasks": ""}
    scores = score(Planner.load(tiny_planner), **options, features_dir=features_dir)
    assert _kn(scores["records"]["seen_tasks"], "plan_right") == [(0, 4)]


def test_a_table_for_people(
    tiny: Planner,
    recorded_set: Path,
    features_dir: Path,
    episodes: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scoring.Planner, "load", lambda _, **__: Seer(tiny, episodes))
    options = _plans(recorded_set, features_dir) | {"unseen_tasks": ""}
    assert evaluate_plans(EvaluatePlansOptions(**options)) == 0
    head, row = capfd.readouterr().out.strip().split("\n")[-2:]
    assert head.split()[:3] == ["split", "plan_right", "step_f1"]
    assert row.startswith("new_layouts") and "100% [34,100] /2" in row


# --- what goes wrong --------------------------------------------------------------------------

GOOD = '{"instruction": "open the drawer", "task": "drawer-open"}'
_NEAREST = ["--plans", "x", "--baseline", "nearest_neighbour", "--trained_on", "y"]
OPEN = '{"instruction": "open it", '


def _one_line(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    """What the command says on stderr, in one line, before it gives up with status 2."""
    capfd.readouterr()
    assert main(["evaluate-plans", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("embodied: "), err
    return err.removeprefix("embodied: ").strip()


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model must not be loaded: what is wrong can be said without it."""
    monkeypatch.setattr(
        scoring.Planner, "load", lambda _, **__: pytest.fail("the planner is loaded")
    )


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("open the drawer", "not JSON (Expecting value"),
        (GOOD[:-1], "not JSON ("),
        (f"{GOOD} {GOOD}", "not JSON (Extra data"),
        ("\udcff", "not JSON ('utf-8' codec can't decode byte 0xff"),
        ('"open the drawer"', 'expected {"instruction": "…"} with "task" or "tasks"'),
        ('{"task": "drawer-open"}', 'expected {"instruction": "…"}'),
        ('{"instruction": 5, "task": "drawer-open"}', 'expected {"instruction": "…"}'),
        ('{"instruction": " ", "task": null}', "the instruction is empty"),
        ('{"instruction": "open it"}', '"task" or "tasks" is missing; null when'),
        (OPEN + '"task": ["drawer-open"]}', '"task" is a name or null'),
        (OPEN + '"tasks": "drawer-open"}', '"tasks" a list of names or null'),
        (OPEN + '"task": "drawer-opn"}', "offers the task 'drawer-opn'; did you mean 'drawer-open"),
        (OPEN + '"tasks": ["hammer", "x"]}', "offers the task 'x'; there are: assembly, "),
        (OPEN + '"task": ""}', "no scene of metaworld, kitchen offers the task ''"),
    ],
)
def test_a_bad_line_is_named(
    line: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_bytes(f"{GOOD}\n\n{line}\n{GOOD}\n".encode(errors="surrogateescape"))
    told = _one_line(capfd, "--instructions", str(path))
    assert told.startswith(f"{path}, line 3: ") and said in told


@pytest.mark.usefixtures("unread")
def test_a_task_of_another_simulator_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(OPEN + '"task": "kettle"}\n', encoding="utf-8")
    told = _one_line(capfd, "--instructions", str(path), "--scenes", "metaworld")
    assert "'kettle'; kitchen does: name it in --scenes" in told


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_instructions(
    text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asked.jsonl"
    assert "No such file" in _one_line(capfd, "--instructions", str(path))
    path.write_text(text)
    assert f"{path} has no instructions: one a line" in _one_line(
        capfd, "--instructions", str(path)
    )


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("metawrld", "unknown simulator 'metawrld'; did you mean 'metaworld'? there are: "),
        ("metaworld,bath", "unknown simulator 'bath'; there are: metaworld, kitchen"),
        (" ,", "no simulator in ' ,'; there are: metaworld, kitchen"),
    ],
)
def test_a_typo_in_scenes(
    given: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(_write(tmp_path, LINES))
    assert said in _one_line(capfd, "--instructions", path, "--scenes", given)


def test_scenes_of_two_simulators(tiny: Planner, score: Score, tmp_path: Path) -> None:
    lines = [*LINES, {"instruction": "boil water", "tasks": ["kettle"]}]
    planner = FakePlanner(tiny, SAID)
    path = _write(tmp_path, lines)
    scores = score(planner, instructions=path, scenes="metaworld, kitchen,")
    assert _kn(scores, "right_task") == [(2, 5)] and len(planner.catalogue) == 51


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "nothing to evaluate: give --instructions FILE.jsonl, --plans, "),
        (["--plans", "x", "--trained_on", "y"], "the episodes of --baseline nearest_neighbour"),
        (["--plans", "x", "--baseline", "nearest_neighbour"], "--trained_on names the episodes"),
        ([*_NEAREST[2:], "--verdicts", "x"], "nearest_neighbour only plans: give --plans"),
        ([*_NEAREST, "--verdicts", "x", "--records", "x"], "leave out --verdicts, --records"),
        ([*_NEAREST, "--questions", "x"], "only plans, for tasks that are told: leave out --quest"),
        ([*_NEAREST, "--instructions", "x"], "leave out --instructions"),
        ([*_NEAREST, "--routed"], "leave out --routed"),
        (
            [*_NEAREST, "--blind"],
            "--blind is for the planner; --baseline nearest_neighbour sees no",
        ),
        (["--plans", "x", "--baseline", "zero_shot", "--blind"], "--baseline zero_shot sees nothi"),
    ],
)
def test_nothing_to_do(argv: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert said in _one_line(capfd, *argv)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("flag", ["--plans", "--verdicts", "--questions"])
def test_a_missing_data_set(
    flag: str, recorded_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given, missing = str(_write(tmp_path, LINES)), str(tmp_path / "none")
    told = _one_line(capfd, "--instructions", given, flag, f"{recorded_set},{missing}")
    assert told.startswith(f"no data set at '{missing}'") and "give the folder" in told
