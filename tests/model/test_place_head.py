"""Where a plan's things are said to be, by a head of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embodied.config import from_dict, preset, to_dict
from embodied.model.place_head import PlaceHead
from embodied.model.plan import GRIPPER, parse_plan, parse_thought, plan_grammar
from embodied.model.planner import Planner
from sims import scenes

HAMMER = scenes.catalogue()["metaworld/hammer-v3"]
PLACES = {"hammer": (0.25, 0.5), "nail": (0.999, 1.0), GRIPPER: (0.0, 0.125)}


@pytest.fixture
def placing() -> Planner:
    """A tiny planner with a fresh place head."""
    torch.manual_seed(0)
    return Planner.build(replace(preset("tiny"), placed=("hammer", "nail"))).eval()


def _tokens(planner: Planner) -> torch.Tensor:
    former = planner.config.former
    return torch.randn(1, 2, 1, former.n_patches, former.vision_width)


def _seen(planner: Planner) -> tuple[torch.Tensor, torch.Tensor]:
    """Embodied tokens, and the vision tokens that they are of."""
    former = planner.config.former
    return torch.zeros(1, former.n_queries, former.width), _tokens(planner)


def _say(planner: Planner, points: list[float]) -> None:
    """Make the head say this whatever it sees: x and y of the first thing, the second, the hand."""
    assert planner.place_head is not None
    head = planner.place_head
    with torch.no_grad():
        for part in (head.guess.weight, head.correct.weight, head.correct.bias, head.centres):
            part.zero_()
        head.guess.bias.copy_(torch.tensor(points))


# --- the plan ----------------------------------------------------------------------------------


def test_only_what_the_head_says_can_be_in_the_thought(
    placing: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    _say(placing, [0.25, 0.5, 1.7, -0.3, 0.0, 0.125])
    grammars: list[str] = []
    decode = placing.decoder.decode

    def keep(visual: torch.Tensor, prompt: str, grammar: str) -> Any:
        grammars.append(grammar)
        return decode(visual, prompt, grammar)

    monkeypatch.setattr(placing.decoder, "decode", keep)
    plan = placing.plan_tokens(_tokens(placing), "hit the nail", HAMMER)
    meant = {"hammer": (0.25, 0.5), "nail": (1.0, 0.0), GRIPPER: (0.0, 0.125)}
    assert grammars == [plan_grammar(HAMMER, places=meant)] and plan.subgoals
    assert '"nail at (223, 0)"' in grammars[0]


def test_where_a_noun_is_unknown_the_language_model_places_all(placing: Planner) -> None:
    seen = _seen(placing)
    two = {"hammer", "nail", GRIPPER}
    assert set(placing._places(*seen, ("hammer", "nail", GRIPPER))) == two
    assert set(placing._places(*seen, ("nail", GRIPPER))) == {"nail", GRIPPER}
    assert placing._places(*seen, ("hammer", "ladle", GRIPPER)) == {}
    many = replace(placing.config, placed=("hammer", "nail", "ladle"))
    placing.config = many
    assert placing._places(*seen, ("hammer", "nail", "ladle", GRIPPER)) == {}
    assert Planner.build(preset("tiny"))._places(*seen, ("hammer", GRIPPER)) == {}


def test_one_thing_and_the_hand_come_from_their_own_outputs(placing: Planner) -> None:
    _say(placing, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    found = placing._places(*_seen(placing), (GRIPPER, "nail"))
    assert found["nail"] == pytest.approx((0.1, 0.2)) and found[GRIPPER] == pytest.approx(
        (0.5, 0.6)
    )


def test_it_is_saved_with_the_planner(placing: Planner, tmp_path: Path) -> None:
    placing.save(tmp_path / "planner")
    loaded = Planner.load(tmp_path / "planner")
    assert loaded.config == placing.config == from_dict(to_dict(placing.config))
    one, two = (p.place_head.state_dict() for p in (placing, loaded))  # type: ignore[union-attr]
    assert all(torch.equal(one[k].bfloat16().float(), two[k]) for k in one)


def test_it_points_at_the_patch_that_looks_like_what_is_asked_for() -> None:
    """The pointer alone, made by hand: one patch in a picture of 4 x 4 is unlike the others."""
    config = preset("tiny").former
    head = PlaceHead(config)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.key.weight[0, 0] = 1.0  # the first key entry is the first feature
        head.ask.bias[0] = 50.0  # and the first place asks for it
    for patch, (x, y) in {0: (0.125, 0.125), 6: (0.625, 0.375), 13: (0.375, 0.875)}.items():
        vision = torch.zeros(1, 2, 4, config.n_patches, config.vision_width)
        vision[0, 0, -1, patch, 0] = 1.0  # in the first camera's newest frame
        vision[0, 1, :, 2, 0] = vision[0, 0, 0, 3, 0] = 1.0  # not in the other or before
        places = head(torch.zeros(1, config.n_queries, config.width), vision)
        assert places[0, 0].tolist() == pytest.approx([x, y], abs=1e-3)
        assert places[0, 1].tolist() == pytest.approx([0.5, 0.5])  # who asks nothing points at all


# --- answers -----------------------------------------------------------------------------------


def test_a_place_in_an_answer_is_the_heads(
    placing: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    _say(placing, [0.25, 0.5, 0.1, 0.1, 0.9, 0.9])
    said = ["at (3, 200)"]
    monkeypatch.setattr(placing.decoder, "speak", lambda *_: said[0])
    clip = _tokens(placing).expand(-1, -1, 4, -1, -1)
    assert placing.answer_tokens(clip, "Where is the Hammer?") == "at (56, 112)"
    assert placing.answer_tokens(clip, "Where is the ladle?") == said[0]  # it never saw one
    said[0] = "out of view"
    assert placing.answer_tokens(clip, "Where is the hammer?") == said[0]
    said[0] = "at (3, 200)"
    placing.forget_places()
    assert placing.answer_tokens(clip, "Where is the hammer?") == said[0]


# --- the grammar -------------------------------------------------------------------------------


def test_known_places_are_the_only_ones_that_can_be_said() -> None:
    grammar = plan_grammar(HAMMER, places=PLACES)
    assert '"hammer at (56, 112)"' in grammar and '"nail at (223, 223)"' in grammar
    assert '"gripper at (0, 28)"' in grammar
    assert "NUM" not in grammar  # no number is free
    assert "NUM" in plan_grammar(HAMMER, places={"hammer": (0.25, 0.5)})
    assert "at (" not in plan_grammar(HAMMER, kind="ungrounded", places=PLACES)
    assert plan_grammar(HAMMER, places={}) == plan_grammar(HAMMER)


def test_they_read_back_as_they_were_said() -> None:
    plan = parse_plan("Thought: hammer at (56, 112).\n1. reach(hammer)", "hit", HAMMER)
    assert parse_thought(plan.thought)["hammer"] == pytest.approx((0.25, 0.5))
