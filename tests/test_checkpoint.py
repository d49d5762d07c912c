"""Checkpoints: exact round trips, atomic writes, and one clear line for every kind of damage."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from embodied.checkpoint import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    CheckpointError,
    load,
    load_tensors,
    recover,
    save,
    write_manifest,
)


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, generator=generator)
    return {
        "weight": weight,
        "tied": weight,
        "transposed": weight.T,
        "half": weight.bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "ckpt"
    save(target, _tensors(), {"width": 4, "name": "é"})
    return target


def test_round_trip_is_exact(folder: Path) -> None:
    tensors, config = load(folder)
    assert config == {"width": 4, "name": "é"}
    assert tensors.keys() == _tensors().keys()
    for name, expected in _tensors().items():
        assert tensors[name].dtype == expected.dtype
        assert torch.equal(tensors[name], expected), name
    assert sorted(p.name for p in folder.iterdir()) == sorted([CONFIG, WEIGHTS, MANIFEST])


def test_saving_again_replaces_and_leaves_nothing_beside(folder: Path) -> None:
    save(str(folder), {"a": torch.ones(2)}, {})
    tensors, config = load(str(folder))
    assert list(tensors) == ["a"] and config == {}
    assert [p.name for p in folder.parent.iterdir()] == ["ckpt"]


def test_parameters_and_views_can_be_saved(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 3)
    save(tmp_path / "c", {"w": layer.weight, "row": layer.weight[1]}, {})
    assert torch.equal(load(tmp_path / "c")[0]["row"], layer.weight[1])


def _flip_last_byte(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def _cut(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 100)


def _cut_with_new_manifest(folder: Path) -> None:
    _cut(folder)
    write_manifest(folder)


def _bad_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 200)
    write_manifest(folder)


def _config(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / CONFIG).write_text(text)
        write_manifest(folder)

    return damage


def _nan(folder: Path) -> None:
    save_file({"good": torch.ones(1), "bad": torch.tensor([1.0, float("nan")])}, folder / WEIGHTS)
    write_manifest(folder)


def _inf_bfloat16(folder: Path) -> None:
    save_file({"bad": torch.tensor([float("inf")], dtype=torch.bfloat16)}, folder / WEIGHTS)
    write_manifest(folder)


def _unlisted(folder: Path) -> None:
    (folder / MANIFEST).write_text("")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_flip_last_byte, ["model.safetensors is damaged", "SHA-256"]),
        (_cut, ["model.safetensors is damaged"]),
        (_cut_with_new_manifest, ["model.safetensors cannot be read"]),
        (_bad_header, ["model.safetensors cannot be read"]),
        (lambda f: (f / WEIGHTS).unlink(), ["model.safetensors is missing"]),
        (lambda f: (f / CONFIG).unlink(), ["config.json is missing"]),
        (lambda f: (f / MANIFEST).unlink(), ["SHA256SUMS is missing"]),
        (lambda f: (f / MANIFEST).write_text("hello"), ["no checksum", "hello"]),
        (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe"), ["SHA256SUMS cannot be read"]),
        (_unlisted, ["SHA256SUMS does not list config.json"]),
        (_config("{"), ["config.json is not JSON"]),
        (_config("[1]"), ["config.json is a list"]),
        (_nan, ["NaN or infinity in 'bad'", "earlier checkpoint"]),
        (_inf_bfloat16, ["NaN or infinity in 'bad'"]),
    ],
)
def test_damage_is_one_line_naming_file(
    folder: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    for word in words:
        assert word in message


def test_missing_folder_points_to_the_former_one(folder: Path) -> None:
    folder.rename(folder.with_name(".ckpt.old"))
    with pytest.raises(CheckpointError, match=r"no checkpoint folder .*rename .*\.ckpt\.old"):
        load(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_is_never_written(folder: Path, bad: float) -> None:
    with pytest.raises(CheckpointError, match="'w' has NaN or infinity"):
        save(folder, {"w": torch.tensor([bad])}, {})
    assert load(folder)[1]["width"] == 4


@pytest.mark.parametrize("config", [{"a": object()}, {"a": float("nan")}])
def test_config_must_be_json(tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="not JSON"):
        save(tmp_path / "c", {}, config)
    assert not (tmp_path / "c").exists()


def test_never_replaces_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match="no checkpoint, so it is not replaced"):
        save(tmp_path, {}, {})
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_real_write_limit_leaves_the_former_checkpoint(folder: Path) -> None:
    """As on a full disk: the kernel refuses the write of a file above 16 KiB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot save checkpoint") as caught:
            save(folder, {"big": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert load(folder)[1]["width"] == 4
    assert [p.name for p in folder.parent.iterdir()] == ["ckpt"]


def test_full_disk_at_fsync(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save(folder, {}, {})
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in folder.parent.iterdir()] == ["ckpt"]
    assert load(folder)[1]["width"] == 4


def test_parent_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot save checkpoint .*(Not a directory|File exists)"):
        save(tmp_path / "file" / "ckpt", {}, {})


def test_failed_swap_puts_the_former_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def second_fails(source: Path, target: Path) -> None:
        if ".new-" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="Input/output error"):
        save(folder, {}, {})
    monkeypatch.undo()
    assert load(folder)[1]["width"] == 4


# --- more files ------------------------------------------------------------------------------


def test_more_files_are_written_and_watched_too(tmp_path: Path) -> None:
    folder, part = tmp_path / "c", {"x": torch.arange(3.0)}
    also = {"deep/part.safetensors": part, "deep/part.json": {"a": [1]}}
    save(folder, {"w": torch.ones(2)}, {}, also)
    assert torch.equal(load_tensors(folder / "deep/part.safetensors")["x"], part["x"])
    assert json.loads((folder / "deep/part.json").read_text()) == {"a": [1]}
    done = subprocess.run(["sha256sum", "-c", MANIFEST], cwd=folder, capture_output=True)
    assert done.returncode == 0 and b"deep/part.json: OK" in done.stdout
    (folder / "deep/part.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"deep/part\.json is damaged"):
        load(folder)
    (folder / "deep/part.json").unlink()
    with pytest.raises(CheckpointError, match=r"deep/part\.json is missing"):
        load(folder)


def test_more_files_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    bad: list[tuple[str, Any, str]] = [
        ("part.safetensors", {"x": torch.tensor([torch.nan])}, "tensor 'x' has NaN"),
        ("part.json", {"a": float("inf")}, "part of checkpoint .* is not JSON"),
    ]
    for name, content, said in bad:
        with pytest.raises(CheckpointError, match=said):
            save(tmp_path / "c", {}, {}, {name: content})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_manifest_cannot_lead_out_of_its_folder(name: str, tmp_path: Path) -> None:
    save(tmp_path / "c", {}, {})
    manifest = tmp_path / "c" / MANIFEST
    manifest.write_text(manifest.read_text() + f"{'0' * 64}  {name}\n")
    with pytest.raises(CheckpointError, match="has a line that is no checksum"):
        load(tmp_path / "c")


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "model"
    (tmp_path / ".model.new-abc").mkdir()
    (tmp_path / ".model.new-abc" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".other.new-abc").mkdir()
    save(target, {"a": torch.ones(2)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.new-abc", "model"]
    target.rename(tmp_path / ".model.old")  # killed between the two renames
    recover(target)
    assert load(target)[0]["a"].tolist() == [1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.new-abc", "model"]
