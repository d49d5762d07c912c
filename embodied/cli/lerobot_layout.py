"""A finished training under the names that LeRobot's tools look for.

    checkpoints/last → 005000
    checkpoints/005000/pretrained_model/{config.json, model.safetensors, train_config.json, …}
    checkpoints/005000/training_state/…

The files are hard links to those of `policy` and `training_state`, where the disk has such links.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from embodied import checkpoint
from embodied.cli.training import RUN
from embodied.training_state import STATE

LAST = "last"


def publish(run: Path, step: int) -> Path:
    """Lay out the training in the folder `run`, which is at its `step`. Returns the new folder."""
    folder = run / "checkpoints" / f"{step:06d}"
    if folder.exists():
        shutil.rmtree(folder)
    model = folder / "pretrained_model"
    _link_tree(run / "policy", model, leave_out=checkpoint.MANIFEST)
    _link(run / RUN, model / "train_config.json")
    checkpoint.write_manifest(model)
    if (run / STATE).is_dir():
        _link_tree(run / STATE, folder / STATE)
    last = folder.with_name(LAST)
    if last.is_dir() and not last.is_symlink():  # as copies have it that follow links
        shutil.rmtree(last)
    last.unlink(missing_ok=True)
    last.symlink_to(folder.name)
    return folder


def _link_tree(source: Path, target: Path, leave_out: str = "") -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name != leave_out:
            _link(path, target / path.relative_to(source))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
