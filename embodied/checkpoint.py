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
from pathlib import Path, PurePosixPath
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
    directory: Path | str,
    tensors: Mapping[str, torch.Tensor],
    config: dict[str, Any],
    also: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a checkpoint whole or not at all, replacing the one that is there.

    Args:
        directory: becomes a folder with config.json, model.safetensors and SHA256SUMS.
        tensors: name → tensor on any device; tied tensors are written twice.
        config: what JSON can hold, without NaN.
        also: more files, by their path in the folder: tensors for *.safetensors, else values
            for *.json.

    Raises:
        CheckpointError: a tensor is not finite, `config` is not JSON, or `directory` holds
            something that is no checkpoint.
        OSError: the disk is full, read-only or not ours; what was there before is untouched.
    """
    target = Path(directory).absolute()
    _check_replaceable(target)
    recover(target)
    ready = checked(target, {WEIGHTS: tensors, CONFIG: config, **(also or {})})
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
        write_files(scratch, ready)
        _swap(scratch, target)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot save checkpoint {target}: {reason}; free or choose another disk"
        raise OSError(error.errno or errno.EIO, message) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def recover(directory: Path | str) -> None:
    """Mend what a `save` to `directory` left that was killed: half-written folders are removed.

    If it was killed while it put the new checkpoint in the former one's place, that comes back.
    """
    target = Path(directory).absolute()
    former = _former(target)
    if former.is_dir() and not target.exists():
        os.replace(former, target)
    for left in (former, *target.parent.glob(f".{target.name}.new-*")):
        shutil.rmtree(left, ignore_errors=True)


def load(directory: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint that `save` wrote: tensors on the CPU, and the config.

    Raises:
        CheckpointError: a file is missing, cut, changed or unreadable, or a tensor is not finite.
    """
    folder = Path(directory)
    _check_is_checkpoint(folder)
    check_manifest(folder, _REMEDY)
    config_path = folder / CONFIG
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{config_path} is not JSON ({error}); {_REMEDY}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_path} is a {type(config).__name__}, no object; {_REMEDY}")
    return load_tensors(folder / WEIGHTS), config


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file, on the CPU.

    Raises:
        CheckpointError: it is missing or cut, or a tensor is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise CheckpointError(
                f"{path} has NaN or infinity in '{name}': the training had diverged; take"
                " an earlier checkpoint"
            )
    return tensors


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path) -> None:
    """Write SHA256SUMS over every file in `directory` and its folders."""
    paths = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if p.is_file()}
    paths.pop(MANIFEST, None)
    lines = [f"{sha256_of(paths[name])}  {name}\n" for name in sorted(paths)]
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
        if len(digest) != 64 or not separator or not name or not _is_inside(name):
            raise CheckpointError(f"{path} has a line that is no checksum: {line!r}; {remedy}")
        sums[name] = digest
    return sums


def _is_inside(name: str) -> bool:
    """Whether a path leads to somewhere in the folder that it is relative to."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


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
        former = _former(folder.absolute())
        where = f"rename {former} to it" if former.is_dir() else "check the path"
        raise CheckpointError(f"there is no checkpoint folder {folder}; {where}")
    listed = read_manifest(folder, _REMEDY)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; {_REMEDY}")
        if name not in listed:
            raise CheckpointError(f"{folder / MANIFEST} does not list {name}; {_REMEDY}")


def checked(target: Path, contents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What `write_files` takes, from tensors for *.safetensors and values for *.json.

    Args:
        target: where it will go, for the errors.
        contents: by path in `target`.

    Raises:
        CheckpointError: a tensor is not finite, or values are no JSON.
    """
    return {name: _ready(target, name, content) for name, content in contents.items()}


def _ready(target: Path, name: str, content: Mapping[str, Any]) -> Any:
    """What is to be written into the file `name`: checked tensors, or JSON text."""
    if name.endswith(".safetensors"):
        return _ready_tensors(target, content)
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{Path(name).stem} of checkpoint {target} is not JSON ({error}); keep to numbers,"
            " text, lists and dicts"
        ) from None


def _ready_tensors(target: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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


def write_files(folder: Path, ready: Mapping[str, Any]) -> None:
    """Write what `checked` gave, and SHA256SUMS over it, down to the disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    for name, content in ready.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
            continue
        try:
            save_file(content, path, metadata={"format": "pt"})
        except SafetensorError as error:  # its wording of a full or failing disk
            raise OSError(errno.EIO, str(error)) from error
    write_manifest(folder)
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0o600
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _former(target: Path) -> Path:
    """Where the former checkpoint waits while `target` is replaced."""
    return target.parent / f".{target.name}.old"


def _swap(new: Path, target: Path) -> None:
    """Move `new` to `target`; the former one waits beside it until that is done."""
    former = _former(target)
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
