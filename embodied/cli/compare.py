"""`embodied compare A B`: two evaluations on the layouts that both of them tried."""

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

Key = tuple[str, int, str]  # env, seed, layout_sha
Pair = tuple[Record, Record]


@dataclass(frozen=True)
class CompareOptions:
    """Compare two evaluations, layout by layout.

    Args:
        a: folder of an evaluation, or its eval_info.json.
        b: the other one.
        json: print one JSON object and nothing else.
    """

    a: Annotated[Positional[Path], arg(metavar="A")]
    b: Annotated[Positional[Path], arg(metavar="B")]
    json: bool = False


def compare(options: CompareOptions) -> int:
    """Print the comparison. Returns 0; raises ValueError when no layout is shared."""
    pairs, n_apart = pair_up(options.a, options.b)
    result = summarise(pairs) | {"a": str(options.a), "b": str(options.b), "n_set_apart": n_apart}
    if options.json:
        print(json_format.dumps(result, ensure_ascii=False))
    else:
        print(table(result))
    return 0


def pair_up(a: Path, b: Path) -> tuple[list[Pair], int]:
    """Episodes of the same environment, seed and layout that both judged, in the order of `a`.

    Returns:
        The pairs, and how many more were shared but crashed or broke the simulator on a side.

    Raises:
        ValueError: no layout is shared.
    """
    first, second = _by_layout(eval_info.read(a)), _by_layout(eval_info.read(b))
    shared = [(record, second[key]) for key, record in first.items() if key in second]
    if not shared:
        raise ValueError(
            f"no layouts are shared: {a} has {_span(first)}; {b} has {_span(second)}; evaluate "
            "both with the same --env and --seeds"
        )
    left_out = len(first) + len(second) - 2 * len(shared)
    if left_out:
        print(f"{left_out} episode(s) on layouts of one side are left out", file=sys.stderr)
    pairs = [pair for pair in shared if len(eval_info.valid(pair)) == 2]
    return pairs, len(shared) - len(pairs)


def _by_layout(records: list[Record]) -> dict[Key, Record]:
    return {(r["env"], r["seed"], r["layout_sha"]): r for r in records}


def _span(layouts: dict[Key, Record]) -> str:
    if not layouts:
        return "no episodes"
    envs = list(dict.fromkeys(env for env, _, _ in layouts))
    seeds = [seed for _, seed, _ in layouts]
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
    smallest = overall["smallest_difference"]
    if smallest is None:
        return f"{overall['n']} pairs are too few to show any difference (McNemar, exact)"
    return (
        f"B - A = {100 * overall['difference']:+.1f} points (McNemar, exact); from "
        f"{100 * smallest:.1f} points on, these {overall['n']} pairs would show a difference"
    )
