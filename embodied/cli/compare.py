"""`embodied compare A B`: two evaluations of the same layouts, pair by pair.

McNemar's exact test says whether they differ. Beside it stands what so many pairs can tell at all:
the smallest true difference that they would find in four of five repetitions, at 5 % two-sided and
with as many disagreeing pairs as were seen (`Paired.detectable_difference`, after Connor 1987).
"""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from embodied.cli import eval_info
from embodied.cli.eval_info import Record
from embodied.metrics import Paired, Rate, macro

Key = tuple[str, int]  # env, seed
Pair = tuple[Record, Record]


@dataclass(frozen=True)
class CompareOptions:
    """Compare two evaluations, layout by layout.

    Args:
        a: folder of an evaluation, or its eval_info.json.
        b: the other one.
        shared: compare what both tried, and leave out the layouts that only one of them has.
        json: print one JSON object and nothing else.
    """

    a: Annotated[Positional[Path], arg(metavar="A")]
    b: Annotated[Positional[Path], arg(metavar="B")]
    shared: bool = False
    json: bool = False


def compare(options: CompareOptions) -> int:
    """Print the comparison. Returns 0; raises ValueError when the layouts differ."""
    pairs, n_apart = pair_up(options.a, options.b, shared=options.shared)
    result = summarise(pairs) | {"a": str(options.a), "b": str(options.b), "n_set_apart": n_apart}
    if options.json:
        print(json_format.dumps(result, ensure_ascii=False))
    else:
        print(table(result))
    return 0


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
    _check_layouts(both)
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


def _check_layouts(both: list[Pair]) -> None:
    """Raises ValueError when a seed gave two different layouts."""
    different = [(x, y) for x, y in both if x["layout_sha"] != y["layout_sha"]]
    if different:
        x, y = different[0]
        raise ValueError(
            f"{len(different)} layout(s) differ although their seeds are the same: {x['env']}, "
            f"seed {x['seed']} is {x['layout_sha']} in A and {y['layout_sha']} in B; evaluate both "
            "with the same versions of the simulator"
        )


def _span(layouts: dict[Key, Record]) -> str:
    if not layouts:
        return "no episodes"
    envs = list(dict.fromkeys(env for env, _ in layouts))
    seeds = [seed for _, seed in layouts]
    more = f" and {len(envs) - 1} more" if len(envs) > 1 else ""
    return f"{envs[0]}{more}, seeds {min(seeds)}:{max(seeds)}"


def summarise(pairs: list[Pair]) -> dict[str, Any]:
    """Every task, then all of them together."""
    by_env: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_env.setdefault(pair[0]["env"], []).append(pair)
    per_task = [{"env": env, **_compared(of)} for env, of in by_env.items()]
    macros = {
        f"macro_{side}": macro(Rate(task[f"k_{side}"], task["n"]) for task in per_task)
        for side in ("a", "b")
    }
    return {"per_task": per_task, "overall": {**_compared(pairs), **macros}}


def _compared(pairs: list[Pair]) -> dict[str, Any]:
    won_a, won_b = ([bool(pair[side]["success"]) for pair in pairs] for side in (0, 1))
    paired = Paired.of(won_a, won_b)
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
    }


def table(result: dict[str, Any]) -> str:
    """For people: a line a task, then what all of them say."""
    overall = result["overall"]
    rows = [(task["env"], task) for task in result["per_task"]] + [("all", overall)]
    width = max(len(name) for name, _ in rows)
    head = f"{'':<{width}}  {'A':>9}  {'B':>9}  {'only A':>6}  {'only B':>6}  {'p':>7}"
    lines = [f"A: {result['a']}", f"B: {result['b']}", head]
    for name, row in rows:
        a, b = (f"{row[f'k_{side}']}/{row['n']}" for side in ("a", "b"))
        counts = f"{row['only_a']:>6}  {row['only_b']:>6}"
        lines.append(f"{name:<{width}}  {a:>9}  {b:>9}  {counts}  {row['mcnemar_p']:>7.4f}")
    if result["n_set_apart"]:
        lines.append(f"set apart: {result['n_set_apart']} crashed or broke the simulator")
    return "\n".join([*lines, _conclusion(overall)])


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
