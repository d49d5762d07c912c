"""The second opinion on clips, and how it is pooled with the language model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embodied.config import from_dict, preset, to_dict, with_verdict_head
from embodied.model.motion import MOTIONS, motion_text
from embodied.model.plan import likeliest_verdict, verdict_texts
from embodied.model.planner import Planner
from embodied.model.verdict_head import HEAD_SHARE, VerdictHead, pooled
from embodied.types import STATUSES, Subgoal

REACH = Subgoal.parse("reach(hammer)")
N = len(verdict_texts())


@pytest.fixture
def judging() -> Planner:
    """A tiny planner with a fresh head."""
    torch.manual_seed(0)
    config = replace(with_verdict_head(preset("tiny")), judged=(REACH.text,))
    return Planner.build(config).eval()


def _tokens(planner: Planner, batch: int = 1) -> torch.Tensor:
    former = planner.config.former
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 2, 4, former.n_patches, former.vision_width, generator=generator)


# --- pooling -----------------------------------------------------------------------------------


def test_opinions_are_pooled_by_their_weights() -> None:
    chances = dict.fromkeys(verdict_texts(), 0.0)
    chances |= {"done: it is achieved": 0.5, "failed: nothing moves": 0.3}
    chances |= {"failed: the gripper stopped short": 0.2}
    same = pooled(chances, np.log([0.5, 1e-12, 0.5]).tolist())  # done, progressing, failed
    assert same == pytest.approx(chances, abs=1e-6)
    together = pooled(chances, np.log([0.8, 0.1, 0.1]).tolist())
    done, failed = (0.5 ** (1 - HEAD_SHARE) * head**HEAD_SHARE for head in (0.8, 0.1))
    assert sum(together.values()) == pytest.approx(1)
    assert together["done: it is achieved"] == pytest.approx(done / (done + failed))
    ratio = together["failed: nothing moves"] / together["failed: the gripper stopped short"]
    assert ratio == pytest.approx(1.5)


def test_the_reason_stays_the_language_models() -> None:
    chances = dict.fromkeys(verdict_texts(), 1.0)
    chances["failed: nothing moves"] = 1.5
    chances = {text: chance / (N + 0.5) for text, chance in chances.items()}
    verdict = likeliest_verdict(pooled(chances, [-50.0, -50.0, -1e-9]))
    assert (verdict.status, verdict.reason) == ("failed", "nothing moves")
    assert verdict.probability == pytest.approx(1)


def test_sure_opinions_do_not_make_nan() -> None:
    texts = verdict_texts()
    chances = {text: float(text == texts[0]) for text in texts}
    for sure in ([0.0, -900.0, -800.0], [-900.0, -800.0, 0.0]):
        together = pooled(chances, sure)
        assert together == pytest.approx(chances) and together[texts[0]] > 0.99


# --- the head ----------------------------------------------------------------------------------


def test_it_judges_each_clip_by_its_own_words_and_motion(judging: Planner) -> None:
    vision = _tokens(judging).expand(3, -1, -1, -1, -1)
    other = Subgoal.parse("grasp(hammer, gripper)")
    told = judging.second_opinion(vision, [REACH, other, REACH], ["moves", "moves", ""])
    assert told.shape == (3, len(STATUSES)) and told.dtype == torch.float32
    torch.testing.assert_close(told.exp().sum(1), torch.ones(3))
    alone = judging.second_opinion(vision[:1], [REACH], ["moves"])
    torch.testing.assert_close(told[:1], alone)
    assert not torch.allclose(told[0], told[1]) and not torch.allclose(told[0], told[2])


def test_it_says_every_motion_and_no_other(judging: Planner) -> None:
    still = np.zeros((15, 4), np.float32)
    slow, fast = still.copy(), still.copy()
    slow[-1], fast[-1] = 0.03, 0.3
    assert ("", *(motion_text(s) for s in (still, slow, fast))) == MOTIONS
    with pytest.raises(ValueError, match="tuple"):
        judging.second_opinion(_tokens(judging), [REACH], ["flies"])


def test_without_a_head_there_is_no_second_opinion(planner: Planner) -> None:
    with pytest.raises(ValueError, match="no verdict head; train one in stage heads"):
        planner.second_opinion(_tokens(planner), [REACH], [""])


def test_the_verdict_is_of_both(judging: Planner) -> None:
    head = judging.verdict_head
    assert isinstance(head, VerdictHead)
    vision = _tokens(judging)
    seen = set()
    for i, status in enumerate(STATUSES):
        with torch.no_grad():
            last = head.out[-1]
            last.weight.zero_()
            last.bias.copy_(torch.full((3,), -400.0).index_fill(0, torch.tensor(i), 0.0))
        verdict = judging.judge_tokens(vision, REACH, "moves")
        seen.add(verdict.status)
        assert verdict.status == status and verdict.probability > 0.99
    assert seen == set(STATUSES)
    with torch.no_grad():
        last.bias.zero_()
    both = judging.judge_tokens(vision, REACH, "moves")
    judging.config = replace(judging.config, judged=())
    alone = judging.judge_tokens(vision, REACH, "moves")
    assert (both.status, both.reason) == (alone.status, alone.reason)
    assert both.probability < alone.probability  # one who cannot tell makes the other less sure


def test_of_what_it_was_not_trained_on_the_language_model_alone_judges(judging: Planner) -> None:
    other = Subgoal.parse("grasp(hammer, gripper)")
    vision = _tokens(judging)
    before = judging.judge_tokens(vision, other), judging.judge_tokens(vision, REACH)
    with torch.no_grad():
        judging.verdict_head.out[-1].bias.add_(torch.tensor([5.0, 0.0, -5.0]))  # type: ignore[union-attr]
    after = judging.judge_tokens(vision, other), judging.judge_tokens(vision, REACH)
    assert before[0] == after[0] and before[1] != after[1]


# --- sizes and files ---------------------------------------------------------------------------


def test_its_former_sees_what_the_planners_does_and_is_smaller() -> None:
    for name in ("tiny", "small", "paper"):
        config = with_verdict_head(preset(name))
        head, whole = config.verdict_head, config.former
        assert head is not None and head.width % head.n_heads == 0 and head.width < whole.width
        for field in ("vision_width", "text_width", "n_patches", "max_frames", "max_cameras"):
            assert getattr(head, field) == getattr(whole, field)
        assert with_verdict_head(config) == config and from_dict(to_dict(config)) == config
    small = with_verdict_head(preset("small")).verdict_head
    assert small is not None
    assert 300_000 < sum(p.numel() for p in VerdictHead(small).parameters()) < 420_000


def test_it_is_saved_and_loaded_with_the_planner(judging: Planner, tmp_path: Path) -> None:
    judging.save(tmp_path / "planner")
    loaded = Planner.load(tmp_path / "planner")
    assert loaded.config == judging.config and loaded.verdict_head is not None
    vision = _tokens(judging)
    torch.testing.assert_close(
        loaded.second_opinion(vision, [REACH], ["moves"]),
        judging.second_opinion(vision, [REACH], ["moves"]),
        atol=2e-2,  # kept in bfloat16
        rtol=2e-2,
    )
    bare = replace(judging.config, verdict_head=None)
    assert "verdict_head" not in str(Planner.build(bare).trained_tensors().keys())
