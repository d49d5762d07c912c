"""meta/episodes: an episode's row, from an Episode and back to what is known without its steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa

from embodied.episodes.files import dumps
from embodied.episodes.info import IMAGES, Info, cameras_of, features_with_stats
from embodied.episodes.places import Row, video_kind
from embodied.episodes.stats import STATS
from embodied.types import Episode, Outcome, Plan, Subgoal

Key = tuple[str, int, str]  # env_id, seed, tag

_LANGUAGE = pa.list_(
    pa.struct(
        [
            pa.field("role", pa.string(), nullable=False),
            pa.field("content", pa.string()),
            pa.field("style", pa.string()),
            pa.field("timestamp", pa.float32(), nullable=False),
            pa.field("camera", pa.string()),
            pa.field("tool_calls", pa.list_(pa.string())),
        ]
    )
)
OWN = {  # the columns that are ours and not LeRobot's
    "env_id": pa.string(),
    "task": pa.string(),
    "instruction": pa.string(),
    "seed": pa.int64(),
    "layout_sha": pa.string(),
    "outcome": pa.string(),
    "tag": pa.string(),
    "plan": pa.string(),
    "info": pa.string(),
    "language_persistent": _LANGUAGE,
}


@dataclass(frozen=True)
class EpisodeMeta:
    """What is known of an episode without reading its steps.

    Args:
        index: its number in the data set.
        length: control steps.
        tag: `info["tag"]`, a free word that tells apart episodes of one environment and seed.
        info: the episode's own, as JSON gives it back.
    """

    index: int
    env_id: str
    task: str
    instruction: str
    seed: int
    layout_sha: str
    plan: Plan
    outcome: Outcome
    length: int
    tag: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.env_id, self.seed, self.tag

    @property
    def success(self) -> bool:
        return self.outcome == "success"


def key_of(row: Row) -> Key:
    """What tells an episode from all others."""
    return row["env_id"], row["seed"], row["tag"]


def row_of(episode: Episode) -> Row:
    """The episode's row, as far as it is ours and needs no time stamps."""
    plan = episode.plan
    row = {name: getattr(episode, name) for name in ("env_id", "task", "instruction", "outcome")}
    row |= {"seed": int(episode.seed), "layout_sha": episode.layout_sha}
    row |= {"tag": str(episode.info.get("tag", "")), "length": len(episode.steps)}
    fields = {"instruction": plan.instruction, "thought": plan.thought, "tasks": plan.tasks}
    subgoals = [[subgoal.verb, *subgoal.args] for subgoal in plan.subgoals]
    row["plan"] = dumps({**fields, "subgoals": subgoals, "refused": plan.refused})
    row["info"] = dumps(dict(episode.info))
    return row


def language_of(episode: Episode, timestamps: np.ndarray) -> list[Row]:
    """The plan, and each sub-goal from the moment that it became the current one.

    Args:
        episode: one with at least one step.
        timestamps: (T,), in seconds.
    """

    def say(style: str, content: str, t: int) -> Row:
        row = {"role": "assistant", "content": content, "style": style}
        return row | {"timestamp": float(timestamps[t]), "camera": None, "tool_calls": None}

    plan, current = episode.plan, -1
    rows = [say("plan", plan.text if plan.refused is None else plan.refused, 0)]
    for t, step in enumerate(episode.steps):
        if plan.subgoals and step.subgoal != current:
            current = step.subgoal
            rows.append(say("subtask", plan.subgoals[current].text, t))
    return rows


def meta_of(row: Row) -> EpisodeMeta:
    """What a row says; of a row that other software wrote, what can be told."""
    instruction = row.get("instruction") or "; ".join(row["tasks"])
    if row.get("plan"):
        saved = json.loads(row["plan"])
        subgoals = tuple(Subgoal(verb, tuple(args)) for verb, *args in saved["subgoals"])
        tasks, refused = tuple(saved["tasks"]), saved["refused"]
        plan = Plan(saved["instruction"], saved["thought"], subgoals, tasks, refused)
    else:
        plan = Plan(instruction, "", (), refused="the data set records no plan")
    return EpisodeMeta(
        index=row["episode_index"],
        env_id=row.get("env_id") or "",
        task=row.get("task") or "",
        instruction=instruction,
        seed=row.get("seed") or 0,
        layout_sha=row.get("layout_sha") or "",
        plan=plan,
        outcome=cast(Outcome, row["outcome"]),
        length=row["length"],
        tag=row.get("tag") or "",
        info=json.loads(row.get("info") or "{}"),
    )


def episode_schema(info: Info) -> pa.Schema:
    """LeRobot's columns, ours, and the statistics of each feature that has any."""
    integers = ["length", "data/chunk_index", "data/file_index"]
    integers += ["dataset_from_index", "dataset_to_index"]
    columns: dict[str, pa.DataType] = {"episode_index": pa.int64(), "tasks": pa.list_(pa.string())}
    columns |= {name: pa.int64() for name in integers}
    for camera in cameras_of(info):
        kind = video_kind(camera)
        columns |= {f"{kind}/{name}_index": pa.int64() for name in ("chunk", "file")}
        columns |= {f"{kind}/{name}_timestamp": pa.float64() for name in ("from", "to")}
    columns |= OWN
    for name in features_with_stats(info):
        depth = 3 if name.startswith(IMAGES) else 1
        for stat in STATS:
            column = pa.int64() if stat == "count" else pa.float64()
            for _ in range(1 if stat == "count" else depth):
                column = pa.list_(column)
            columns[f"stats/{name}/{stat}"] = column
    columns |= {f"meta/episodes/{name}_index": pa.int64() for name in ("chunk", "file")}
    return pa.schema(columns.items())
