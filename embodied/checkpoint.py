"""A directory that can be trusted: config.json + model.safetensors + SHA256SUMS.

safetensors itself notices a cut file and a broken header, but loads a flipped byte or a NaN
without a word; the manifest and the finiteness check here close that gap. The manifest is what
`sha256sum -c SHA256SUMS` reads.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MANIFEST = "SHA256SUMS"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_REMEDY = "copy the folder again from where it is whole, or train it again"


class CheckpointError(ValueError):
    """A checkpoint directory that cannot be trusted; one line that names file and remedy."""


def save(
    directory: Path | str, tensors: Mapping[str, torch.Tensor], config: dict[str, Any]
) -> None:
    """Write a checkpoint whole or not at all, replacing the one that is there.

    Args:
        directory: becomes a folder with exactly config.json, model.safetensors and SHA256SUMS.
        tensors: name → tensor on any device; tied tensors are written twice.
        config: what JSON can hold, without NaN.

    Raises:
        CheckpointError: a tensor is not finite, `config` is not JSON, or `directory` holds
            something that is no checkpoint.
        OSError: the disk is full, read-only or not ours; what was there before is untouched.
    """
    target = Path(directory).absolute()
    _check_replaceable(target)
    text = _config_text(target, config)
    ready = _ready(target, tensors)
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
        _write_files(scratch, ready, text)
        _swap(scratch, target)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot save checkpoint {target}: {reason}; free or choose another disk"
        raise OSError(error.errno or errno.EIO, message) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def load(directory: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint that `save` wrote: tensors on the CPU, and the config.

    Raises:
        CheckpointError: a file is missing, cut, changed or unreadable, or a tensor is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(directory)
    _check_is_checkpoint(folder)
    check_manifest(folder, _REMEDY)
    config_path, weights_path = folder / CONFIG, folder / WEIGHTS
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{config_path} is not JSON ({error}); {_REMEDY}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_path} is a {type(config).__name__}, no object; {_REMEDY}")
    try:
        tensors = load_file(weights_path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights_path} cannot be read ({error}); {_REMEDY}") from None
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise CheckpointError(
                f"{weights_path} has NaN or infinity in '{name}': the training had diverged; take"
                " an earlier checkpoint"
            )
    return tensors, config


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path) -> None:
    """Write SHA256SUMS over every file directly inside `directory`."""
    files = sorted(p for p in directory.iterdir() if p.is_file() and p.name != MANIFEST)
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in files]
    (directory / MANIFEST).write_text("".join(lines), encoding="utf-8")


def read_manifest(directory: Path, remedy: str) -> dict[str, str]:
    """File name → SHA-256 as SHA256SUMS has them.

    Raises:
        CheckpointError: no manifest, or one that is not what `sha256sum` writes.
    """
    path = directory / MANIFEST
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, so nothing can be checked; {remedy}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {remedy}") from None
    sums: dict[str, str] = {}
    for line in lines:
        digest, separator, name = line.partition("  ")
        if len(digest) != 64 or not separator or not name or "/" in name:
            raise CheckpointError(f"{path} has a line that is no checksum: {line!r}; {remedy}")
        sums[name] = digest
    return sums


def check_manifest(directory: Path, remedy: str) -> None:
    """Compare every listed file with its SHA-256.

    Args:
        directory: the folder with SHA256SUMS in it.
        remedy: what the reader of the error should do, put at the end of its one line.

    Raises:
        CheckpointError: a listed file is missing or its bytes have changed.
    """
    for name, expected in read_manifest(directory, remedy).items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing but listed in {MANIFEST}; {remedy}")
        try:
            actual = sha256_of(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error}); {remedy}") from None
        if actual != expected:
            raise CheckpointError(
                f"{path} is damaged: SHA-256 {actual[:12]}… where {expected[:12]}… was written;"
                f" {remedy}"
            )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # float8 has no isfinite of its own
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


def _check_replaceable(target: Path) -> None:
    """Refuse to replace anything but a checkpoint or an empty folder."""
    if not target.exists() or (target / MANIFEST).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise CheckpointError(
            f"{target} exists and is no checkpoint, so it is not replaced; name another folder"
        )


def _check_is_checkpoint(folder: Path) -> None:
    if not folder.is_dir():
        former = folder.absolute().parent / f".{folder.name}.old"
        where = f"rename {former} to it" if former.is_dir() else "check the path"
        raise CheckpointError(f"there is no checkpoint folder {folder}; {where}")
    listed = read_manifest(folder, _REMEDY)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; {_REMEDY}")
        if name not in listed:
            raise CheckpointError(f"{folder / MANIFEST} does not list {name}; {_REMEDY}")


def _config_text(target: Path, config: dict[str, Any]) -> str:
    try:
        return json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"config of checkpoint {target} is not JSON ({error}); keep to numbers, text, lists"
            " and dicts"
        ) from None


def _ready(target: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors that share no memory, all finite."""
    ready: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not _is_finite(tensor.detach()):
            raise CheckpointError(
                f"tensor '{name}' has NaN or infinity, so {target} is not written; lower the"
                " learning rate and resume from the checkpoint before"
            )
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        ready[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return ready


def _write_files(folder: Path, tensors: dict[str, torch.Tensor], config_text: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, folder / WEIGHTS)
    except SafetensorError as error:  # its wording of a full or failing disk
        raise OSError(errno.EIO, str(error)) from error
    (folder / CONFIG).write_text(config_text, encoding="utf-8")
    write_manifest(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0o600
        _fsync(path)
    folder.chmod(0o755)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(new: Path, target: Path) -> None:
    """Move `new` to `target`; the former one waits beside it until that is done."""
    former = target.parent / f".{target.name}.old"
    if not target.exists():
        os.replace(new, target)
        shutil.rmtree(former, ignore_errors=True)  # left by a process killed in between
        return
    shutil.rmtree(former, ignore_errors=True)
    os.replace(target, former)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(former, target)
        raise
    _fsync(target.parent)
    shutil.rmtree(former, ignore_errors=True)
