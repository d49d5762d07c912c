"""`embodied train-policy`: from demonstrations to a saved policy, with the tiny planner."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import policies
from embodied import checkpoint
from embodied.checkpoint import CheckpointError
from embodied.cli.assemble import load_agent, load_policy, make_motor, save_policy
from embodied.cli.main import main
from embodied.cli.oracle import OraclePolicy
from embodied.cli.record import RecordOptions, record
from embodied.cli.splits import left_out_of
from embodied.cli.train_policy import TrainPolicyOptions, train_policy
from embodied.cli.trials import Job, Setting, Trials
from embodied.egocot.demos import choose_demos, load_demos, sources_of
from embodied.egocot.former_batches import AlignmentBatch, AlignmentSampler, FormerBatch
from embodied.episodes import DatasetReader
from embodied.model.former import EmbodiedFormer
from embodied.model.imitation import Imitation, ImitationSampler, other_tasks_texts
from embodied.model.planner import Planner
from embodied.types import Fed, Subgoal, Vocabulary
from sims import language
from tests.cli.foreign import foreign_copy

Run = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(
    tiny_planner: Path,
    recorded_set: Path,
    features_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A policy, trained into a folder of its own unless told another."""

    def trained(folder: Path | None = None, **changes: Any) -> Path:
        folder = folder or tmp_path_factory.mktemp("policy")
        settings: dict[str, Any] = dict(
            dataset=str(recorded_set),
            output_dir=folder,
            model=tiny_planner,
            steps=4,
            batch_size=8,
            learning_rate=0.1,  # a hundredth of it in the first step of the warm-up
            features_dir=features_dir,
        )
        assert train_policy(TrainPolicyOptions(**settings | changes)) == 0
        return folder

    return trained


@pytest.fixture(scope="module")
def straight(run: Run) -> Path:
    return run()


@pytest.fixture(scope="module")
def planner(tiny_planner: Path) -> Planner:
    return Planner.load(tiny_planner)


def _tensors(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load(folder / "policy")[0]


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- what comes out --------------------------------------------------------------------------


def test_a_policy_with_a_former_of_its_own(straight: Path, planner: Planner) -> None:
    policy, former, config = load_policy(straight / "policy", planner)
    assert former is not planner.former and policy.horizon == 8
    mine, theirs = former.state_dict(), planner.former.state_dict()
    assert not any(torch.equal(mine[k], theirs[k]) for k in mine if k.endswith("query.weight"))
    assert config["train_seeds"] == [0, 1] and config["n_demos"] == 0
    assert len(config["train_layouts"]) == 2
    assert config["agent"]["execute"] == 4 and config["scenes"] == ["metaworld"]
    assert set(config["figures"]) == {"loss", "action", "done", "place", "lr"}
    assert all(math.isfinite(value) for value in config["figures"].values())


def test_the_former_may_stay_as_it_is(run: Run, planner: Planner) -> None:
    folder = run(train_former=False)
    state, _ = checkpoint.load(folder / "training_state")
    assert not [k for k in state if ".former." in k]
    _, former, config = load_policy(folder / "policy", planner)
    assert former is planner.former and not config["has_former"]


def test_how_sure_of_a_done_the_agent_wants_to_be_is_kept(run: Run, planner: Planner) -> None:
    folder = run(**_QUICK, believe_above=0.75) / "policy"
    policy, former, config = load_policy(folder, planner)
    assert config["agent"]["monitor"] == {"believe_above": 0.75}
    assert make_motor(policy, former, config).monitor.believe_above == 0.75


def test_the_planner_is_left_alone(run: Run, tiny_planner: Path, straight: Path) -> None:
    checkpoint.check_manifest(tiny_planner, "")
    made = ["checkpoints", "policy", "run.json", "training_state"]
    assert sorted(p.name for p in straight.iterdir()) == made


def test_lerobots_layout_beside_ours(run: Run, straight: Path, planner: Planner) -> None:
    last = straight / "checkpoints" / "last"
    assert last.is_symlink() and last.readlink() == Path("000004")
    model = last / "pretrained_model"
    assert {"config.json", "model.safetensors", "train_config.json"} <= {
        p.name for p in model.iterdir()
    }
    checkpoint.check_manifest(model, "")
    assert _same(checkpoint.load(model)[0], _tensors(straight))
    load_policy(model, planner)
    assert checkpoint.load(last / "training_state")[1]["next_step"] == 4
    train_config = json.loads((model / "train_config.json").read_text())
    assert train_config["command"] == "train-policy" and train_config["options"]["steps"] == 4


def test_a_policy_says_what_neither_it_nor_its_planner_has_seen(
    run: Run, planner: Planner, tmp_path: Path
) -> None:
    planner.save(tmp_path / "planner", left_out=["hammer", "coffee-button"])
    folder = run(model=tmp_path / "planner", **_QUICK)  # its demonstrations press that button
    assert left_out_of(folder / "policy") == ("hammer",)


def test_an_earlier_checkpoint_stays_what_it_was(run: Run, tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    before = checkpoint.load(tmp_path / "checkpoints/000002/pretrained_model")[0]
    run(tmp_path, steps=4)
    assert (tmp_path / "checkpoints/last").readlink() == Path("000004")
    again = checkpoint.load(tmp_path / "checkpoints/000002/pretrained_model")[0]
    assert _same(before, again) and not _same(again, _tensors(tmp_path))


def test_stopped_and_gone_on_with_is_exactly_the_same(
    run: Run, straight: Path, tmp_path: Path
) -> None:
    """Two steps, then two more: within the warm-up the schedule does not know of the end."""
    run(tmp_path, steps=2)
    halfway = _tensors(tmp_path)
    run(tmp_path)
    assert _same(_tensors(tmp_path), _tensors(straight)) and not _same(halfway, _tensors(straight))
    states = [checkpoint.load(folder / "training_state")[0] for folder in (tmp_path, straight)]
    assert _same(*states)


def test_interrupted_it_goes_on_from_the_last_saved_state(
    run: Run, straight: Path, tmp_path: Path
) -> None:
    draw = AlignmentSampler.__call__

    def stop(self: AlignmentSampler, step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return draw(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AlignmentSampler, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, save_every=2)
    assert checkpoint.load(tmp_path / "training_state")[1]["next_step"] == 2
    run(tmp_path, save_every=2)
    assert _same(_tensors(tmp_path), _tensors(straight))


def test_run_again_when_finished_it_saves_the_same(
    run: Run, straight: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(straight, tmp_path / "again"))
    run(folder)
    (mine, told), (theirs, meant) = (checkpoint.load(f / "policy") for f in (folder, straight))
    assert _same(mine, theirs) and told == meant and set(told["figures"]) > {"loss"}


# --- which demonstrations ---------------------------------------------------------------------


def _episode(task: str, seed: int, success: bool = True, **info: Any) -> Any:
    return SimpleNamespace(meta=SimpleNamespace(task=task, seed=seed, success=success, info=info))


EPISODES = [
    _episode("hammer", 0),
    _episode("hammer", 1, success=False),
    _episode("reach", 2),
    _episode("hammer", 3),
    _episode("reach", 4, success=False, acted="policy"),  # the expert's corrections
    _episode("hammer", 5),
]


@pytest.mark.parametrize(
    ("n_demos", "seeds"), [(0, [0, 3, 5, 2, 4]), (1, [0, 2]), (2, [0, 3, 2, 4])]
)
def test_the_first_successes_of_each_task(n_demos: int, seeds: list[int]) -> None:
    assert [e.meta.seed for e in choose_demos(EPISODES, n_demos)] == seeds


def test_too_few_demonstrations_are_named_even_when_there_is_none() -> None:
    with pytest.raises(ValueError, match=r"3 successful demon.* got {'reach': 2}"):
        choose_demos(EPISODES, 3)
    failed = _episode("push", 9, success=False)
    with pytest.raises(ValueError, match=r"1 successful demon.* got {'push': 0}"):
        choose_demos([*EPISODES, failed], 1)
    assert len(choose_demos([*EPISODES, failed], 0)) == 5
    with pytest.raises(ValueError, match=r"all successful demon.* got {'push': 0}"):
        choose_demos([failed], 0)


def test_fewer_demonstrations_leave_the_others_out(
    run: Run, recorded_set: Path, tiny_planner: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = checkpoint.load(run(steps=1, n_demos=1) / "policy")[1]
    assert config["train_seeds"] == [0] and config["n_demos"] == 1
    said = capfd.readouterr().err
    assert "1 demonstrations" in said and "coffee-button: 1, of seeds 0\n" in said
    argv = ["train-policy", "--dataset", str(recorded_set), "--model", str(tiny_planner)]
    folder = recorded_set.parent / "never made"
    assert main([*argv, "--output_dir", str(folder), "--n_demos", "5"]) == 2
    assert "got {'coffee-button': 2}" in capfd.readouterr().err.splitlines()[-1]
    assert not folder.exists()


def test_corrections_are_all_used_beside_the_demonstrations(
    run: Run, straight: Path, recorded_set: Path, tiny_planner: Path, tmp_path: Path
) -> None:
    env, policy = "metaworld/coffee-button-v3", straight / "policy"
    options = RecordOptions(env, 3, tmp_path / "acted", image_size=32, horizon=12, workers=1)
    record(replace(options, seed=7, policy=policy, model=tiny_planner))
    folder = run(steps=1, n_demos=1, corrections=str(tmp_path / "acted"))
    config = checkpoint.load(folder / "policy")[1]
    assert config["train_seeds"] == [0, 7, 8, 9] and config["n_demos"] == 1
    assert config["trained_on"] == f"{recorded_set},{tmp_path / 'acted'}"
    with pytest.raises(ValueError, match=r"in episode 0 the expert acted; .* as --dataset"):
        run(corrections=str(recorded_set))


# --- on from another policy -------------------------------------------------------------------


@pytest.mark.parametrize("train_former", [True, False])
def test_init_begins_where_the_other_ended(run: Run, straight: Path, train_former: bool) -> None:
    """Its former too, whether that is trained further or not; its horizon, not the option's."""
    init = straight / "policy"
    settings = {"init": init, "train_former": train_former, "n_demos": 1, "horizon": 3}
    assert _same(_tensors(run(steps=0, **settings)), _tensors(straight))
    further = _tensors(run(steps=2, **settings))
    changed = {k for k, v in _tensors(straight).items() if not torch.equal(v, further[k])}
    assert {k.split(".")[0] for k in changed} == (
        {"policy", "former"} if train_former else {"policy"}
    )
    assert not [k for k in changed if "state_" in k]  # the statistics are what it knows


def test_a_policy_of_another_width_is_refused(run: Run, planner: Planner, tmp_path: Path) -> None:
    config = replace(planner.config.former, width=64)
    sizes = {"n_queries": config.n_queries, "global_width": planner.config.global_width}
    policy = policies.make("mlp", width=64, **sizes)
    for name, former in (("with", EmbodiedFormer(config)), ("without", None)):
        save_policy(tmp_path / name, policy, former)
        with pytest.raises(CheckpointError, match="of width 64, the planner's is 32; give the --m"):
            load_policy(tmp_path / name, planner)
    with pytest.raises(CheckpointError, match="of width 64, the planner's is 32; give the --m"):
        run(tmp_path / "out", init=tmp_path / "with")
    assert not (tmp_path / "out").exists()


# --- kinds, baselines, cameras ----------------------------------------------------------------

KINDS = {
    "transformer": {"policy": "transformer"},
    "unet": {"policy": "diffusion"},
    "denoising transformer": {"policy": "diffusion", "denoiser": "transformer", "sampler": "ddpm"},
    "r3m": {"features": "r3m"},
}
_QUICK = {"steps": 2, "batch_size": 4, "n_demos": 1}


@pytest.mark.parametrize("name", list(KINDS))
def test_every_kind_goes_on_exactly_where_it_stopped(
    run: Run, planner: Planner, tmp_path: Path, name: str
) -> None:
    settings = {**_QUICK, **KINDS[name], "learning_rate": 0.01}
    at_once = _tensors(run(**settings))
    run(tmp_path, **settings | {"steps": 1})
    run(tmp_path, **settings)
    assert _same(_tensors(tmp_path), at_once)
    policy, _, config = load_policy(tmp_path / "policy", planner)
    kind = KINDS[name].get("policy", "r3m")
    assert config["policy"]["kind"] == policy.kind == kind
    executed = {"transformer": 2, "diffusion": 8, "r3m": 4}
    assert config["agent"]["execute"] == executed[kind]
    fitted = [b for n, b in policy.named_buffers() if n.endswith(("shift", "norm.mean"))]
    assert fitted and all(b.any() for b in fitted)


@pytest.mark.parametrize("features", ["global", "blind", "state", "oracle"])
def test_a_baseline_says_what_it_is_fed(run: Run, planner: Planner, features: str) -> None:
    folder = run(features=features, **_QUICK)
    policy, former, config = load_policy(folder / "policy", planner)
    assert policy.fed == Fed(features) and config["fed"]["features"] == features  # type: ignore[arg-type]
    assert (former is planner.former) == (features != "blind")
    assert set(config["figures"]) == {"loss", "action", "done", "lr"}
    told = 3 * 2 * 2  # places, cameras, x and y
    assert config["policy"]["state_size"] == 4 + (told if features == "oracle" else 0)


@torch.no_grad()
def test_what_a_baseline_must_not_see_changes_nothing(
    recorded_set: Path, planner: Planner, features_dir: Path
) -> None:
    """In training; `tests/agent/test_controller.py` says the same of acting."""
    reader = DatasetReader(recorded_set)
    demos = load_demos(planner, sources_of(reader), ("workspace", "wrist"), features_dir, 0)
    draw = AlignmentSampler(demos, demos, language, 8, (4, 0, 0, 0))
    sizes = {"n_queries": 8, "width": 32, "global_width": 384}
    for features, sees in (("former", True), ("global", True), ("blind", False), ("state", False)):
        torch.manual_seed(0)
        policy = policies.make("mlp", **sizes)
        policy.fed = Fed(features)  # type: ignore[arg-type]
        black = torch.zeros(1, 2, 1, 16, 192) if features == "blind" else None
        module = Imitation(planner.former, policy, planner.embed_texts, 2, black).eval()
        batch = ImitationSampler(draw, policy.fed.features, 0)(0)
        seen = replace(batch.control, vision=batch.control.vision.flip(0))
        told = replace(batch.control, texts=batch.control.texts[::-1])
        loss, by_sight, by_words = (
            module.loss(replace(batch, control=c))[1]["action"] for c in (batch.control, seen, told)
        )
        assert (by_sight != loss) == sees
        assert (by_words != loss) == policy.fed.reads_words


@pytest.mark.parametrize("ablate", ["plan_zeroed", "plan_shuffled"])
def test_without_its_plan_or_with_another(
    run: Run, planner: Planner, tiny_planner: Path, ablate: str
) -> None:
    folder = run(ablate=ablate, **_QUICK)
    policy, _, _ = load_policy(folder / "policy", planner)
    assert policy.fed == Fed(ablate=ablate)  # type: ignore[arg-type]
    agent = load_agent(tiny_planner, folder / "policy")
    shuffled = ablate == "plan_shuffled"
    assert agent.options.ablate == (ablate if shuffled else "none")
    assert bool(agent.options.shuffled) == shuffled


def test_words_of_other_tasks_are_drawn_anew_for_each_sample() -> None:
    here = Vocabulary(("a",), (Subgoal("reach", ("nut",)), Subgoal("lift", ("nut",))))
    there = Vocabulary(("b",), (Subgoal("reach", ("door",)), Subgoal("push", ("door",))))
    others = other_tasks_texts([here, there])
    assert others["do: lift(nut)"] == ["do: reach(door)", "do: push(door)"]
    control = SimpleNamespace(texts=["do: lift(nut)"] * 32)
    mixed = _Draw(FormerBatch(torch.zeros(32), control.texts, torch.zeros(32), torch.zeros(32)))
    sampler = ImitationSampler(mixed, "former", 0, others)
    texts = [sampler(step).control.texts for step in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2] and set(texts[0]) == set(others["do: lift(nut)"])


class _Draw:
    def __init__(self, control: FormerBatch) -> None:
        self._control = control

    def __call__(self, step: int) -> AlignmentBatch:
        return AlignmentBatch(self._control, None, None)


def test_one_camera_known_to_the_former_by_its_own_embedding(run: Run, planner: Planner) -> None:
    folder = run(cameras="wrist", **_QUICK | {"steps": 0})
    policy, former, config = load_policy(folder / "policy", planner)
    assert policy.fed.cameras == ("wrist",) and config["policy"]["global_width"] == 192
    first, wrist = former.camera_embedding[0], planner.former.camera_embedding[1]
    torch.testing.assert_close(first, wrist, atol=1e-3, rtol=1e-2)
    as_usual = run(cameras="workspace, wrist", **_QUICK)
    assert load_policy(as_usual / "policy", planner)[0].fed.cameras == ()


def test_altered_copies_are_trained_on_as_well(run: Run, planner: Planner) -> None:
    plain, altered = (_tensors(run(augment=n, **_QUICK)) for n in (0, 2))
    assert not _same(plain, altered)


def test_places_move_with_the_pictures(
    recorded_set: Path, planner: Planner, features_dir: Path
) -> None:
    reader = DatasetReader(recorded_set)
    cameras = ("wrist", "workspace")
    plain, altered, _, _ = load_demos(planner, sources_of(reader), cameras, features_dir, 1)
    assert plain.meta == altered.meta and altered.cache.shifts is not None
    for step in range(0, plain.span.length, 2):
        shift = altered.cache.shifts[altered.span.image(step)]  # (cameras, 2)
        for noun, places in plain.places.items():
            np.testing.assert_allclose(altered.places[noun][step], places[step] + shift, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cameras": "top"}, "has no cameras ['top']; it has ['workspace', 'wrist']"),
        ({"cameras": "wrist,wrist"}, "give 1 to 2 different --cameras"),
        ({"tasks": "hammer"}, "no episodes of ['hammer']; the data set's tasks are"),
        ({"features": "r3m", "policy": "diffusion"}, "has a head of its own; leave out --policy"),
        ({"features": "state", "ablate": "plan_zeroed"}, "'state' reads no plan"),
        ({"execute": 3}, "--execute is a multiple of 2, got 3"),
        ({"believe_above": 1.0}, "--believe_above is at least 0 and below 1, got 1.0"),
        ({"augment": -1}, "--augment is at least 0, got -1"),
        ({"policy": "diffusion", "horizon": 7}, "even horizon, got 7"),
    ],
)
def test_what_cannot_be_trained(run: Run, tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        run(tmp_path / "out", **_QUICK | changes)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_a_policy_was_fed_it_goes_on_to_be_fed(run: Run, straight: Path) -> None:
    with pytest.raises(ValueError, match=r"was fed Fed\(features='former'.* not Fed\(features='bl"):
        run(init=straight / "policy", features="blind", steps=0)


def test_an_oracle_acts_only_where_somebody_tells_it_the_truth(
    run: Run, tiny_planner: Path, tmp_path: Path
) -> None:
    folder = run(features="oracle", **_QUICK)
    agent = load_agent(tiny_planner, folder / "policy")
    policy = agent.motors["metaworld"].policy
    assert isinstance(policy, OraclePolicy)
    features = torch.zeros(1, 8, 32), torch.zeros(1, 384), torch.zeros(1, 4)
    with pytest.raises(ValueError, match="which only `embodied evaluate` tells where things are"):
        policy.act(*features)
    setting = Setting("agent", tiny_planner, folder / "policy", "none", "canonical", 20)
    trials = Trials(setting)
    try:
        record = trials(Job("metaworld/coffee-button-v3", 100_000))
    finally:
        trials.close()
    assert record["oracle"] and record["outcome"] in ("success", "failure")


# --- data sets of other software --------------------------------------------------------------


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_a_data_set_without_plans_or_labels(
    run: Run, recorded_set: Path, planner: Planner, tmp_path: Path, version: str
) -> None:
    root = foreign_copy(recorded_set, tmp_path / "foreign", version)
    reader = DatasetReader(root)
    assert not reader.nouns and [meta.plan.subgoals for meta in reader.episodes] == [(), ()]
    for i in range(2):
        theirs, ours = reader.arrays(i), DatasetReader(recorded_set).arrays(i)
        assert (theirs["action"] == ours["action"]).all()
    folder = run(dataset=str(root), cameras="top", **_QUICK)
    policy, _, config = load_policy(folder / "policy", planner)
    assert policy.fed.cameras == ("top",) and config["scenes"] == []
    assert config["agent"] == {"execute": 4}
