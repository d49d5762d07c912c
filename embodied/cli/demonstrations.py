"""Files of people's kitchen demonstrations, for `embodied import`.

The format `relay-kitchen` is that of Relay Policy Learning (arXiv 1910.11956) as D4RL (arXiv
2004.07219) passes it on, in either of two files:

    .npz          obs (N, 60), act (N, 9), starts (E,): the first row of each episode
    .hdf5, .h5    D4RL's own: observations, actions, terminals, and timeouts where there are any;
                  an episode ends with a row that has either. Read with h5py. (The keys are those of
                  D4RL's scripts/generation/generate_kitchen_datasets.py and offline_env.py.)

A row observes 9 joints of the robot and 21 of the objects, and has the 30 of the goal. D4RL's
simulator added uniform noise to what it observed: up to 0.01 rad to the robot's joints, and up to
0.01 m to its fingers.
"""

from __future__ import annotations

import importlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

N_ROBOT, N_JOINTS = 9, 30

_ORIGIN = "Relay Policy Learning (arXiv 1910.11956), D4RL kitchen (arXiv 2004.07219)"
ORIGINS = {
    ".npz": (f"{_ORIGIN}: kitchen-complete as published in google-research/ibc", "Apache-2.0"),
    ".hdf5": (_ORIGIN, "CC-BY-4.0"),
    ".h5": (_ORIGIN, "CC-BY-4.0"),
}
"""A file's suffix → where such files come from, and the licence under which they are published."""

_ARRAYS = {
    ".npz": ("obs", "act", "starts"),
    ".hdf5": ("observations", "actions", "terminals"),
    ".h5": ("observations", "actions", "terminals"),
}
_TIMEOUTS = "timeouts"
_Reader = Callable[[Path, Sequence[str]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Demonstration:
    """One episode of a file.

    Args:
        index: its number in the file.
        joints: (T, 30), of robot and objects, as observed before each action: with noise.
        actions: float32 (T, 9), within -1..1.
        goal: the tasks that the file's goal names.
    """

    index: int
    joints: np.ndarray
    actions: np.ndarray
    goal: tuple[str, ...]


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Every episode of a file in the format `relay-kitchen`.

    Raises:
        ValueError: naming what is wrong with the file, and where.
        OSError: there is no such file, or it may not be read.
    """
    path.stat()  # a missing file is told from one that cannot be understood
    if path.suffix not in _ARRAYS:
        raise ValueError(f"'{path}': relay-kitchen comes in files of {', '.join(_ARRAYS)}")
    names = _ARRAYS[path.suffix]
    arrays = _read(path, names)
    obs = _check_rows(path, names[0], arrays[names[0]], 2 * N_JOINTS)
    act = _check_rows(path, names[1], arrays[names[1]], N_ROBOT)
    _check_bounds(path, names[1], act)
    if len(obs) != len(act):
        n_obs, n_act = f"{len(obs)} rows of {names[0]}", f"{len(act)} of {names[1]}"
        raise ValueError(
            f"'{path}' has {n_obs} and {n_act}: one action belongs to each observation"
        )
    starts = _starts(path, arrays, len(obs))
    bounds = zip(starts, [*starts[1:], len(obs)], strict=True)
    return [_cut(path, i, obs[a:b], act[a:b], a) for i, (a, b) in enumerate(bounds)]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever the libraries say of a damaged file becomes a line that names it."""
    try:
        yield
    except (EOFError, ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, OSError) and error.strerror:  # the system's own, which names it
            raise
        raise ValueError(f"'{path}' is damaged, or no {path.suffix} file: {error}") from error


def _read(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays `names`, and the time-outs where there are any."""
    read = _read_npz if path.suffix == ".npz" else _hdf5_reader(path)
    with _readable(path):
        arrays = read(path, names)
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(
            f"'{path}' lacks the arrays {missing}: relay-kitchen in a {path.suffix} file has "
            f"{', '.join(names)}"
        )
    return arrays


def _read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise zipfile.BadZipFile("it is no archive of arrays")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names if name in file.files}


def _hdf5_reader(path: Path) -> _Reader:
    """What `_read_npz` does, for .hdf5. ValueError if the package for it is not there."""
    try:
        h5py = importlib.import_module("h5py")
    except ModuleNotFoundError:
        raise ValueError(f"'{path}' is read with h5py: pip install h5py") from None

    def read(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
        with h5py.File(path, "r") as file:
            found = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
            return {name: file[name][()] for name in (*names, _TIMEOUTS) if name in found}

    return read


def _check_rows(path: Path, name: str, rows: np.ndarray, width: int) -> np.ndarray:
    """The numbers as float32 (N, width). ValueError if they are not what they must be."""
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows) or rows.dtype.kind not in "fiu":
        raise ValueError(
            f"'{name}' of '{path}' is {rows.dtype} {rows.shape}, expected numbers (N, {width}): "
            "a row observes 9 joints of the robot, 21 of the objects and the goal's 30, and its "
            "action moves the robot's 9"
        )
    if bad := np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist():
        raise ValueError(f"'{name}' of '{path}' has NaN or infinity in row {bad[0]}")
    return rows.astype(np.float32)


def _check_bounds(path: Path, name: str, act: np.ndarray) -> None:
    bad = np.argwhere(np.abs(act) > 1).tolist()
    if bad:
        row, joint = bad[0]
        raise ValueError(
            f"'{name}' of '{path}' has {act[row, joint]:g} in row {row}: actions are within -1..1, "
            "1 being 2 rad/s"
        )


def _starts(path: Path, arrays: dict[str, np.ndarray], n_rows: int) -> list[int]:
    """The row at which each episode begins. ValueError if they make no sense."""
    if "starts" in arrays:
        starts = arrays["starts"]
        good = starts.ndim == 1 and starts.dtype.kind in "iu" and len(starts) > 0
        if good and starts[0] == 0 and (np.diff(starts) > 0).all() and starts[-1] < n_rows:
            return starts.tolist()
        got = f"{starts.dtype} {np.array2string(starts, threshold=8)}"
        raise ValueError(
            f"'starts' of '{path}' is {got}, expected the rows at which episodes begin, rising "
            f"from 0 and below {n_rows}"
        )
    flags = {name: arrays[name].ravel() for name in ("terminals", _TIMEOUTS) if name in arrays}
    for name, flag in flags.items():
        if len(flag) != n_rows:
            raise ValueError(f"'{name}' of '{path}' has {len(flag)} entries, expected {n_rows}")
    ends = np.any([flag != 0 for flag in flags.values()], axis=0)
    return [0, *(np.flatnonzero(ends[:-1]) + 1).tolist()]


def _cut(path: Path, index: int, obs: np.ndarray, act: np.ndarray, row: int) -> Demonstration:
    from sims.kitchen_elements import ELEMENTS

    goal = obs[0, N_JOINTS:]
    named = [n for n, e in ELEMENTS.items() if np.allclose(goal[e.indices], e.goal, atol=1e-3)]
    if not named:
        raise ValueError(
            f"the goal (columns 30 to 59) in row {row} of '{path}', where episode {index} begins, "
            f"names none of: {', '.join(ELEMENTS)}"
        )
    return Demonstration(index, obs[:, :N_JOINTS].astype(np.float64), act, tuple(named))
