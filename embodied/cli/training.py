"""What the training commands share: run.json, going on from it, and the loop with both."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, get_args, get_type_hints

from torch import nn

from embodied.cli.eval_info import versions
from embodied.processes import Processes
from embodied.train import LoopOptions, TrainOptions, train
from embodied.training_state import STATE
from embodied.video import replacing

RUN = "run.json"
"""Says with which options a run was started, and each time on what: commit, versions, processes."""


class RunOptions(Protocol):
    """The options of a command that trains: a dataclass made from `LoopOptions`."""

    @property
    def output_dir(self) -> Path: ...


def run_training(
    command: str, module: nn.Module, sample: Callable[[int], Any], options: RunOptions
) -> dict[str, float]:
    """Write run.json, then train; see `embodied.train.train`."""
    assert isinstance(options, LoopOptions)
    processes = Processes.here()
    if processes.is_main:
        _write_run(command, options, processes)
    folder: Path = processes.gather(options.output_dir)[0]  # whose name may be the time of day
    return train(module, sample, TrainOptions.of(options, folder))


def _write_run(command: str, options: Any, processes: Processes) -> None:
    path = options.output_dir / RUN
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_hash": git_hash(),
        "processes": processes.count,
        "device": str(processes.device),
        "versions": versions(),
    }
    starts = [*_read(path)["starts"], start] if path.is_file() else [start]
    values = {f.name: _plain(getattr(options, f.name)) for f in fields(options)}
    run = {"command": command, "seed": options.seed, "options": values, "starts": starts}
    with replacing(path) as partial:
        partial.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def git_hash() -> str | None:
    """The commit of this code, with `-dirty` when files differ; None outside its repository."""
    root = Path(__file__).parents[2]
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != root.resolve():
            return None
        dirty = "-dirty" if _git(root, "status", "--porcelain", "-uno") else ""
        return _git(root, "rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# --- going on ---------------------------------------------------------------------------------


def resumed_options(kind: Any, command: str, argv: list[str]) -> Any:
    """The options of the run that `--resume DIR` in `argv` names, or None.

    What else `argv` says replaces them. The run goes on in its own directory, wherever that is by
    now.

    Args:
        kind: the command's options; None is returned for one that does not train.
        command: its name.

    Raises:
        ValueError: DIR is no run of this command.
    """
    folder = _after(argv, "--resume")
    if folder is None or not (is_dataclass(kind) and issubclass(kind, LoopOptions)):  # type: ignore[arg-type]
        return None
    run_dir = Path(folder).parent if Path(folder).name == STATE else Path(folder)
    path = run_dir / RUN
    if not path.is_file():
        raise ValueError(
            f"there is no {path}, so nothing to resume: name the output directory of a run; one"
            " that stopped before its first step is started again"
        )
    run = _read(path)
    if run["command"] != command:
        raise ValueError(f"{run_dir} is a run of `embodied {run['command']}`, not of `{command}`")
    return _revived(kind, {**run["options"], "output_dir": str(run_dir), "resume": None}, path)


def _after(argv: list[str], flag: str) -> str | None:
    """The value of `flag`, if it is given."""
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name == flag:
            return value if equals else following
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        run["command"], run["options"], run["starts"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no {RUN} ({type(error).__name__}: {error})") from None
    return run


def _revived(kind: Any, values: dict[str, Any], path: Path) -> Any:
    """Options from what JSON kept of them; those that are new since have their defaults."""
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.init}
    needed = {n for n, f in known.items() if MISSING is f.default is f.default_factory}
    if odd := sorted(needed - values.keys() | values.keys() - known.keys()):
        raise ValueError(f"{path} is of another version, which differs in: {', '.join(odd)}")
    return kind(**{name: _typed(hints[name], value) for name, value in values.items()})


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    is_path = hint is Path or Path in get_args(hint)
    return Path(value) if is_path and isinstance(value, str) else value
