"""What a benchmark's rows are, what their evaluations say, and what they say beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from embodied.cli import compare, eval_info
from embodied.metrics import OverSeeds, macro
from embodied.video import replacing


@dataclass(frozen=True)
class Row:
    """One row of the table: policies that differ in their training seed only.

    Args:
        start: what planner and policy had seen before, see `start_of`.
        eval_ablate: what is taken from the trained agent when it is evaluated.
        n_corrections: episodes per task and round in which the expert corrected the policy.
        n_rounds: of corrections, each of the policy that the one before had made.
    """

    n_demos: int
    cameras: str
    policy: str
    features: str
    ablate: str
    per_task: bool
    steps: int
    start: str
    rule: str
    eval_ablate: str = "none"
    n_corrections: int = 0
    n_rounds: int = 1

    @property
    def from_a_policy(self) -> bool:
        return "policy" in self.start

    @property
    def is_full(self) -> bool:
        """Whether nothing is taken away: what the other rows are compared with."""
        return (self.features, self.ablate, self.eval_ablate) == ("former", "none", "none")

    @property
    def full(self) -> Row:
        """The same with nothing taken away."""
        return replace(self, features="former", ablate="none", eval_ablate="none")

    @property
    def rounds(self) -> list[Row]:
        """This row after its first round of corrections, its second, …, up to itself."""
        return [replace(self, n_rounds=n) for n in range(1, self.n_rounds + 1)]

    @property
    def before(self) -> Row:
        """What the policy was before its last round of corrections."""
        if self.n_rounds > 1:
            return replace(self, n_rounds=self.n_rounds - 1)
        return replace(self, n_corrections=0)

    def folder(self, out: Path) -> Path:
        """Of the policies, which rows that differ in `eval_ablate` share."""
        words = [f"{self.n_demos}demos", self.cameras.replace(",", "+"), self.policy]
        words += [f"{self.steps}steps"]
        words += [w for w in (self.features, self.ablate) if w not in ("former", "none")]
        start = self.start.replace(", ", "_").replace(" ", "_")
        words += [*(["per_task"] if self.per_task else []), start]
        words += [self.rule] if self.rule else []
        words += [f"{self.n_corrections}corrections"] if self.n_corrections else []
        words += [f"{self.n_rounds}rounds"] if self.n_rounds > 1 else []
        return out / "_".join(words)

    @property
    def eval_name(self) -> str:
        """The folder of its evaluations, within that of a policy."""
        return "eval" if self.eval_ablate == "none" else f"eval_{self.eval_ablate}"

    @property
    def kind(self) -> str:
        """For people: the policy, and what it lacks."""
        words = [self.policy, *(w for w in (self.features, self.ablate) if w not in _USUAL)]
        words += [] if self.eval_ablate in _USUAL else [f"({self.eval_ablate} when evaluated)"]
        return " ".join(words)


_USUAL = ("former", "none")


def start_of(*, planner_held_out: bool, policy_held_out: bool | None) -> str:
    """Whether the planner, or the policy to start from, has seen the tasks; None for no policy."""
    if policy_held_out is None:
        return "held out" if planner_held_out else "tasks seen"
    both = planner_held_out and policy_held_out
    return "held out, policy too" if both else "tasks seen, from a policy"


def summarise(row: Row, seeds: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """What a row's evaluations say.

    Args:
        seeds: for each training seed its eval_infos, which together have every task once.
    """
    by_seed = [_episodes(infos) for infos in seeds]
    tasks = list(dict.fromkeys(r["env"] for records in by_seed for r in records))
    together = [record for records in by_seed for record in records]
    rates = [macro(eval_info.rate_of(_of(records, t)) for t in tasks) for records in by_seed]
    over = OverSeeds.of([rate for rate in rates if rate is not None])
    return {
        **asdict(row),
        "tasks": {task: _counts(_of(together, task)) for task in tasks},
        "all": _counts(together),
        "per_seed": rates,
        "over_seeds": asdict(over),
        "n_seeds": len(by_seed),
        "n_layouts": len({(r["env"], r["layout_sha"]) for r in together}),
    }


def _episodes(infos: Sequence[dict[str, Any]]) -> list[eval_info.Record]:
    return [r for info in infos for task in info["per_task"] for r in task["per_episode"]]


def _of(records: Sequence[eval_info.Record], env: str) -> list[eval_info.Record]:
    return [record for record in records if record["env"] == env]


def _counts(records: Sequence[eval_info.Record]) -> dict[str, Any]:
    rate = eval_info.rate_of(records)
    apart = len(records) - rate.n
    return {"k": rate.k, "n": rate.n, "wilson95": rate.wilson95, "n_set_apart": apart}


def paired(places: Sequence[Path], of_full: Sequence[Path]) -> dict[str, Any]:
    """A row and the full system, as `embodied compare ROW FULL` says it.

    Args:
        places, of_full: folders of evaluations, seed by seed.
    """
    by_folder, n_apart = compare.pair_folders(places, of_full)
    a, b = (",".join(map(str, side)) for side in (places, of_full))
    overall = compare.summarise(by_folder)["overall"]
    return {**overall, "a": a, "b": b, "n_set_apart": n_apart}


# --- for people -------------------------------------------------------------------------------


def markdown(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The table: a row a protocol row, a column a task; and what is paired."""
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    shown = tasks if len(tasks) <= 10 else []  # mt50's are in the JSON
    head = ["demos", "cameras", "policy", "policy from", "planner"]
    head += [*(t.split("/")[-1] for t in shown), "all", "mean over training seeds"]
    lines = [f"# {name}", "", _line(head), _line(["---"] * len(head))]
    for told in rows:
        row = row_of(told)
        planner, _, start = row.start.partition(", ")
        begun = {"": "nothing", "policy too": "another, held out too"}.get(start, "another")
        planner += f", rule {row.rule}" if row.rule else ""
        corrected = f"{row.n_rounds} × " * (row.n_rounds > 1) + f"{row.n_corrections} corrections"
        n_demos = f"{row.n_demos} and {corrected}" if row.n_corrections else str(row.n_demos)
        cells = [n_demos, row.cameras, row.kind, begun, planner]
        cells += [_cell(told["tasks"][task]) for task in shown]
        over = OverSeeds(**told["over_seeds"])
        lines.append(_line([*cells, _cell(told["all"]), f"{over}, {told['n_seeds']} seed(s)"]))
    note = (
        "Successes of episodes on test layouts, all training seeds together, with Wilson's 95 % "
        "interval, which takes the policies as given; the last column is the mean over training "
        "seeds of the mean over tasks, with Student's 95 % interval over the seeds. Every seed has "
        "the same demonstrations and the same layouts. Cameras are the policy's; the planner looks "
        'through its own two. "Policy from" is what its training started from: R3M\'s head and '
        "the other baselines start from nothing, and are compared with rows that do too."
    )
    return "\n".join([*lines, "", note, *_paired_lines(rows), ""])


def _paired_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table of the rows that were paired with the full system; nothing where none was."""
    head = ["demos", "cameras", "against", "policy from", "full", "it", "full - it"]
    head += ["McNemar p", "over layouts: p", "95 %", "over training seeds: 95 %"]
    lines = [_line(head), _line(["---"] * len(head))]
    for told in rows:
        if (pair := told.get("paired")) is None:
            continue
        row = row_of(told)
        cells = [str(row.n_demos), row.cameras, row.kind]
        cells += ["another" if row.from_a_policy else "nothing"]
        cells += [f"{pair['k_b']}/{pair['n']}", f"{pair['k_a']}/{pair['n']}"]
        cells += ["" if pair["difference"] is None else f"{100 * pair['difference']:+.1f} points"]
        cells += [f"{pair['mcnemar_p']:.2g}", f"{pair['layouts_p']:.2g}"]
        cells += [_interval(pair[k]) for k in ("bootstrap95_layouts", "student95_seeds")]
        lines.append(_line(cells))
    if len(lines) == 2:
        return []
    note = (
        "Paired by training seed and layout. McNemar's exact p takes all pairs as independent, "
        "which several seeds on one layout are not; the exact sign-flip test and the bootstrap "
        "take a layout's pairs together, Student's interval a seed's (`embodied compare`)."
    )
    return ["", "## The full system against a row, paired", "", *lines, "", note]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"[{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]"


def _cell(counts: dict[str, Any]) -> str:
    apart = f" ({counts['n_set_apart']} apart)" if counts["n_set_apart"] else ""
    if counts["wilson95"] is None:
        return f"0/0{apart}"
    low, high = (100 * bound for bound in counts["wilson95"])
    percent = 100 * counts["k"] / counts["n"]
    return f"{counts['k']}/{counts['n']} = {percent:.0f} % [{low:.0f}, {high:.0f}]{apart}"


# --- on the disk ------------------------------------------------------------------------------


def row_of(told: dict[str, Any]) -> Row:
    """The row that a line of table.json is about; older ones lack what is usual."""
    usual = {f.name: f.default for f in fields(Row) if f.default is not MISSING}
    return Row(**usual | {f.name: told[f.name] for f in fields(Row) if f.name in told})


def write(name: str, out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Put the rows among those of earlier runs in table.json, and write table.md anew."""
    path = out / "table.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    keyed = {row_of(told): told for told in [*before, *rows]}
    with replacing(path) as partial:
        partial.write_text(json.dumps([*keyed.values()], indent=2), encoding="utf-8")
    with replacing(out / "table.md") as partial:
        partial.write_text(markdown(name, [*keyed.values()]), encoding="utf-8")
