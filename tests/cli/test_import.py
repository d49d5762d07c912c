"""`embodied import`: made-up files, bad files, and the real demonstrations where they are.

The real file is not ours to pass on. It is looked for in the environment variable
EMBODIED_KITCHEN_DEMOS, else beside the repository, in ../shared/data/kitchen_human_demos.npz.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from embodied.cli.demonstrations import N_ROBOT, Demonstration, read_demonstrations
from embodied.cli.import_ import Importer, completions, task_ends
from embodied.cli.main import main
from embodied.episodes import DatasetReader, DatasetWriter
from embodied.types import Episode
from sims import kitchen_tasks, language

FOUR = ("microwave", "kettle", "light switch", "slide cabinet")
Arrays = dict[str, np.ndarray]

START = (
    *(0.148, -1.75, 1.844, -2.477, 0.26, 0.713, 1.595, 0.04, 0.035),  # the robot
    *np.zeros(14),
    *(-0.269, 0.35, 1.619, 1.0, 0.0, 0.0, 0.0),  # the kettle
)


def demos(lengths: tuple[int, ...] = (8, 5)) -> Arrays:
    """A file's arrays: in episode 0 a kettle falls to its goal, in the others nothing happens."""
    from sims.kitchen_elements import ELEMENTS

    obs = np.zeros((sum(lengths), 60), np.float32)
    obs[:, :30] = START
    obs[: lengths[0], 23:30] = ELEMENTS["kettle"].goal
    obs[: lengths[0], 25] += 0.302
    for task in FOUR:
        obs[:, 30 + ELEMENTS[task].indices] = ELEMENTS[task].goal
    act = np.random.default_rng(0).uniform(-0.1, 0.1, (len(obs), 9)).astype(np.float32)
    return {"obs": obs, "act": act, "starts": np.cumsum([0, *lengths[:-1]])}


def save(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def run(path: Path, out: Path, *more: str) -> int:
    return main(["import", str(path), "--output_dir", str(out), *more])


def one_line(capfd: pytest.CaptureFixture[str]) -> str:
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err, err
    return err


def test_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: embodied import" in out and "--output_dir" in out and "relay-kitchen" in out


# ---- made-up files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetReader, Arrays, Path]:
    """A whole import, with small pictures."""
    folder, arrays = tmp_path_factory.mktemp("import"), demos()
    assert run(save(folder / "demos.npz", arrays), folder / "set", "--image_size", "16") == 0
    return DatasetReader(folder / "set"), arrays, folder


def test_what_is_written_is_what_record_writes(
    made: tuple[DatasetReader, Arrays, Path],
) -> None:
    reader, arrays, folder = made
    assert sorted(path.name for path in folder.iterdir()) == ["demos.npz", "set"]
    assert reader.cameras == {"overview": (16, 16), "wrist": (16, 16)}
    assert reader.fps == 12 and reader.info["embodied"]["extra"]["control_hz"] == 12.5
    assert reader.info["robot_type"] == "panda"
    assert reader.info["embodied"]["extra"]["licence"] == "Apache-2.0"
    assert {"gripper", "kettle", "light switch"} <= set(reader.nouns)
    assert len(reader) == 2
    for i, (a, b) in enumerate([(0, 8), (8, 13)]):
        columns = reader.arrays(i)
        np.testing.assert_array_equal(columns["action"], arrays["act"][a:b])
        first = columns["observation.state"][0]
        np.testing.assert_allclose(first, arrays["obs"][a, :9], atol=1e-6)
        assert np.isfinite(columns["observation.pixels.overview"]).all()
        for camera in reader.cameras:
            assert reader.frames(i, camera).shape == (b - a, 16, 16, 3)
            assert reader.frames(i, camera).std() > 10


def test_the_plan_is_what_was_completed(made: tuple[DatasetReader, Arrays, Path]) -> None:
    meta = made[0].episodes[0]
    assert (meta.env_id, meta.task, meta.seed) == ("kitchen/kettle", "kettle", 0)
    assert meta.outcome == "success" and meta.plan.tasks == ("kettle",)
    assert meta.plan.subgoals == kitchen_tasks.SUBGOALS["kettle"]
    assert meta.instruction == language.canonical(["kettle"])
    assert meta.plan.thought.startswith("Thought: kettle at (")
    assert list(meta.info["completed"]) == ["kettle"] and meta.info["completed"]["kettle"] <= 3
    assert meta.info["completed_in_file"] == {} and meta.info["goal"] == list(FOUR)
    assert "google-research/ibc" in meta.info["source"] and meta.info["licence"] == "Apache-2.0"
    assert meta.info["file"] == "demos.npz" and meta.tag == f"human {meta.info['file_sha256'][:8]}"
    columns = made[0].arrays(0)
    assert columns["next.success"][-1] and columns["next.reward"].sum() == 1
    assert columns["subgoal.met"][-1] == 0  # it lands 7 cm beside: not there by the strict rule


def test_an_episode_that_completes_nothing_is_kept_as_a_failure(
    made: tuple[DatasetReader, Arrays, Path],
) -> None:
    meta = made[0].episodes[1]
    assert (meta.outcome, meta.length, meta.seed) == ("failure", 5, 1)
    assert meta.plan.tasks == FOUR and meta.info["completed"] == {}
    assert meta.instruction == language.canonical(FOUR)
    assert not made[0].arrays(1)["next.success"].any()


def test_without_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "demos.npz", demos((8, 5, 4)))
    assert run(path, tmp_path / "set", "--render", "false", "--replay", "actions") == 0
    out, _ = capfd.readouterr()
    first, second, _, last = out.splitlines()
    assert first.startswith("episode 0: 1 of 4: kettle (step ")
    assert second == "episode 1: 0 of 4, kept as a failure"
    assert last.endswith("set: 3 episodes, 1 of 12 tasks, 17 steps; 2 without success: 1, 2")
    reader = DatasetReader(tmp_path / "set")
    assert reader.cameras == {} and reader.nouns == []
    np.testing.assert_array_equal(reader.arrays(1)["action"], demos()["act"][8:13])
    assert reader.load(1).plan.tasks == FOUR


def test_no_more_is_asked_than_a_sentence_holds(tmp_path: Path) -> None:
    from sims.kitchen_elements import ELEMENTS

    arrays = demos((1, 3))
    for element in ELEMENTS.values():
        arrays["obs"][:, 30 + element.indices] = element.goal
    path = save(tmp_path / "demos.npz", arrays)
    assert run(path, tmp_path / "set", "--render", "false") == 0
    meta = DatasetReader(tmp_path / "set").episodes[1]
    assert meta.plan.tasks == kitchen_tasks.TASKS[: language.MAX_TASKS]
    assert meta.info["goal"] == list(kitchen_tasks.TASKS)


def test_what_comes_long_after_the_last_task_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "demos.npz", demos((30,)))
    assert run(path, tmp_path / "set", "--render", "false") == 0
    meta = DatasetReader(tmp_path / "set").episodes[0]
    assert 10 < meta.length < 20 and meta.info["n_left_out"] == 30 - meta.length
    assert f"without the last {30 - meta.length} steps" in capfd.readouterr().out


def test_a_crash_or_ctrl_c_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "demos.npz", demos((2,)))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DatasetWriter, "add", interrupt)
    assert run(path, tmp_path / "set", "--render", "false") == 130
    assert [p.name for p in tmp_path.iterdir()] == ["demos.npz"]
    assert one_line(capfd) == "embodied: interrupted\n"


# ---- whose turn it is ---------------------------------------------------------------------------


def way(task: str, parts: np.ndarray) -> np.ndarray:
    """(T, 30): an element that is `parts` of its way along, everything else at rest."""
    from sims.kitchen_elements import ELEMENTS

    qpos = np.tile(np.array(START, float), (len(parts), 1))
    for row, part in zip(qpos, parts, strict=True):
        row[ELEMENTS[task].indices] = ELEMENTS[task].at(part)
    return qpos


def test_a_task_is_over_when_it_is_open_or_left() -> None:
    opened = way("slide cabinet", np.linspace(0, 1, 101))
    assert task_ends(opened, ["slide cabinet"]) == [90]  # the strict rule
    assert completions(opened)["slide cabinet"] < 25  # FrankaKitchen's
    left = way("kettle", np.concatenate([np.linspace(0, 0.8, 81), np.full(20, 0.8)]))
    assert task_ends(left, ["kettle"]) == [76]  # where the person leaves it, nearly
    both = np.concatenate([left, way("slide cabinet", np.linspace(0, 1, 101))])
    both[101:, 23:30] = left[-1, 23:30]
    assert list(completions(both)) == ["kettle", "slide cabinet"]
    assert task_ends(both, ["kettle", "slide cabinet"]) == [76, 191]
    assert task_ends(both, ["slide cabinet", "kettle"]) == [191, 191]  # one after the other


def test_what_is_done_at_the_start_is_not_completed() -> None:
    assert completions(way("microwave", np.ones(5))) == {}


# ---- bad files ----------------------------------------------------------------------------------


def changed(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Path], Path]:
    """A file in which one array is another."""

    def make(folder: Path) -> Path:
        arrays = demos()
        arrays[name] = change(arrays[name])
        return save(folder / "bad.npz", arrays)

    return make


def put(index: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def without(name: str) -> Callable[[Path], Path]:
    return lambda folder: save(
        folder / "bad.npz", {key: value for key, value in demos().items() if key != name}
    )


def text(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text("no arrays")
        return folder / name

    return make


def cut_short(folder: Path) -> Path:
    path = save(folder / "bad.npz", demos())
    path.write_bytes(path.read_bytes()[:-100])
    return path


def flipped(folder: Path) -> Path:
    path = save(folder / "bad.npz", demos())
    data = bytearray(path.read_bytes())
    data[400] ^= 255
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "missing.npz", "missing.npz: No such file"),
        (lambda folder: folder, "comes in files of .npz, .hdf5, .h5"),
        (text("bad.csv"), "comes in files of .npz, .hdf5, .h5"),
        (text("bad.npz"), "is damaged, or no .npz file: it is no archive"),
        (cut_short, "is damaged, or no .npz file"),
        (flipped, "is damaged, or no .npz file"),
        (without("obs"), "lacks the arrays ['obs']: relay-kitchen in a .npz file has obs, act"),
        (without("starts"), "lacks the arrays ['starts']"),
        (changed("obs", lambda a: a[:, :59]), "is float32 (13, 59), expected numbers (N, 60)"),
        (changed("obs", lambda a: a.astype(str)), "expected numbers (N, 60)"),
        (changed("obs", lambda a: a.astype(object)), "Object arrays cannot be loaded"),
        (changed("obs", lambda a: a[:0]), "is float32 (0, 60), expected"),
        (changed("obs", put((7, 3), np.nan)), "'obs' of '"),
        (changed("obs", put((7, 3), np.nan)), "has NaN or infinity in row 7"),
        (changed("obs", put((slice(8, None), slice(30, None)), 0)), "row 8 of"),
        (changed("obs", put((slice(8, None), slice(30, None)), 0)), "episode 1 begins, names none"),
        (changed("act", lambda a: a[:, :8]), "is float32 (13, 8), expected numbers (N, 9)"),
        (changed("act", lambda a: a[:12]), "has 13 rows of obs and 12 of act"),
        (changed("act", put((4, 0), np.inf)), "has NaN or infinity in row 4"),
        (changed("act", put((4, 0), -1.5)), "has -1.5 in row 4: actions are within -1..1"),
        (changed("starts", lambda a: a[::-1]), "is int64 [8 0], expected the rows"),
        (changed("starts", lambda a: a + 5), "is int64 [ 5 13], expected the rows"),
        (changed("starts", lambda a: a[:0]), "is int64 [], expected the rows"),
        (changed("starts", lambda a: a.astype(float)), "is float64 [0. 8.], expected the rows"),
        (changed("starts", lambda a: a[None]), "is int64 [[0 8]], expected the rows"),
    ],
)
def test_a_bad_file_is_one_line_and_leaves_nothing(
    make: Callable[[Path], Path], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = make(tmp_path), tmp_path / "out" / "set"
    assert run(path, out) == 2
    assert said in one_line(capfd)
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--image_size", "15"], "--image_size is even and at least 2, got 15"),
        (["--image_size", "0"], "--image_size is even and at least 2, got 0"),
        (["--render", "maybe"], "'maybe'"),
        (["--format", "bridge"], "'bridge'"),
    ],
)
def test_bad_options_are_one_line(
    more: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(save(tmp_path / "demos.npz", demos()), tmp_path / "set", *more) == 2
    assert said in one_line(capfd)
    assert not (tmp_path / "set").exists()


def test_what_is_there_is_not_overwritten(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "demos.npz", demos())
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("precious")
    for out in (tmp_path / "set", path):
        assert run(path, out) == 2
        assert "exists: import into a new --output_dir" in one_line(capfd)
    assert (tmp_path / "set" / "mine").read_text() == "precious"


# ---- D4RL's own files ---------------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Arrays], Path]:
    """Writes a file as D4RL does; without h5py, one that a stand-in for h5py reads."""
    try:
        import h5py

        def write(path: Path, arrays: Arrays) -> Path:
            with h5py.File(path, "w") as file:
                for name, array in arrays.items():
                    file.create_dataset(name, data=array, compression="gzip")
            return path

        return write
    except ModuleNotFoundError:
        module, files = ModuleType("h5py"), {}

        class File(dict[str, np.ndarray]):
            def __init__(self, path: Path, mode: str) -> None:
                assert mode == "r"
                super().__init__(files[path])

            def __enter__(self) -> File:
                return self

            def __exit__(self, *_: object) -> None:
                pass

        module.File, module.Dataset = File, np.ndarray  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "h5py", module)

        def pretend(path: Path, arrays: Arrays) -> Path:
            path.touch()
            files[path] = arrays
            return path

        return pretend


def d4rl(arrays: Arrays) -> Arrays:
    """The arrays as D4RL's generate_kitchen_datasets.py saves them: float flags, last step 1."""
    n = len(arrays["obs"])
    terminals = np.zeros(n, np.float32)
    terminals[[*(arrays["starts"][1:] - 1), n - 1]] = 1
    rewards, infos = np.zeros(n, np.float32), np.zeros(n, int)
    more = {"rewards": rewards, "terminals": terminals, "infos": infos}
    return {"observations": arrays["obs"], "actions": arrays["act"], **more}


@pytest.mark.parametrize("ends_by", ["terminals", "timeouts", "both"])
def test_d4rls_layout_is_the_same_episodes(
    ends_by: str, stand_in: Callable[[Path, Arrays], Path], tmp_path: Path
) -> None:
    arrays = d4rl(demos((3, 4, 2)))
    ends = arrays["terminals"].copy()
    if ends_by != "terminals":
        arrays["timeouts"] = ends > 0
        arrays["terminals"] = np.zeros_like(ends) if ends_by == "timeouts" else ends[:, None]
    found = read_demonstrations(stand_in(tmp_path / "kitchen.hdf5", arrays))
    expected = read_demonstrations(save(tmp_path / "kitchen.npz", demos((3, 4, 2))))
    assert [len(demo.actions) for demo in found] == [3, 4, 2]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_equal(vars(ours), vars(theirs))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"actions": None}, "lacks the arrays ['actions']: relay-kitchen in a .hdf5 file has"),
        ({"terminals": np.zeros(12)}, "'terminals' of '"),
        ({"timeouts": np.zeros(14)}, "has 14 entries, expected 13"),
    ],
)
def test_bad_d4rl_files(
    change: dict[str, Any],
    said: str,
    stand_in: Callable[[Path, Arrays], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arrays = {k: v for k, v in {**d4rl(demos()), **change}.items() if v is not None}
    assert run(stand_in(tmp_path / "kitchen.hdf5", arrays), tmp_path / "set") == 2
    assert said in one_line(capfd)


def test_without_h5py_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "kitchen.hdf5").touch()
    assert run(tmp_path / "kitchen.hdf5", tmp_path / "set") == 2
    assert "is read with h5py: pip install h5py" in one_line(capfd)


# ---- the real demonstrations --------------------------------------------------------------------

NOISE = 0.01
"""D4RL adds uniform noise within ±0.01 rad (fingers: m) to what it observes of the robot: a tenth
of the 0.1 that FrankaKitchen's franka_config.xml has as `pos_noise_amp`."""


@cache
def real_demos() -> list[Demonstration]:
    beside = Path(__file__).parents[2].parent / "shared/data/kitchen_human_demos.npz"
    path = Path(os.environ.get("EMBODIED_KITCHEN_DEMOS", beside))
    if not path.is_file():
        pytest.skip(f"no demonstrations at {path}: set EMBODIED_KITCHEN_DEMOS")
    return read_demonstrations(path)


@pytest.fixture(scope="module")
def blind() -> Iterator[Any]:
    from sims.kitchen import KitchenEnv

    env = KitchenEnv(render=False, horizon=1000)
    yield env
    env.close()


@pytest.fixture(scope="module")
def replayed(blind: Any) -> list[tuple[Demonstration, Episode]]:
    """Each demonstration, and its replay without pictures."""
    importer = Importer(blind, blind, reach=0.16, told={})
    return [(demo, importer.episode(demo)) for demo in real_demos()]


def test_the_real_file_is_four_demonstrations_of_four_tasks() -> None:
    demos = real_demos()
    assert [len(demo.actions) for demo in demos] == [184, 185, 191, 195]
    assert all(demo.goal == FOUR for demo in demos)
    assert all(tuple(completions(demo.joints)) == FOUR for demo in demos)


def test_by_targets_everything_is_done_as_in_the_file(
    replayed: list[tuple[Demonstration, Episode]],
) -> None:
    for demo, episode in replayed:
        assert episode.success and episode.plan.tasks == FOUR
        done, told = episode.info["completed"], episode.info["completed_in_file"]
        assert all(abs(done[task] - told[task]) <= 1 for task in FOUR)
        assert len(episode.steps) == len(demo.actions)


def test_by_targets_actions_and_states_are_the_files(
    replayed: list[tuple[Demonstration, Episode]],
) -> None:
    for demo, episode in replayed:
        actions = np.stack([step.action for step in episode.steps])
        np.testing.assert_array_equal(actions, demo.actions)
        states = np.stack([step.observation.state for step in episode.steps])
        away = np.abs(states - demo.joints[:, :N_ROBOT])
        assert (away < 1.01 * NOISE).mean() > 0.99
        assert away.max() < 1.5 * NOISE  # the start has noise in it too, and contacts differ


def test_subgoals_go_forwards_through_the_plan(
    replayed: list[tuple[Demonstration, Episode]],
) -> None:
    """Also past a kettle that two of the four people leave 5 cm short."""
    for _, episode in replayed:
        indices = [step.subgoal for step in episode.steps]
        assert sorted(indices) == indices and set(indices) == set(range(9))
    stands = [bool(episode.steps[-1].met >> 4 & 1) for _, episode in replayed]
    assert stands == [False, True, False, True]


def test_by_actions_three_of_four_are_done_on_average(blind: Any) -> None:
    """Open-loop, with no noise where the file's controller had it."""
    importer = Importer(blind, blind, reach=None, told={})
    done = [completions(importer.rehearse(demo)) for demo in real_demos()]
    assert np.mean([len(tasks) for tasks in done]) >= 3
    assert all(tuple(tasks) == FOUR[: len(tasks)] for tasks in done)
