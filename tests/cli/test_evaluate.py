"""`evaluate`: what is counted, what is kept, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args

import pytest

import policies
from embodied import video
from embodied.cli import eval_info
from embodied.cli.assemble import save_policy
from embodied.cli.evaluate import layout_seeds
from embodied.cli.main import main
from embodied.cli.trials import Ablation, Job, Setting, Trials, cameras_for
from embodied.metrics import Rate
from embodied.types import Fed
from sims import language
from sims.kitchen import KitchenEnv
from tests.cli.evaluations import DRAWER, REACH, record, told

if TYPE_CHECKING:
    from tests.cli.conftest import FakeAgent

KEYS = {"pc_success", "n_episodes", "k", "n", "wilson95", "n_distinct_layouts", "video_paths"}


def evaluate(folder: Path, *argv: str) -> int:
    return main(["evaluate", "--output_dir", str(folder), "--json", *argv])


def test_expert_succeeds_and_everything_is_written_down(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--env", f"{DRAWER},{REACH}", "--actor", "expert", "--n_episodes", "2"]
    assert evaluate(tmp_path, *argv, "--n_videos", "1") == 0
    info = told(capfd)
    assert info == json.loads((tmp_path / "eval_info.json").read_text())
    overall = info["overall"]
    assert (overall["k"], overall["n"], overall["pc_success"]) == (4, 4, 100.0)
    assert overall["wilson95"] == list(Rate(4, 4).wilson95 or ())
    assert overall["n_distinct_layouts"] == 4
    assert overall.keys() >= KEYS | {"eval_s", "eval_ep_s", "success_rule", "horizon"}
    assert overall.keys() >= {"train_seeds", "versions", "render_flags"}
    assert info["per_group"].keys() == {"metaworld"} and info["per_group"]["metaworld"]["k"] == 4
    assert [task["env"] for task in info["per_task"]] == [DRAWER, REACH]
    for task in info["per_task"]:
        assert task.keys() >= KEYS | {"task_group", "task_id", "metrics"}
        assert [e["seed"] for e in task["per_episode"]] == [200000, 200001]
        first, second = task["per_episode"]
        assert first["success"] and first["first_success_step"] == first["n_steps"] - 1
        assert first["plan"] and len(first["layout_sha"]) == 16
        assert second["video"] is None and len(video.read_mp4(first["video"])) > 10


def test_random_fails_in_the_kitchen_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["--env", "kitchen/kettle", "--actor", "random", "--n_episodes", "1", "--horizon", "3"]
    assert evaluate(tmp_path, *argv) == 0
    overall = told(capfd)["overall"]
    assert (overall["k"], overall["n"], overall["n_crashes"]) == (0, 1, 0)


def test_random_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["--env", DRAWER, "--actor", "random", "--seeds", "200005:200006", "--horizon", "15"]
    assert evaluate(tmp_path, *argv, "--n_videos", "0") == 0
    info = told(capfd)
    assert info["overall"]["pc_success"] == 0.0
    assert [e["seed"] for e in info["per_task"][0]["per_episode"]] == [200005, 200006]
    assert info["per_task"][0]["per_episode"][0]["n_steps"] == 15


def test_resumes_and_refuses_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--env", DRAWER, "--actor", "random", "--horizon", "5", "--n_videos", "0"]
    assert evaluate(tmp_path, *argv, "--n_episodes", "1") == 0
    first = told(capfd)["per_task"][0]["per_episode"]
    log = tmp_path / "episodes.jsonl"
    log.write_text(log.read_text() + '{"env": "half a li')  # as a killed process leaves it
    run: list[Job] = []
    call = Trials.__call__
    monkeypatch.setattr(Trials, "__call__", lambda self, job: (run.append(job), call(self, job))[1])
    assert evaluate(tmp_path, *argv, "--n_episodes", "3") == 0
    assert [job.seed for job in run] == [200001, 200002]
    assert told(capfd)["per_task"][0]["per_episode"][:1] == first
    assert len(log.read_text().splitlines()) == 3
    assert evaluate(tmp_path, *argv, "--horizon", "6") == 2
    out, err = capfd.readouterr()
    assert out == "" and "other settings (horizon was 5)" in err.splitlines()[-1]


def test_processes_give_the_same_as_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["--env", DRAWER, "--actor", "random", "--n_episodes", "2", "--horizon", "5"]
    found = []
    for workers in ("1", "2"):
        folder = tmp_path / workers
        assert evaluate(folder, *argv, "--workers", workers, "--n_videos", "0") == 0
        out, err = capfd.readouterr()
        assert "Traceback" not in err and "EGLError" not in err
        episodes = json.loads(out)["per_task"][0]["per_episode"]
        found.append([(e["seed"], e["layout_sha"], e["sum_reward"]) for e in episodes])
    assert found[0] == found[1]


def test_crash_is_counted_apart(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_agent.trouble = lambda: 1 // 0
    argv = ["--env", DRAWER, "--n_episodes", "1", "--horizon", "4", "--n_videos", "0"]
    assert evaluate(tmp_path, *argv) == 1
    out, err = capfd.readouterr()
    overall = json.loads(out)["overall"]
    assert (overall["n_crashes"], overall["n"], overall["n_episodes"]) == (1, 0, 1)
    assert overall["pc_success"] is None and overall["wilson95"] is None
    assert "ZeroDivisionError" in err and "1 crash(es)" in err.splitlines()[-1]


def test_refusal_of_a_task_that_is_there_is_a_failure(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--env", REACH, "--n_episodes", "1", "--n_videos", "1"]  # it knows drawers only
    assert evaluate(tmp_path, *argv) == 0
    episode = told(capfd)["per_task"][0]["per_episode"][0]
    assert (episode["outcome"], episode["n_steps"], episode["video"]) == ("failure", 0, None)
    assert episode["refused"] and episode["plan"] == []


def test_agent_s_report_is_kept(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--env", DRAWER, "--n_episodes", "1", "--horizon", "4", "--n_videos", "1"]
    assert evaluate(tmp_path, *argv) == 0
    episode = told(capfd)["per_task"][0]["per_episode"][0]
    assert (episode["n_replans"], episode["n_retries"]) == (1, 2)
    assert episode["plan"] == ["reach(drawer handle)", "pull(drawer handle)"]


@pytest.mark.parametrize("ablate", get_args(Ablation))
def test_tiny_agent_is_evaluated(
    ablate: str,
    tiny_weights: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Saved, loaded, planned, acted, judged; untrained, so it is led past its refusals."""
    from embodied.agent.agent import Agent
    from embodied.model.routing import Route

    accepted = Route(DRAWER, ("drawer-open",), None, (), 1.0)
    monkeypatch.setattr(Agent, "route", lambda *_: accepted)
    argv = ["--env", DRAWER, "--n_episodes", "1", "--horizon", "12", "--ablate", ablate]
    assert evaluate(tmp_path, *argv, *tiny_weights, "--n_videos", "0") == 0
    episode = told(capfd)["per_task"][0]["per_episode"][0]
    assert (episode["outcome"], episode["n_steps"]) == ("failure", 12)
    assert episode["plan"]


@pytest.fixture
def acting(
    tiny_weights: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[policies.AnyPolicy, list[str]]:
    """A policy that looks through corner2, saved in tmp_path/policy, and flags to evaluate it."""
    from embodied.agent.agent import Agent
    from embodied.config import preset
    from embodied.model.routing import Route

    former = preset("tiny").former
    sizes = {"n_queries": former.n_queries, "width": former.width}
    policy = policies.make(
        "mlp", **sizes, global_width=former.vision_width, state_size=4, action_size=4, horizon=8
    )
    policy.fed = Fed(cameras=("corner2",))
    save_policy(tmp_path / "policy", policy, None, agent={"execute": 4})
    accepted = Route(DRAWER, ("drawer-open",), None, (), 1.0)
    monkeypatch.setattr(Agent, "route", lambda *_: accepted)
    argv = ["--env", DRAWER, "--n_episodes", "1", "--horizon", "8", "--n_videos", "0"]
    return policy, [*argv, *tiny_weights[:2], "--policy", str(tmp_path / "policy")]


def test_the_policy_s_cameras_are_looked_through_and_named(
    acting: tuple[policies.AnyPolicy, list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path / "out", *acting[1]) == 0
    info = told(capfd)
    assert info["overall"]["cameras"] == ["corner2"] and info["overall"]["n_crashes"] == 0
    assert info["per_task"][0]["per_episode"][0]["n_steps"] == 8


def test_resumes_where_the_policy_was_moved_and_not_where_it_was_changed(
    acting: tuple[policies.AnyPolicy, list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy, argv = acting
    assert evaluate(tmp_path / "out", *argv) == 0
    first = told(capfd)["per_task"][0]["per_episode"]
    moved = (tmp_path / "policy").rename(tmp_path / "moved")
    argv[-1] = str(moved)
    assert evaluate(tmp_path / "out", *argv) == 0
    info = told(capfd)
    assert info["per_task"][0]["per_episode"] == first
    assert info["settings"]["policy"]["name"] == str(moved)
    policy.fed = Fed(cameras=("corner2",), ablate="plan_zeroed")
    save_policy(moved, policy, None, agent={"execute": 4})
    assert evaluate(tmp_path / "out", *argv) == 2
    assert "other settings (policy was" in capfd.readouterr().err


def _trained_on(folder: Path, **config: Any) -> list[str]:
    """Flags for a policy whose config tells what it was trained on; it has no weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return ["--policy", str(folder)]


def test_layouts_that_were_trained_on_are_refused(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    of_kitchen = _trained_on(tmp_path / "k", scenes=["kitchen"], train_seeds=[200_000])
    of_hand = _trained_on(tmp_path / "m", scenes=["metaworld"], train_seeds=[5, 200_001])
    argv = ["--env", DRAWER, "--n_episodes", "2", "--horizon", "3", "--n_videos", "0"]
    assert evaluate(tmp_path / "out", *argv, *of_hand) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and fake_agent.n_acts == 0
    assert "1 of the test layouts were trained on" in err and "seed(s) 200001, by" in err
    assert not (tmp_path / "out").exists()
    assert evaluate(tmp_path / "out", *argv, *of_kitchen) == 0  # another robot's
    assert evaluate(tmp_path / "all", *argv, "--policy", str(tmp_path)) == 2  # of several


def test_a_layout_under_another_seed_is_refused_too(
    fake_agent: FakeAgent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--env", DRAWER, "--n_episodes", "1", "--horizon", "3", "--n_videos", "0"]
    assert evaluate(tmp_path / "a", *argv) == 0
    layout = told(capfd)["per_task"][0]["per_episode"][0]["layout_sha"]
    policy = _trained_on(tmp_path / "m", train_seeds=[7], train_layouts=[layout])
    assert evaluate(tmp_path / "b", *argv, *policy) == 2
    err = capfd.readouterr().err
    assert f"{DRAWER}, seed 200000 is layout {layout}, which {policy[1]} was trained on" in err


def test_shipped_policies_say_what_they_were_trained_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for env in (DRAWER, "kitchen/kettle"):
        assert evaluate(tmp_path, "--env", env, "--seeds", "0:3") == 2
        assert "4 of the test layouts were trained on" in capfd.readouterr().err


def test_paraphrases_are_drawn_by_the_seed() -> None:
    trials = Trials(Setting("random", None, None, "none", "paraphrases", 5))
    env = SimpleNamespace(tasks_of=lambda seed: ("drawer-open",))
    said = [trials._instruction(env, seed) for seed in range(30)]
    assert said == [trials._instruction(env, seed) for seed in range(30)]
    assert len(set(said)) > 10


def test_another_task_is_asked_for_and_the_own_one_counts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--env", "kitchen/light switch", "--instructions", "another_task"]
    argv += ["--actor", "expert", "--n_episodes", "1", "--n_videos", "0", "--rule", "strict"]
    assert evaluate(tmp_path, *argv) == 0
    info = told(capfd)
    (episode,) = info["per_task"][0]["per_episode"]
    assert episode["instruction"] == language.canonical(["slide cabinet"])
    assert episode["tasks"] == episode["completed"] == episode["completed_strict"]
    assert episode["tasks"] == ["light switch"]
    overall = info["overall"]
    assert [overall[rule]["k"] for rule in ("benchmark", "strict", "in_order")] == [1, 1, 1]
    assert overall["mean_completed"] == overall["mean_completed_strict"] == 1
    assert overall["success_rule"] == "strict"


def test_only_a_scene_of_many_tasks_can_be_asked_for_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--actor", "random", "--n_episodes", "1", "--horizon", "2"]
    assert evaluate(tmp_path / "a", "--env", DRAWER, "--instructions", "another_task", *argv) == 2
    assert "does not offer as many other tasks" in capfd.readouterr().err
    assert evaluate(tmp_path / "b", "--env", DRAWER, "--rule", "strict", *argv) == 2
    assert "--rule is for the kitchen" in capfd.readouterr().err
    assert evaluate(tmp_path / "c", "--env", DRAWER, "--level", "1", *argv) == 2
    assert f"--level is for the kitchen; {DRAWER} has" in capfd.readouterr().err
    assert evaluate(tmp_path / "d", "--env", "kitchen/kettle", "--level", "5", *argv) == 2
    assert "levels are (0, 1, 2), got 5" in capfd.readouterr().err


def test_starts_of_a_higher_level_say_what_was_done_already(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--env", "kitchen/4", "--actor", "random", "--n_episodes", "6", "--horizon", "1"]
    argv += ["--n_videos", "0"]
    assert evaluate(tmp_path / "a", *argv, "--level", "2") == 0
    info = told(capfd)
    episodes = info["per_task"][0]["per_episode"]
    env = KitchenEnv(4, render=False, level=2)
    found = []
    for episode in episodes:
        env.reset(seed=episode["seed"])
        found.append([task for task in env.tasks if task in env.opened])
    env.close()
    assert [e["met_at_start"] for e in episodes] == found and 3 < sum(map(len, found)) < 18
    assert info["settings"]["level"] == 2
    figures = {"n_episodes": sum(map(bool, found)), "n_tasks": sum(map(len, found))}
    assert info["overall"]["met_at_start"] == figures
    assert evaluate(tmp_path / "a", *argv) == 2
    assert "other settings (level was 2)" in capfd.readouterr().err
    assert evaluate(tmp_path / "b", *argv[:4], "--n_episodes", "1", "--horizon", "1") == 0
    assert "met_at_start" not in told(capfd)["overall"]


def test_a_folder_that_names_no_level_is_gone_on_with_at_0(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--env", DRAWER, "--actor", "random", "--n_episodes", "1", "--horizon", "2"]
    assert evaluate(tmp_path, *argv) == 0
    path = tmp_path / "settings.json"
    settings = json.loads(path.read_text())
    assert settings.pop("level") == 0
    path.write_text(json.dumps(settings))
    assert evaluate(tmp_path, *argv) == 0
    assert json.loads(path.read_text())["level"] == 0


def test_what_was_done_at_the_start_has_no_place_in_the_order() -> None:
    rules = {"success_benchmark": True, "success_strict": True, "completed_strict": []}
    asked = {"tasks": ["microwave", "kettle", "light switch"], **rules}
    done = {"completed": ["kettle", "microwave", "light switch"]}
    first = record(1, True, **asked, **done, met_at_start=["kettle"], seen_done=["kettle"])
    second = record(2, True, **asked, **done, met_at_start=[], seen_done=["light switch"])
    figures = eval_info._by_rule([first, second])
    assert (figures["in_order"]["k"], figures["in_order"]["n"]) == (1, 2)
    met = figures["met_at_start"]
    assert (met["n_episodes"], met["n_tasks"]) == (1, 1)
    assert (met["noticed"]["k"], met["noticed"]["n"]) == (1, 1)
    assert (met["mistaken"]["k"], met["mistaken"]["n"]) == (1, 5)
    assert "met_at_start" not in eval_info._by_rule([second])
    blind = {name: value for name, value in first.items() if name != "seen_done"}
    assert set(eval_info._by_rule([blind])["met_at_start"]) == {"n_episodes", "n_tasks"}


def test_the_table_tells_distinct_starts_and_what_was_open(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--env", "kitchen/5", "--actor", "random", "--horizon", "1", "--n_videos", "0"]
    argv += ["--level", "2", "--n_episodes", "3", "--output_dir", str(tmp_path)]
    assert main(["evaluate", *argv]) == 0
    lines = capfd.readouterr().out.splitlines()
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert lines[-1].split() == ["distinct", "starts", "3/3"]
    met = info["overall"]["met_at_start"]
    assert f"; {met['n_tasks']} done at the start of {met['n_episodes']}" in lines[-2]
    twice = [dict(info["per_task"][0]["per_episode"][0], setup=_SETUP) for _ in range(2)]
    same = eval_info.summarise(twice, {})
    assert eval_info.table(same).splitlines()[-1].split() == ["distinct", "starts", "1/2"]


_SETUP = {"success_rule": "strict", "horizon": 1, "train_seeds": None, "render_flags": {}}


@pytest.mark.parametrize(
    ("done", "in_order"), [(["kettle", "microwave"], 0), (["microwave", "kettle"], 1)]
)
def test_what_is_done_in_another_order_is_no_success_in_order(
    done: list[str], in_order: int
) -> None:
    told = {"tasks": ["microwave", "kettle"], "completed": done, "completed_strict": done[:1]}
    rules = {"success_benchmark": True, "success_strict": False}
    figures = eval_info._by_rule([record(1, True, **told, **rules)])
    assert figures["in_order"]["k"] == in_order and figures["benchmark"]["k"] == 1
    assert (figures["strict"]["k"], figures["mean_completed_strict"]) == (0, 1)
    assert figures["mean_completed_bootstrap95"] is None  # of one episode
    assert eval_info._row({**_NO_EPISODES, **figures}).endswith("; 2.00 tasks")


def test_how_far_episodes_of_several_tasks_came_has_an_interval() -> None:
    tasks = ["microwave", "kettle"]
    rules = {"success_benchmark": True, "success_strict": False}
    told = [
        record(i, True, tasks=tasks, completed=tasks[: i % 3], completed_strict=[], **rules)
        for i in range(60)
    ]
    figures = eval_info._by_rule(told)
    low, high = figures["mean_completed_bootstrap95"]
    assert 0.75 < low < figures["mean_completed"] == 1.0 < high < 1.25
    assert eval_info._row({**_NO_EPISODES, **figures}).endswith(
        f"1.00 tasks [{low:.2f}, {high:.2f}]"
    )


_NO_EPISODES = {"k": 0, "n": 0, "n_crashes": 0, "n_sim_faults": 0}


def test_default_seeds_are_the_test_family() -> None:
    assert layout_seeds(None, None) == list(range(200_000, 200_020))
    assert layout_seeds("7:9", None) == [7, 8, 9]
    assert layout_seeds("7:9", 2) == [7, 8]


def test_ablations_are_the_agent_s() -> None:
    from embodied.agent import agent

    assert get_args(Ablation) == get_args(agent.Ablation)


def test_a_policy_is_shown_the_cameras_that_it_was_trained_with() -> None:
    fed = SimpleNamespace(cameras=("wrist", "left"))
    motor = SimpleNamespace(policy=SimpleNamespace(fed=fed))
    actor = SimpleNamespace(motors={"kitchen": motor})
    assert cameras_for(actor, "kitchen/kettle") == ("overview", "wrist", "left")
    assert cameras_for(actor, "metaworld/push-v3") == ("workspace", "wrist")  # another robot's
