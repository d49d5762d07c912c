"""Coarser shapes for pictures in which nobody could tell them from the fine ones.

Without a GPU, the time of a small picture goes into transforming vertices: the Franka arm alone
has 134,000 triangles, each of which covers far less than a pixel at 224 px. Vertices that share a
small cell become one (vertex clustering, Rossignac and Borrel 1993). A GL context keeps its own
copy of the meshes, so the model is changed only while a context is made: the physics never sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

CELL_M = 0.006
MIN_FACES = 1000
"""Meshes of fewer triangles cost too little to be worth changing."""

_ROUND_SHAPES = {"numslices": 12, "numstacks": 6, "numquads": 1}
"""How finely spheres, capsules, cylinders and boxes are cut; MuJoCo's own are 28, 16 and 4."""


def clustered_faces(
    vertices: np.ndarray, faces: np.ndarray, cell: float
) -> tuple[np.ndarray, np.ndarray]:
    """Triangles whose corners are one vertex a cell.

    Args:
        vertices: (V, 3).
        faces: (F, 3), rows of `vertices`.
        cell: edge of a cell, in the unit of `vertices`.

    Returns:
        The triangles that are left, (K, 3), no two alike and none degenerate, and which of `faces`
        they were, (K,), ascending.
    """
    cells = np.floor(vertices / cell).astype(np.int64)
    _, first, inverse = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    merged = first[inverse.ravel()][faces]
    a, b, c = np.sort(merged, axis=1).T
    whole = np.flatnonzero((a != b) & (b != c))
    _, once = np.unique(np.stack([a, b, c], 1)[whole], axis=0, return_index=True)
    left = np.sort(whole[once])
    return merged[left].astype(faces.dtype), left


@contextmanager
def coarse_shapes(model: Any) -> Iterator[None]:
    """While it lasts, a GL context made of `model` (mujoco.MjModel) gets the coarser shapes."""
    quality = model.vis.quality
    fine = {name: getattr(quality, name) for name in _ROUND_SHAPES}
    meshes = (model.mesh_face, model.mesh_facenormal, model.mesh_facenum)
    saved = [array.copy() for array in meshes]
    for mesh in np.flatnonzero(model.mesh_facenum >= MIN_FACES):
        _coarsen(model, int(mesh))
    _set_all(quality, _ROUND_SHAPES)
    try:
        yield
    finally:
        _set_all(quality, fine)
        for array, values in zip(meshes, saved, strict=True):
            array[:] = values


def _set_all(target: Any, values: dict[str, int]) -> None:
    for name, value in values.items():
        setattr(target, name, value)


def _coarsen(model: Any, mesh: int) -> None:
    vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
    first, n_faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    faces, normals = (a[first : first + n_faces] for a in (model.mesh_face, model.mesh_facenormal))
    merged, left = clustered_faces(vertices, faces, CELL_M)
    faces[: len(left)] = merged
    normals[: len(left)] = normals[left]
    model.mesh_facenum[mesh] = len(left)
