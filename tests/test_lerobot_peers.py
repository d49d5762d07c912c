"""LeRobot's policies beside ours: frames between the processes, the server, what is compared."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from embodied.types import Observation
from sims import scenes
from tests.scripts import SCRIPTS, load_script

DRAWER = "metaworld/drawer-open-v3"

_FAKE_SERVER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import lerobot_server, lerobot_wire as wire
import numpy as np

class Fake:
    n = -1

    def reset(self):
        self.n = 0

    def act(self, state, images):
        print("chatter")
        self.n += 1
        if self.n == int(sys.argv[2]):
            sys.exit(3)
        return np.array([self.n, state.sum(), sum(int(i[0, 0, 0]) for i in images.values()), 0.0])

sink = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
wire.send(sink, {"ready": np.array(7)})
lerobot_server.serve(Fake(), sys.stdin.buffer, sink)
"""


@pytest.fixture(scope="module")
def wire() -> ModuleType:
    return load_script("lerobot_wire")


def _frame(wire: ModuleType, **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    wire.send(stream, arrays)
    return stream.getvalue()


# --- frames -----------------------------------------------------------------------------------


def test_arrays_come_back_as_they_were(wire: ModuleType) -> None:
    rng = np.random.default_rng(0)
    sent = {
        "state": rng.normal(size=4).astype(np.float32),
        "images.wrist": rng.integers(0, 256, (6, 5, 3), np.uint8),
        "first": np.array(True),
        "nothing": np.empty((0, 3)),
    }
    stream = io.BytesIO(_frame(wire, **sent) + _frame(wire, state=sent["state"]))
    got = wire.receive(stream)
    assert got.keys() == sent.keys()
    for name, array in sent.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)
    assert list(wire.receive(stream)) == ["state"]
    assert wire.receive(stream) is None


class _Dribble(io.RawIOBase):
    """A pipe that gives a byte at a time."""

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._rest.read(min(size, 1))


def test_a_frame_that_comes_in_pieces_is_put_together(wire: ModuleType) -> None:
    got = wire.receive(_Dribble(_frame(wire, state=np.arange(4.0))))
    np.testing.assert_array_equal(got["state"], np.arange(4.0))


def test_python_objects_are_neither_sent_nor_received(wire: ModuleType) -> None:
    objects = np.array([{}], dtype=object)
    with pytest.raises(wire.WireError, match="'evil' is object; only plain numbers"):
        _frame(wire, evil=objects)
    payload = io.BytesIO()
    np.savez(payload, evil=objects)
    for data in (payload.getvalue(), b"text"):
        frame = struct.pack("<4sII", wire.MAGIC, len(data), zlib.crc32(data)) + data
        with pytest.raises(wire.WireError, match="no npz of plain arrays"):
            wire.receive(io.BytesIO(frame))


@pytest.mark.parametrize("kept", [1, 11, 12, 20, -1])
def test_a_frame_that_is_cut_off_is_refused(wire: ModuleType, kept: int) -> None:
    whole = _frame(wire, state=np.zeros(4))
    with pytest.raises(wire.WireError, match="the stream ended"):
        wire.receive(io.BytesIO(whole[:kept]))


def test_broken_frames_are_refused(wire: ModuleType) -> None:
    whole = _frame(wire, state=np.zeros(4))
    with pytest.raises(wire.WireError, match="a frame begins with b'LRW1', got b'GET '"):
        wire.receive(io.BytesIO(b"GET / HTTP/1.1"))
    huge = struct.pack("<4sII", wire.MAGIC, wire.MOST_BYTES + 1, 0)
    with pytest.raises(wire.WireError, match="were announced"):
        wire.receive(io.BytesIO(huge))
    for place in range(len(whole)):
        damaged = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        with pytest.raises(wire.WireError):
            wire.receive(io.BytesIO(damaged))


def test_too_much_is_not_sent(wire: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_BYTES", 100)
    with pytest.raises(wire.WireError, match="at most 100 bytes"):
        _frame(wire, state=np.zeros(100))


# --- the server and its actor -----------------------------------------------------------------


def _actor(limit: int = 99) -> Any:
    peer = load_script("lerobot_peer")
    return peer.LeRobotActor([sys.executable, "-c", _FAKE_SERVER, str(SCRIPTS), str(limit)])


def _seen(value: int) -> Observation:
    pictures = {"wrist": np.full((4, 4, 3), value, np.uint8), "workspace": np.ones((4, 4, 3), "u1")}
    return Observation(pictures, np.array([value, 1, 0, 0], np.float32))


def test_the_actor_gets_the_server_s_actions_and_begins_episodes_anew() -> None:
    actor, offered = _actor(), scenes.catalogue()[DRAWER]
    assert actor.n_parameters == 7
    for _ in range(2):
        plan = actor.begin(_seen(0), "open the drawer", offered)
        assert plan.refused is None and plan.tasks == offered.tasks
        for step in (1, 2, 3):
            action = actor.act(_seen(step)).action
            assert action.dtype == np.float32
            np.testing.assert_array_equal(action, [step, step + 1, step + 1, 0])
    actor.close()


def test_a_server_that_ends_ends_the_evaluation() -> None:
    peer, actor = load_script("lerobot_peer"), _actor(limit=2)
    actor.begin(_seen(0), "open the drawer", scenes.catalogue()[DRAWER])
    actor.act(_seen(1))
    with pytest.raises(peer.ServerEnded, match="ended with status 3"):
        actor.act(_seen(1))
    assert not issubclass(peer.ServerEnded, Exception)  # else it would count as an episode's crash
    actor.close()


def test_an_observation_that_lacks_something_is_refused(wire: ModuleType) -> None:
    server = load_script("lerobot_server")
    source = io.BytesIO(_frame(wire, state=np.zeros(4)))
    with pytest.raises(wire.WireError, match=r"lacks \['first'\], it has \['state'\]"):
        server.serve(None, source, io.BytesIO())


# --- the comparison ---------------------------------------------------------------------------


def _options(compare: ModuleType, folder: Path) -> Any:
    return compare.PeersOptions(Path("python"), output_dir=folder)


def test_a_folder_keeps_to_its_settings_and_other_environments_may_join(tmp_path: Path) -> None:
    compare = load_script("compare_lerobot")
    options = _options(compare, tmp_path / "new")
    compare.keep_settings(options)
    compare.keep_settings(replace(options, env="mw5", peers=("act",)))
    with pytest.raises(ValueError, match=r"other settings \(n_demos was 10\): delete it"):
        compare.keep_settings(replace(options, n_demos=5))
    compare.keep_settings(replace(options, init=Path("a"), output_dir=tmp_path / "with"))
    with pytest.raises(ValueError, match=r"other settings \(init was a\): delete it"):
        compare.keep_settings(replace(options, output_dir=tmp_path / "with"))


def test_the_others_get_the_seconds_that_ours_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = load_script("compare_lerobot")
    options = _options(compare, tmp_path)
    commands: list[list[str]] = []

    def timed(command: list[str], **more: str) -> Any:
        commands.append(command)
        folder = options.folder("mlp" if "train-policy" in command else command[2], DRAWER)
        folder.mkdir(parents=True, exist_ok=True)
        return compare.Spent(123.5, 100.0)

    monkeypatch.setattr(compare, "timed", timed)
    ours = compare.train_ours(options, DRAWER, tmp_path / "demos")
    for kind in ("act", "diffusion", "act"):  # the third finds what the first one left
        compare.train_peer(options, kind, DRAWER, tmp_path / "demos", [0, 2], ours.wall_s)
    assert len(commands) == 3
    for kind, command in zip(("act", "diffusion"), commands[1:], strict=True):
        assert command[:3] == ["python", str(SCRIPTS / "lerobot_train.py"), kind]
        told = dict(zip(command[3::2], command[4::2], strict=True))
        assert (told["--seconds"], told["--episodes"]) == ("123.5", "0,2")


def test_a_held_out_planner_is_tuned_and_its_seconds_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, model, init = load_script("compare_lerobot"), tmp_path / "model", tmp_path / "init"
    known = {model: ("drawer-open",), init: ("drawer-open",)}
    monkeypatch.setattr(compare.few_shot, "left_out_of", lambda folder: known[folder])
    options = replace(_options(compare, tmp_path), model=model, init=init)
    commands: list[list[str]] = []

    def timed(command: list[str], **more: str) -> Any:
        commands.append(command[3:])
        options.folder("mlp", DRAWER).mkdir(parents=True, exist_ok=True)
        return compare.Spent(100.0, 90.0)

    monkeypatch.setattr(compare, "timed", timed)
    assert compare.train_ours(options, DRAWER, tmp_path / "demos") == compare.Spent(200.0, 180.0)
    assert compare.train_ours(options, DRAWER, tmp_path / "demos") == compare.Spent(200.0, 180.0)
    compare.evaluate_ours(options, DRAWER)
    parsed = {
        command[0]: dict(zip(command[1::2], command[2::2], strict=True)) for command in commands
    }
    assert [command[0] for command in commands] == ["finetune", "train-policy", "evaluate"]
    tuning, training, evaluation = parsed.values()
    assert (tuning["--few_shot"], tuning["--look_at"]) == ("10", str(tmp_path / "demos"))
    assert tuning["--model"] == training["--model"] == str(model)
    assert training["--init"] == str(init)
    assert evaluation["--model"] == str(Path(tuning["--output_dir"]) / "planner")
    assert "tasks held out; the policy starts from another" in compare.seen_or_not(options)

    known[init] = ()
    assert "tasks seen; the policy" in compare.seen_or_not(options)
    known[model] = ("hammer",)  # it knows this one: nothing to learn
    assert compare.acting_planner(options, DRAWER) == model
    shipped = _options(compare, tmp_path)
    assert compare.acting_planner(shipped, DRAWER) is None
    assert compare.seen_or_not(shipped) == "tasks seen; the policy starts from nothing"
    assert not compare.few_shot.held_out([model], "")


def test_a_training_that_was_interrupted_is_done_anew(tmp_path: Path) -> None:
    compare = load_script("compare_lerobot")
    begun = tmp_path / "act" / "train"
    begun.mkdir(parents=True)
    assert compare._spent(tmp_path / "act") is None
    assert not begun.exists()


def test_a_layout_that_was_trained_on_is_found() -> None:
    compare = load_script("compare_lerobot")
    demo = type("Demo", (), {"env_id": DRAWER, "layout_sha": "ab"})
    compare.check_unseen([{"env": DRAWER, "layout_sha": "cd"}], [demo])
    with pytest.raises(ValueError, match="1 test layouts are those of demonstrations"):
        compare.check_unseen([{"env": DRAWER, "layout_sha": "ab"}], [demo])


def test_the_table_says_what_was_spent_and_what_was_random(tmp_path: Path) -> None:
    compare = load_script("compare_lerobot")
    outcomes = ["success", "failure", "crash"]
    records = [{"outcome": o, "success": o == "success", "control_hz": 20.0} for o in outcomes]
    about = {"n_updates": 64, "n_parameters": 18_700_000, "backbone": "random", "seed": 0}
    row = compare.row_of(DRAWER, "act", compare.Spent(300.0, 250.4), about, records)
    assert (row["k"], row["n"], row["n_apart"]) == (1, 2, 1)
    text = compare.markdown(_options(compare, tmp_path), [json.loads(json.dumps(row))])
    line = next(line for line in text.splitlines() if line.startswith(f"| {DRAWER}"))
    assert "| act | 18.7 M | 64 | 300 | 250 | 1/2 [9, 91] % (1 crashed" in line
    assert "act's ResNet-18: random" in text and "tasks seen" in text


def test_an_endless_environment_hides_success_and_nothing_else() -> None:
    bench = load_script("bench_lerobot_eval")
    env = scenes.make(DRAWER, render=False, horizon=2)
    endless = bench.Endless(env)
    endless.reset(seed=200_000)
    env._sawyer.step = _succeeding(env._sawyer.step)
    *_, done, truncated, info = endless.step(np.zeros(4, np.float32))
    assert not done and not truncated and info["success"] is False
    assert env._info()["success"] is True and endless.task == env.task
    *_, truncated, info = endless.step(np.zeros(4, np.float32))
    assert truncated
    env.close()


def _succeeding(step: Any) -> Any:
    def always(action: np.ndarray) -> Any:
        *rest, info = step(action)
        return (*rest, {**info, "success": True})

    return always


def test_both_sides_of_the_speeds_draw_with_one_gl_back_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = load_script("bench_lerobot_eval")
    seen: list[str | None] = []

    def side(*_: Any) -> Any:
        seen.append(os.environ.get("MUJOCO_GL"))
        return bench.Speed("a side", 1, 10, 2.0, 1.0)

    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(bench, "their_speed", lambda *_: (side(), 10))
    monkeypatch.setattr(bench, "act_in_our_loop", side)
    monkeypatch.setattr(bench, "our_agent", side)
    monkeypatch.setattr("sys.argv", ["bench_lerobot_eval.py", "--lerobot", "python", "--json"])
    bench.main()
    assert seen[0] and seen == [seen[0]] * 3
    assert len(json.loads(capsys.readouterr().out)["sides"]) == 3


@pytest.mark.parametrize("name", ["compare_lerobot", "bench_lerobot_eval"])
def test_both_have_their_scripts(name: str) -> None:
    script = SCRIPTS / f"{name}.sh"
    assert f"scripts/{name}.py --lerobot" in script.read_text() and script.stat().st_mode & 0o100
