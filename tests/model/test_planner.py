"""The planner as a whole: built from nothing, saved and loaded exactly, loud about damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from safetensors.torch import load_file, save_file

from embodied import checkpoint
from embodied.checkpoint import CONFIG, WEIGHTS, CheckpointError, write_manifest
from embodied.config import ModelConfig, from_dict, preset, to_dict
from embodied.model.decoding import Decoded
from embodied.model.llm import answer_loss, chat, make_batch
from embodied.model.plan import REASONS, REFUSE, parse_plan, steps_text
from embodied.model.planner import Planner, cameras_of, stack_cameras
from embodied.types import STATUSES, Observation, Subgoal, Vocabulary
from sims import kitchen_tasks, scenes

CATALOGUE = scenes.catalogue()
HAMMER = CATALOGUE["metaworld/hammer-v3"]


def _clip(seed: int = 0, frames: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (2, frames, 64, 64, 3), dtype=np.uint8)


def _rounded(planner: Planner) -> dict[str, torch.Tensor]:
    return {k: v.to(torch.bfloat16) for k, v in planner.trained_tensors().items()}


@pytest.fixture(scope="module")
def trained() -> Planner:
    """As after a training: adapter and mapping are not what they began as."""
    torch.manual_seed(7)
    planner = Planner.build(preset("tiny")).eval()
    for parameter in planner.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    planner.load_trained(_rounded(planner))  # what a checkpoint can hold
    return planner


@pytest.fixture(scope="module")
def saved(trained: Planner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "planner"
    trained.save(folder, figures={"loss": 1.0})
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint to be damaged."""
    target = tmp_path / "planner"
    target.mkdir()
    for path in saved.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


# --- building --------------------------------------------------------------------------------


def test_tiny_is_the_same_every_time_and_leaves_the_generator(
    planner: Planner, trained: Planner
) -> None:
    frozen = {n: p for n, p in trained.named_parameters() if not p.requires_grad}
    mine = dict(planner.named_parameters())
    assert frozen and all(torch.equal(p, mine[name]) for name, p in frozen.items())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    planner.vision.load("random:vit_tiny_patch16_224", 64, 2, torch.float32)
    assert torch.equal(torch.rand(1), expected)


def test_only_former_mapping_and_adapter_are_trained(planner: Planner) -> None:
    names = [n for n, p in planner.named_parameters() if p.requires_grad]
    assert {n.split(".")[0] for n in names} == {"former", "mapping", "llm"}
    assert all("lora_" in n for n in names if n.startswith("llm"))
    kept = {k.split(".")[0] for k in planner.trained_tensors()}
    assert kept == {"former", "mapping", "adapter"}
    n_kept = sum(v.numel() for v in planner.trained_tensors().values())
    assert n_kept == sum(p.numel() for p in planner.parameters() if p.requires_grad)


def test_visual_tokens_start_as_large_as_words(planner: Planner) -> None:
    words = planner.llm.get_input_embeddings().weight.std()
    vision = planner.see(_clip()[None])
    visual = planner.visual_tokens(vision, "plan: hit the nail")
    assert visual.shape == (1, 8, 64)
    assert 0.1 < float(visual.detach().std() / words) < 10


def test_gradients_reach_everything_that_is_trained() -> None:
    torch.manual_seed(0)
    planner = Planner.build(preset("tiny"))
    for name, parameter in planner.llm.named_parameters():
        if "lora_B" in name:  # as after the first step; before it, A is behind a zero
            parameter.data.normal_(std=0.1)
    vision = planner.see(_clip()[None])
    visual = planner.visual_tokens(vision, " ".join(["word"] * 96))
    batch = make_batch(planner.tokenizer, [chat("Plan.")], ["1. reach(hammer)"])
    answer_loss(planner.llm, visual, batch).backward()
    for name, p in planner.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == p.requires_grad, name


# --- saving and loading ----------------------------------------------------------------------


def test_load_gives_what_was_saved(trained: Planner, saved: Path, observation: Observation) -> None:
    loaded = Planner.load(saved)
    assert loaded.config == trained.config and not loaded.training
    before, after = trained.trained_tensors(), loaded.trained_tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    for told in ("", "grasp(hammer, gripper) failed: nothing moves."):
        plan = trained.plan(observation, "hit the nail", HAMMER, told)
        assert loaded.plan(observation, "hit the nail", HAMMER, told) == plan
    for subgoal in HAMMER.subgoals:
        assert loaded.judge(_clip(), subgoal) == trained.judge(_clip(), subgoal)
    assert checkpoint.load(saved)[1]["figures"] == {"loss": 1.0}


def test_config_survives_json() -> None:
    for name in ("tiny", "small", "paper"):
        config = preset(name)
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    some = replace(preset("tiny"), adapter=replace(preset("tiny").adapter, targets=("q_proj",)))
    assert from_dict(json.loads(json.dumps(to_dict(some)))) == some
    with pytest.raises(ValueError, match=r"unknown model options \['depth'\]; there are \['adapt"):
        from_dict({**to_dict(some), "depth": 3})


def _flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 16
    (folder / WEIGHTS).write_bytes(data)


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])


def _put_nan(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["mapping.bias"][5] = float("nan")
    save_file(tensors, folder / WEIGHTS)
    write_manifest(folder)


def _drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["mapping.bias"]
    save_file(tensors, folder / WEIGHTS)
    write_manifest(folder)


def _change_model(change: Callable[[ModelConfig], ModelConfig]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        values["model"] = to_dict(change(from_dict(values["model"])))
        (folder / CONFIG).write_text(json.dumps(values))
        write_manifest(folder)

    return damage


def _forget_model(folder: Path) -> None:
    (folder / CONFIG).write_text("{}")
    write_manifest(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_flip_a_bit, "model.safetensors is damaged: SHA-256"),
        (_cut, "model.safetensors is damaged: SHA-256"),
        (_put_nan, "has NaN or infinity in 'mapping.bias'"),
        (_drop_a_tensor, "1 tensors do not fit the model, the first is 'mapping.bias'"),
        (
            _change_model(lambda c: replace(c, former=replace(c.former, n_queries=4))),
            "1 tensors do not fit the model, the first is 'former.queries'",
        ),
        (
            _change_model(lambda c: replace(c, adapter=replace(c.adapter, rank=2))),
            "28 tensors do not fit the model, the first is 'adapter.base_model",
        ),
        (_forget_model, "holds no planner; give another folder"),
        (lambda folder: (folder / WEIGHTS).unlink(), "model.safetensors is missing"),
    ],
)
def test_damage_is_one_clear_line(copy: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(copy)
    with pytest.raises(CheckpointError) as caught:
        Planner.load(copy)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_adapter_comes_from_another_planner(
    copy: Path, planner: Planner, tmp_path: Path
) -> None:
    """`words` and `align` trained side by side, by other ranks; the rest is the first one's."""
    torch.manual_seed(5)
    other = Planner.build(replace(planner.config, adapter=replace(planner.config.adapter, rank=2)))
    other.save(tmp_path / "other")
    mixed = Planner.load(copy, adapter_from=tmp_path / "other")
    assert mixed.config.adapter.rank == 2
    mine, theirs = Planner.load(copy).trained_tensors(), other.trained_tensors()
    for name, tensor in mixed.trained_tensors().items():
        source = theirs if name.startswith("adapter.") else mine
        assert torch.equal(tensor.to(torch.bfloat16), source[name].to(torch.bfloat16)), name


def test_an_adapter_of_another_language_model_does_not_fit(copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    _change_model(lambda c: replace(c, llm="random:other"))(other)
    with pytest.raises(CheckpointError, match="adapts random:other, but"):
        Planner.load(copy, adapter_from=other)


def test_nan_is_never_saved(planner: Planner, tmp_path: Path) -> None:
    bias = planner.mapping.bias.data
    bias[0] = float("nan")
    try:
        with pytest.raises(CheckpointError, match="'mapping.bias' has NaN or infinity"):
            planner.save(tmp_path / "p")
    finally:
        bias[0] = 0.0
    assert not (tmp_path / "p").exists()


# --- seeing ----------------------------------------------------------------------------------


def test_pictures_and_clips_become_tokens(planner: Planner) -> None:
    frames = _clip()[None]
    assert planner.see(frames).shape == (1, 2, 4, 16, 192)
    one = planner.see(frames[:, :, :1])
    assert one.shape == (1, 2, 1, 16, 192)
    still = planner.see(frames[:, :, :1].repeat(8, axis=2))
    for tubelet in still.unbind(2):
        torch.testing.assert_close(tubelet, one[:, :, 0], atol=1e-4, rtol=1e-4)
    other = planner.see(frames[:, ::-1, :1])
    torch.testing.assert_close(other.flip(1), one)


def test_larger_pictures_are_averaged_down(planner: Planner) -> None:
    frames = _clip(frames=1)[None]
    large = frames.repeat(2, axis=3).repeat(2, axis=4)
    torch.testing.assert_close(planner.see(large), planner.see(frames))


def test_missing_camera_names_what_is_needed(planner: Planner, observation: Observation) -> None:
    half = Observation({"workspace": observation.images["workspace"]}, observation.state)
    needs = r"needs the cameras \['workspace', 'wrist'\], got \['workspace'\]"
    with pytest.raises(ValueError, match=needs):
        planner.plan(half, "hit the nail", HAMMER)
    assert stack_cameras([observation] * 3, ("wrist",)).shape == (1, 1, 3, 64, 64, 3)


def test_another_robots_cameras_take_the_same_places() -> None:
    assert cameras_of(("workspace", "wrist"), ("wrist", "workspace", "left")) == (
        "workspace",
        "wrist",
    )
    assert cameras_of(("workspace", "wrist"), ("overview", "wrist")) == ("overview", "wrist")
    assert cameras_of(("workspace", "wrist"), ("overview", "wrist", "left")) == (
        "overview",
        "wrist",
    )
    needs = r"needs the cameras \['workspace', 'wrist'\], got \['left'\]"
    with pytest.raises(ValueError, match=needs):
        cameras_of(("workspace", "wrist"), ("left",))


def test_texts_are_padded_and_cut(planner: Planner) -> None:
    texts = ["do: reach(nut)", "plan: " + "again " * 200]
    embedded, mask = planner.embed_texts(texts)
    n = len(planner.tokenizer(texts[0]).input_ids)
    assert embedded.shape == (2, 96, 64) and mask.sum(1).tolist() == [n, 96]
    alone, _ = planner.embed_texts(texts[:1])
    assert torch.equal(embedded[:1, :n], alone) and not alone.requires_grad
    planner.former.encode_text(embedded, mask)


# --- saying ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["assembly", "door-lock", "reach", "stick-pull", "sweep-into"])
def test_every_plan_can_be_carried_out(
    planner: Planner, observation: Observation, task: str
) -> None:
    vocabulary = CATALOGUE[f"metaworld/{task}-v3"]
    plan = planner.plan(observation, "please tidy up", vocabulary)
    assert plan.refused is None and set(plan.subgoals) <= set(vocabulary.subgoals)
    assert parse_plan(plan.text, plan.instruction, vocabulary) == plan


@pytest.mark.parametrize("n_tasks", [4, 5, 6, 7])
def test_every_task_of_a_long_row_has_room_for_its_steps(
    planner: Planner,
    observation: Observation,
    monkeypatch: pytest.MonkeyPatch,
    n_tasks: int,
) -> None:
    """A model that says what it should is let to, the kettle's three steps among them."""
    tasks = kitchen_tasks.TASKS[:n_tasks][::-1]
    answers = [
        f"Thought: gripper at (1, 2).\n{steps_text(kitchen_tasks.SUBGOALS[t])}" for t in tasks
    ]
    words = from_tokenizer(planner.tokenizer, n_vocab=len(planner.tokenizer))

    def decode(visual: Any, prompt: str, grammar: str) -> Decoded:
        answer = answers.pop(0)
        tokens = [*planner.tokenizer(answer).input_ids, planner.tokenizer.eos_token_id]
        matcher = LLMatcher(words, LLMatcher.grammar_from_lark(grammar))
        assert matcher.validate_tokens(tokens) == len(tokens)
        return Decoded(answer, 0.0)

    monkeypatch.setattr(planner, "decoder", SimpleNamespace(decode=decode))
    kitchen = CATALOGUE["kitchen"]
    plan = planner.plan(observation, "all of it", kitchen, tasks=tasks)
    assert plan.subgoals == kitchen_tasks.plan_subgoals(tasks) and plan.tasks == tasks
    assert parse_plan(plan.text, "all of it", kitchen.narrowed(tasks)) == plan


def test_all_seven_tasks_are_planned_whatever_the_model_says(
    planner: Planner, observation: Observation
) -> None:
    kitchen, tasks = CATALOGUE["kitchen"], kitchen_tasks.TASKS
    plan = planner.plan(observation, "all of it", kitchen, tasks=tasks)
    owners = [kitchen.owner(subgoal) for subgoal in plan.subgoals]
    assert tuple(dict.fromkeys(owners)) == tasks


def test_plans_depend_on_what_is_seen_asked_and_learnt(
    trained: Planner, observation: Observation
) -> None:
    black = {name: image * 0 for name, image in observation.images.items()}
    plans = [
        trained.plan(observation, "hit the nail", HAMMER),
        trained.plan(Observation(black, observation.state), "hit the nail", HAMMER),
        trained.plan(observation, "give me the hammer", HAMMER),
        trained.plan(observation, "hit the nail", HAMMER, "reach(hammer) failed: nothing moves."),
    ]
    assert len({plan.text for plan in plans}) > 1
    assert plans[0] == trained.plan(observation, "hit the nail", HAMMER)


def test_verdicts(planner: Planner) -> None:
    seen = set()
    for seed in range(6):
        verdict = planner.judge(_clip(seed), HAMMER.subgoals[seed % 3])
        assert verdict.status in STATUSES and verdict.reason in REASONS[verdict.status]
        assert 1 / 3 <= verdict.probability <= 1
        seen.add(verdict.probability)
    assert len(seen) > 1
    tokens = planner.see(_clip()[None])
    assert planner.judge_tokens(tokens, HAMMER.subgoals[0]) == planner.judge(
        _clip(), HAMMER.subgoals[0]
    )


# --- ablations -------------------------------------------------------------------------------


def test_a_config_from_before_there_were_ablations_is_of_none() -> None:
    values = json.loads(json.dumps(to_dict(preset("tiny"))))
    del values["thought"], values["sight"]
    assert from_dict(values) == preset("tiny")
    config = replace(preset("tiny"), thought="none", sight="picture")
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config != preset("tiny")


@pytest.mark.parametrize("kind", ["grounded", "ungrounded", "none"])
@pytest.mark.parametrize("tasks", [["kettle"], ["kettle", "microwave"]])
def test_plans_have_the_thought_that_the_planner_is_for(
    trained: Planner,
    observation: Observation,
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    tasks: list[str],
) -> None:
    monkeypatch.setattr(trained, "config", replace(trained.config, thought=kind))
    vocabulary = CATALOGUE["kitchen"]
    plan = trained.plan(observation, "tidy up", vocabulary, tasks=tasks)
    assert parse_plan(plan.text, "tidy up", vocabulary.narrowed(tasks), kind) == plan
    assert plan.thought.startswith("Thought: ") == (kind != "none")
    assert ("(" in plan.thought) == (kind == "grounded")


def test_one_picture_is_a_clip_of_nothing_but_it(
    trained: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, subgoal = _clip(3), HAMMER.subgoals[0]
    still = clip[:, -1:].repeat(8, axis=1)
    expected, usual = trained.judge(still, subgoal), trained.judge(clip, subgoal)
    said = trained.answer(still, "where is it?")
    monkeypatch.setattr(trained, "config", replace(trained.config, sight="picture"))
    assert trained.judge(clip, subgoal) == expected != usual
    assert trained.answer(clip, "where is it?") == said


def test_the_blind_see_black_pictures_whatever_there_is(
    trained: Planner, observation: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    subgoal, black = HAMMER.subgoals[0], np.zeros_like(_clip())
    dark = Observation({k: v * 0 for k, v in observation.images.items()}, observation.state)
    expected = trained.judge(black, subgoal).probability
    plan = trained.plan(dark, "hit the nail", HAMMER)
    seen = {trained.judge(_clip(seed), subgoal).probability for seed in range(2)}
    assert len(seen) == 2
    monkeypatch.setattr(trained, "config", replace(trained.config, sight="none"))
    for seed in range(2):
        found = trained.judge(_clip(seed), subgoal).probability
        assert found == pytest.approx(expected, abs=1e-4)
    assert trained.plan(observation, "hit the nail", HAMMER) == plan
    assert trained.answer(_clip(0), "what?") == trained.answer(_clip(1), "what?")
    assert trained.answer(_clip(0)[:1], "what?")  # one camera, as of a video


# --- routing ---------------------------------------------------------------------------------


def _knowing(planner: Planner, monkeypatch: pytest.MonkeyPatch, **chances: float) -> None:
    """Make the language model give these chances to tasks (with _ for -), and little to others."""
    known = {name.replace("_", "-"): chance for name, chance in chances.items()}

    def score(visual: Any, prompt: str, options: list[str], closed: list[bool]) -> torch.Tensor:
        assert visual is None and "Instruction: do it" in prompt and options[-1] == REFUSE
        return torch.tensor([known.get(option, 1e-6) for option in options]).log()

    monkeypatch.setattr(planner, "decoder", SimpleNamespace(score=score))


def test_route_names_the_likeliest_task(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    _knowing(planner, monkeypatch, drawer_open=0.6, drawer_close=0.3, refuse=0.1)
    route = planner.route("do it", CATALOGUE)
    assert (route.env_id, route.tasks) == ("metaworld/drawer-open-v3", ("drawer-open",))
    assert route.refused is None and route.nearest[:2] == ("drawer-open", "drawer-close")
    assert route.probability == pytest.approx(0.6, abs=1e-3)


def test_route_refuses_in_words(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    _knowing(planner, monkeypatch, drawer_open=0.15, hammer=0.05, refuse=0.8)
    route = planner.route("do it", CATALOGUE)
    assert (route.env_id, route.tasks) == (None, ())
    assert route.refused is not None
    assert "no scene can do 'do it'; the nearest are: drawer-open, hammer" in route.refused
    assert route.probability == pytest.approx(0.8, abs=1e-3)


def test_route_in_the_scene_at_hand(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    _knowing(planner, monkeypatch, button_press=0.6, button_press_topdown=0.3, refuse=0.1)
    fits = planner.route("do it", CATALOGUE, "metaworld/button-press-topdown-v3")
    assert fits.tasks == ("button-press-topdown",) and fits.refused is None
    odd = planner.route("do it", CATALOGUE, "metaworld/hammer-v3")
    assert odd.refused is not None and odd.env_id is None
    assert odd.refused.startswith("metaworld/hammer-v3 offers hammer, and 'do it' is not that")


def test_route_with_the_models_own_likelihoods(planner: Planner) -> None:
    few = {
        e: CATALOGUE[e] for e in ("metaworld/hammer-v3", "metaworld/reach-v3", "metaworld/sweep-v3")
    }
    route = planner.route("hit the nail", few)
    assert set(route.nearest) == {"hammer", "reach", "sweep"} and 0 < route.probability < 1
    assert (route.refused is None) == (route.env_id in few)


def test_a_vocabulary_of_one_sub_goal(planner: Planner, observation: Observation) -> None:
    only = Vocabulary(("reach",), (Subgoal("reach", ("goal",)),))
    assert set(planner.plan(observation, "go", only).subgoals) == set(only.subgoals)
