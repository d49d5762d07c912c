"""Many jobs, worked on by several processes: of this machine, or by Ray on many machines.

Either engine makes one worker in each process, gives it one job after the other, and hands on what
it yields as it comes. Every process has one thread, and works in the folder that the command was
started in; with Ray on several machines they have to share that folder.
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
import math
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any, Literal, Protocol

Engine = Literal["process", "ray"]
_LOOK_EVERY_S = 0.2


class Worker(Protocol):
    """Takes jobs in one process."""

    def work(self, job: Any) -> Iterable[Any]:
        """What comes of a job, piece by piece."""

    def close(self) -> None: ...


def check(engine: Engine) -> Engine:
    """The engine, when it is there. Raises ValueError when Ray is not installed."""
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ValueError(
            "--engine ray needs Ray, which is not installed: pip install 'embodied-planner[ray]', "
            "or leave --engine out to use processes of this machine"
        )
    return engine


def run(
    engine: Engine,
    make: Callable[[], Worker],
    jobs: Sequence[Any],
    n_workers: int,
    on_gpus: bool = False,
) -> Generator[Any, None, None]:
    """What the workers yield, as it comes.

    Args:
        make: makes a worker; it and the jobs are sent to the processes.
        on_gpus: whether workers use GPUs where there are any: Ray shows them to none otherwise.

    Raises:
        ChildProcessError: a process died.
        Exception: whatever a worker raised.
    """
    if not jobs:
        return
    n_workers = min(n_workers, len(jobs))
    match engine:
        case "process":
            yield from _in_processes(make, jobs, n_workers)
        case "ray":
            yield from _in_ray(make, jobs, n_workers, on_gpus)


def _died() -> ChildProcessError:
    return ChildProcessError(
        "a worker process died, perhaps for want of memory: run the same command again, with "
        "fewer --workers; what is finished is kept"
    )


def _prepare_process() -> None:
    from embodied.cli.common import quiet_libraries

    quiet_libraries()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


# --- processes of this machine ----------------------------------------------------------------

_worker: Worker | None = None  # a process's own
_results: Any = None  # the way back to the parent


def _start(make: Callable[[], Worker], results: Any) -> None:
    global _worker, _results
    _prepare_process()
    _worker, _results = make(), results


def _work(job: Any) -> None:
    assert _worker is not None
    for result in _worker.work(job):
        _results.put(result)  # it has left this process when this returns
    atexit.unregister(_worker.close)  # last in, first out: contexts are freed before GL itself
    atexit.register(_worker.close)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started within never see Ctrl-C, which is their parent's to handle."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _in_processes(make: Callable[[], Worker], jobs: Sequence[Any], n_workers: int) -> Iterator[Any]:
    others = set(active_children())
    context = get_context("spawn")
    results = context.SimpleQueue()
    pool = ProcessPoolExecutor(
        n_workers, mp_context=context, initializer=_start, initargs=(make, results)
    )
    try:
        with _deaf_to_interrupts():
            left = {pool.submit(_work, job) for job in jobs}
        while left:
            finished, left = wait(left, _LOOK_EVERY_S, FIRST_COMPLETED)
            while not results.empty():
                yield results.get()
            for job in finished:
                job.result()
    except BrokenProcessPool:
        raise _died() from None
    except BaseException:
        for child in set(active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


# --- Ray --------------------------------------------------------------------------------------


class _Lane:
    """A worker in a process that Ray started."""

    def __init__(self, folder: str, make: Callable[[], Worker]) -> None:
        os.chdir(folder)
        _prepare_process()
        self._worker = make()

    def work(self, job: Any) -> Iterator[Any]:
        yield from self._worker.work(job)

    def close(self) -> None:
        self._worker.close()


def _in_ray(
    make: Callable[[], Worker], jobs: Sequence[Any], n_workers: int, on_gpus: bool
) -> Iterator[Any]:
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect(n_workers)
    lanes: list[Any] = []
    try:
        n_gpus = int(ray.cluster_resources().get("GPU", 0)) if on_gpus else 0
        lane = ray.remote(num_cpus=1, num_gpus=_gpu_share(n_gpus, n_workers))(_Lane)
        lanes += [lane.remote(os.getcwd(), make) for _ in range(n_workers)]
        yield from _share_out(lanes, deque(jobs))
        ray.get([lane.close.remote() for lane in lanes])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # what the worker raised, without Ray's frame around it
    except ray.exceptions.RayActorError:
        raise _died() from None
    finally:
        for lane in lanes:
            ray.kill(lane)
        if ours:
            ray.shutdown()


def _gpu_share(n_gpus: int, n_workers: int) -> float:
    """The part of a GPU that each worker asks for, so that all of them fit; Ray has 4 decimals."""
    return math.floor(1e4 / math.ceil(n_workers / n_gpus)) / 1e4 if n_gpus else 0.0


def _share_out(lanes: list[Any], jobs: deque[Any]) -> Iterator[Any]:
    """Give every lane a job, and another one when it has finished."""
    import ray

    def begin(lane: Any) -> Any:
        return lane.work.options(num_returns="streaming").remote(jobs.popleft())

    busy = {begin(lane): lane for lane in lanes}
    while busy:
        (stream,), _ = ray.wait(list(busy), num_returns=1)
        try:
            result = next(stream)
        except StopIteration:
            lane = busy.pop(stream)
            if jobs:
                busy[begin(lane)] = lane
        else:
            yield ray.get(result)


def _connect(n_workers: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine.

    Raises:
        ValueError: the cluster has fewer CPUs than workers are wanted.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home
    quiet: dict[str, Any] = {"logging_level": logging.WARNING}
    if not os.environ.get("RAY_ADDRESS"):
        ray.init("local", num_cpus=n_workers, include_dashboard=False, **quiet)
        return
    ray.init(**quiet)
    n_cpus = int(ray.cluster_resources().get("CPU", 0))
    if n_cpus < n_workers:
        ray.shutdown()
        raise ValueError(f"the Ray cluster has {n_cpus} CPUs: give --workers {n_cpus} or fewer")
