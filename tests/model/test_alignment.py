"""The joint training of former and policy: it learns, all of it, and only from what is known."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import policies
from embodied.egocot.former_batches import AlignmentBatch, FormerBatch
from embodied.model.alignment import Alignment, place_loss
from embodied.model.former import EmbodiedFormer, FormerConfig, text_states
from embodied.model.plan import N_PLACES

FORMER = FormerConfig(
    width=16,
    n_layers=2,
    n_heads=2,
    n_queries=4,
    vision_width=12,
    text_width=8,
    n_patches=4,
    max_text=5,
)
TEXTS = ["do: reach(nut)", "do: pull(drawer handle)"]


def _embed(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Five random word vectors a text, told by the text alone."""
    seeds = [torch.Generator().manual_seed(zlib.crc32(text.encode())) for text in texts]
    words = torch.stack([torch.randn(5, 8, generator=seed) for seed in seeds])
    return words, torch.ones(len(texts), 5, dtype=torch.bool)


def _module() -> Alignment:
    torch.manual_seed(0)
    policy = policies.make(
        "mlp", n_queries=4, width=16, global_width=24, horizon=3, query_width=8, hidden=32
    )
    return Alignment(EmbodiedFormer(FORMER), policy, _embed, n_cameras=2)


def _part(size: int, frames: int, seed: int) -> FormerBatch:
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(size, N_PLACES, 2, 2, generator=generator)
    places[0, 1] = math.nan
    texts = [TEXTS[i % 2] for i in range(size)]
    return FormerBatch(torch.randn(size, 2, frames, 4, 12, generator=generator), texts, places)


def _batch() -> AlignmentBatch:
    generator = torch.Generator().manual_seed(9)
    control = replace(
        _part(4, 1, 1),
        state=torch.randn(4, 4, generator=generator),
        actions=torch.rand(4, 3, 4, generator=generator) * 2 - 1,
        valid=torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool(),
        done=torch.tensor([1.0, 0.0, 0.0, 1.0]),
    )
    judge = replace(_part(3, 4, 3), verdict=torch.tensor([0, 1, 2]))
    answers = ["yes", "", "no", "the nut"]  # the second one is a position
    ask = replace(_part(4, 4, 5), texts=[f"answer: {i}?" for i in range(4)], answers=answers)
    ask = replace(ask, choices=frozenset({"yes", "no", "the nut", "of another share"}))
    return AlignmentBatch(control, _part(2, 1, 2), judge, ask)


def test_a_small_batch_is_learnt_by_heart() -> None:
    module, batch = _module(), _batch()
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    first, _ = module.loss(batch)
    for _ in range(80):
        loss, figures = module.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3 * float(first.detach())
    assert (
        figures["verdict_acc"] == figures["answer_acc"] == 1.0
        and figures["place"] < 0.1
        and figures["action"] < 0.2
    )


def test_gradients_reach_former_policy_and_heads() -> None:
    module = _module()
    module.loss(_batch())[0].backward()
    without = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    module, batch = _module(), _batch()
    total, figures = module.loss(batch)
    assert batch.judge is not None
    verdicts = module.verdicts(module.embody(batch.judge)).log_softmax(1)
    verdict = -float(verdicts[torch.arange(3), batch.judge.verdict].detach().mean())
    assert batch.ask is not None
    choices = sorted(batch.ask.choices)
    answers = module.answers(module.embody(batch.ask), choices).log_softmax(1).detach()
    known = [(0, "yes"), (2, "no"), (3, "the nut")]
    answer = -float(np.mean([answers[i, choices.index(said)] for i, said in known]))
    w = module.weights
    parts = figures["action"] + w.done * figures["done"] + w.places * figures["place"]
    assert float(total.detach()) == pytest.approx(
        parts + w.verdict * verdict + w.answer * answer, rel=1e-4
    )


def test_actions_beyond_the_episodes_end_do_not_count() -> None:
    module, batch = _module(), _batch()
    actions = batch.control.actions.clone()
    actions[~batch.control.valid] = 1e6
    other = replace(batch, control=replace(batch.control, actions=actions))
    assert module.loss(other)[1]["action"] == module.loss(batch)[1]["action"]


def test_control_alone_trains_no_verdicts() -> None:
    module = _module()
    loss, figures = module.loss(AlignmentBatch(_batch().control, None, None))
    loss.backward()
    assert set(figures) == {"action", "done", "place"}
    for name, p in module.named_parameters():
        assert (p.grad is None) == name.startswith(("verdict", "answer")), name


def test_unknown_places_do_not_count() -> None:
    rng = np.random.default_rng(0)
    guess, truth = rng.random((3, N_PLACES, 2, 2)), rng.random((3, N_PLACES, 2, 2))
    truth[rng.random((3, N_PLACES, 2)) < 0.4] = np.nan
    expected = float(np.nanmean(np.abs(guess - truth)))
    tensor = torch.from_numpy(guess).requires_grad_()
    loss = place_loss(tensor, torch.from_numpy(truth))
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert tensor.grad is not None and tensor.grad.isfinite().all()
    assert ((tensor.grad == 0) == torch.from_numpy(np.isnan(truth))).all()


def test_no_known_place_at_all_is_no_loss() -> None:
    guess = torch.rand(2, N_PLACES, 2, 2, requires_grad=True)
    loss = place_loss(guess, torch.full((2, N_PLACES, 2, 2), math.nan))
    loss.backward()
    assert float(loss.detach()) == 0 and guess.grad is not None and not guess.grad.any()


def test_each_text_is_encoded_once_and_lands_in_its_rows() -> None:
    former, asked = EmbodiedFormer(FORMER), []

    def embed(texts: list[str]) -> tuple[Tensor, Tensor]:
        asked.append(texts)
        return _embed(texts)

    texts = [TEXTS[1], TEXTS[0], TEXTS[1]]
    state = text_states(former, embed, texts)
    assert asked == [[TEXTS[1], TEXTS[0]]]
    plain = former.encode_text(*_embed(texts))
    for got, expected in zip(
        (*state.keys, *state.values), (*plain.keys, *plain.values), strict=True
    ):
        torch.testing.assert_close(got, expected)
    assert torch.equal(state.mask, plain.mask)
