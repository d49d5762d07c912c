"""One page that shows evaluations side by side: text, tables and inline SVG, no scripts.

It opens from disk in any browser. `embodied report` reads the evaluations and copies the videos.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import quote

from embodied.metrics import Rate

Record = dict[str, Any]  # one episode of eval_info.json
Key = tuple[str, int]  # environment, seed

COLOURS = ("#1f6fb4", "#d1601a", "#2a8f4a", "#a3338f", "#7a6a00", "#555555")
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0 1.6em}th,td{padding:.25em .7em;text-align:left;
vertical-align:top;border-bottom:1px solid #ddd}th{background:#f4f4f2}
.run{font-weight:600}.aside{color:#666;font-size:90%}video{width:26em;max-width:100%;display:block}
summary{cursor:pointer;margin:.4em 0}svg{vertical-align:middle}ol{margin:.2em 0;padding-left:1.6em}
"""


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Args:
        name: what it is called on the page; no two alike.
        info: its eval_info.json.
        videos: where an episode's video is, a path as seen from the page.
    """

    name: str
    info: dict[str, Any]
    videos: dict[Key, str] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        return [record for task in self.info["per_task"] for record in task["per_episode"]]

    @property
    def valid(self) -> list[Record]:
        """The episodes that ended in success or failure."""
        return [r for r in self.records if r["outcome"] in ("success", "failure")]


@dataclass(frozen=True)
class Pairing:
    """Two runs on the same layouts.

    Args:
        a, b: names of the runs.
        result: what `embodied compare --json` says; None when the layouts differ.
        reason: why there is none.
    """

    a: str
    b: str
    result: dict[str, Any] | None
    reason: str = ""


def page(runs: Sequence[Run], pairings: Sequence[Pairing]) -> str:
    """The whole page, HTML."""
    sections = [
        "<h1>Evaluations</h1>",
        _runs_table(runs),
        "<h2>Success by task</h2>",
        '<p class="aside">Successes of episodes, with Wilson\'s 95 % interval. Crashes and faults '
        "of the simulator are counted apart.</p>",
        _tasks_table(runs),
        "<h2>Success over steps</h2>",
        '<p class="aside">The share of all episodes that had succeeded by then; the band is '
        "Wilson's 95 % interval at each step.</p>",
        _curves(runs),
        *([] if len(runs) < 2 else ["<h2>Paired differences</h2>", _paired(pairings)]),
        "<h2>Episodes</h2>",
        *_episodes(runs),
    ]
    head = f'<meta charset="utf-8"><title>Evaluations</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(
        [*sections, "</body></html>\n"]
    )


def _table(kind: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of class `kind`; cells are HTML."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return "\n".join([f'<table class="{kind}">', f"<tr>{top}</tr>", *body, "</table>"])


def _name(number: int, run: Run) -> str:
    colour = COLOURS[number % len(COLOURS)]
    return f'<span class="run" style="color:{colour}">{escape(run.name)}</span>'


# --- tables -----------------------------------------------------------------------------------


def _runs_table(runs: Sequence[Run]) -> str:
    head = ["run", "settings", "cameras", "horizon", "rule of success", "trained on"]
    head += ["speed", "versions"]
    return _table("runs", head, [_run_row(i, run) for i, run in enumerate(runs)])


def _run_row(number: int, run: Run) -> list[str]:
    overall, settings = run.info["overall"], run.info["settings"]
    told = {k: _weights(v) for k, v in settings.items() if v not in (None, "none")}
    seeds = overall["train_seeds"] or []
    trained = f"{len(seeds)} layouts ({min(seeds)} to {max(seeds)})" if seeds else "not told"
    hz, plan_s = overall["control_hz"], overall["plan_latency_s"].get("p50")
    speed = [
        f"{overall['eval_ep_s']:.1f} s an episode",
        "" if hz is None else f"{hz:.1f} steps/s",
        "" if plan_s is None else f"{plan_s:.2f} s a plan",
    ]
    return [
        _name(number, run),
        "<br>".join(escape(f"{k}: {v}") for k, v in told.items()),
        escape(_cameras(run)),
        escape(str(overall["horizon"])),
        escape(str(overall["success_rule"])),
        trained,
        "<br>".join(filter(None, speed)),
        f'<span class="aside">{escape(_versions(overall["versions"]))}</span>',
    ]


def _cameras(run: Run) -> str:
    if any(record.get("oracle") for record in run.records):
        return "none: told where things are (a ceiling)"
    names = run.info["overall"].get("cameras")
    return "not told" if names is None else ", ".join(names) or "none"


def _weights(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('name')} ({value.get('sha256')})"
    return str(value)


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _tasks_table(runs: Sequence[Run]) -> str:
    """A row a task, then all of them; a column a run."""
    tasks = [{task["env"]: task for task in run.info["per_task"]} for run in runs]
    envs = list(dict.fromkeys(env for of in tasks for env in of))
    rows = [[escape(env), *(_rate(i, of.get(env)) for i, of in enumerate(tasks))] for env in envs]
    means = [run.info["overall"]["pc_success_macro"] for run in runs]
    rows.append(["mean of tasks", *("–" if m is None else f"{m:.1f} %" for m in means)])
    rows.append(["all episodes", *(_rate(i, run.info["overall"]) for i, run in enumerate(runs))])
    return _table("tasks", ["task", *(_name(i, run) for i, run in enumerate(runs))], rows)


def _rate(number: int, values: dict[str, Any] | None) -> str:
    """`k/n = p % [low, high]` with a bar, and what is counted apart."""
    if values is None:
        return "–"
    apart = {"crashes": values["n_crashes"], "simulator faults": values["n_sim_faults"]}
    notes = "".join(f"<br>{n} {what}" for what, n in apart.items() if n)
    if not values["n"]:
        return f"0/0{notes}"
    low, high = (100 * bound for bound in values["wilson95"])
    told = f"{values['k']}/{values['n']} = {values['pc_success']:.1f} % [{low:.1f}, {high:.1f}]"
    return f"{told} {_bar(values['pc_success'], low, high, number)}{notes}"


def _bar(value: float, low: float, high: float, number: int) -> str:
    """An interval and its middle on a line from 0 to 100 %."""
    colour = COLOURS[number % len(COLOURS)]
    return (
        '<svg width="104" height="12" aria-hidden="true">'
        '<line x1="2" x2="102" y1="6" y2="6" stroke="#ddd"/>'
        f'<line x1="{2 + low:.1f}" x2="{2 + high:.1f}" y1="6" y2="6" stroke="{colour}" '
        f'stroke-width="3"/><circle cx="{2 + value:.1f}" cy="6" r="4" fill="{colour}"/></svg>'
    )


def _paired(pairings: Sequence[Pairing]) -> str:
    """Every two runs: all tasks together, and each."""
    head = ["A → B", "task", "A", "B", "only A", "only B", "B - A", "p (McNemar, exact)"]
    head.append("found in 4 of 5 cases from")
    rows: list[list[str]] = []
    for pairing in pairings:
        name = f"{escape(pairing.a)} → {escape(pairing.b)}"
        if pairing.result is None:
            rows.append([name, f"not paired: {escape(pairing.reason)}", *[""] * 7])
            continue
        parts = [("all", pairing.result["overall"])]
        parts += [(task["env"], task) for task in pairing.result["per_task"]]
        rows += [[name, escape(task), *_difference(values)] for task, values in parts]
    return _table("paired", head, rows)


def _difference(values: dict[str, Any]) -> list[str]:
    difference, detectable = values["difference"], values["detectable_difference"]
    return [
        f"{values['k_a']}/{values['n']}",
        f"{values['k_b']}/{values['n']}",
        str(values["only_a"]),
        str(values["only_b"]),
        "–" if difference is None else f"{100 * difference:+.1f} points",
        f"{values['mcnemar_p']:.4f}",
        "too few pairs" if detectable is None else f"{100 * detectable:.1f} points",
    ]


# --- curves -----------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 260, 48, 12


def _curves(runs: Sequence[Run]) -> str:
    """Success over steps, all runs in one picture."""
    longest = max((r["n_steps"] for run in runs for r in run.valid), default=0)
    if not longest:
        return "<p>No episode had a step.</p>"
    steps = sorted({round(i * longest / 100) for i in range(101)})
    drawn = [_curve(i, run, steps, longest) for i, run in enumerate(runs) if run.valid]
    names = " · ".join(_name(i, run) for i, run in enumerate(runs))
    size = f'viewBox="0 0 {_WIDTH + 70} {_HEIGHT + 50}" width="{_WIDTH + 70}"'
    grid = _grid(longest)
    return f'<p>{names}</p><svg class="curves" {size}>' + "\n".join([grid, *drawn, "</svg>"])


def succeeded_by(records: Sequence[Record], step: int) -> Rate:
    """Of valid episodes, those that had succeeded after `step` control steps."""
    first = [r["first_success_step"] for r in records]
    return Rate.of(index is not None and index < step for index in first)


def _curve(number: int, run: Run, steps: Sequence[int], longest: int) -> str:
    rates = [succeeded_by(run.valid, step) for step in steps]
    bounds = [rate.wilson95 or (0.0, 1.0) for rate in rates]
    middle = [_point(s, r.value or 0.0, longest) for s, r in zip(steps, rates, strict=True)]
    low = [_point(s, b[0], longest) for s, b in zip(steps, bounds, strict=True)]
    high = [_point(s, b[1], longest) for s, b in zip(steps, bounds, strict=True)]
    colour = COLOURS[number % len(COLOURS)]
    return (
        f'<polygon points="{" ".join([*low, *reversed(high)])}" fill="{colour}" opacity="0.14"/>'
        f'<polyline points="{" ".join(middle)}" fill="none" stroke="{colour}" stroke-width="2"/>'
    )


def _point(step: int, share: float, longest: int) -> str:
    x, y = _LEFT + _WIDTH * step / longest, _TOP + _HEIGHT * (1 - share)
    return f"{x:.1f},{y:.1f}"


def _grid(longest: int) -> str:
    right, bottom = _LEFT + _WIDTH, _TOP + _HEIGHT
    lines = []
    for percent in (0, 25, 50, 75, 100):
        y = _TOP + _HEIGHT * (1 - percent / 100)
        lines.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="#e2e2e2"/>')
        lines.append(_label(_LEFT - 6, y + 4, f"{percent} %", "end"))
    for quarter in range(5):
        x = _LEFT + _WIDTH * quarter / 4
        lines.append(_label(x, bottom + 18, str(round(longest * quarter / 4)), "middle"))
    lines.append(_label(_LEFT + _WIDTH / 2, bottom + 36, "control steps", "middle"))
    return "\n".join(lines)


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="12" fill="#555" text-anchor="{anchor}">'
        f"{text}</text>"
    )


# --- episodes ---------------------------------------------------------------------------------


def _episodes(runs: Sequence[Run]) -> list[str]:
    """A table a task, folded: a row a seed, a column a run."""
    found = [{(r["env"], r["seed"]): r for r in run.records} for run in runs]
    keys = list(dict.fromkeys(key for of in found for key in of))
    head = ["seed", *(_name(i, run) for i, run in enumerate(runs))]
    told = []
    for env in dict.fromkeys(env for env, _ in keys):
        rows = [
            [str(key[1]), *(_episode(of.get(key), run.videos.get(key)) for of, run in columns)]
            for key in keys
            if key[0] == env and (columns := list(zip(found, runs, strict=True)))
        ]
        table = _table("episodes", head, rows)
        told.append(f"<details><summary>{escape(env)}</summary>\n{table}</details>")
    return told


def _episode(record: Record | None, video: str | None) -> str:
    if record is None:
        return "–"
    told = f"<b>{escape(record['outcome'])}</b>, {record['n_steps']} steps"
    if record.get("refused"):
        told += f"<br>refused: {escape(record['refused'])}"
    lines = [told, f'<div class="aside">layout {escape(record["layout_sha"])}</div>']
    if video is not None:
        link = quote(video)
        lines.append(f'<video controls preload="metadata" src="{link}"></video>')
        lines.append(f'<a href="{link}">video</a>')
    lines.append(f"<div>“{escape(record['instruction'])}”</div>")
    if record["thought"]:
        lines.append(f"<div>{escape(record['thought'])}</div>")
    lines.append(_numbered(record["plan"]))
    lines += [_verdict(v) for v in record["verdicts"]]
    return "\n".join(lines)


def _numbered(steps: Sequence[str]) -> str:
    return "<ol>" + "".join(f"<li>{escape(step)}</li>" for step in steps) + "</ol>" if steps else ""


def _verdict(verdict: dict[str, Any]) -> str:
    told = f"step {verdict['step']}, {verdict['subgoal']}: {verdict['status']}"
    more = f"{verdict['reason']}, {verdict['probability']:.2f}"
    return f'<div class="verdict">{escape(told)} <span class="aside">{escape(more)}</span></div>'
