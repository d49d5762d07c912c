"""Engines: every job once, what a worker raises, one that dies; Ray against plain processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embodied import engines
from embodied.cli.main import main
from embodied.engines import Engine
from embodied.episodes import DatasetReader

HAS_RAY = importlib.util.find_spec("ray") is not None
NEEDS_RAY = pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install 'embodied-planner[ray]'")


@pytest.fixture(scope="module")
def ray_is_up() -> Iterator[None]:
    """Ray with two CPUs, whose processes find this file as pytest does."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        engines._connect(2)
        yield
        ray.shutdown()


@pytest.fixture(params=["process", pytest.param("ray", marks=NEEDS_RAY)])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "ray":
        request.getfixturevalue("ray_is_up")
    return request.param


class Counting:
    """Yields the numbers below the job, with the process that counted; some jobs go wrong."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def work(self, job: int) -> Iterator[tuple[int, int, int]]:
        for i in range(job):
            yield job, self._offset + i, os.getpid()
        if job == 3:
            raise ValueError("three is too many")
        if job == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        pass


def test_every_piece_of_every_job_comes_once_and_in_order(engine: Engine) -> None:
    jobs = [2, 0, 1, 5, 6, 7]
    found = list(engines.run(engine, partial(Counting, 10), jobs, 2))
    for job in jobs:
        assert [i for of, i, _ in found if of == job] == list(range(10, 10 + job))
    processes = {process for *_, process in found}
    assert 1 <= len(processes) <= 2 and os.getpid() not in processes


def test_what_a_worker_raises_comes_through_after_its_results(engine: Engine) -> None:
    seen = []
    with pytest.raises(ValueError, match=r"^three is too many$"):
        for _, i, _ in engines.run(engine, partial(Counting, 0), [3], 1):
            seen.append(i)
    assert seen == [0, 1, 2]


def test_a_worker_that_dies_is_told_in_one_line(engine: Engine) -> None:
    with pytest.raises(ChildProcessError, match="a worker process died.*fewer --workers"):
        list(engines.run(engine, partial(Counting, 0), [4], 1))


def test_no_jobs_start_nothing() -> None:
    assert list(engines.run("process", partial(Counting, 0), [], 2)) == []


@pytest.mark.parametrize("n_gpus", [1, 2, 3, 8])
@pytest.mark.parametrize("n_workers", [1, 2, 7, 8, 30])
def test_all_workers_fit_on_the_gpus(n_gpus: int, n_workers: int) -> None:
    share = engines._gpu_share(n_gpus, n_workers)
    assert 0 < share <= 1 and n_gpus * int(1 / share) >= n_workers
    assert n_workers > n_gpus or share == 1
    assert engines._gpu_share(0, n_workers) == 0


@pytest.mark.parametrize("command", ["evaluate", "record"])
def test_without_ray_its_engine_says_what_to_do(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    argv = [command, "--env", "mw5", "--n_episodes", "1", "--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--engine", "ray"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "pip install 'embodied-planner[ray]'" in err


def _evaluate(folder: Path, engine: str, *argv: str) -> list[dict[str, Any]]:
    argv = ("--workers", "2", "--n_episodes", "2", "--n_videos", "1", *argv)
    assert main(["evaluate", "--output_dir", str(folder), "--engine", engine, *argv]) == 0
    info = json.loads((folder / "eval_info.json").read_text())
    return [record for task in info["per_task"] for record in task["per_episode"]]


_TIMES = {"plan_s", "wall_s", "control_hz", "video"}


def _outcomes(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in _TIMES} for record in records]


@NEEDS_RAY
@pytest.mark.slow
@pytest.mark.usefixtures("ray_is_up")
def test_ray_evaluates_as_processes_do(tmp_path: Path) -> None:
    argv = ("--env", "metaworld/drawer-open-v3,metaworld/reach-v3", "--actor", "expert")
    plain, ray = (_evaluate(tmp_path / e, e, *argv) for e in ("process", "ray"))
    assert _outcomes(ray) == _outcomes(plain)
    assert [r["outcome"] for r in ray] == ["success"] * 4
    assert [Path(r["video"]).is_file() for r in ray if r["video"]] == [True, True]


@NEEDS_RAY
@pytest.mark.slow
@pytest.mark.usefixtures("ray_is_up")
def test_ray_records_as_processes_do(tmp_path: Path) -> None:
    argv = ["record", "--env", "metaworld/coffee-button-v3", "--n_episodes", "3"]
    argv += ["--workers", "2", "--image_size", "32", "--horizon", "60"]
    for engine in ("process", "ray"):
        assert main([*argv, "--engine", engine, "--output_dir", str(tmp_path / engine)]) == 0
    plain, ray = (DatasetReader(tmp_path / engine) for engine in ("process", "ray"))
    assert [e.key for e in ray.episodes] == [e.key for e in plain.episodes]
    assert [e.layout_sha for e in ray.episodes] == [e.layout_sha for e in plain.episodes]
    for i in range(3):
        mine, theirs = ray.arrays(i), plain.arrays(i)
        assert all(np.array_equal(mine[k], theirs[k], equal_nan=True) for k in theirs)
        assert np.array_equal(ray.frames(i, "workspace"), plain.frames(i, "workspace"))
