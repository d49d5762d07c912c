"""`embodied compare A B`: two evaluations of the same layouts, pair by pair.

McNemar's exact test says whether they differ. Beside it stands what so many pairs can tell at all:
the smallest true difference that they would find in four of five repetitions, at 5 % two-sided and
with as many disagreeing pairs as were seen (`Paired.detectable_difference`, after Connor 1987).

Several evaluations a side, as of training seeds or of two benchmarks, are paired one by one and
put together. McNemar's test takes all pairs as independent, which several policies on the same
layout are not: a test and an interval over layouts, and an interval over training seeds, stand
beside it (`embodied.metrics_clustered`).
"""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from embodied.cli import eval_info
from embodied.cli.eval_info import Record
from embodied.metrics import Paired, Rate, macro
from embodied.metrics_clustered import Interval, Layouts, student95

Key = tuple[str, int]  # env, seed
Pair = tuple[Record, Record]


@dataclass(frozen=True)
class CompareOptions:
    """Compare two evaluations, layout by layout, or as many on each side put together.

    Args:
        a: folder of an evaluation, or its eval_info.json; several, comma-separated.
        b: the other one; as many, in the same order: the first of A is paired with the first of B.
        shared: compare what both tried, and leave out the layouts that only one of them has.
        json: print one JSON object and nothing else.
    """

    a: Annotated[Positional[str], arg(metavar="A[,A…]")]
    b: Annotated[Positional[str], arg(metavar="B[,B…]")]
    shared: bool = False
    json: bool = False


def compare(options: CompareOptions) -> int:
    """Print the comparison. Returns 0; raises ValueError when the layouts differ."""
    a, b = folders_of(options.a), folders_of(options.b)
    by_folder, n_apart = pair_folders(a, b, shared=options.shared)
    result = summarise(by_folder) | {"a": options.a, "b": options.b, "n_set_apart": n_apart}
    if options.json:
        print(json_format.dumps(result, ensure_ascii=False))
    else:
        print(table(result))
    return 0


def folders_of(text: str) -> list[Path]:
    """Comma-separated paths; one that is there as it stands may have commas of its own."""
    if Path(text).exists():
        return [Path(text)]
    return [Path(part.strip()) for part in text.split(",") if part.strip()]


def pair_folders(
    a: Sequence[Path], b: Sequence[Path], *, shared: bool = False
) -> tuple[list[list[Pair]], int]:
    """The pairs of the first of `a` and the first of `b`, of the second ones, and so on.

    Returns:
        The pairs by folder, and how many more are set apart, see `pair_up`.

    Raises:
        ValueError: one side has more folders; the same two are named again; or as `pair_up`.
    """
    if not a or len(a) != len(b):
        raise ValueError(
            f"A names {len(a)} evaluation(s) and B {len(b)}: each is paired with the one in its "
            "place on the other side, so name as many of both"
        )
    places = list(zip(a, b, strict=True))
    if again := [place for place in places if places.count(place) > 1]:
        raise ValueError(f"{again[0][0]} and {again[0][1]} are named twice in the same place")
    found = [pair_up(x, y, shared=shared) for x, y in places]
    return [pairs for pairs, _ in found], sum(n_apart for _, n_apart in found)


def pair_up(a: Path, b: Path, *, shared: bool = False) -> tuple[list[Pair], int]:
    """Episodes of the same environment, seed and layout that both judged, in the order of `a`.

    Args:
        shared: leave out the layouts of one side, and say how many on stderr.

    Returns:
        The pairs, and how many more were paired but crashed or broke the simulator on a side.

    Raises:
        ValueError: no layout is shared; one side has others and `shared` does not allow it; or a
            seed gave two different layouts.
    """
    first, second = _by_seed(eval_info.read(a)), _by_seed(eval_info.read(b))
    both = [(record, second[key]) for key, record in first.items() if key in second]
    spans = f"{a} has {_span(first)}; {b} has {_span(second)}"
    if not both:
        raise ValueError(
            f"no layouts are shared: {spans}; evaluate both with the same --env and --seeds"
        )
    _check_layouts(both, a, b)
    alone = len(first) + len(second) - 2 * len(both)
    if alone and not shared:
        raise ValueError(
            f"{alone} layout(s) were tried on one side only: {spans}; evaluate both on the same, "
            f"or compare the {len(both)} that both have with --shared"
        )
    if alone:
        print(f"{alone} episode(s) on layouts of one side are left out", file=sys.stderr)
    pairs = [pair for pair in both if len(eval_info.valid(pair)) == 2]
    return pairs, len(both) - len(pairs)


def _by_seed(records: list[Record]) -> dict[Key, Record]:
    return {(r["env"], r["seed"]): r for r in records}


def _check_layouts(both: list[Pair], a: Path, b: Path) -> None:
    """Raises ValueError when a seed gave two different layouts."""
    different = [(x, y) for x, y in both if x["layout_sha"] != y["layout_sha"]]
    if different:
        x, y = different[0]
        raise ValueError(
            f"{len(different)} layout(s) differ although their seeds are the same: {x['env']}, "
            f"seed {x['seed']} is {x['layout_sha']} in {a} and {y['layout_sha']} in {b}; evaluate "
            "both with the same versions of the simulator"
        )


def _span(layouts: dict[Key, Record]) -> str:
    if not layouts:
        return "no episodes"
    envs = list(dict.fromkeys(env for env, _ in layouts))
    seeds = [seed for _, seed in layouts]
    more = f" and {len(envs) - 1} more" if len(envs) > 1 else ""
    return f"{envs[0]}{more}, seeds {min(seeds)}:{max(seeds)}"


def summarise(by_folder: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    """Every task, then all of them together.

    Args:
        by_folder: the pairs of each two evaluations that were paired.
    """
    pairs = [pair for of in by_folder for pair in of]
    by_env: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_env.setdefault(pair[0]["env"], []).append(pair)
    per_task = [{"env": env, **_compared(of)} for env, of in by_env.items()]
    macros = {
        f"macro_{side}": macro(Rate(task[f"k_{side}"], task["n"]) for task in per_task)
        for side in ("a", "b")
    }
    seeds = {"n_folders": len(by_folder), "student95_seeds": _over_seeds(by_folder)}
    return {"per_task": per_task, "overall": {**_compared(pairs), **macros, **seeds}}


def _compared(pairs: list[Pair]) -> dict[str, Any]:
    won_a, won_b = ([bool(pair[side]["success"]) for pair in pairs] for side in (0, 1))
    paired, layouts = Paired.of(won_a, won_b), _layouts(pairs)
    return {
        "n": paired.n,
        "k_a": sum(won_a),
        "k_b": sum(won_b),
        "wilson95_a": Rate.of(won_a).wilson95,
        "wilson95_b": Rate.of(won_b).wilson95,
        "only_a": paired.only_a,
        "only_b": paired.only_b,
        "difference": paired.difference,
        "mcnemar_p": paired.p,
        "smallest_difference": paired.smallest_difference(),
        "detectable_difference": paired.detectable_difference(),
        "n_layouts": len(layouts.sums),
        "layouts_p": layouts.p,
        "bootstrap95_layouts": layouts.bootstrap95(),
    }


def _gain(pair: Pair) -> int:
    """1 when B alone succeeded, -1 when A alone did, else 0."""
    return int(pair[1]["success"]) - int(pair[0]["success"])


def _layouts(pairs: Sequence[Pair]) -> Layouts:
    """All pairs of a layout together, whichever policies they are of."""
    found: dict[tuple[str, str], list[int]] = {}
    for pair in pairs:
        layout = pair[0]["layout_sha"] or f"seed {pair[0]['seed']}"
        found.setdefault((pair[0]["env"], layout), []).append(_gain(pair))
    tasks = tuple(env for env, _ in found)
    return Layouts(tasks, tuple(map(sum, found.values())), tuple(map(len, found.values())))


def _over_seeds(by_folder: Sequence[Sequence[Pair]]) -> Interval | None:
    """Student's interval of B - A; folders of the same tasks are each other's replicates."""
    groups: dict[frozenset[str], list[float]] = {}
    sizes: dict[frozenset[str], int] = {}
    for pairs in filter(None, by_folder):
        tasks = frozenset(pair[0]["env"] for pair in pairs)
        groups.setdefault(tasks, []).append(sum(map(_gain, pairs)) / len(pairs))
        sizes[tasks] = sizes.get(tasks, 0) + len(pairs)
    return student95([*groups.values()], [n / sum(sizes.values()) for n in sizes.values()])


def table(result: dict[str, Any]) -> str:
    """For people: a line a task, then what all of them say."""
    overall = result["overall"]
    rows = [(task["env"], task) for task in result["per_task"]] + [("all", overall)]
    width = max(len(name) for name, _ in rows)
    repeated = overall["n_layouts"] < overall["n"]
    head = f"{'':<{width}}  {'A':>9}  {'B':>9}  {'only A':>6}  {'only B':>6}  {'p':>7}"
    head += f"  {'layouts':>7}  {'their p':>7}" if repeated else ""
    lines = [f"A: {result['a']}", f"B: {result['b']}", head]
    for name, row in rows:
        a, b = (f"{row[f'k_{side}']}/{row['n']}" for side in ("a", "b"))
        counts = f"{row['only_a']:>6}  {row['only_b']:>6}"
        line = f"{name:<{width}}  {a:>9}  {b:>9}  {counts}  {row['mcnemar_p']:>7.4f}"
        line += f"  {row['n_layouts']:>7}  {row['layouts_p']:>7.4f}" if repeated else ""
        lines.append(line)
    if result["n_set_apart"]:
        lines.append(f"set apart: {result['n_set_apart']} crashed or broke the simulator")
    return "\n".join([*lines, _conclusion(overall), *_replicates(overall)])


def _conclusion(overall: dict[str, Any]) -> str:
    smallest, detectable = overall["smallest_difference"], overall["detectable_difference"]
    n = overall["n"]
    if smallest is None or detectable is None:
        return f"{n} pairs are too few to show any difference (McNemar, exact)"
    return (
        f"B - A = {100 * overall['difference']:+.1f} points (McNemar, exact); from "
        f"{100 * smallest:.1f} points on, these {n} pairs would show a difference; "
        f"{n} such pairs find a true one of {100 * detectable:.1f} points in 4 of 5 cases"
    )


def _replicates(overall: dict[str, Any]) -> list[str]:
    """What several policies on the same layouts say, a line for either kind of replicate."""
    lines = []
    if overall["n_layouts"] < overall["n"]:
        lines.append(
            f"the pairs are not independent: {overall['n']} on {overall['n_layouts']} layouts. "
            f"Over layouts, these policies as given: p = {overall['layouts_p']:.4f} (exact "
            f"sign-flip test), 95 % {_points(overall['bootstrap95_layouts'])} (bootstrap within "
            "each task)"
        )
    if overall["n_folders"] > 1:
        lines.append(
            "over training seeds, if folders of the same tasks differ in these alone: 95 % "
            f"{_points(overall['student95_seeds'])} (Student, {overall['n_folders']} folders)"
        )
    return lines


def _points(interval: Interval | None) -> str:
    if interval is None:
        return "unknown, as one alone tells nothing of others"
    return f"[{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}] points"
