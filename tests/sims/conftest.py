"""Shared by the simulators' tests. Building an environment is slow, so each serves many tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from sims.metaworld import MetaWorldEnv


@pytest.fixture(autouse=True)
def _logs_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    """MuJoCo writes MUJOCO_LOG.TXT where it runs."""
    monkeypatch.chdir(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def env(request: pytest.FixtureRequest) -> Iterator[MetaWorldEnv]:
    """The environment of the task in `request.param`, with small pictures from one camera.

    pytest runs all tests of one task together, whatever their file, so one is open at a time.
    """
    made = MetaWorldEnv(request.param, cameras=("workspace",), image_size=32)
    yield made
    made.close()


@pytest.fixture
def blind_env(env: MetaWorldEnv) -> Iterator[MetaWorldEnv]:
    """The same without pictures, twenty times as fast."""
    env._render_images = False
    yield env
    env._render_images = True


@pytest.fixture(scope="session")
def random_actions() -> Callable[[int], np.ndarray]:
    """How many → that many actions within the bounds, always the same ones."""
    return lambda n: np.random.default_rng(0).uniform(-1, 1, (n, 4)).astype(np.float32)
