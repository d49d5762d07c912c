"""Folders of weights on this machine: where they are, whether they are whole, who may write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from embodied.checkpoint import CONFIG, MANIFEST, check_manifest

LOCK_TIMEOUT_S = 900.0


class WeightsError(ValueError):
    """Weights that cannot be found, fetched or used; one line that says what to do."""


def cache_dir() -> Path:
    """`$EMBODIED_CACHE`, else `~/.cache/embodied-planner`; not necessarily there yet."""
    return Path(os.environ.get("EMBODIED_CACHE") or "~/.cache/embodied-planner").expanduser()


def folder_of(name: str) -> Path:
    """The folder in the cache that holds, or would hold, the named weights."""
    return cache_dir() / "weights" / name.replace(":", "--").replace("/", "--")


def holds_weights(folder: Path) -> bool:
    """Whether there is a config.json with safetensors beside it."""
    return (folder / CONFIG).is_file() and any(folder.glob("*.safetensors"))


def check_local(folder: Path) -> Path:
    """The folder itself, which a person or the hub put together.

    Raises:
        WeightsError: it holds no weights.
        CheckpointError: it has a SHA256SUMS that says otherwise.
    """
    if not holds_weights(folder):
        raise WeightsError(f"{folder} has no {CONFIG} with *.safetensors beside it")
    if (folder / MANIFEST).is_file():
        check_manifest(folder, "copy it again from where it is whole")
    return folder


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes from preparing the same folder; it need not exist, its parent is made.

    Raises:
        WeightsError: another process keeps it too long, or nothing can be written there.
    """
    from filelock import FileLock, Timeout

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise WeightsError(
            f"another process has been preparing {folder} for {LOCK_TIMEOUT_S:.0f} s; wait for it"
            " or end it, then run again"
        ) from None
    except OSError as error:
        raise WeightsError(
            f"cannot write weights to {folder.parent}: {error.strerror or error};"
            " set EMBODIED_CACHE to a folder with 1 GB free"
        ) from error
