"""Ablations of fine-tuning: sight, grounding, the thought, adapters, frames. See ablations.sh.

    scripts/ablations.sh --start PLANNER --look_at DATASETS --test DATASETS [--rows lora,blind] …

All rows start from one planner with an adapter of their own that has learnt nothing yet, see the
same batches in `embodied finetune --stage plan`, and are scored by `embodied evaluate-plans` on the
same pictures and clips. What is done already is not done again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from embodied.cli.training import git_hash
from embodied.metrics import Rate
from embodied.training_state import STATE
from embodied.video import replacing


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        name: of its folder.
        title: what it is called in the table.
        trained_with: flags for `embodied finetune`; None for what is not trained.
        scored_with: flags for `embodied evaluate-plans`.
        rate: its learning rate, as a multiple of LoRA's: few prefixes need larger steps, all of
            the language model's weights smaller ones.
    """

    name: str
    title: str
    trained_with: tuple[str, ...] | None
    scored_with: tuple[str, ...] = ()
    rate: float = 1.0


_LORA = ("--adapter", "lora")
ROWS = (
    Row("lora", "LoRA, grounded thought, 8 frames", _LORA),
    Row("zero_shot", "language model as it comes, blind", None, ("--baseline", "zero_shot")),
    Row("blind", "trained and scored with black pictures", (*_LORA, "--sight", "none")),
    Row("ungrounded", "no grounding: things without places", (*_LORA, "--thought", "ungrounded")),
    Row("no_thought", "no thought", (*_LORA, "--thought", "none")),
    Row("one_frame", "1 frame in place of 8", (*_LORA, "--sight", "picture")),
    Row("prefix", "prefixes in place of LoRA", ("--adapter", "prefix"), rate=10.0),
    Row("both", "prefixes and LoRA", ("--adapter", "both")),
    Row("full", "full fine-tuning in place of LoRA", ("--adapter", "full"), rate=0.2),
)


@dataclass(frozen=True)
class AblationOptions:
    """From which planner, on which recordings, how much.

    Without flags for the amount it is meant for two cores and less than 100 minutes.

    Args:
        start: a planner of stage `align`: its former can see, its adapter and mapping have learnt
            nothing. A later stage's mapping has learnt beside an adapter that is not used here.
        look_at: data sets to train on, comma-separated.
        test: data sets of other layouts to score on, comma-separated.
        leave_out: as for `embodied finetune`.
        output_dir: one for each set of options.
        rows: names of the rows to run, comma-separated; all when empty. The table has those that
            were run before as well.
        steps, batch_size, mix, learning_rate, seed: as for `embodied finetune`.
        n_plans, n_verdicts, n_questions: as for `embodied evaluate-plans`.
        features_dir: where frozen features are cached; in `output_dir` when not given.
        workers: rows at once, each with one thread.
    """

    start: Path
    look_at: str
    test: str
    leave_out: str = ""
    output_dir: Path = Path("outputs/ablations")
    rows: str = ""
    steps: int = 70
    batch_size: int = 24
    mix: str = "0,8,8,8"
    learning_rate: float = 7e-4
    seed: int = 0
    n_plans: int = 60
    n_verdicts: int = 150
    n_questions: int = 150
    features_dir: Path | None = None
    workers: int = os.cpu_count() or 1

    @property
    def features(self) -> Path:
        return self.features_dir or self.output_dir / "features"

    @property
    def protocol(self) -> dict[str, Any]:
        """All that the figures depend on."""
        free = ("output_dir", "rows", "features_dir", "workers")
        values = {k: v for k, v in asdict(self).items() if k not in free}
        return values | {"start": str(self.start)}


def rows_of(names: str) -> list[Row]:
    """The rows of that name, in the table's order.

    Raises:
        ValueError: there is no such row.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [row.name for row in ROWS]
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"--rows: no row {', '.join(unknown)}; there are: {', '.join(known)}")
    return [row for row in ROWS if row.name in (wanted or known)]


def check_protocol(options: AblationOptions) -> None:
    """Keep the options beside the rows, which all have to have the same.

    Raises:
        ValueError: rows were run with others there.
    """
    path = options.output_dir / "protocol.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        odd = [k for k, v in options.protocol.items() if before.get(k) != v]
        if odd:
            told = ", ".join(f"{k} {before.get(k)}, now {options.protocol[k]}" for k in odd)
            raise ValueError(f"{path} was begun with {told}; name another --output_dir")
        return
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(options.protocol, indent=2) + "\n", encoding="utf-8")


# --- what is run ------------------------------------------------------------------------------


def embodied(*argv: str) -> str:
    """Run a command of ours. Returns what it prints; stops when it fails."""
    print("embodied " + " ".join(argv), file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "embodied.cli.main", *argv]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def train(options: AblationOptions, row: Row) -> Path:
    """The planner of a row; that to start from for a row which is not trained."""
    if row.trained_with is None:
        return options.start
    folder = options.output_dir / row.name
    if not (folder / "planner" / "config.json").is_file():
        argv = ["--stage", "plan", "--model", str(options.start), "--fresh_adapter"]
        argv += [*row.trained_with, "--look_at", options.look_at, "--leave_out", options.leave_out]
        argv += ["--steps", str(options.steps), "--warmup", str(options.steps // 10)]
        argv += ["--batch_size", str(options.batch_size), "--mix", options.mix]
        argv += ["--learning_rate", f"{row.rate * options.learning_rate:g}"]
        argv += ["--seed", str(options.seed), "--threads", "1", "--save_every", "20"]
        argv += ["--features_dir", str(options.features), "--output_dir", str(folder)]
        embodied("finetune", *argv)
    shutil.rmtree(folder / STATE, ignore_errors=True)  # 2 GB where everything is trained
    return folder / "planner"


def score(options: AblationOptions, row: Row, planner: Path) -> None:
    """Write down what `embodied evaluate-plans` says of a row."""
    path = _scores_path(options, row)
    if path.is_file():
        return
    argv = ["--model", str(planner), *row.scored_with, "--json", "--seed", str(options.seed)]
    for what in ("plans", "verdicts", "questions"):
        n = getattr(options, f"n_{what}")
        argv += [f"--{what}", options.test, f"--n_{what}", str(n)]
    said = embodied("evaluate-plans", *argv, "--features_dir", str(options.features))
    scores = {"commit": git_hash(), **json.loads(said)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def _scores_path(options: AblationOptions, row: Row) -> Path:
    return options.output_dir / row.name / "scores.json"


def run(options: AblationOptions, rows: Sequence[Row]) -> None:
    """Train and score rows; the table is written anew after each."""

    def one(row: Row) -> None:
        score(options, row, train(options, row))

    first, *others = sorted(rows, key=lambda row: row.trained_with is None)
    one(first)  # alone: it computes the features that the others share
    write(options)
    with ThreadPoolExecutor(options.workers) as pool:
        for _ in pool.map(one, others):
            write(options)


# --- the table --------------------------------------------------------------------------------


def write(options: AblationOptions) -> None:
    """Write table.json and table.md from the rows that have their scores."""
    rows = []
    for row in ROWS:
        if (path := _scores_path(options, row)).is_file():
            rate = None if row.trained_with is None else row.rate * options.learning_rate
            scores = json.loads(path.read_text(encoding="utf-8"))
            rows.append({"name": row.name, "title": row.title, "learning_rate": rate, **scores})
    table = {"protocol": options.protocol, "rows": rows}
    with replacing(options.output_dir / "table.json") as partial:
        partial.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    with replacing(options.output_dir / "table.md") as partial:
        partial.write_text(markdown(options, rows), encoding="utf-8")


def markdown(options: AblationOptions, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    head = ["", "learning rate", "plans: exact", "grounding, px", "verdicts right"]
    head += ["F1 done / failed", "questions right"]
    lines = ["# Ablations", "", _line(head), _line(["---"] * len(head))]
    for row in rows:
        rate = "–" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        cells = [row["title"], rate, _rate(row["plan_right"]), _mean(row["grounding_mean_px"])]
        cells += [_rate(row["verdict_right"])]
        cells += [" / ".join(f"{row[f'verdict_{s}']['f1']:.2f}" for s in ("done", "failed"))]
        lines.append(_line([*cells, _rate(row["question_right"])]))
    p = options
    note = (
        f"Trained for {p.steps} steps of {p.batch_size} on {p.look_at} from {p.start} with fresh "
        f"adapters, seed {p.seed}; scored on {p.test}, the same plans, clips and questions in "
        "every row. Rates with Wilson's 95 % interval, grounding with a bootstrap interval over "
        "places, for one training each. Plans are made from one picture in every row. Verdicts "
        "are told how the robot moved in every row, so that a blind one knows that too."
    )
    return "\n".join([*lines, "", note, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rate(score: Mapping[str, Any]) -> str:
    return str(Rate(score["k"], score["n"])) if score["n"] else "–"


def _mean(score: Mapping[str, Any]) -> str:
    if not score["n"]:
        return "–"
    spread = score["bootstrap95"]
    between = f" [{spread[0]:.1f}, {spread[1]:.1f}]" if spread else ""
    return f"{score['value']:.1f}{between}, n {score['n']}"


def main() -> None:
    options = tyro.cli(
        AblationOptions, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True
    )
    try:
        rows = rows_of(options.rows)
        check_protocol(options)
    except ValueError as error:
        raise SystemExit(f"ablations: {error}") from None
    run(options, rows)
    print((options.output_dir / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
