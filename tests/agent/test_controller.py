"""What the controller feeds a policy and does with its chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embodied.agent.controller import Controller
from embodied.config import preset
from embodied.model.former import EmbodiedFormer
from embodied.types import Fed, Observation, Subgoal

CONFIG = preset("tiny")
Q, D, C = CONFIG.former.n_queries, CONFIG.former.width, CONFIG.former.vision_width
REACH, PULL = Subgoal("reach", ("nut",)), Subgoal("pull", ("drawer handle",))


class Planner:
    """Its vision tokens are how bright each camera's picture is."""

    config = CONFIG

    def __init__(self) -> None:
        self.n_looks = 0

    def see(self, frames: np.ndarray) -> Tensor:
        self.n_looks += 1
        bright = torch.from_numpy(frames).float().mean((3, 4, 5))[..., None] / 255
        tokens = torch.zeros(*bright.shape[:3], 16, C)
        tokens[..., 0], tokens[..., 1] = bright, bright.square()
        return tokens

    def embed_texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        words = torch.zeros(1, 30, 64)
        for place, letter in enumerate(texts[0].encode()[:30]):
            words[0, place, letter % 64] = 1.0
        return words, words.any(2)


class Policy:
    """Remembers what it was fed; says in which look, and for which of its steps, it speaks."""

    horizon = 6

    def __init__(self, fed: Fed, ensemble: float | None = None) -> None:
        self.fed, self.ensemble = fed, ensemble
        self.given: list[tuple[Tensor, Tensor, Tensor]] = []
        self.noise: list[float] = []

    def act(
        self, z_instance: Tensor, z_global: Tensor, state: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        self.given.append((z_instance, z_global, state))
        self.noise.append(float(torch.rand((), generator=generator)))
        actions = 10.0 * len(self.given) + torch.arange(6.0)
        return actions[None, :, None], torch.zeros(1)


def _observation(workspace: int = 51, wrist: int = 102, state: float = 0.5) -> Observation:
    pictures = {"workspace": workspace, "wrist": wrist}
    images = {n: np.full((8, 8, 3), value, np.uint8) for n, value in pictures.items()}
    return Observation(images, np.full(4, state, np.float32))


def _controller(fed: Fed, execute: int = 4, ensemble: float | None = None) -> Any:
    torch.manual_seed(0)
    former = EmbodiedFormer(CONFIG.former).eval()
    planner: Any = Planner()
    controller: Any = Controller(planner, former, Policy(fed, ensemble), execute)
    controller.begin(REACH)
    return controller


def _fed(fed: Fed, *, subgoal: Subgoal = REACH, **seen: int) -> tuple[Tensor, Tensor]:
    controller = _controller(fed)
    controller.begin(subgoal)
    controller.act(_observation(**seen))
    z_instance, z_global, state = controller._policy.given[0]
    assert z_instance.shape == (1, Q, D) and torch.equal(state, torch.full((1, 4), 0.5))
    return z_instance, z_global


def test_receding_horizon_and_nothing_else_without_ensembling() -> None:
    controller = _controller(Fed(), execute=4)
    actions = [float(controller.act(_observation()).action[0]) for _ in range(9)]
    assert actions == [10, 11, 12, 13, 20, 21, 22, 23, 30]


def test_ensembling_averages_and_forgets_with_the_sub_goal() -> None:
    controller = _controller(Fed(), execute=2, ensemble=0.0)
    actions = [float(controller.act(_observation()).action[0]) for _ in range(4)]
    assert actions == [10, 11, (12 + 20) / 2, (13 + 21) / 2]
    controller.begin(PULL)
    assert float(controller.act(_observation()).action[0]) == 30


def test_what_each_baseline_sees() -> None:
    whole, bright = _fed(Fed())
    assert bright[0, 0] == pytest.approx(0.2) and bright[0, C] == pytest.approx(0.4)
    for features in ("r3m", "global"):
        z_instance, z_global = _fed(Fed(features))
        assert not z_instance.any() and torch.equal(z_global, bright)
    for features in ("state", "oracle"):
        z_instance, z_global = _fed(Fed(features))
        assert not z_instance.any() and not z_global.any() and z_global.shape == bright.shape
    z_instance, z_global = _fed(Fed("blind"))
    assert not z_global.any()
    assert torch.equal(z_instance, _fed(Fed("blind"), workspace=250)[0])
    assert torch.equal(z_instance, _fed(Fed(), workspace=0, wrist=0)[0])
    assert not torch.equal(z_instance, whole)
    assert not torch.equal(z_instance, _fed(Fed("blind"), subgoal=PULL)[0])  # it hears


def test_words_are_taken_away_from_a_policy_that_never_had_any() -> None:
    told, deaf = (_fed(Fed(ablate=a))[0] for a in ("none", "plan_zeroed"))
    other, still_deaf = (_fed(Fed(ablate=a), subgoal=PULL)[0] for a in ("none", "plan_zeroed"))
    assert torch.equal(deaf, still_deaf)
    assert not torch.equal(told, other) and not torch.equal(told, deaf)


def test_cameras_in_the_order_of_training() -> None:
    _, both = _fed(Fed())
    _, swapped = _fed(Fed(cameras=("wrist", "workspace")))
    _, wrist = _fed(Fed(cameras=("wrist",)))
    assert torch.equal(swapped, torch.cat([both[:, C:], both[:, :C]], dim=1))
    assert torch.equal(wrist, both[:, C:])


@pytest.mark.parametrize("features", ["state", "oracle", "blind"])
def test_who_does_not_see_does_not_pay_for_it(features: Any) -> None:
    controller = _controller(Fed(features))
    for _ in range(12):
        controller.act(_observation())
    assert controller._planner.n_looks == (1 if features == "blind" else 0)


def test_what_is_drawn_depends_on_the_first_look_alone() -> None:
    def noise(**seen: Any) -> list[float]:
        controller = _controller(Fed())
        for _ in range(9):
            controller.act(_observation(**seen))
        return controller._policy.noise

    assert noise() == noise() and len(set(noise())) == 3
    assert noise(state=0.25)[0] != noise()[0] != noise(wrist=103)[0]


def test_a_baseline_without_words_has_no_plan_to_take_away() -> None:
    with pytest.raises(ValueError, match="'global' reads no plan: nothing to ablate"):
        Fed("global", ablate="plan_zeroed")
    with pytest.raises(ValueError, match="features are one of .* got 'smell'"):
        Fed("smell")  # type: ignore[arg-type]
