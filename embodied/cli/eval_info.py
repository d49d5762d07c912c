"""The result of an evaluation: one record an episode, and eval_info.json made from them.

The keys are LeRobot's (`per_task`, `per_group`, `overall`) and ours beside them. A crash and a
simulator fault are counted apart: `n` holds only the episodes that say something about the agent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from embodied.metrics import Rate, latency, macro
from embodied.metrics_text import Mean
from embodied.video import replacing

Record = dict[str, Any]  # one episode, as a line of episodes.jsonl

EVAL_INFO = "eval_info.json"
_SEEN = ("noticed", "mistaken")
_PACKAGES = ("embodied-planner", "torch", "transformers", "timm", "mujoco", "metaworld", "numpy")


class EpisodeLog:
    """Finished episodes, a JSON line each; what a killed process left of a line is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: list[Record] = []
        if path.exists():
            whole, _, rest = path.read_bytes().rpartition(b"\n")
            if rest:
                os.truncate(path, len(whole) + 1 if whole else 0)
            self.records = [self._read(i, line) for i, line in enumerate(whole.splitlines(), 1)]

    def _read(self, number: int, line: bytes) -> Record:
        try:
            record = json.loads(line)
            record["env"], record["seed"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self._path}, line {number} is no episode: delete the file to evaluate anew"
            ) from None
        return record

    def append(self, record: Record) -> None:
        """Add one episode; it is on the disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)


def valid(records: Sequence[Record]) -> list[Record]:
    """Those that ended in success or failure."""
    return [r for r in records if r["outcome"] in ("success", "failure")]


def rate_of(records: Sequence[Record]) -> Rate:
    """Success among the valid ones."""
    return Rate.of(r["success"] for r in valid(records))


def summarise(records: Sequence[Record], settings: dict[str, Any]) -> dict[str, Any]:
    """The eval_info object of some episodes, tasks in the order they come.

    Args:
        records: in the order asked for.
        settings: what the evaluation was asked to do, for the record.
    """
    by_env: dict[str, list[Record]] = {}
    for record in records:
        by_env.setdefault(record["env"], []).append(record)
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_group(record["env"]), []).append(record)
    return {
        "per_task": [_task(i, env, of) for i, (env, of) in enumerate(by_env.items())],
        "per_group": {name: _aggregate(of) for name, of in groups.items()},
        "overall": _overall(records, list(by_env.values())),
        "settings": settings,
    }


def _group(env_id: str) -> str:
    return env_id.split("/")[0]


def _task(number: int, env_id: str, records: list[Record]) -> dict[str, Any]:
    metrics = {
        "sum_rewards": [r["sum_reward"] for r in records],
        "max_rewards": [r["max_reward"] for r in records],
        "successes": [r["success"] for r in records],
        "video_paths": _videos(records),
    }
    return {
        "task_group": _group(env_id),
        "task_id": number,
        "env": env_id,
        "metrics": metrics,
        **_aggregate(records),
        "per_episode": [{k: v for k, v in r.items() if k != "setup"} for r in records],
    }


def _aggregate(records: Sequence[Record]) -> dict[str, Any]:
    rate = rate_of(records)
    return {
        "pc_success": rate.percent,
        "n_episodes": len(records),
        "k": rate.k,
        "n": rate.n,
        "wilson95": rate.wilson95,
        "n_distinct_layouts": len({(r["env"], r["layout_sha"]) for r in records}),
        "n_crashes": sum(r["outcome"] == "crash" for r in records),
        "n_sim_faults": sum(r["outcome"] == "sim_fault" for r in records),
        **_by_rule(valid(records)),
        "video_paths": _videos(records),
    }


def _by_rule(records: Sequence[Record]) -> dict[str, Any]:
    """Both rules of a scene that has two, and how far episodes of several tasks came.

    `in_order` counts the episodes whose tasks were all done, by the benchmark's rule, in the order
    in which they were asked for; those that were done at the start have no place in it.
    """
    told = [r for r in records if "completed" in r]
    if not told:
        return {}
    rates = {
        "benchmark": Rate.of(r["success_benchmark"] for r in told),
        "strict": Rate.of(r["success_strict"] for r in told),
        "in_order": Rate.of(_left(r, "completed") == _left(r, "tasks") for r in told),
    }
    shown = {name: _shown(rate) for name, rate in rates.items()}
    completed = Mean.of([len(r["completed"]) for r in told])
    means = {
        "mean_completed": completed.value,
        "mean_completed_bootstrap95": completed.bootstrap95,
        "mean_completed_strict": sum(len(r["completed_strict"]) for r in told) / len(told),
    }
    return shown | means | _at_start(told)


def _shown(rate: Rate) -> dict[str, Any]:
    return {"k": rate.k, "n": rate.n, "wilson95": rate.wilson95}


def _left(record: Record, which: str) -> list[str]:
    """The tasks of that field which were not done at the start."""
    return [task for task in record[which] if task not in record.get("met_at_start", ())]


def _at_start(records: Sequence[Record]) -> dict[str, Any]:
    """Of episodes in which some tasks were done at the start: how many, and who saw it.

    `noticed` counts tasks that were done and seen to be, `mistaken` those that were not and were
    taken to be; neither is there for an actor that does not look.
    """
    some = [r for r in records if r.get("met_at_start")]
    if not some:
        return {}
    met = [(r, task) for r in some for task in r["met_at_start"]]
    figures: dict[str, Any] = {"n_episodes": len(some), "n_tasks": len(met)}
    if all("seen_done" in r for r in records):
        left = [(r, task) for r in records for task in _left(r, "tasks")]
        figures["noticed"] = _shown(Rate.of(task in r["seen_done"] for r, task in met))
        figures["mistaken"] = _shown(Rate.of(task in r["seen_done"] for r, task in left))
    return {"met_at_start": figures}


def _overall(records: Sequence[Record], per_task: list[list[Record]]) -> dict[str, Any]:
    setup = records[0]["setup"]  # the same for every episode of one evaluation
    eval_s = sum(r["wall_s"] for r in records)
    macro_success = macro(rate_of(of) for of in per_task)
    return {
        **_aggregate(records),
        "pc_success_macro": None if macro_success is None else 100 * macro_success,
        "eval_s": eval_s,
        "eval_ep_s": eval_s / len(records),
        "success_rule": setup["success_rule"],
        "horizon": setup["horizon"],
        "train_seeds": setup["train_seeds"],
        "cameras": setup.get("cameras"),
        "render_flags": setup["render_flags"],
        "device": setup.get("device"),
        "versions": versions(),
        "plan_latency_s": latency([r["plan_s"] for r in records]),
        "control_hz": _median([r["control_hz"] for r in records if r["control_hz"]]),
    }


def _median(values: list[float]) -> float | None:
    return latency(values)["p50"] if values else None


def _videos(records: Sequence[Record]) -> list[str]:
    return [r["video"] for r in records if r["video"]]


def versions() -> dict[str, str]:
    """Of Python and of the packages that a figure depends on."""
    return {"python": python_version(), **{name: metadata.version(name) for name in _PACKAGES}}


def write(folder: Path, info: dict[str, Any]) -> Path:
    """Write eval_info.json whole or not at all."""
    path = folder / EVAL_INFO
    with replacing(path) as partial:
        partial.write_text(json.dumps(info, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def read_info(path: Path) -> dict[str, Any]:
    """An eval_info.json, or that of the folder that has one.

    Raises:
        ValueError: it is not what `write` writes.
        OSError: there is no such file.
    """
    path = path / EVAL_INFO if path.is_dir() else path
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        for record in _episodes(info):
            record["env"], record["seed"], record["layout_sha"], record["outcome"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no {EVAL_INFO} of `embodied evaluate` ({type(error).__name__}: {error})"
        ) from None
    return info


def read(path: Path) -> list[Record]:
    """The episodes of an eval_info.json. Raises as `read_info`."""
    return _episodes(read_info(path))


def _episodes(info: dict[str, Any]) -> list[Record]:
    return [record for task in info["per_task"] for record in task["per_episode"]]


def table(info: dict[str, Any]) -> str:
    """For people: a line a task, then all of them."""
    rows = [(task["env"], task) for task in info["per_task"]]
    overall = info["overall"]
    lines = [(name, _row(values)) for name, values in rows]
    if overall["pc_success_macro"] is not None:
        lines.append(("mean of tasks", f"{overall['pc_success_macro']:.1f} %"))
    lines.append(("all episodes", _row(overall)))
    lines.append(("distinct starts", f"{overall['n_distinct_layouts']}/{overall['n_episodes']}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _row(values: dict[str, Any]) -> str:
    apart = {"crashes": values["n_crashes"], "simulator faults": values["n_sim_faults"]}
    notes = "".join(f"; {n} {what}" for what, n in apart.items() if n)
    if "benchmark" in values:
        names = ("benchmark", "strict", "in_order")
        rules = ", ".join(f"{name} {values[name]['k']}" for name in names)
        low_high = values.get("mean_completed_bootstrap95")
        spread = " [{:.2f}, {:.2f}]".format(*low_high) if low_high else ""
        notes += f"; {rules}; {values['mean_completed']:.2f} tasks{spread}"
    return f"{Rate(values['k'], values['n'])}{notes}{_start_note(values)}"


def _start_note(values: dict[str, Any]) -> str:
    if "met_at_start" not in values:
        return ""
    met = values["met_at_start"]
    seen = [f", {name} {met[name]['k']}/{met[name]['n']}" for name in _SEEN if name in met]
    return f"; {met['n_tasks']} done at the start of {met['n_episodes']}{''.join(seen)}"
