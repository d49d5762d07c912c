"""The stages of `embodied finetune`, each a few steps long, with the tiny planner."""

from __future__ import annotations

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

from embodied import checkpoint
from embodied.checkpoint import CheckpointError
from embodied.cli import finetune as stages
from embodied.cli import finetune_plan as stages_of_speech
from embodied.cli.assemble import load_agent, load_policy
from embodied.cli.finetune import FinetuneOptions, agent_settings, finetune
from embodied.cli.finetune_heads import Heads, HeadsSampler, verdict_loss
from embodied.cli.finetune_places import Places, PlacesSampler
from embodied.cli.finetune_plan import Speech
from embodied.cli.main import main
from embodied.cli.shares import align_shares, plan_shares, words_shares
from embodied.egocot.conversations import ConversationSampler, Turns
from embodied.egocot.dataset import Recorded
from embodied.egocot.former_batches import AlignmentSampler, FormerBatch
from embodied.egocot.halting import with_halts
from embodied.egocot.own_words import OwnWords
from embodied.egocot.wordings import CHINESE
from embodied.episodes import DatasetReader
from embodied.model.alignment import Alignment
from embodied.model.llm import chat
from embodied.model.place_head import PlaceHead
from embodied.model.planner import Planner, question_prompt
from embodied.model.routing import ROUTE_PROMPT

STAGES = ("align", "words", "plan", "heads", "places")
TRAINED = {
    "align": {"former"},
    "words": {"adapter"},
    "plan": {"adapter", "mapping"},
    "heads": {"verdict_head", "answer_head"},
    "places": {"place_head"},
}
ALIGN_HEADS = {"place_head", "place_squeeze", "verdict_head", "verdict_squeeze"}
MODULES = {
    "align": {"former", "policy", *ALIGN_HEADS},
    "words": {"llm"},
    "plan": {"llm", "mapping"},
    "heads": {"verdict_head", "answer_head"},
    "places": {"place_head"},
}
FIGURES = {
    "align": {"action", "done", "place", "verdict_acc"},
    "words": {"task"},
    "plan": {"task", "plan", "verdict", "answer"},
    "heads": {"verdict", "verdict_acc", "answer", "answer_acc"},
    "places": {"place"},
}
STEPS = 3

Run = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(
    tiny_planner: Path,
    recorded_set: Path,
    features_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A stage, trained into a folder of its own unless told another."""

    def trained(stage: str, folder: Path | None = None, **changes: Any) -> Path:
        folder = folder or tmp_path_factory.mktemp(stage)
        settings: dict[str, Any] = dict(
            dataset="" if stage == "words" else str(recorded_set),
            model=tiny_planner,
            steps=STEPS,
            learning_rate=0.1,  # a hundredth of it in the first step of the warm-up
            features_dir=features_dir,
            save_every=2,
            threads=1,
        )
        assert finetune(FinetuneOptions(stage, folder, **settings | changes)) == 0  # type: ignore[arg-type]
        return folder

    return trained


@pytest.fixture(scope="module", params=STAGES)
def straight(request: pytest.FixtureRequest, run: Run) -> tuple[str, Path, Planner]:
    """A stage, where it was trained, and the planner just as the training left it."""
    built: list[Planner] = []
    load, n_threads = Planner.load, torch.get_num_threads()

    def keep(*arguments: Any) -> Planner:
        built.append(load(*arguments))
        return built[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.Planner, "load", keep)
        folder = run(request.param)
    torch.set_num_threads(n_threads)
    return request.param, folder, built[0]


def _frozen(planner: Planner) -> dict[str, Tensor]:
    """The towers: the vision encoder and the language model without its adapter."""
    state = {f"llm.{k}": v for k, v in planner.llm.state_dict().items() if "lora_" not in k}
    return state | {f"vision.{k}": v for k, v in planner.vision.state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- what a stage changes ---------------------------------------------------------------------


def test_only_the_parts_of_the_stage_change(
    straight: tuple[str, Path, Planner], tiny_planner: Path
) -> None:
    stage, _, planner = straight
    before, after = Planner.load(tiny_planner), planner.trained_tensors()
    start = before.trained_tensors()
    assert start.keys() <= after.keys()
    changed = {k.split(".")[0] for k in after if k not in start or after[k].ne(start[k]).any()}
    assert changed == TRAINED[stage]
    towers = _frozen(before)
    assert len(towers) > 30 and _same(_frozen(planner), towers)


def test_every_weight_of_those_parts_is_reached(straight: tuple[str, Path, Planner]) -> None:
    """Adam has seen a gradient of all of them, and of nothing else."""
    stage, folder, _ = straight
    state, _ = checkpoint.load(folder / "training_state")
    moments = {k: v for k, v in state.items() if k.startswith("adam.exp_avg_sq.")}
    parts = {k.split(".")[2] for k in moments}
    assert parts == MODULES[stage]
    assert not [k for k, v in moments.items() if not v.any()]


def test_the_loss_is_finite_and_kept_with_what_was_trained(
    straight: tuple[str, Path, Planner], recorded_set: Path
) -> None:
    stage, folder, _ = straight
    _, config = checkpoint.load(folder / "planner")
    figures = config["figures"]
    assert set(figures) == {"loss", "lr", *FIGURES[stage]}
    assert all(math.isfinite(value) for value in figures.values())
    given = {} if stage == "words" else {"dataset": str(recorded_set)}
    assert config["trained_on"] == [{"stage": stage, **given}]


def test_every_part_is_said_to_be_trained_or_frozen(
    straight: tuple[str, Path, Planner], capsys: pytest.CaptureFixture[str]
) -> None:
    """As the stage has left it; the policy and the heads are beside the planner."""
    stage, _, planner = straight
    module: torch.nn.Module = (
        Alignment(planner.former, None, planner.embed_texts, 2)
        if stage == "align"
        else Heads(planner)
        if stage == "heads"
        else Places(planner.place_head)  # type: ignore[arg-type]
        if stage == "places"
        else Speech(planner)
    )
    stages.print_trained(planner, module)
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    said = {name: tuple(int(n.replace(",", "")) for n in (n, m)) for name, _, n, _, m in lines}
    parts = dict(planner.named_children())
    towers = {"vision", "former", "mapping", "llm"}
    assert set(parts) == towers | TRAINED[stage] - {"adapter"} <= set(said)
    for name, part in parts.items():
        assert sum(said[name]) == sum(p.numel() for p in part.parameters())
    adapter = sum(p.numel() for n, p in planner.llm.named_parameters() if "lora_" in n)
    trains = {"former": {"align"}, "mapping": {"plan"}, "llm": {"words", "plan"}, "vision": set()}
    if stage in ("heads", "places"):
        trains |= {name: {stage} for name in TRAINED[stage]}
    for name, in_stages in trains.items():
        whole = adapter if name == "llm" else sum(said[name])
        assert said[name][0] == (whole if stage in in_stages else 0), name
    assert (stage == "align") == ("place_squeeze" in said)


# --- the heads ---------------------------------------------------------------------------------


def test_of_a_policys_own_clips_only_done_or_not_counts() -> None:
    told = torch.tensor([[0.2, 0.5, 0.3]] * 4).log()  # done, progressing, failed
    verdict, is_sure = torch.tensor([0, 1, 1, 0]), torch.tensor([True, True, False, False])
    each = [-math.log(p) for p in (0.2, 0.5, 0.8, 0.2)]
    loss = verdict_loss(told, verdict, is_sure)
    assert float(loss) == pytest.approx(sum(each) / 4)


def test_a_judge_goes_on_learning_and_later_stages_keep_it(run: Run) -> None:
    judge = run("heads") / "planner"
    first = Planner.load(judge)
    assert first.verdict_head is not None
    assert first.config.judged == ("press in(coffee button)", "reach(coffee button)")
    assert first.answer_head is not None and first.place_head is None
    assert {"yes", "no", "reaching the coffee button"} <= {*first.config.answers}
    again = Planner.load(run("heads", model=judge, steps=1) / "planner")
    one, two = (p.verdict_head.state_dict() for p in (first, again))  # type: ignore[union-attr]
    largest = max(float((one[k] - two[k]).abs().max()) for k in one)
    assert 0 < largest < 0.1  # a step away, not begun anew
    spoken = Planner.load(run("plan", model=judge, steps=1) / "planner")
    assert spoken.verdict_head is not None and spoken.answer_head is None
    assert spoken.config == replace(first.config, answers=())  # it may say others now
    assert _same(spoken.verdict_head.state_dict(), one)
    other = Planner.load(run("align", model=judge, steps=1) / "planner")
    assert other.verdict_head is not None and other.config.judged == first.config.judged


def test_a_share_without_a_question_still_has_gradients(run: Run) -> None:
    """Of places and captions alone: processes that share a batch all wait for every weight's."""
    planner = Planner.load(run("heads", steps=1) / "planner")
    module = Heads(planner)
    nothing = FormerBatch(
        torch.zeros(1, 2, 4, 1, 1), ["answer: where?"], torch.zeros(1), answers=[""]
    )
    loss, right = module._answered(nothing)
    loss.backward()
    grad = module.answer_head.ask.weight.grad
    assert loss == 0 and right == 0 and grad is not None and not grad.any()


def test_the_judge_is_heard_where_it_is_wanted(run: Run) -> None:
    judged = Planner.load(run("heads", steps=1, judge_in=" metaworld ") / "planner").config.judged
    assert judged == ("press in(coffee button)", "reach(coffee button)")
    with pytest.raises(ValueError, match=r"--judge_in kitchen: no episode is of \['kitchen'\]"):
        run("heads", steps=1, judge_in="kitchen")
    with pytest.raises(ValueError, match="--judge_in is for stage heads"):
        run("plan", steps=1, judge_in="metaworld")


def test_places_are_of_one_former(run: Run) -> None:
    placing = run("places", model=run("heads") / "planner") / "planner"
    first = Planner.load(placing)
    assert first.place_head is not None and first.answer_head is not None
    nouns = ("coffee button", "gripper")
    assert {*first.config.placed} == {*nouns, *(CHINESE[noun] for noun in nouns)}
    for changes in ({"stage": "plan", "train_former": True}, {"stage": "align"}):
        other = Planner.load(run(**changes, model=placing, steps=1) / "planner")  # type: ignore[arg-type]
        assert other.place_head is None and other.config.placed == ()
        assert other.verdict_head is not None and other.config.judged == first.config.judged


def test_scenes_are_looked_at_once_and_drawn_from_after(
    tiny_planner: Path, recorded_set: Path, features_dir: Path
) -> None:
    planner = Planner.load(tiny_planner)
    recorded = stages.load_datasets(planner, str(recorded_set), features_dir)
    with pytest.MonkeyPatch.context() as patch:
        sampler = PlacesSampler(planner, recorded, n_steps=40, size=8, seed=3)
        patch.setattr(type(planner.former), "forward", None)  # nobody looks any more
        one, again, other = sampler(0), sampler(0), sampler(1)
    former = planner.config.former
    assert one.queries.shape == (8, former.n_queries, former.width)
    assert one.vision.shape == (8, 1, 1, former.n_patches, former.vision_width)
    assert torch.equal(one.queries, again.queries) and not torch.equal(one.places, other.places)
    planner.place_head = PlaceHead(former)
    module = Places(planner.place_head)
    known = torch.isfinite(one.places)
    guess = planner.place_head(one.queries, one.vision)
    error = float((guess - one.places)[known].abs().mean().detach())
    assert module.loss(one)[1]["place"] == pytest.approx(error)
    assert module.counts(one) == {"place": float(known.sum())}


@pytest.mark.parametrize("stage", ["heads", "places"])
def test_heads_need_a_planner_and_episodes(run: Run, stage: str) -> None:
    with pytest.raises(ValueError, match=f"stage {stage} adds to a planner: give its --model"):
        run(stage, model=None)
    with pytest.raises(ValueError, match=f"stage {stage} needs recorded episodes"):
        run(stage, dataset="", records="somewhere")


# --- ablations --------------------------------------------------------------------------------


def test_the_blind_learn_from_words_alone(run: Run, tiny_planner: Path) -> None:
    """Other pictures are another loss, unless the planner is blind."""
    blind, seeing = Planner.load(tiny_planner), Planner.load(tiny_planner)
    blind.config = replace(blind.config, sight="none")
    rng = torch.Generator().manual_seed(0)
    former = blind.config.former
    shape = (2, 2, 4, former.n_patches, former.vision_width)
    one, other = (
        [
            Turns(
                "answer",
                [question_prompt("is it open?")] * 2,
                ["yes", "no"],
                torch.randn(shape, generator=rng),
                ["answer: is it open?"] * 2,
            )
        ]
        for _ in range(2)
    )
    with torch.no_grad():
        assert torch.equal(Speech(blind).loss(one)[0], Speech(blind).loss(other)[0])
        assert not torch.equal(Speech(seeing).loss(one)[0], Speech(seeing).loss(other)[0])
    assert Planner.load(run("plan", sight="none", steps=1) / "planner").config.sight == "none"
    with pytest.raises(ValueError, match="align learns to see, and this planner is blind"):
        run("align", sight="none", steps=1)


@pytest.mark.parametrize("kind", ["ungrounded", "none"])
def test_the_thought_asked_for_is_trained_and_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made: list[ConversationSampler] = []

    def keep(*arguments: Any, **more: Any) -> ConversationSampler:
        made.append(ConversationSampler(*arguments, **more))
        return made[0]

    monkeypatch.setattr(stages_of_speech, "ConversationSampler", keep)
    folder = run("plan", thought=kind, steps=1)
    assert Planner.load(folder / "planner").config.thought == kind
    (plans,) = [turns for turns in made[0](0) if turns.kind == "plan"]
    assert all(a.startswith("1. " if kind == "none" else "Thought: ") for a in plans.answers)
    assert not any(" at (" in answer for answer in plans.answers)


def test_one_picture_is_trained_on_as_it_is_seen(
    run: Run, tiny_planner: Path, recorded_set: Path, features_dir: Path
) -> None:
    """From the cache of clips, yet the tokens of a clip of that picture alone."""
    planner = Planner.load(tiny_planner)
    usual = stages.load_datasets(planner, str(recorded_set), features_dir)
    planner.config = replace(planner.config, sight="picture")
    n_cached = len(list(features_dir.iterdir()))
    episodes = stages.load_datasets(planner, str(recorded_set), features_dir)
    assert len(list(features_dir.iterdir())) == n_cached
    reader = DatasetReader(recorded_set)
    for step in (2, 18, 31):
        shown = np.array([step - step % 2])
        frames = [reader.frames(0, c, shown) for c in planner.config.cameras]
        expected = planner.see(np.stack(frames)[None].repeat(8, axis=2))[0]
        got = torch.from_numpy(episodes[0].clip(step)).float()
        torch.testing.assert_close(got, expected, atol=5e-3, rtol=5e-3)
        assert np.array_equal(episodes[0].picture(step), usual[0].picture(step))
        assert not np.array_equal(episodes[0].clip(step), usual[0].clip(step))
    assert Planner.load(run("plan", sight="picture", steps=1) / "planner").config == planner.config


def test_few_shot_learns_what_the_demonstrations_are_called_and_no_more(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[OwnWords] = []

    def keep(*arguments: Any) -> OwnWords:
        known.append(OwnWords(*arguments))
        return known[0]

    monkeypatch.setattr(stages_of_speech, "OwnWords", keep)
    folder = run("plan", few_shot=1, steps=1)
    assert checkpoint.load(folder / "planner")[1]["few_shot"] == 1
    (words,) = known
    tasks = [e.meta.task for e in words.episodes]
    assert len(tasks) == len(set(tasks)) and words.others.without  # type: ignore[attr-defined]
    assert set(tasks) <= set(words.others.without)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="--few_shot is for stage plan"):
        run("words", few_shot=1)


def test_few_shot_judges_failures_that_are_made_of_the_demonstrations(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Recorded] = []

    def keep(episodes: list[Recorded], *rest: Any, **more: Any) -> ConversationSampler:
        given.extend(episodes)
        return ConversationSampler(episodes, *rest, **more)

    monkeypatch.setattr(stages_of_speech, "ConversationSampler", keep)
    run("plan", few_shot=1, steps=1)
    demos, halts = [e for e in given if e.meta.success], [e for e in given if not e.meta.success]
    assert len(halts) == 4 * len(demos) > 0
    assert {e.meta.tag for e in halts} == {"stopped"}


@pytest.mark.parametrize("stage", ["align", "plan"])
def test_failures_are_made_of_successes_when_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    asked: list[tuple[int, int]] = []

    def keep(episodes: list[Recorded], n: int, seed: int) -> list[Recorded]:
        asked.append((n, seed))
        return with_halts(episodes, n, seed)

    monkeypatch.setattr(stages if stage == "align" else stages_of_speech, "with_halts", keep)
    run(stage, steps=1, halts=3, seed=7)
    run(stage, steps=1, seed=7)
    assert asked == [(3, 7), (0, 7)]
    with pytest.raises(ValueError, match="--halts must be 0 or more, got -1"):
        run(stage, steps=1, halts=-1)


def test_a_mix_says_what_a_batch_is_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []

    def keep(episodes: Any, phrases: Any, of: tuple[int, ...], **more: Any) -> ConversationSampler:
        sizes.append(of)
        return ConversationSampler(episodes, phrases, of, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(stages_of_speech, "ConversationSampler", keep)
    run("plan", mix="1,0,1,6", batch_size=8, steps=1)
    assert sizes == [(1, 0, 1, 6)]
    with pytest.raises(ValueError, match="--mix is for stage plan"):
        run("words", mix="1,0,1,6")


def test_earlier_stages_are_remembered(
    run: Run, tiny_planner: Path, recorded_set: Path, tmp_path: Path
) -> None:
    """Those of the planner to start from, then those of the one whose adapter is taken."""
    old = tmp_path / "old"  # kept names without stages, and records apart
    Planner.load(tiny_planner).save(old, trained_on=["data/old", ""], records="my_videos")
    words = run("words", steps=1) / "planner"
    folder = run("plan", steps=1, model=old, adapter_from=words)
    stages = checkpoint.load(folder / "planner")[1]["trained_on"]
    plan = {"stage": "plan", "dataset": str(recorded_set)}
    assert stages == ["data/old", "my_videos", {"stage": "words"}, plan]
    again = run("plan", steps=1, model=folder / "planner", adapter_from=words)
    assert checkpoint.load(again / "planner")[1]["trained_on"] == [*stages, plan]


@pytest.mark.parametrize("mix", ["1,2,3", "1,2,3,four", "1,2,3,-4", "0,0,0,0", "1,2,3,4,5"])
def test_a_mix_is_four_numbers(run: Run, mix: str) -> None:
    with pytest.raises(ValueError, match="mix must be four numbers like 18,7,10,13, got"):
        run("plan", mix=mix, steps=1)


NONE, ALL = (False, False, False), (True, True, True)


def test_a_batch_without_records_is_what_it_has_always_been() -> None:
    assert plan_shares("", True, NONE).scaled(0) == ((18, 7, 10, 13), (0, 0, 0))
    assert plan_shares("", True, NONE).scaled(24) == ((9, 4, 5, 6), (0, 0, 0))
    assert plan_shares("1,0,1,6", True, NONE).scaled(0) == ((1, 0, 1, 6), (0, 0, 0))
    assert words_shares(NONE).scaled(0) == ((16, 0, 0, 0), (0, 0, 0))
    assert align_shares(True, True, NONE).scaled(0) == ((48, 12, 16, 0), (0, 0, 0))
    assert align_shares(False, True, NONE).scaled(0) == ((0, 20, 28, 40), (0, 0, 0))


def test_with_records_all_uses_together_make_the_batch() -> None:
    shares = [
        plan_shares("", True, ALL),
        plan_shares("", False, (True, False, True)),
        plan_shares("2,7,1,9", False, ALL),
        words_shares(ALL),
        align_shares(True, True, ALL),
        align_shares(False, False, (True, False, False)),
    ]
    for share in shares:
        for total in (8, 31, 64):
            assert sum(map(sum, share.scaled(total))) == total
    assert plan_shares("", False, (True, False, True)) == ((16, 0, 0, 0), (6, 0, 6))
    assert words_shares(ALL) == ((16, 0, 0, 0), (0, 0, 12))
    assert align_shares(False, False, (True, True, False)) == ((0, 0, 0, 0), (8, 8, 0))


def test_a_mix_is_of_records_where_there_are_no_episodes() -> None:
    assert plan_shares("0,6,4,8", False, ALL) == ((0, 0, 0, 0), (6, 4, 8))
    assert plan_shares("3,6,4,8", False, (True, False, True)) == ((3, 0, 0, 0), (6, 0, 8))
    assert plan_shares("3,6,4,8", True, ALL) == ((3, 6, 4, 8), (6, 4, 6))
    assert plan_shares("3,6,4,8,1,0,2", True, ALL) == ((3, 6, 4, 8), (1, 0, 2))
    with pytest.raises(ValueError, match="mix must be four numbers like 18,7,10,13, got '1,2,3,4,"):
        plan_shares("1,2,3,4,5,6,7", False, ALL)
    with pytest.raises(ValueError, match="13, or seven like 18,7,10,13,6,4,6, got '1,2,3'"):
        plan_shares("1,2,3", True, ALL)
    with pytest.raises(ValueError, match="--mix 0,0,5,0 leaves nothing to learn: no record has"):
        plan_shares("0,0,5,0", False, (True, False, True))


def test_the_saved_planner_is_the_trained_one(straight: tuple[str, Path, Planner]) -> None:
    _, folder, planner = straight
    rounded = {k: v.bfloat16().float() for k, v in planner.trained_tensors().items()}
    again = Planner.load(folder / "planner")
    assert again.config == planner.config and not again.training
    assert _same({k: v.float() for k, v in again.trained_tensors().items()}, rounded)


def test_interrupted_and_resumed_is_exactly_the_same(
    straight: tuple[str, Path, Planner], run: Run, tmp_path: Path
) -> None:
    """Stopped in the third step, and started again from what was saved after the second."""
    stage, folder, _ = straight
    samplers: dict[str, Any] = {
        "align": AlignmentSampler,
        "heads": HeadsSampler,
        "places": PlacesSampler,
    }
    sampler = samplers.get(stage, ConversationSampler)
    draw = sampler.__call__

    def stop(self: Any, step: int) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return draw(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            run(stage, tmp_path)
    assert checkpoint.load(tmp_path / "training_state")[1]["next_step"] == 2
    assert not (tmp_path / "planner").exists()
    run(stage, tmp_path)
    for part in ("planner", "policy", "training_state")[:: 1 if stage == "align" else 2]:
        (mine, told), (theirs, meant) = (checkpoint.load(f / part) for f in (tmp_path, folder))
        assert _same(mine, theirs)
        assert told.get("figures") == meant.get("figures")


# --- the policy of stage align ----------------------------------------------------------------


def test_align_leaves_a_whole_agent(run: Run, tiny_planner: Path, recorded_set: Path) -> None:
    folder = run("align", steps=1, horizon=5, look_at=str(recorded_set))
    agent = load_agent(folder / "planner", folder / "policy")
    policy, former, config = load_policy(folder / "policy", agent.planner)
    assert former is agent.planner.former and policy.horizon == 5
    assert (policy.state_std > 0).all() and (policy.state_mean != 0).all()
    assert config["scenes"] == ["metaworld"] and config["agent"]["execute"] == 4
    assert agent.motors["metaworld"].retreat == tuple(config["agent"]["retreat"])


# --- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["align", "plan"])
def test_no_data_set_is_one_line(
    stage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", "--stage", stage, "--output_dir", str(tmp_path / "out")]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f"stage {stage}" in err and "--dataset" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("straight", ["words"], indirect=True)
def test_the_state_of_another_stage_is_refused(
    straight: tuple[str, Path, Planner], run: Run, tmp_path: Path
) -> None:
    shutil.copytree(straight[1], tmp_path, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="the state of another training: .* weights differ"):
        run("plan", tmp_path)


def test_one_policy_for_two_robots_is_refused() -> None:
    ids = ("metaworld/reach-v3", "kitchen/kettle", "metaworld/hammer-v3")
    episodes: list[Any] = [SimpleNamespace(meta=SimpleNamespace(env_id=env_id)) for env_id in ids]
    with pytest.raises(ValueError, match=r"one robot; these episodes are of \['kitchen', 'meta"):
        agent_settings(episodes)
    assert agent_settings(episodes[1:2])["retreat"] != agent_settings(episodes[:1])["retreat"]


# --- how the language model learns ------------------------------------------------------------


def test_answers_become_likelier_by_the_adapter_alone(tiny_planner: Path) -> None:
    """More than this the tiny model, whose base is random, cannot learn."""
    planner = Planner.load(tiny_planner)
    module, decoder = Speech(planner), planner.decoder
    answers = {"open the drawer": "drawer-open", "hit the nail": "hammer", "sing": "refuse"}
    prompts = [chat(ROUTE_PROMPT.format(instruction=said)) for said in answers]
    batch = [Turns("task", prompts, [*answers.values()])]

    def scores() -> Tensor:
        said = [*answers.values(), "window-close"]
        return torch.stack([decoder.score(None, prompt, said) for prompt in prompts])

    before = scores()
    adapter = [p for p in planner.llm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=0.005)
    for _ in range(60):
        loss, _ = module.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gain = scores() - before  # (prompts, answers)
    assert float(gain[:, :3].diagonal().mean()) > 0.5
    assert (gain[:, 0] > gain[:, 3]).all()  # of as many tokens, but never said
    assert all(p.grad is None for p in (*planner.former.parameters(), *module.mapping.parameters()))


@pytest.mark.parametrize("train_former", [False, True])
def test_answers_about_pictures_train_the_former_only_if_asked(
    tiny_planner: Path, train_former: bool
) -> None:
    planner = Planner.load(tiny_planner)
    planner.former.requires_grad_(train_former)
    module = Speech(planner, train_former)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 32, 32, 3), dtype=np.uint8)
    vision, texts = planner.see(pictures).float(), ["answer: is it open?", "answer: where?"]
    batch = [Turns("answer", [question_prompt("?")] * 2, ["yes", "at 1 2"], vision, texts)]
    loss, _ = module.loss(batch)
    loss.backward()
    reached = {name for name, p in planner.former.named_parameters() if p.grad is not None}
    trained = {name for name, _ in module.named_parameters() if name.startswith("former.")}
    if not train_former:
        assert not reached and not trained
    else:
        assert {"queries", "camera_embedding"} <= reached
        assert {f"former.{name}" for name in reached} <= trained
