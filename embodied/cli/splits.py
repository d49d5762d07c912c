"""Tasks that are left out of training, so that plans for them show what was understood.

A checkpoint's config.json keeps them under "left_out", for `embodied evaluate-plans`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from embodied import checkpoint
from embodied.egocot.dataset import Recorded
from embodied.egocot.records import Record
from sims import kitchen_tasks, language, scenes

LEFT_OUT = "left_out"


def left_out_of(folder: Path) -> tuple[str, ...]:
    """The tasks that no training of a planner has seen; none where it does not say.

    Raises:
        CheckpointError: the folder is damaged.
    """
    return tuple(checkpoint.load(folder)[1].get(LEFT_OUT, ()))


def still_left_out(starts: Iterable[Path | None], tasks: Collection[str]) -> list[str]:
    """The tasks that none of the checkpoints `starts` has seen and that are not among `tasks`."""
    known = [left_out_of(folder) for folder in starts if folder is not None]
    common = known[0] if known else ()
    return [t for t in common if t not in tasks and all(t in others for others in known)]


def tasks_left_out(text: str, starts: Iterable[Path | None]) -> tuple[str, ...]:
    """The tasks of `--leave_out`.

    Args:
        text: names of tasks and of sets of them, comma-separated.
        starts: the planners that training goes on from.

    Raises:
        ValueError: there is no such task, or one of the planners has seen it.
    """
    tasks = scenes.resolve_tasks(text)
    for folder in filter(None, starts if tasks else ()):
        seen = [task for task in tasks if task not in left_out_of(folder)]
        if seen:
            raise ValueError(
                f"--leave_out: {folder} was trained on {', '.join(seen)} or does not say; start "
                "from a planner that left them out in every stage, or from a fresh one"
            )
    return tasks


def without(episodes: Sequence[Recorded], tasks: Sequence[str]) -> list[Recorded]:
    """The episodes that are about none of `tasks`; how many are left out goes to stderr."""
    kept = [episode for episode in episodes if not set(episode.tasks) & set(tasks)]
    _say(len(episodes) - len(kept), len(episodes), "episodes")
    return kept


def records_without(records: Sequence[Record], tasks: Sequence[str]) -> list[Record]:
    """The same of records."""
    kept = [record for record in records if not is_about(record, tasks)]
    _say(len(records) - len(kept), len(records), "records")
    return kept


def of_splits(folder: Path, records: Sequence[Record], names: str) -> list[Record]:
    """The records of the splits `names`, comma-separated.

    Raises:
        ValueError: there is none; names what there is in `folder`.
    """
    wanted = {name.strip() for name in names.split(",")}
    kept = [record for record in records if record.split in wanted]
    if not kept:
        splits = Counter(record.split for record in records)
        there = ", ".join(f"{n} of {split}" for split, n in splits.items())
        raise ValueError(
            f"no record of split {names} in '{folder}', it has {there}: name another with "
            "--records_split"
        )
    return kept


def _say(n: int, n_all: int, what: str) -> None:
    if n:
        print(f"left out: {n} of {n_all} {what}", file=sys.stderr)


def is_about(record: Record, tasks: Sequence[str]) -> bool:
    """Whether a record comes from one of `tasks`, or says anything of the kitchen's among them.

    Where a record is from is told by its episode, as `embodied build-egocot` names it after the
    environment. The kitchen's sub-goals belong to one task each.
    """
    name = "/".join(record.provenance.episode.split("/")[:2])
    if {name.removesuffix("-v3").removeprefix("metaworld/")} & set(tasks):
        return True
    if not name.startswith("kitchen/"):
        return False
    owners = {kitchen_tasks.OWNER.get(action) for action in record.actions}
    asked = [qa.question for qa in record.questions]
    said = " | ".join([record.instruction, record.caption, *asked])
    goal = set(name.removeprefix("kitchen/").split("+"))
    return bool((owners | goal) & set(tasks)) or language.names_any(said, tasks)
