"""Off-screen rendering: a working GL back end, cheap flags, and where a point falls in the picture.

The default quality `fast` turns off what costs most and shows the policy least: shadow maps,
reflections, multi-sampling and triangles smaller than a pixel. `high` keeps them, for videos made
for people.
`select_gl_backend` must run before mujoco is imported; importing this module does it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sims.coarse_meshes import coarse_shapes

Quality = Literal["fast", "high"]

_PROBE = "import mujoco; c = mujoco.GLContext(8, 8); c.make_current(); c.free(); print('ok')"
_BACKENDS = ("egl", "osmesa", "glfw")


def probe_gl_backend(backend: str) -> bool:
    """Whether mujoco can make an off-screen GL context with `backend`, tried in a new process."""
    env = {**os.environ, "MUJOCO_GL": backend}
    command = [sys.executable, "-c", _PROBE]
    try:
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return "ok" in result.stdout


def _backend_note() -> Path:
    cache = os.environ.get("EMBODIED_CACHE") or Path.home() / ".cache" / "embodied-planner"
    return Path(cache) / "gl_backend"


def select_gl_backend() -> str:
    """Set MUJOCO_GL to the first back end that works, unless the user has set it.

    What worked is noted in the cache directory, so that only the first call probes.

    Raises:
        OSError: none works; the message says which packages to install.
    """
    if chosen := os.environ.get("MUJOCO_GL"):
        return chosen
    note = _backend_note()
    if note.is_file() and (noted := note.read_text().strip()) in _BACKENDS:
        os.environ["MUJOCO_GL"] = noted
        return noted
    for backend in _BACKENDS:
        if probe_gl_backend(backend):
            os.environ["MUJOCO_GL"] = backend
            try:
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(backend)
            except OSError:
                pass  # a read-only cache only costs the next start another probe
            return backend
    raise OSError(
        f"no off-screen GL back end works (tried {', '.join(_BACKENDS)}); "
        "on Debian: apt-get install libegl1 libgl1 libosmesa6; then run `embodied doctor`"
    )


select_gl_backend()

# Triton (which torch pulls in) and Mesa each bring an LLVM; when Mesa's is loaded first, importing
# Triton later kills the process. So Triton's comes first, where it is installed.
with contextlib.suppress(ImportError):
    import triton._C.libtriton  # noqa: F401

import mujoco  # noqa: E402  (the back end is fixed at its import)


@dataclass(frozen=True)
class CameraPose:
    """A camera that the scene file does not have: it looks from `eye` at `target`, z up, metres."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fovy_deg: float


def place_camera(model: Any, slot: str, pose: CameraPose) -> None:
    """Give the scene's camera `slot` another pose; the picture then is upright."""
    index = model.camera(slot).id
    eye, target = np.asarray(pose.eye), np.asarray(pose.target)
    backward = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(backward, right), backward], axis=1)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, rotation.ravel())
    model.cam_pos[index], model.cam_quat[index] = eye, quat
    model.cam_fovy[index] = pose.fovy_deg


class SceneRenderer:
    """Pictures of one model; keeps one GL context per picture size and quality.

    Args:
        model: mujoco.MjModel.
        flipped: cameras whose picture comes out upside down and is turned.
    """

    def __init__(self, model: Any, flipped: tuple[str, ...] = ()) -> None:
        self._model = model
        self._flipped = flipped
        self._renderers: dict[tuple[int, int, Quality], mujoco.Renderer] = {}

    def _renderer(self, height: int, width: int, quality: Quality) -> mujoco.Renderer:
        key = (height, width, quality)
        if key not in self._renderers:
            wanted = self._model.vis.quality
            samples, shadows = wanted.offsamples, wanted.shadowsize
            wanted.offsamples = 0 if quality == "fast" else 4
            wanted.shadowsize = 0 if quality == "fast" else shadows  # a map of 4096² takes a while
            shapes = coarse_shapes(self._model) if quality == "fast" else contextlib.nullcontext()
            with shapes:
                self._renderers[key] = mujoco.Renderer(self._model, height, width)
            wanted.offsamples, wanted.shadowsize = samples, shadows
        return self._renderers[key]

    def render(
        self, data: Any, camera: str, height: int, width: int, quality: Quality = "fast"
    ) -> np.ndarray:
        """The view of `camera`: uint8 (height, width, 3), upright, the caller's own copy."""
        renderer = self._renderer(height, width, quality)
        renderer.update_scene(data, camera)
        if quality == "fast":
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        image = renderer.render()
        return image[::-1, ::-1].copy() if camera in self._flipped else image.copy()

    def project(self, data: Any, camera: str, point: np.ndarray) -> tuple[float, float]:
        """Where `point` (3,), metres, falls in the picture of `camera`.

        Returns:
            (x, y) as fractions of a square picture's width and height, from the top left; NaN
            when the point lies behind the camera. Outside 0..1 it is out of view.
        """
        index = self._model.camera(camera).id
        local = data.cam_xmat[index].reshape(3, 3).T @ (point - data.cam_xpos[index])
        if local[2] >= -1e-6:
            return float("nan"), float("nan")
        scale = 0.5 / np.tan(np.deg2rad(self._model.cam_fovy[index]) / 2)
        x, y = 0.5 - scale * local[0] / local[2], 0.5 + scale * local[1] / local[2]
        return (1 - x, 1 - y) if camera in self._flipped else (float(x), float(y))

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


def render_flags(quality: Quality) -> dict[str, Any]:
    """What was switched on, for the record kept beside every result."""
    high = quality == "high"
    return {
        "quality": quality,
        "shadows": high,
        "reflections": high,
        "multisamples": 4 if high else 0,
        "fine_meshes": high,
        "gl": os.environ["MUJOCO_GL"],
    }
