"""The plan language: text and plan are one, errors say where, the grammar yields plans only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from embodied.model.plan import (
    GRID,
    MAX_STEPS,
    REASONS,
    PlanError,
    ThoughtKind,
    grounded_nouns,
    join_thoughts,
    likeliest_verdict,
    parse_plan,
    parse_thought,
    plan_grammar,
    read_place,
    spoken_place,
    steps_text,
    thought_text,
    verdict_texts,
)
from embodied.types import MAX_SUBGOALS, STATUSES, Plan, Subgoal, Vocabulary
from sims import scenes

CATALOGUE = scenes.catalogue()
LONGEST = (
    "kettle",
    "hinge cabinet",
    "slide cabinet",
    "bottom burner",
)  # that one sentence asks for
CATALOGUE["kitchen"] = CATALOGUE["kitchen"].narrowed(LONGEST)
SCENES = pytest.mark.parametrize("env_id", list(CATALOGUE))
DRAWER = CATALOGUE["metaworld/drawer-open-v3"]
THOUGHT = "Thought: drawer handle at (104, 88), gripper at (70, 50)."


KINDS = pytest.mark.parametrize("kind", ["grounded", "ungrounded", "none"])


def _plan_text(vocabulary: Vocabulary, seed: int = 0, kind: ThoughtKind = "grounded") -> str:
    rng = np.random.default_rng(seed)
    places = {noun: tuple(rng.uniform(0, 1, 2)) for noun in grounded_nouns(vocabulary)}
    return f"{thought_text(places, kind)}\n{steps_text(vocabulary.subgoals)}".lstrip("\n")


# --- text and plan ---------------------------------------------------------------------------


@SCENES
def test_text_round_trip(env_id: str) -> None:
    vocabulary = CATALOGUE[env_id]
    text = _plan_text(vocabulary)
    plan = parse_plan(text, "do it", vocabulary)
    assert plan.text == text and plan.subgoals == vocabulary.subgoals
    assert (plan.instruction, plan.tasks, plan.refused) == ("do it", vocabulary.tasks, None)
    assert parse_plan(f"\n{text}\n", "do it", vocabulary) == plan


def test_the_shortest_and_the_longest_plan() -> None:
    for n in (1, MAX_SUBGOALS):
        steps = [DRAWER.subgoals[i % 2] for i in range(n)]
        plan = parse_plan(f"{THOUGHT}\n{steps_text(steps)}", "", DRAWER)
        assert plan.subgoals == tuple(steps)


def test_thought_round_trip() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        places = {noun: tuple(rng.uniform(0, 1, 2)) for noun in ("drawer handle", "nut", "gripper")}
        read = parse_thought(thought_text(places))
        assert list(read) == list(places)
        for noun, place in places.items():
            assert np.abs(np.subtract(read[noun], place)).max() < 1 / GRID


def test_a_place_in_an_answer_round_trip() -> None:
    rng = np.random.default_rng(0)
    for x, y in [(0.0, 0.0), (1.0, 1.0), *rng.random((50, 2)).tolist()]:
        assert read_place(f" {spoken_place(x, y)} ") == pytest.approx((x, y), abs=1 / GRID)
    assert spoken_place(0.5, 0.25) == "at (112, 56)" and spoken_place(1.0, 1.0) == "at (223, 223)"
    for other in ("out of view", "the puck at (3, 4)", "at (3, 4), I think", "at (1000, 4)"):
        assert read_place(other) is None


def test_thought_leaves_out_what_is_out_of_view() -> None:
    places = {"nut": (1.0, 0.5), "peg": (0.5, -0.01), "lid": (float("nan"), 0.5), "gripper": (0, 0)}
    assert thought_text(places) == "Thought: gripper at (0, 0)."
    assert thought_text({"nut": (2.0, 2.0)}) == "Thought: nothing in view."
    assert parse_thought("Thought: nothing in view.") == {}


@KINDS
@SCENES
def test_text_round_trip_of_every_kind(env_id: str, kind: ThoughtKind) -> None:
    vocabulary = CATALOGUE[env_id]
    text = _plan_text(vocabulary, kind=kind)
    plan = parse_plan(text, "do it", vocabulary, kind)
    assert plan.text == text and plan.subgoals == vocabulary.subgoals
    assert bool(plan.thought) == (kind != "none")
    assert bool(parse_thought(plan.thought)) == (kind == "grounded")


def test_a_thought_without_places_and_none_at_all() -> None:
    places = {"nut": (1.0, 0.5), "peg": (0.5, 0.1), "gripper": (0.0, 0.0)}
    assert thought_text(places, "ungrounded") == "Thought: peg, gripper."
    assert thought_text({"nut": (2.0, 2.0)}, "ungrounded") == "Thought: nothing in view."
    assert thought_text(places, "none") == ""


def test_thoughts_of_plans_that_follow_each_other_become_one() -> None:
    one, other = "Thought: nut at (1, 2), gripper at (3, 4).", "Thought: peg at (5, 6)."
    again = "Thought: gripper at (7, 8)."
    together = "Thought: nut at (1, 2), gripper at (7, 8), peg at (5, 6)."
    assert join_thoughts([one, other, again]) == together
    named = ["Thought: nut, gripper.", "Thought: nothing in view.", "Thought: peg, gripper."]
    assert join_thoughts(named, "ungrounded") == "Thought: nut, gripper, peg."
    assert join_thoughts(named[1:2], "ungrounded") == named[1]
    assert join_thoughts(["", ""], "none") == ""


def test_the_gripper_is_always_grounded_and_last() -> None:
    for vocabulary in CATALOGUE.values():
        nouns = grounded_nouns(vocabulary)
        assert nouns[-1] == "gripper" and len(set(nouns)) == len(nouns)
        assert set(vocabulary.nouns) <= set(nouns)


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected 'Thought: …', got ''"),
        ("1. reach(drawer handle)", "line 1: expected 'Thought: …', got '1. reach"),
        (THOUGHT, "expected 1 to 16 steps after the thought, got 0"),
        (f"{THOUGHT}\nreach(drawer handle)", "line 2: expected '1. verb(noun)', got 'reach("),
        (f"{THOUGHT}\n2. reach(drawer handle)", "line 2: expected '1. verb(noun)', got '2. "),
        (f"{THOUGHT}\n1. reach(drawer handle)\n\n2. x(y)", "line 3: expected '2. verb(noun)'"),
        (
            f"{THOUGHT}\n1. reach drawer",
            "line 2: expected a sub-goal like 'pull(drawer handle)', got",
        ),
        (f"{THOUGHT}\n1. reach()", "line 2: a sub-goal is verb(noun[, noun]), got 'reach' ('',)"),
        (f"{THOUGHT}\n1. reach(a, b, c)", "line 2: a sub-goal is verb(noun[, noun]), got"),
        (
            f"{THOUGHT}\n1. reach(drawer handle)\n2. push(drawer handle)",
            "line 3: the scene cannot push(drawer handle); it offers reach(drawer handle), pull(",
        ),
        (
            f"{THOUGHT}\n{steps_text(DRAWER.subgoals[:1] * 17)}",
            "expected 1 to 16 steps after the thought, got 17",
        ),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "", DRAWER)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected '1. verb(noun)', got ''"),
        (f"{THOUGHT}\n1. reach(drawer handle)", "line 1: expected '1. verb(noun)', got 'Thought"),
        ("1. reach(drawer handle)\n2. fly(moon)", "line 2: the scene cannot fly(moon); it offers"),
        (steps_text(DRAWER.subgoals[:1] * 17), "expected 1 to 16 steps, got 17"),
    ],
)
def test_errors_name_the_line_where_there_is_no_thought(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "", DRAWER, "none")
    assert message in str(caught.value)


# --- the grammar -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tokenizer: Any) -> LLTokenizer:
    return from_tokenizer(tokenizer, n_vocab=len(tokenizer))


def _matcher(words: LLTokenizer, grammar: str) -> LLMatcher:
    matcher = LLMatcher(words, LLMatcher.grammar_from_lark(grammar))
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def _random_walk(words: LLTokenizer, grammar: str, seed: int) -> list[int]:
    """Any token that is allowed, until the end."""
    rng, matcher = np.random.default_rng(seed), _matcher(words, grammar)
    mask = allocate_token_bitmask(1, words.vocab_size)
    tokens: list[int] = []
    while not matcher.is_stopped():
        fill_next_token_bitmask(matcher, mask)
        allowed = np.flatnonzero(np.unpackbits(mask[0].view(np.uint8), bitorder="little"))
        tokens.append(int(rng.choice(allowed)))
        assert matcher.consume_token(tokens[-1]) and len(tokens) < 1000
    return tokens


@KINDS
@SCENES
def test_random_walks_are_plans(
    env_id: str, kind: ThoughtKind, words: LLTokenizer, tokenizer: Any
) -> None:
    vocabulary = CATALOGUE[env_id]
    tokens = _random_walk(words, plan_grammar(vocabulary, kind=kind), seed=len(env_id))
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    plan = parse_plan(text, "", vocabulary, kind)
    assert plan.text == text
    assert set(parse_thought(plan.thought)) <= set(grounded_nouns(vocabulary))


def test_random_walks_differ_in_length_and_order(words: LLTokenizer, tokenizer: Any) -> None:
    grammar = plan_grammar(DRAWER)
    plans: list[Plan] = []
    for seed in range(12):
        tokens = _random_walk(words, grammar, seed)
        plans.append(parse_plan(tokenizer.decode(tokens, skip_special_tokens=True), "", DRAWER))
    assert len({len(plan.subgoals) for plan in plans}) >= 3
    assert {plan.subgoals[0] for plan in plans} == set(DRAWER.subgoals)


@KINDS
@SCENES
def test_what_is_taught_is_within_the_grammar(
    env_id: str, kind: ThoughtKind, words: LLTokenizer, tokenizer: Any
) -> None:
    """And nothing else is, the other kinds of thought included."""
    vocabulary = CATALOGUE[env_id]
    grammar = plan_grammar(vocabulary, kind=kind)
    tokens = [*tokenizer(_plan_text(vocabulary, kind=kind)).input_ids, tokenizer.eos_token_id]
    assert _matcher(words, grammar).validate_tokens(tokens) == len(tokens)
    other = Subgoal("polish", ("moon",))
    more = Vocabulary((vocabulary.tasks[0],), (*vocabulary.subgoals, other))
    kinds: tuple[ThoughtKind, ...] = ("grounded", "ungrounded", "none")
    wrong = [_plan_text(more, kind=kind)]
    wrong += [_plan_text(vocabulary, kind=k) for k in kinds if k != kind]
    for text in wrong:
        tokens = tokenizer(text).input_ids
        assert _matcher(words, grammar).validate_tokens(tokens) < len(tokens)


@SCENES
def test_the_longest_plan_ends_within_the_decoders_budget(env_id: str, tokenizer: Any) -> None:
    vocabulary = CATALOGUE[env_id]
    places = dict.fromkeys(grounded_nouns(vocabulary), (0.999, 0.999))
    longest = max(vocabulary.subgoals, key=lambda s: len(tokenizer(s.text).input_ids))
    steps = [longest] * min(MAX_STEPS, 2 * len(vocabulary.subgoals) + 1)
    text = f"{thought_text(places)}\n{steps_text(steps)}"
    assert len(tokenizer(text).input_ids) + 1 <= 256


def test_every_verdict_has_a_reason() -> None:
    assert tuple(REASONS) == STATUSES and all(REASONS.values())
    assert [t.partition(":")[0] for t in verdict_texts()] == [
        s for s in STATUSES for _ in REASONS[s]
    ]


def test_the_likeliest_verdict_sums_over_its_reasons() -> None:
    chances = dict.fromkeys(verdict_texts(), 0.0)
    chances["done: it is achieved"] = 0.4  # the likeliest text, but not the likeliest status
    chances["failed: nothing moves"] = 0.35
    chances["failed: the gripper stopped short"] = 0.25
    verdict = likeliest_verdict(chances)
    assert (verdict.status, verdict.reason) == ("failed", "nothing moves")
    assert verdict.probability == pytest.approx(0.6)
