"""Where the figures of a training go: log.jsonl, TensorBoard, and trackio or wandb on request."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from embodied.video import replacing

Tracker = Literal["none", "trackio", "wandb"]
_PROJECT = "embodied-planner"


def check_tracker(track: Tracker) -> None:
    """Raises ValueError when the package that `track` names is not installed."""
    if track != "none" and find_spec(track) is None:
        raise ValueError(f"--track {track} needs the package {track}: pip install {track}")


class RunLog:
    """The log of one run; files and connections are made when there is something to write.

    Args:
        folder: of the run.
        first: the step that training goes on from; what was logged after it is dropped, as it
            comes again.
        track: also log there.
        config: what the tracker is told about the run.
    """

    def __init__(
        self, folder: Path, first: int = 0, track: Tracker = "none", config: Any = None
    ) -> None:
        check_tracker(track)
        self._folder, self._first, self._track, self._config = folder, first, track, config
        self._started = time.perf_counter()
        self._board: Any = None
        self._run: Any = None
        _truncate(folder / "log.jsonl", first)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Log the figures after `step` steps."""
        line = {"step": step, "seconds": round(time.perf_counter() - self._started, 1), **figures}
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is None:
            self._open()
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log(figures, step=step)

    def close(self) -> None:
        """Write what is still in buffers."""
        if self._board is not None:
            self._board.close()
        if self._run is not None:
            self._run.finish()

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self._folder / "tensorboard"
        self._board = SummaryWriter(str(folder), purge_step=self._first + 1)
        if self._track == "none":
            return
        where = str(self._folder.absolute())
        known: dict[str, Any] = {"name": self._folder.name, "config": self._config}
        if self._track == "wandb":  # which knows a run again by its id, trackio by its name
            known["id"] = hashlib.sha256(where.encode()).hexdigest()[:16]
        tracker = importlib.import_module(self._track)
        self._run = tracker.init(project=_PROJECT, resume="allow", **known)


def _truncate(path: Path, last: int) -> None:
    """Drop lines of steps after `last`, and what a killed process left of a line."""
    if not path.is_file():
        return
    written = path.read_text(encoding="utf-8")
    lines = written.splitlines(keepends=True)
    kept = "".join(x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= last)
    if kept != written:
        with replacing(path) as partial:
            partial.write_text(kept, encoding="utf-8")
