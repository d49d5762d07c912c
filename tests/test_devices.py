"""Where networks compute: the choice of a device, and the whole path on one that is not the CPU's.

`pretend_gpu` stands in for a GPU; its numbers are the CPU's own, so results have to be equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretend_gpu import GPU, PretendGpu
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import policies
from embodied import devices
from embodied.agent.controller import Controller
from embodied.cli import start
from embodied.cli.assemble import load_agent, save_policy
from embodied.cli.baselines import NearestNeighbour, ZeroShot
from embodied.cli.finetune_plan import Speech
from embodied.cli.main import main
from embodied.cli.oracle import OraclePolicy
from embodied.config import preset
from embodied.egocot.build.generators import LocalModel
from embodied.egocot.conversations import Turns
from embodied.model import features
from embodied.model.plan import N_PLACES
from embodied.model.planner import Planner, plan_prompt, plan_text
from embodied.processes import Processes
from embodied.sharing import on_device
from embodied.types import FEATURES, Features, Fed, Observation, Subgoal
from embodied.weights.clip import OpenClip
from sims import scenes

ENV = "metaworld/drawer-open-v3"
WORDS = "open the drawer"
CPU = torch.device("cpu")
CLIP = np.random.default_rng(1).integers(0, 256, (2, 8, 64, 64, 3), dtype=np.uint8)
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")


def tiny(device: torch.device | None = None) -> Planner:
    torch.manual_seed(0)
    return Planner.build(preset("tiny"), device).eval()


@pytest.fixture(scope="module")
def here() -> Planner:
    return tiny()


@pytest.fixture(scope="module")
def there() -> Planner:
    with PretendGpu():
        return tiny(GPU)


@pytest.fixture
def gpu() -> Iterator[None]:
    with PretendGpu():
        yield


@pytest.fixture
def observation() -> Observation:
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for c in ("workspace", "wrist")}
    return Observation(images, rng.normal(size=4).astype(np.float32))


# --- the choice --------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_taken_where_there_is_one() -> None:
    chosen = {name: str(devices.pick(name)) for name in ("auto", "cpu", "cuda", "cuda:1")}
    assert chosen == {"auto": "cuda:0", "cpu": "cpu", "cuda": "cuda:0", "cuda:1": "cuda:1"}
    for name in ("cuda:2", "mps", "gpu"):
        with pytest.raises(ValueError, match=rf"no device '{name}' .*auto, cpu, cuda:0, cuda:1$"):
            devices.pick(name)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_cpu_is_taken_and_a_gpu_refused() -> None:
    assert devices.pick() == devices.pick("cpu") == CPU
    with pytest.raises(ValueError, match=r"takes auto, cpu; torch sees no GPU: check its driver"):
        devices.pick("cuda")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    "argv",
    [
        ["plan", WORDS],
        ["run", WORDS],
        ["evaluate", "--env", ENV, "--n_episodes", "1"],
        ["evaluate-plans", "--instructions", "FILE"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_device_that_is_not_there_is_told_in_one_line(
    argv: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "asked.jsonl").write_text('{"instruction": "open the drawer", "task": null}\n')
    argv = [str(tmp_path / "asked.jsonl") if word == "FILE" else word for word in argv]
    if argv[0] in ("run", "evaluate"):
        argv += ["--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--device", "cuda"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "embodied: there is no device 'cuda' here; --device takes auto, cpu" in err


# --- what stands in for a GPU ------------------------------------------------------------------


def test_the_stand_in_has_the_rules_of_torchs_own_fake_tensors() -> None:
    """Both let the same through, and refuse the same."""

    def outcomes(device: torch.device) -> list[bool]:
        one, other, layer = torch.ones(3, 3).to(device), torch.ones(3, 3), nn.Linear(3, 3)
        tries = {
            "same": lambda: one @ one,
            "a number from elsewhere": lambda: one * torch.tensor(2.0),
            "back": lambda: one.cpu() + other,
            "layer there": lambda: nn.Linear(3, 3, device=device)(one),
            "mixed": lambda: one + other,
            "mixed product": lambda: other @ one,
            "joined": lambda: torch.cat([one, other]),
            "layer here": lambda: layer(one),
            "input here": lambda: nn.Linear(3, 3, device=device)(other),
            "numpy": lambda: one.numpy(),
        }
        return [_works(attempt) for attempt in tries.values()]

    with FakeTensorMode():
        expected = outcomes(GPU)
    with PretendGpu():
        assert outcomes(GPU) == expected == [True] * 4 + [False] * 6


def _works(attempt: Any) -> bool:
    try:
        attempt()
    except RuntimeError:
        return False
    return True


# --- seeing, planning, judging, answering ------------------------------------------------------


@pytest.mark.usefixtures("gpu")
def test_all_of_a_planner_is_on_its_device(there: Planner) -> None:
    assert there.device == GPU
    assert {t.device for t in (*there.parameters(), *there.buffers())} == {GPU}


@pytest.mark.usefixtures("gpu")
def test_features_are_seen_on_the_device_and_kept_as_arrays(here: Planner, there: Planner) -> None:
    seen = there.see(CLIP[None])
    assert seen.device == GPU and torch.equal(seen.cpu(), here.see(CLIP[None]))
    pairs = CLIP[None, :, :2]
    tokens = features._tokens(there, pairs)
    assert isinstance(tokens, np.ndarray) and tokens.dtype == np.float16
    np.testing.assert_array_equal(tokens, features._tokens(here, pairs))


@pytest.mark.usefixtures("gpu")
def test_embodied_tokens_are_on_the_device_wherever_the_pictures_are(
    here: Planner, there: Planner
) -> None:
    words, mask = there.embed_texts([WORDS, "close it"])
    assert words.device == mask.device == GPU
    vision = here.see(CLIP[None])
    with torch.no_grad():
        expected = here.visual_tokens(vision, WORDS)
        for given in (vision, vision.to(GPU)):
            visual = there.visual_tokens(given, WORDS)
            assert visual.device == GPU and torch.equal(visual.cpu(), expected)


@pytest.mark.usefixtures("gpu")
def test_a_planner_says_the_same_there(
    here: Planner, there: Planner, observation: Observation
) -> None:
    scene, subgoal = scenes.catalogue()[ENV], Subgoal.parse("pull(drawer handle)")
    assert there.plan(observation, WORDS, scene) == here.plan(observation, WORDS, scene)
    assert there.judge(CLIP, subgoal, "stood still") == here.judge(CLIP, subgoal, "stood still")
    assert there.answer(CLIP, "what is it?") == here.answer(CLIP, "what is it?")
    few = {ENV: scene, "metaworld/reach-v3": scenes.catalogue()["metaworld/reach-v3"]}
    assert there.route(WORDS, few) == here.route(WORDS, few)


@pytest.mark.usefixtures("gpu")
def test_scores_come_back_to_the_cpu(here: Planner, there: Planner) -> None:
    options, closed = ["yes", "no", "yes and no", ""], [True, True, False, False]
    ours, theirs = (p.decoder.score(None, "Is it?", options, closed) for p in (there, here))
    assert ours.device == CPU and torch.equal(ours, theirs)
    assert theirs[3] == 0 and bool((theirs[:3] < 0).all())


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("part", ["vision", "former", "mapping", "llm"])
def test_a_part_that_stayed_behind_is_noticed(part: str, observation: Observation) -> None:
    planner = tiny(GPU)
    setattr(planner, part, getattr(tiny(), part))
    if part == "llm":
        planner.decoder._model = planner.llm
    with pytest.raises(RuntimeError, match="same device"):
        _say_much(planner, observation)


def _say_much(planner: Planner, observation: Observation) -> None:
    planner.decoder.speak(torch.zeros(1, 2, 64).to(GPU), WORDS, max_tokens=2)
    planner.plan(observation, WORDS, scenes.catalogue()[ENV])
    features.control_features(planner.former, planner.see(CLIP[None]), planner.text_state(WORDS))


@pytest.mark.usefixtures("gpu")
def test_words_that_stayed_behind_are_noticed(
    there: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embodied.model.decoding.device_of", lambda model: CPU)
    with pytest.raises(RuntimeError, match="same device"):
        there.decoder.speak(None, WORDS, max_tokens=2)


@pytest.mark.usefixtures("gpu")
def test_baselines_plan_there(there: Planner, observation: Observation) -> None:
    scene = scenes.catalogue()[ENV]
    torch.manual_seed(0)
    blind = ZeroShot.of(there.config, GPU).eval()
    assert blind.device == GPU and blind.plan(observation, WORDS, scene).subgoals
    meta: Any = type(
        "Meta", (), {"instruction": WORDS, "plan": there.plan(observation, WORDS, scene)}
    )
    episode: Any = type("Episode", (), {"meta": meta, "places": {}})
    nearest = NearestNeighbour(there, [episode])
    assert nearest.plan_tokens(torch.empty(0), "close it", scene).subgoals == meta.plan.subgoals


# --- acting ------------------------------------------------------------------------------------


def _policy(planner: Planner, kind: str, fed: Features = "former", state_size: int = 4) -> Any:
    torch.manual_seed(1)
    former = planner.config.former
    sizes = {"n_queries": former.n_queries, "width": former.width, "state_size": state_size}
    horizon = 1 if kind == "r3m" else 8
    policy = policies.make(
        kind, **sizes, global_width=planner.config.global_width, action_size=4, horizon=horizon
    )
    policy.fed = Fed(fed)
    return policy.eval()


def _actions(planner: Planner, policy: Any, observation: Observation) -> np.ndarray:
    controller = Controller(planner, planner.former, policy, execute=4)
    controller.begin(Subgoal.parse("reach(drawer handle)"))
    actions = [controller.act(observation).action for _ in range(6)]
    return np.stack(actions)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kind", policies.KINDS)
def test_every_policy_acts_the_same_there(
    kind: str, here: Planner, there: Planner, observation: Observation
) -> None:
    expected = _actions(here, _policy(here, kind), observation)
    actions = _actions(there, _policy(there, kind).to(GPU), observation)
    assert isinstance(actions, np.ndarray)
    np.testing.assert_array_equal(actions, expected)
    with pytest.raises(RuntimeError, match="same device"):
        _actions(there, _policy(there, kind), observation)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("fed", [f for f in FEATURES if f not in ("former", "oracle")])
def test_whatever_a_policy_is_fed(
    fed: Features, here: Planner, there: Planner, observation: Observation
) -> None:
    expected = _actions(here, _policy(here, "mlp", fed), observation)
    actions = _actions(there, _policy(there, "mlp", fed).to(GPU), observation)
    np.testing.assert_array_equal(actions, expected)


@pytest.mark.usefixtures("gpu")
def test_an_oracle_is_told_there(here: Planner, there: Planner, observation: Observation) -> None:
    places = np.random.default_rng(2).uniform(size=(N_PLACES, 2, 2)).astype(np.float32)
    told = []
    for planner, device in ((here, CPU), (there, GPU)):
        policy = _policy(planner, "mlp", "oracle", state_size=4 + places.size)
        oracle = OraclePolicy(policy.to(device))
        oracle.truth = lambda: places
        told.append(_actions(planner, oracle, observation))
    np.testing.assert_array_equal(told[0], told[1])


@pytest.mark.usefixtures("gpu")
def test_an_agent_is_loaded_there_whole_and_acts(
    here: Planner, observation: Observation, tmp_path: Path
) -> None:
    here.save(tmp_path / "planner")
    policy = _policy(here, "mlp")
    save_policy(tmp_path / "policy", policy, here.former, agent={"execute": 4})
    scene, acted = scenes.catalogue()[ENV], []
    for device in (CPU, GPU):
        agent = load_agent(tmp_path / "planner", tmp_path / "policy", device=device)
        networks: tuple[Any, ...] = (
            agent.planner,
            agent.motors["metaworld"].former,
            agent.motors["metaworld"].policy,
        )
        assert agent.motors["metaworld"].former is not agent.planner.former
        assert {p.device for network in networks for p in network.parameters()} == {device}
        plan = agent.planner.plan(observation, WORDS, scene)
        controller = agent._controllers["metaworld"]
        controller.begin(plan.subgoals[0])
        acted.append((plan, *(controller.act(observation).action.tolist() for _ in range(5))))
    assert acted[0] == acted[1]


# --- training ----------------------------------------------------------------------------------


def _turns(planner: Planner) -> Turns:
    vision = planner.see(CLIP[None]).detach().cpu().float()
    return Turns("plan", [plan_prompt(WORDS)], ["1. reach(it)"], vision, [plan_text(WORDS)])


@pytest.mark.usefixtures("gpu")
def test_a_loss_is_the_same_there(here: Planner) -> None:
    """Forward only: torch's engine for gradients asks the driver for the GPU."""
    losses = []
    for device in (CPU, GPU):
        loss, _ = Speech(tiny(device), train_former=True).loss(on_device([_turns(here)], device))
        assert loss.device == device and loss.requires_grad
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("gpu")
def test_a_frozen_former_is_fetched_for_the_loss(here: Planner) -> None:
    """With FSDP it is no part of what is moved."""
    module = Speech(tiny(GPU))
    module._planner[0].former = tiny().former
    loss, _ = module.loss(on_device([_turns(here)], GPU))
    assert loss.device == GPU


@pytest.mark.usefixtures("gpu")
def test_training_loads_a_planner_where_it_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    options = start.StartOptions(preset="tiny")
    for sharded, of_the_rest in ((False, GPU), (True, CPU)):
        processes = Processes(index=0, count=2, device=GPU, sharded=sharded)
        monkeypatch.setattr(start.Processes, "here", lambda p=processes: p)
        planner = start.planner_to_train(options)
        assert {p.device for p in planner.vision.parameters()} == {GPU}
        assert planner.see(CLIP[None]).device == GPU
        rest = (planner.former, planner.mapping, planner.llm)
        assert {p.device for part in rest for p in part.parameters()} == {of_the_rest}


def test_what_fsdp_does_not_move_is_loaded_in_its_place() -> None:
    """Quantised weights are not sharded: torch leaves them where they are."""
    sharded = Processes(index=1, count=2, device=torch.device("cuda", 1), sharded=True)
    assert str(sharded.loading_device(quantised=True)) == "cuda:1"
    assert sharded.loading_device(quantised=False) == CPU
    whole = replace(sharded, sharded=False)
    assert str(whole.loading_device()) == str(whole.loading_device(True)) == "cuda:1"


# --- data --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpu")
def test_a_local_model_answers_there() -> None:
    there = LocalModel("random:tiny", max_tokens=4, device=GPU)
    assert there("Say it.") == LocalModel("random:tiny", max_tokens=4)("Say it.")


class TinyClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.image, self.text = nn.Linear(12, 5), nn.Embedding(9, 5)

    def encode_image(self, pictures: Tensor) -> Tensor:
        return self.image(pictures.flatten(1))

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.text(ids).mean(1)


def _clip(device: torch.device) -> OpenClip:
    return OpenClip(
        "tiny",
        TinyClip().to(device),
        lambda picture: torch.from_numpy(np.asarray(picture, np.float32)),
        lambda texts: torch.tensor([[len(text) % 9, 1] for text in texts]),
        device,
    )


@pytest.mark.usefixtures("gpu")
def test_clip_scores_there() -> None:
    frames, texts = CLIP[0, :, :2, :2], ["one", "another"]
    there, here = _clip(GPU), _clip(CPU)
    np.testing.assert_array_equal(there.images(frames), here.images(frames))
    np.testing.assert_array_equal(there.texts(texts), here.texts(texts))


# --- a true one --------------------------------------------------------------------------------


@NEEDS_CUDA
def test_on_a_true_gpu(here: Planner, observation: Observation) -> None:
    device = devices.pick("cuda")
    planner, scene = tiny(device), scenes.catalogue()[ENV]
    seen = planner.see(CLIP[None])
    assert seen.device == device
    torch.testing.assert_close(seen.cpu(), here.see(CLIP[None]), atol=1e-2, rtol=1e-2)
    assert planner.plan(observation, WORDS, scene).subgoals
    assert planner.judge(CLIP, Subgoal.parse("pull(drawer handle)")).status
    actions = _actions(planner, _policy(planner, "diffusion").to(device), observation)
    assert np.isfinite(actions).all()
    module = Speech(planner, train_former=True)
    loss, _ = module.loss(on_device([_turns(here)], device))
    loss.backward()
    assert bool(loss.isfinite())
