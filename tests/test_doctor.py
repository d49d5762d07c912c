"""`embodied doctor`: every fault it knows is found, named, and comes with a way to mend it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from embodied import weights
from embodied.checkpoint import write_manifest
from embodied.cli import doctor as module
from embodied.cli.doctor import Check, doctor


def _stub(monkeypatch: pytest.MonkeyPatch, checks: list[Check]) -> None:
    def first() -> Iterator[Check]:
        yield from checks

    monkeypatch.setattr(module, "_versions", first)
    for name in ("_clashes", "_rendering", "_weights", "_threads", "_disk"):
        monkeypatch.setattr(module, name, list)


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("off", 0), ("warn", 0), ("fail", 1)])
def test_only_a_failure_changes_the_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: module.Status,
    code: int,
) -> None:
    _stub(monkeypatch, [Check("thing", status, "found it", "mend it")])
    assert doctor() == code
    table = capsys.readouterr().out
    assert "thing  found it" in table and "→ mend it" in table
    assert doctor(json=True) == code
    answer = json.loads(capsys.readouterr().out)
    expected = {"name": "thing", "status": status, "found": "found it", "mend": "mend it"}
    assert answer == {"ok": code == 0, "checks": [expected]}


def test_wrong_and_missing_packages_are_named() -> None:
    wants = ["numpy<1", "no-such-package>=3", "numpy>=1", 'absent; python_version < "3"']
    wrong = list(module._wrong_requirements(wants))
    assert len(wrong) == 2
    assert wrong[0].startswith("numpy ") and wrong[0].endswith(", needs <1")
    assert wrong[1] == "no-such-package missing, needs >=3"


def test_dreamer_and_opencv_clashes(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"embodied": ["embodied-planner", "dreamerv3"], "cv2": ["opencv-python"]}
    monkeypatch.setattr(module.metadata, "packages_distributions", lambda: owners)
    checks = {c.name: c for c in module._clashes()}
    assert checks["import names"].status == "fail" and "dreamerv3" in checks["import names"].found
    assert checks["opencv"].status == "warn" and "headless" in checks["opencv"].mend


def test_no_gl_at_all_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_run_python", lambda code, **env: (False, "no GL"))
    checks = list(module._rendering())
    assert [c.status for c in checks] == ["off", "off", "off", "fail"]
    assert "apt-get install libegl1" in checks[-1].mend


def test_chosen_back_end_that_does_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    check = module._chosen_backend(["egl"])
    assert check.status == "fail" and "unset MUJOCO_GL" in check.mend
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setenv("EMBODIED_CACHE", str(tmp_path))
    assert module._chosen_backend(["egl"]).found == "uses egl"
    (tmp_path / "gl_backend").write_text("osmesa\n")
    assert module._chosen_backend(["egl"]).mend == f"delete {tmp_path / 'gl_backend'}"


def test_crash_in_a_probe_is_told_from_an_error() -> None:
    assert module._run_python("print('a'); print('b')") == (True, "b")
    assert module._run_python("raise ValueError('why')") == (False, "ValueError: why")
    killed = module._run_python("import os; os.kill(os.getpid(), 11)")
    assert killed == (False, "killed by signal 11")


def test_missing_and_damaged_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMBODIED_CACHE", str(tmp_path))
    name = "vit-small-dinov2"
    folder = weights.folder_of(name)
    assert {c.name: c.status for c in module._weights()}[name] == "fail"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    write_manifest(folder)
    assert {c.name: c.status for c in module._weights()}[name] == "ok"
    (folder / "config.json").write_text("[]")
    check = next(c for c in module._weights() if c.name == name)
    assert check.status == "fail" and "config.json is damaged" in check.found
    assert check.mend.startswith(f"delete {folder}") and check.mend not in check.found


@pytest.mark.parametrize(("free_gb", "status"), [(0.5, "fail"), (3.0, "warn"), (50.0, "ok")])
def test_disk(monkeypatch: pytest.MonkeyPatch, free_gb: float, status: str) -> None:
    usage = SimpleNamespace(free=free_gb * 1e9)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    assert {c.status for c in module._disk()} == {status}


def test_threads_and_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_usable_cpus", lambda: 2.0)
    monkeypatch.setattr(module, "_busy_percent", lambda: 90.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    threads, neighbours = module._threads()
    assert threads.mend == "export OMP_NUM_THREADS=2"
    assert "OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0" in neighbours.mend
    monkeypatch.setattr(module, "_busy_percent", lambda: 3.0)
    assert [c.status for c in module._threads()] == ["warn", "ok"]


@pytest.mark.slow
def test_this_machine_renders_with_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command, for real: after `make setup` everything essential works."""
    code = doctor(json=True)
    out = capsys.readouterr().out
    failed = [c for c in json.loads(out)["checks"] if c["status"] == "fail"]
    assert out.count("\n") == 1 and failed == [] and code == 0
