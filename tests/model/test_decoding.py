"""Decoding: always within the grammar, the same with and without the cache, loud about NaN."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from torch import Tensor

from embodied.model.decoding import DecodingError, GrammarDecoder, TokenTree
from embodied.model.llm import chat
from embodied.model.plan import ThoughtKind, parse_plan, plan_grammar
from embodied.model.planner import Planner
from sims import scenes

CATALOGUE = scenes.catalogue()
TASKS = ["assembly", "drawer-open", "hammer", "pick-place-wall", "reach", "window-close"]
PROMPT = chat("Instruction: tidy up\nLook at the scene and plan.")


@pytest.fixture(scope="module")
def decoder(planner: Planner) -> GrammarDecoder:
    return planner.decoder


def _visual(seed: int = 0) -> Tensor:
    return torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_knows_nothing_still_plans(decoder: GrammarDecoder, task: str) -> None:
    vocabulary = CATALOGUE[f"metaworld/{task}-v3"]
    for visual in (None, _visual()):
        decoded = decoder.decode(visual, PROMPT, plan_grammar(vocabulary))
        assert parse_plan(decoded.text, "", vocabulary).text == decoded.text
        assert -math.inf < decoded.mean_logprob < 0


@pytest.mark.parametrize("kind", ["ungrounded", "none"])
@pytest.mark.parametrize("task", TASKS)
def test_it_plans_with_other_thoughts_and_with_none(
    decoder: GrammarDecoder, task: str, kind: ThoughtKind
) -> None:
    vocabulary = CATALOGUE[f"metaworld/{task}-v3"]
    decoded = decoder.decode(_visual(), PROMPT, plan_grammar(vocabulary, kind=kind))
    plan = parse_plan(decoded.text, "", vocabulary, kind)
    assert plan.text == decoded.text and bool(plan.thought) == (kind == "ungrounded")
    assert "(" not in plan.thought


def test_what_is_seen_changes_what_is_said(decoder: GrammarDecoder) -> None:
    grammar = plan_grammar(CATALOGUE["metaworld/drawer-open-v3"])
    said = {decoder.decode(_visual(seed), PROMPT, grammar).text for seed in range(4)}
    assert len(said) > 1


@torch.no_grad()
def _decode_without_cache(planner: Planner, visual: Tensor, grammar: str) -> tuple[str, float]:
    """The same choice rule, but the whole sequence is read anew for every token."""
    ids = planner.tokenizer(PROMPT, add_special_tokens=False).input_ids
    embed = planner.llm.get_input_embeddings()
    words = from_tokenizer(planner.tokenizer, n_vocab=len(planner.tokenizer))
    matcher = LLMatcher(words, LLMatcher.grammar_from_lark(grammar))
    mask = allocate_token_bitmask(1, words.vocab_size)
    said: list[int] = []
    chances: list[float] = []
    while not matcher.is_stopped():
        forced = matcher.compute_ff_tokens()
        if not forced:
            inputs = torch.cat([visual, embed(torch.tensor([ids + said]))], dim=1)
            logits = planner.llm(inputs_embeds=inputs).logits[0, -1]
            fill_next_token_bitmask(matcher, mask)
            allowed = np.unpackbits(mask[0].view(np.uint8), bitorder="little").astype(bool)
            logits[~torch.from_numpy(allowed)] = -math.inf
            forced = [int(logits.argmax())]
            chances.append(float(logits.log_softmax(0).max()))
        matcher.consume_tokens(forced)
        said += forced
    text = planner.tokenizer.decode(said, skip_special_tokens=True)
    return text, sum(chances) / len(chances)


def test_the_cache_changes_nothing(planner: Planner) -> None:
    grammar = plan_grammar(CATALOGUE["metaworld/bin-picking-v3"])
    decoded = planner.decoder.decode(_visual(1), PROMPT, grammar)
    text, mean_logprob = _decode_without_cache(planner, _visual(1), grammar)
    assert decoded.text == text
    assert decoded.mean_logprob == pytest.approx(mean_logprob, abs=1e-4)


@torch.no_grad()
def _logprob(planner: Planner, visual: Tensor | None, answer: str) -> float:
    """One option alone, without padding or cache: the sum over its tokens and the end."""
    tokenizer = planner.tokenizer
    head = tokenizer(PROMPT, add_special_tokens=False).input_ids
    tail = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    inputs = planner.llm.get_input_embeddings()(torch.tensor([head + tail]))
    if visual is not None:
        inputs = torch.cat([visual, inputs], dim=1)
    logprobs = planner.llm(inputs_embeds=inputs).logits[0].log_softmax(-1)
    first = inputs.shape[1] - len(tail) - 1
    return sum(float(logprobs[first + i, token]) for i, token in enumerate(tail))


@pytest.mark.parametrize("visual", [None, _visual()], ids=["words", "visual"])
def test_scores_equal_one_option_at_a_time(planner: Planner, visual: Tensor | None) -> None:
    options = ["reach", "button-press-topdown-wall", "refuse", "door-open"]
    scores = planner.decoder.score(visual, PROMPT, options)
    expected = [_logprob(planner, visual, option) for option in options]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-3, rtol=1e-4)
    swapped = planner.decoder.score(visual, PROMPT, options[::-1])
    torch.testing.assert_close(swapped.flip(0), scores, atol=1e-4, rtol=1e-5)


def test_a_tree_shares_what_is_alike() -> None:
    tree = TokenTree.of([[1, 2, 3], [1, 2, 4], [5, 3], [1, 2, 3, 6]])
    assert tree.tokens[1:] == [1, 2, 5, 3]  # the last tokens of whole sequences are not nodes
    assert tree.parents == [0, 0, 1, 0, 2]
    assert tree.positions(10).tolist() == [[*range(9), 9, 10, 11, 10, 12]]
    seen = (tree.mask(2, torch.float32)[0, 0] == 0).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 0, 1],
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_damaged_weights_are_noticed(planner: Planner, bad: float) -> None:
    model = copy.deepcopy(planner.llm)
    model.get_base_model().model.norm.weight.data[3] = bad
    decoder = GrammarDecoder(model, planner.tokenizer)
    for ask in (
        lambda: decoder.decode(None, PROMPT, 'start: "yes" | "no"'),
        lambda: decoder.score(None, PROMPT, ["yes", "no"]),
    ):
        with pytest.raises(DecodingError, match="NaN or infinity; its weights are damaged"):
            ask()


def test_no_end_in_sight(decoder: GrammarDecoder) -> None:
    with pytest.raises(DecodingError, match=r"no end within 4 tokens: '\w{4}"):
        decoder.decode(None, PROMPT, "start: /[a-z]{300}/", max_tokens=4)


def test_a_grammar_that_breaks_off_is_no_end(decoder: GrammarDecoder) -> None:
    with pytest.raises(DecodingError, match="grammar cannot be followed: .*[Tt]oo many"):
        decoder.decode(None, PROMPT, 'start: "a" start')


def test_grammar_that_does_not_compile(decoder: GrammarDecoder) -> None:
    with pytest.raises(ValueError, match="grammar does not compile"):
        decoder.decode(None, PROMPT, "start: nothing_of_the_kind")


# --- free words -------------------------------------------------------------------------------


@torch.no_grad()
def test_free_words_are_those_of_transformers_own_greedy_decoding(
    planner: Planner, decoder: GrammarDecoder
) -> None:
    ids = torch.tensor([planner.tokenizer(PROMPT, add_special_tokens=False).input_ids])
    words = planner.llm.get_input_embeddings()(ids)
    for visual in (None, _visual()):
        inputs = words if visual is None else torch.cat([visual, words], 1)
        wanted = planner.llm.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=planner.tokenizer.eos_token_id,
            pad_token_id=planner.tokenizer.pad_token_id,
        )[0]
        text = planner.tokenizer.decode(wanted, skip_special_tokens=True).strip()
        assert decoder.speak(visual, PROMPT, max_tokens=12) == text


def test_free_words_end_where_the_model_ends_them(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tokens and the end; without an end they are cut."""
    decoder = GrammarDecoder(planner.llm, planner.tokenizer)
    end = planner.tokenizer.eos_token_id
    script = [*planner.tokenizer("a nut", add_special_tokens=False).input_ids, end]

    def logits(n_said: int) -> Tensor:
        out = torch.zeros(len(planner.tokenizer))
        out[script[min(n_said, len(script) - 1)]] = 1
        return out

    monkeypatch.setattr(decoder, "_start", lambda *_: (logits(0), 0))
    monkeypatch.setattr(decoder, "_feed", lambda _, n: (logits(n + 1), n + 1))
    assert decoder.speak(None, PROMPT) == "a nut"
    script[-1] = script[0]
    assert decoder.speak(None, PROMPT, max_tokens=5) == "a nutaaa"


def test_an_answer_needs_one_camera_only(planner: Planner) -> None:
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (2, 8, 64, 64, 3), dtype=np.uint8)
    assert isinstance(planner.answer(clip[:1], "where is it?"), str)
    tokens = planner.see(clip[None])
    assert planner.answer(clip, "where is it?") == planner.answer_tokens(tokens, "where is it?")
