"""`embodied evaluate-plans`: are instructions understood, plans right, and verdicts true?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from embodied.cli.assemble import SHIPPED
from embodied.cli.common import stdout_to_stderr
from embodied.cli.finetune import load_datasets
from embodied.egocot.dataset import Recorded, clip_tokens, draw_verdict, group_by_task, verdict_of
from embodied.metrics import Rate, verdict_scores
from embodied.model.plan import GRID, parse_thought
from embodied.model.planner import Planner
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
    scenes: str = "metaworld"
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
    planner = Planner.load(options.model).for_inference()
    scores: dict[str, Any] = {}
    if options.instructions:
        scores |= score_instructions(planner, options)
    if options.plans:
        episodes = load_datasets(planner, options.plans, options.features_dir)
        scores |= score_plans(planner, episodes, options.n_plans, options.seed)
    if options.verdicts:
        episodes = load_datasets(planner, options.verdicts, options.features_dir)
        scores |= score_verdicts(planner, episodes, options.n_verdicts, options.seed)
    return scores


def score_instructions(planner: Planner, options: EvaluatePlansOptions) -> dict[str, Any]:
    """Right tasks in order, right refusals and false refusals, with Wilson intervals."""
    path, out = options.instructions, options.output_dir
    assert path is not None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    catalogue = scenes.catalogue(tuple(options.scenes.split(",")))
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
    tasks = row["tasks"] if "tasks" in row else row["task"] and [row["task"]]
    return tasks or []


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
        said.append(planner.judge_tokens(tokens, subgoal).status)
        true.append(verdict_of(episode, index, step)[0])
    right = [s == t for s, t in zip(said, true, strict=True)]
    scores: dict[str, Any] = {"verdict_right": _rate(right)}
    for status, score in verdict_scores(true, said).items():
        figures = {"precision": score.precision, "recall": score.recall, "f1": score.f1}
        scores[f"verdict_{status}"] = {k: round(v or 0.0, 3) for k, v in figures.items()}
    return scores
