"""`embodied evaluate-plans`: are instructions understood, plans right, and verdicts true?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from embodied.cli.assemble import SHIPPED
from embodied.cli.common import check_instruction, stdout_to_stderr
from embodied.cli.finetune import load_datasets
from embodied.egocot.dataset import (
    Recorded,
    clip_tokens,
    draw_verdict,
    group_by_task,
    motion_at,
    verdict_of,
)
from embodied.episodes import DatasetReader
from embodied.metrics import Rate, verdict_scores
from embodied.model.plan import GRID, parse_thought
from embodied.model.planner import Planner
from embodied.types import Vocabulary
from sims import language, scenes

_NEAR_PX = 10


@dataclass(frozen=True)
class EvaluatePlansOptions:
    """What to evaluate.

    Args:
        instructions: JSONL of {"instruction", "task" or "tasks"}; null must be refused.
        plans: data sets whose first pictures are planned for, comma-separated, of layouts not
            trained on.
        verdicts: data sets whose clips are judged, comma-separated, of layouts not trained on.
        model: the planner; the shipped one.
        n_plans: episodes to plan for.
        n_verdicts: clips to judge.
        seed: of the clips drawn.
        features_dir: where frozen features are cached.
        output_dir: where every answer is written; nowhere when not given.
        scenes: which simulators' tasks the words may mean, comma-separated.
        json: print one JSON object.
    """

    instructions: Path | None = None
    plans: str = ""
    verdicts: str = ""
    model: Path = SHIPPED / "planner"
    n_plans: int = 100
    n_verdicts: int = 300
    seed: int = 0
    features_dir: Path = Path("outputs/features")
    output_dir: Path | None = None
    scenes: str = "metaworld,kitchen"
    json: bool = False


def evaluate_plans(options: EvaluatePlansOptions) -> int:
    """Run what was asked for. Returns the exit status."""
    with stdout_to_stderr():
        scores = _scores(options)
    if options.json:
        print(json.dumps(scores))
    else:
        for name, value in scores.items():
            print(f"{name}: {value}")
    return 0


def _scores(options: EvaluatePlansOptions) -> dict[str, Any]:
    catalogue = scenes.catalogue(check_families(options.scenes))
    rows = read_instructions(options.instructions, catalogue) if options.instructions else []
    for name in filter(None, f"{options.plans},{options.verdicts}".split(",")):
        DatasetReader(Path(name))  # checks it, before there is a model and a bar on the screen
    planner = Planner.load(options.model).for_inference()
    scores: dict[str, Any] = {}
    if options.instructions:
        scores |= score_instructions(planner, rows, catalogue, options.output_dir)
    if options.plans:
        episodes = load_datasets(planner, options.plans, options.features_dir)
        scores |= score_plans(planner, episodes, options.n_plans, options.seed)
    if options.verdicts:
        episodes = load_datasets(planner, options.verdicts, options.features_dir)
        scores |= score_verdicts(planner, episodes, options.n_verdicts, options.seed)
    return scores


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
        "right_task": _rate([a["said"] == a["wanted"] for a in good]),
        "false_refusals": _rate([not a["said"] for a in good]),
        "refused": _rate([not a["said"] for a in bad]),
        "route_s": round(float(np.median(seconds)), 3),
    }
    for lang in ("en", "zh"):
        mine = [a for a in good if a.get("lang") == lang]
        scores[f"right_task_{lang}"] = _rate([a["said"] == a["wanted"] for a in mine])
    return scores


def _wanted(row: dict[str, Any]) -> list[str]:
    """The tasks of a line, in order; none when it must be refused."""
    if "tasks" in row:
        return [] if row["tasks"] is None else row["tasks"]
    return [] if row["task"] is None else [row["task"]]


def _rate(hits: Sequence[bool]) -> dict[str, Any]:
    rate = Rate(sum(hits), len(hits))
    percent = None if rate.percent is None else round(rate.percent, 1)
    return {"k": rate.k, "n": rate.n, "pc": percent, "wilson95": rate.wilson95}


def score_plans(
    planner: Planner, episodes: Sequence[Recorded], n: int, seed: int
) -> dict[str, Any]:
    """Plans for the first pictures: are the steps the expert's, and are things where it says?

    The error is in pixels of a 224 px picture, over all that a thought names and that is in view.
    """
    rng = np.random.default_rng(seed)
    catalogue = scenes.catalogue()
    right, errors = [], []
    for i in tqdm(rng.permutation(len(episodes))[:n], desc="plans", file=sys.stderr):
        episode = episodes[i]
        tokens = torch.from_numpy(episode.cache.images[[episode.span.image(0)]][:, :, None])
        vocabulary = catalogue[scenes.scene_of(episode.meta.env_id)]
        said = language.ask(rng, episode.tasks)
        plan = planner.plan_tokens(tokens.float(), said, vocabulary, tasks=episode.tasks)
        right.append(plan.subgoals == episode.meta.plan.subgoals)
        for noun, place in parse_thought(plan.thought).items():
            true = episode.places[noun][0, 0] if noun in episode.places else np.array([np.nan])
            if ((true >= 0) & (true <= 1)).all():  # not where it is unknown
                errors.append(float(np.linalg.norm(np.array(place) - true) * GRID))
    within = [error < _NEAR_PX for error in errors]
    return {
        "plan_right": _rate(right),
        "grounding_median_px": round(float(np.median(errors)), 1) if errors else None,
        f"grounding_within_{_NEAR_PX}_px": _rate(within),
    }


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
        tokens = torch.from_numpy(clip_tokens(episode, step))[None]
        subgoal = episode.meta.plan.subgoals[index]
        said.append(planner.judge_tokens(tokens, subgoal, motion_at(episode, step)).status)
        true.append(verdict_of(episode, index, step)[0])
    right = [s == t for s, t in zip(said, true, strict=True)]
    scores: dict[str, Any] = {"verdict_right": _rate(right)}
    for status, score in verdict_scores(true, said).items():
        figures = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
        scores[f"verdict_{status}"] = {k: round(v or 0.0, 3) for k, v in figures.items()}
    return scores
