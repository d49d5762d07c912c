"""The second opinion on answers, and how it is weighed with the language model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from embodied.config import from_dict, preset, to_dict, with_verdict_head
from embodied.model.answer_head import ANSWER_SHARE, N_WEIGHED, weighed
from embodied.model.planner import Planner

ANSWERS = ("no", "nothing", "opening the door", "reaching the puck", "the puck", "yes")
ASKED = "What is the robot doing?"


@pytest.fixture
def answering() -> Planner:
    """A tiny planner with a fresh head."""
    torch.manual_seed(0)
    return Planner.build(replace(with_verdict_head(preset("tiny")), answers=ANSWERS)).eval()


def _clips(planner: Planner, batch: int = 1) -> torch.Tensor:
    former = planner.config.former
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 2, 4, former.n_patches, former.vision_width, generator=generator)


def _always(monkeypatch: pytest.MonkeyPatch, planner: Planner, said: str, likes: str = "") -> None:
    """A language model that says this, and likes one of the answers as well."""
    monkeypatch.setattr(planner.decoder, "speak", lambda *_: said)

    def score(_: torch.Tensor, prompt: str, options: list[str]) -> torch.Tensor:
        assert ASKED in prompt and options[0] == said and len(options) <= N_WEIGHED + 1
        return torch.tensor([{said: -1.0, likes: -2.0}.get(option, -60.0) for option in options])

    monkeypatch.setattr(planner.decoder, "score", score)


def _sees(monkeypatch: pytest.MonkeyPatch, planner: Planner, **logits: float) -> None:
    """A head with these logits, 0 for the others."""
    row = torch.tensor([[logits.get(answer.replace(" ", "_"), 0.0) for answer in ANSWERS]])
    monkeypatch.setattr(planner, "answer_chances", lambda *_: row.log_softmax(1))


def test_opinions_are_pooled_by_their_weights() -> None:
    head = torch.tensor([0.5, 0.3, 0.2]).log()
    language = torch.tensor([0.1, 0.6]).log()  # of the last and of the first
    first = ANSWER_SHARE * head[0] + (1 - ANSWER_SHARE) * language[1]
    last = ANSWER_SHARE * head[2] + (1 - ANSWER_SHARE) * language[0]
    assert first > last and weighed(head, language, "abc", [2, 0]) == "a"
    assert weighed(head, torch.tensor([0.0, -30.0]), "abc", [2, 0]) == "c"
    assert weighed(head.flip(0), language, "abc", [2, 0]) == "c"


def test_it_reads_question_and_clip(answering: Planner) -> None:
    clips = _clips(answering, 2)
    told = answering.answer_chances(clips, [ASKED, ASKED])
    assert told.shape == (2, len(ANSWERS)) and told.dtype == torch.float32
    torch.testing.assert_close(told.exp().sum(1), torch.ones(2))
    torch.testing.assert_close(told[1:], answering.answer_chances(clips[1:], [ASKED]))
    other = answering.answer_chances(clips[:1], ["Is the door open?"])
    assert not torch.allclose(told[0], told[1]) and not torch.allclose(told[0], other[0])


def test_what_is_answered_is_of_both(answering: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    _always(monkeypatch, answering, "reaching the puck", likes="opening the door")
    clip = _clips(answering)
    _sees(monkeypatch, answering, opening_the_door=4.0)
    assert answering.answer_tokens(clip, ASKED) == "opening the door"
    _sees(monkeypatch, answering, reaching_the_puck=4.0)
    assert answering.answer_tokens(clip, ASKED) == "reaching the puck"
    _sees(monkeypatch, answering, the_puck=4.0)  # which is no answer to this question at all
    assert answering.answer_tokens(clip, ASKED) == "reaching the puck"


def test_answers_that_it_does_not_know_are_the_language_models(
    answering: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sees(monkeypatch, answering, yes=9.0)
    _always(monkeypatch, answering, "a cup of tea")
    assert answering.answer_tokens(_clips(answering), ASKED) == "a cup of tea"


def test_without_a_head_there_is_no_second_opinion(answering: Planner) -> None:
    answering.forget_answers()
    assert answering.config.answers == () and "answer_head" not in str(answering.trained_tensors())
    with pytest.raises(ValueError, match="no answer head; train one in stage heads"):
        answering.answer_chances(_clips(answering), [ASKED])


def test_it_is_saved_and_loaded_with_the_planner(answering: Planner, tmp_path: Path) -> None:
    answering.save(tmp_path / "planner")
    loaded = Planner.load(tmp_path / "planner")
    assert loaded.config == answering.config == from_dict(to_dict(answering.config))
    one, two = (p.answer_head.state_dict() for p in (answering, loaded))  # type: ignore[union-attr]
    assert all(torch.equal(one[k].bfloat16().float(), two[k]) for k in one)
