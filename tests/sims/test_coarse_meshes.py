"""Coarser shapes: fewer triangles, nothing left changed, and hardly a different picture."""

from __future__ import annotations

import numpy as np
import pytest

from sims import scenes
from sims.coarse_meshes import MIN_FACES, clustered_faces, coarse_shapes


def _sheet(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A flat square of n × n vertices 1 apart: 2 (n - 1)² triangles."""
    x, y = np.meshgrid(np.arange(n), np.arange(n))
    vertices = np.stack([x.ravel(), y.ravel(), np.zeros(n * n)], 1).astype(np.float32)
    corner = np.arange(n * n).reshape(n, n)[:-1, :-1].ravel()
    lower = np.stack([corner, corner + 1, corner + n], 1)
    upper = np.stack([corner + 1, corner + n + 1, corner + n], 1)
    return vertices, np.concatenate([lower, upper]).astype(np.int32)


def test_small_cells_change_nothing() -> None:
    vertices, faces = _sheet(6)
    merged, left = clustered_faces(vertices, faces, 0.5)
    assert np.array_equal(merged, faces)
    assert np.array_equal(left, np.arange(len(faces)))


def test_a_sheet_stays_a_sheet_with_a_quarter_of_the_triangles() -> None:
    vertices, faces = _sheet(9)
    merged, left = clustered_faces(vertices, faces, 2.0)
    assert len(merged) == len(left) == len(faces) // 4
    assert len(np.unique(np.sort(merged, 1), axis=0)) == len(merged)
    edges = np.diff(vertices[merged[:, [0, 1, 2, 0]]], axis=1)
    doubled = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    assert doubled.sum() / 2 == pytest.approx(8 * 8)


def test_one_cell_leaves_nothing() -> None:
    vertices, faces = _sheet(5)
    merged, left = clustered_faces(vertices, faces, 100.0)
    assert merged.shape == (0, 3)
    assert left.shape == (0,)


@pytest.mark.parametrize("env_id", ["kitchen/microwave", "metaworld/peg-insert-side-v3"])
def test_the_picture_is_nearly_the_same_and_the_model_the_same(env_id: str) -> None:
    env = scenes.make(env_id)
    try:
        env.reset(seed=0)
        model = env._renderer._model
        fine = model.mesh_facenum.copy(), model.mesh_face.copy(), model.mesh_facenormal.copy()
        slices = model.vis.quality.numslices
        with coarse_shapes(model):
            large = fine[0] >= MIN_FACES
            assert model.mesh_facenum[large].sum() < 0.6 * fine[0][large].sum()
            assert model.vis.quality.numslices < slices
        after = model.mesh_facenum, model.mesh_face, model.mesh_facenormal
        assert all(np.array_equal(a, b) for a, b in zip(fine, after, strict=True))
        assert model.vis.quality.numslices == slices
        coarse = env.picture(env.cameras[0], quality="fast").astype(float)
        env.close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sims.coarse_meshes.MIN_FACES", 10**9)
            patch.setattr("sims.coarse_meshes._ROUND_SHAPES", {})
            plain = env.picture(env.cameras[0], quality="fast").astype(float)
        assert 0 < np.abs(coarse - plain).mean() < 3.0  # of 255 levels
    finally:
        env.close()
