"""`embodied evaluate-plans`: instructions understood? plans right? verdicts and answers true?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from embodied import devices
from embodied.cli.assemble import SHIPPED
from embodied.cli.baselines import NearestNeighbour, ZeroShot
from embodied.cli.common import check_instruction, stdout_to_stderr
from embodied.cli.finetune import load_datasets
from embodied.cli.records import check_min_score, chosen_records
from embodied.cli.score_plans import (
    Plans,
    made,
    rate,
    samples,
    score_plans,
    score_questions,
)
from embodied.cli.score_records import score_records
from embodied.cli.splits import left_out_of, without
from embodied.config import ModelConfig
from embodied.egocot.dataset import (
    Recorded,
    draw_verdict,
    group_by_task,
    motion_at,
    verdict_of,
)
from embodied.episodes import DatasetReader
from embodied.metrics import verdict_scores
from embodied.model.planner import Planner
from embodied.types import Vocabulary
from sims import scenes

Baseline = Literal["none", "zero_shot", "nearest_neighbour"]
_TABLE = ("plan_right", "step_f1", "step_order", "grounding_mean_px", "bleu4", "rouge_l", "cider")


@dataclass(frozen=True)
class EvaluatePlansOptions:
    """What to evaluate.

    Args:
        instructions: JSONL of {"instruction", "task" or "tasks"}; null must be refused.
        plans: data sets whose first pictures are planned for, comma-separated, of layouts not
            trained on.
        verdicts: data sets whose clips are judged, comma-separated, of layouts not trained on.
        questions: data sets about whose clips is asked, comma-separated, of layouts not trained on.
        records: folders of EgoCOT records, comma-separated: plans, verdicts and answers.
        records_split: which of their splits, comma-separated.
        min_score: the least similarity of clip and words with which a record counts as good; any
            for our own records and 0.2 for the official ones when not given.
        paraphrases: instructions that training did not see, as in `instructions`; the episodes of
            `plans` are planned for in their words too.
        unseen_tasks: tasks, or sets like mw5 and fk5, whose plans are scored apart; those that the
            checkpoint says it left out when not given.
        routed: find out the tasks of `plans` from the words, as an agent must; they are told
            otherwise.
        model: the planner; the shipped one.
        baseline: what plans in its place: its language model untrained and blind, or the plan of
            the nearest of the episodes of `trained_on`.
        blind: show the planner black pictures.
        trained_on: data sets for `nearest_neighbour`, comma-separated.
        n_plans: episodes to plan for.
        n_verdicts: clips to judge.
        n_questions: questions to ask.
        seed: of what is drawn.
        features_dir: where frozen features are cached.
        output_dir: where every answer and every bad record is written; nowhere when not given.
        scenes: which simulators' tasks the words may mean, comma-separated.
        device: auto, cpu, cuda or cuda:N: where the networks are; a GPU where there is one if auto.
        json: print one JSON object.
    """

    instructions: Path | None = None
    plans: str = ""
    verdicts: str = ""
    questions: str = ""
    records: str = ""
    records_split: str = "test"
    min_score: float | None = None
    paraphrases: Path | None = None
    unseen_tasks: str | None = None
    routed: bool = False
    model: Path = SHIPPED / "planner"
    baseline: Baseline = "none"
    blind: bool = False
    trained_on: str = ""
    n_plans: int = 100
    n_verdicts: int = 300
    n_questions: int = 300
    seed: int = 0
    features_dir: Path = Path("outputs/features")
    output_dir: Path | None = None
    scenes: str = "metaworld,kitchen"
    device: str = "auto"
    json: bool = False


def evaluate_plans(options: EvaluatePlansOptions) -> int:
    """Run what was asked for. Returns the exit status."""
    _check_given(options)
    with stdout_to_stderr():
        scores = _scores(options)
    print(json.dumps(scores) if options.json else "\n".join(_in_words(scores)))
    return 0


def _check_given(options: EvaluatePlansOptions) -> None:
    """Raises ValueError when there is nothing to evaluate, or nothing to be near to."""
    o = options
    if not (o.instructions or o.plans or o.verdicts or o.questions or o.records):
        raise ValueError(
            "nothing to evaluate: give --instructions FILE.jsonl, --plans, --verdicts or "
            "--questions with data sets of `embodied record`, or --records with EgoCOT records"
        )
    check_min_score(o.min_score)
    if (options.baseline == "nearest_neighbour") != bool(options.trained_on):
        raise ValueError("--trained_on names the episodes of --baseline nearest_neighbour")
    if options.baseline == "nearest_neighbour":
        _check_only_plans(options)
    if options.blind and options.baseline != "none":
        raise ValueError(f"--blind is for the planner; --baseline {o.baseline} sees nothing anyway")


def _check_only_plans(options: EvaluatePlansOptions) -> None:
    """Raises ValueError when the planner would be scored in place of the nearest neighbour."""
    if not options.plans:
        raise ValueError("--baseline nearest_neighbour only plans: give --plans")
    others = ("instructions", "verdicts", "questions", "records", "routed")
    if given := [f"--{name}" for name in others if getattr(options, name)]:
        raise ValueError(
            f"--baseline nearest_neighbour only plans, for tasks that are told: leave out "
            f"{', '.join(given)}"
        )


def _whose(options: EvaluatePlansOptions, config: ModelConfig) -> str:
    """What is scored, with what it was trained or is now made to do without."""
    if options.baseline != "none":
        return f"baseline {options.baseline}"
    parts = [f"planner, thought {config.thought}"] if config.thought != "grounded" else ["planner"]
    match config.sight:
        case "picture":
            parts.append("one picture")
        case "none":
            parts.append("blind")
    return ", ".join(parts)


def _in_words(scores: Mapping[str, Any]) -> Iterator[str]:
    """A line a score, and a table of plans by split."""
    for name, value in scores.items():
        if name == "plans":
            yield from _table(value)
        elif name in ("questions", "captions"):
            yield from (f"{name}, {part}: {figures}" for part, figures in value.items())
        elif name == "records":
            for group, figures in value.items():
                yield from (f"{group}, {line}" for line in _in_words(figures))
        else:
            yield f"{name}: {value}"


def _table(by_split: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield " ".join(["split".ljust(20), *(name.rjust(18) for name in _TABLE)])
    for split, figures in by_split.items():
        yield " ".join([split.ljust(20), *(_cell(figures[name]).rjust(18) for name in _TABLE)])


def _cell(score: Mapping[str, Any]) -> str:
    """`97.0 [91, 99] /100`: in per cent for rates, then the interval and n."""
    if not score["n"]:
        return "-"
    if "pc" in score:
        low, high = (100 * bound for bound in score["wilson95"])
        return f"{score['pc']:.0f}% [{low:.0f},{high:.0f}] /{score['n']}"
    spread = score["bootstrap95"]
    between = f" [{spread[0]:.3g},{spread[1]:.3g}]" if spread else ""
    return f"{score['value']:.3g}{between}"


def _scores(options: EvaluatePlansOptions) -> dict[str, Any]:
    catalogue = scenes.catalogue(check_families(options.scenes))
    rows = read_instructions(options.instructions, catalogue) if options.instructions else []
    given = ",".join([options.plans, options.verdicts, options.questions, options.trained_on])
    for name in filter(None, given.split(",")):
        DatasetReader(Path(name))  # checks it, before there is a model and a bar on the screen
    ways = _paraphrases(options, catalogue)
    unseen = _unseen_tasks(options)
    device = devices.pick(options.device)
    planner = Planner.load(options.model, device=device).for_inference()
    if options.blind:
        planner.config = replace(planner.config, sight="none")
    scores: dict[str, Any] = {"scored": _whose(options, planner.config)}
    if options.baseline == "zero_shot":
        planner = ZeroShot.of(planner.config, device).for_inference()
    if options.instructions:
        scores |= score_instructions(planner, rows, catalogue, options.output_dir)
    if options.plans:
        scores |= _plan_scores(planner, options, unseen, ways)
    if options.verdicts:
        episodes = load_datasets(planner, options.verdicts, options.features_dir)
        scores |= score_verdicts(planner, episodes, options.n_verdicts, options.seed)
    if options.questions:
        episodes = load_datasets(planner, options.questions, options.features_dir)
        scores |= score_questions(planner, episodes, options.n_questions, options.seed)
    if options.records:
        scores["records"] = score_records(planner, chosen_records(planner, options), unseen)
    return scores


def _unseen_tasks(options: EvaluatePlansOptions) -> tuple[str, ...]:
    if options.unseen_tasks is not None:
        return scenes.resolve_tasks(options.unseen_tasks)
    return left_out_of(options.model) if options.plans or options.records else ()


def _paraphrases(
    options: EvaluatePlansOptions, catalogue: Mapping[str, Vocabulary]
) -> dict[tuple[str, ...], list[str]]:
    """Tasks in order → ways to ask for them."""
    found: dict[tuple[str, ...], list[str]] = {}
    if options.paraphrases is not None:
        for row in read_instructions(options.paraphrases, catalogue):
            found.setdefault(tuple(_wanted(row)), []).append(row["instruction"])
    return found


def _plan_scores(
    planner: Planner,
    options: EvaluatePlansOptions,
    unseen: Sequence[str],
    ways: Mapping[tuple[str, ...], Sequence[str]],
) -> dict[str, Any]:
    episodes = load_datasets(planner, options.plans, options.features_dir)
    rng = np.random.default_rng(options.seed)
    wanted = samples(episodes, rng, options.n_plans, unseen, ways)
    whose: Plans = planner
    if options.baseline == "nearest_neighbour":
        known = load_datasets(planner, options.trained_on, options.features_dir)
        whose = NearestNeighbour(planner, without(known, unseen))

    def find_tasks(said: str, scene: str) -> Sequence[str]:
        return planner.route(said, scenes.catalogue(), scene).tasks

    find = find_tasks if options.routed else None
    return score_plans(
        [made(whose, sample, find) for sample in tqdm(wanted, desc="plans", file=sys.stderr)]
    )


def check_families(text: str) -> tuple[str, ...]:
    """The simulators of `--scenes`.

    Raises:
        ValueError: one is unknown, or there is none.
    """
    there_are = f"there are: {', '.join(scenes.FAMILIES)}"
    families = tuple(part.strip() for part in text.split(",") if part.strip())
    if not families:
        raise ValueError(f"--scenes: no simulator in '{text}'; {there_are}")
    for name in families:
        if name not in scenes.FAMILIES:
            near = get_close_matches(name.lower(), scenes.FAMILIES, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ValueError(f"--scenes: unknown simulator '{name}'; {hint}{there_are}")
    return families


def read_instructions(path: Path, catalogue: Mapping[str, Vocabulary]) -> list[dict[str, Any]]:
    """The objects of a JSONL file of instructions, without its empty lines.

    Args:
        path: as in `EvaluatePlansOptions.instructions`.
        catalogue: the scenes that must offer every task in it.

    Raises:
        ValueError: the file has none, or a line is not as it must be; names file and line.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                rows.append(_checked_row(line, catalogue))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise ValueError(
            f"{path} has no instructions: one a line is expected, like "
            '{"instruction": "open the drawer", "task": "drawer-open"}'
        )
    return rows


def _checked_row(line: bytes, catalogue: Mapping[str, Vocabulary]) -> dict[str, Any]:
    """Read one line. Raises ValueError when an answer to it could not be scored."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        raise ValueError('expected {"instruction": "…"} with "task" or "tasks"')
    check_instruction(row["instruction"])
    if not {"task", "tasks"} & row.keys():
        raise ValueError('"task" or "tasks" is missing; null when it must be refused')
    wanted = _wanted(row)
    if not isinstance(wanted, list) or not all(isinstance(task, str) for task in wanted):
        raise ValueError('"task" is a name or null, and "tasks" a list of names or null')
    for task in wanted:
        _check_offered(task, catalogue)
    return row


def _check_offered(task: str, catalogue: Mapping[str, Vocabulary]) -> None:
    """Raises ValueError when no scene of the catalogue offers `task`."""
    offered = [name for vocabulary in catalogue.values() for name in vocabulary.tasks]
    if task in offered:
        return
    other = [env_id for env_id, v in scenes.catalogue().items() if task in v.tasks]
    if other:
        hint = f"{scenes.family(other[0])} does: name it in --scenes"
    elif near := get_close_matches(task, offered, n=1):
        hint = f"did you mean '{near[0]}'?"
    else:
        hint = f"there are: {', '.join(offered)}"
    families = ", ".join(dict.fromkeys(map(scenes.family, catalogue)))
    raise ValueError(f"no scene of {families} offers the task '{task}'; {hint}")


def score_instructions(
    planner: Planner,
    rows: Sequence[dict[str, Any]],
    catalogue: Mapping[str, Vocabulary],
    out: Path | None,
) -> dict[str, Any]:
    """Right tasks in order, right refusals and false refusals, with Wilson intervals.

    Args:
        rows: as `read_instructions` gives them.
        catalogue: the scenes that the words may mean.
        out: the folder for every answer; nowhere when None.
    """
    answers, seconds = [], []
    for row in tqdm(rows, desc="instructions", file=sys.stderr):
        started = time.perf_counter()
        route = planner.route(row["instruction"], catalogue)
        seconds.append(time.perf_counter() - started)
        answers.append(
            {**row, "wanted": _wanted(row), "said": list(route.tasks), "p": route.probability}
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(a, ensure_ascii=False) for a in answers]
        (out / "instructions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    good, bad = [a for a in answers if a["wanted"]], [a for a in answers if not a["wanted"]]
    scores = {
        "right_task": rate([a["said"] == a["wanted"] for a in good]),
        "false_refusals": rate([not a["said"] for a in good]),
        "refused": rate([not a["said"] for a in bad]),
        "route_s": round(float(np.median(seconds)), 3),
    }
    for lang in ("en", "zh"):
        mine = [a for a in good if a.get("lang") == lang]
        scores[f"right_task_{lang}"] = rate([a["said"] == a["wanted"] for a in mine])
    return scores


def _wanted(row: dict[str, Any]) -> list[str]:
    """The tasks of a line, in order; none when it must be refused."""
    if "tasks" in row:
        return [] if row["tasks"] is None else row["tasks"]
    return [] if row["task"] is None else [row["task"]]


@torch.no_grad()
def score_verdicts(
    planner: Planner, episodes: Sequence[Recorded], n: int, seed: int
) -> dict[str, Any]:
    """How well the planner tells done from not done, and all three apart, on recorded clips."""
    rng = np.random.default_rng(seed)
    by_task = group_by_task(episodes)
    said, true = [], []
    for _ in tqdm(range(n), desc="verdicts", file=sys.stderr):
        episode, step, index = draw_verdict(rng, by_task)
        tokens = torch.from_numpy(episode.clip(step))[None]
        subgoal = episode.meta.plan.subgoals[index]
        said.append(planner.judge_tokens(tokens, subgoal, motion_at(episode, step)).status)
        true.append(verdict_of(episode, index, step)[0])
    right = [s == t for s, t in zip(said, true, strict=True)]
    scores: dict[str, Any] = {"verdict_right": rate(right)}
    for status, score in verdict_scores(true, said).items():
        figures = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
        scores[f"verdict_{status}"] = {k: round(v or 0.0, 3) for k, v in figures.items()}
    return scores
