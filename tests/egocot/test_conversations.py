"""What the language model learns to say, against what it is asked and may answer at run time."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer

from embodied.agent.memory import Memory
from embodied.config import preset
from embodied.egocot import conversations
from embodied.egocot.conversations import ConversationSampler, Turns, vary
from embodied.egocot.dataset import Recorded, motion_at, verdict_of
from embodied.egocot.questions import facts_at
from embodied.model.decoding import Decoded
from embodied.model.features import IMAGE_EVERY, N_TUBELETS, TUBELET_EVERY
from embodied.model.llm import chat
from embodied.model.plan import (
    GRID,
    REASONS,
    REFUSE,
    ThoughtKind,
    parse_thought,
    verdict_texts,
)
from embodied.model.planner import (
    JUDGE_TEXT,
    PLAN_TEXT,
    QUESTION_TEXT,
    Planner,
    question_prompt,
)
from embodied.model.routing import ROUTE_PROMPT, route, spoken
from embodied.types import STATUSES, Plan, Subgoal, Verdict, Vocabulary
from sims import kitchen_tasks, language, scenes

Make = Callable[..., Recorded]

CATALOGUE = scenes.catalogue()
DRAWER, HAMMER = "metaworld/drawer-open-v3", "metaworld/hammer-v3"
SEVERAL = "kitchen/kettle+top burner+light switch"
BEFORE_WORDS, AFTER_WORDS = chat(ROUTE_PROMPT).split("{instruction}")


def _sampler(
    episodes: Sequence[Recorded], sizes: tuple[int, int, int, int] = (8, 6, 5, 4), **changes: Any
) -> ConversationSampler:
    return ConversationSampler(episodes, language, sizes, **changes)


class RunTime:
    """Stands in for a planner, so that its own plan, verdict and route show what they ask.

    The model's answer is given; what it was asked, and what the former was told, is kept.
    """

    def __init__(self, answer: str, thought: ThoughtKind = "grounded") -> None:
        self.answer, self.decoder = answer, self
        self.config = dataclasses.replace(preset("tiny"), thought=thought)
        self.prompts: list[str] = []

    def embodied_tokens(self, vision: torch.Tensor, text: str) -> None:
        self.text = text

    def mapping(self, queries: None) -> None: ...

    visual_tokens = embodied_tokens
    place_head, _places = None, Planner._places

    def decode(self, visual: None, prompt: str, grammar: str) -> Decoded:
        self.prompts.append(prompt)
        self.grammar = grammar
        return Decoded(self.answer, 0.0)

    def score(
        self, visual: None, prompt: str, options: Sequence[str], closed: Any = None
    ) -> torch.Tensor:
        self.prompts.append(prompt)
        said = prompt.rpartition("assistant\n")[2]
        whole = closed or [True] * len(options)
        right = [
            self.answer == said + o if w else f"{self.answer},".startswith(f"{said}{o},")
            for o, w in zip(options, whole, strict=True)
        ]
        return torch.tensor([0.0 if r else -50.0 for r in right])

    def plan(
        self, instruction: str, vocabulary: Vocabulary, experience: str, tasks: Sequence[str]
    ) -> Plan:
        me: Any = self
        return Planner.plan_tokens(me, torch.zeros(1), instruction, vocabulary, experience, tasks)

    _plan_one = Planner._plan_one

    def judge(self, subgoal: Subgoal, motion: str) -> Verdict:
        me: Any = self
        return Planner.judge_tokens(me, torch.zeros(1), subgoal, motion)


# --- batches ---------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step(make: Make) -> None:
    episodes = [make(seed=1), make(HAMMER, 2), make(SEVERAL, 3, 80)]

    def same(one: list[Turns], other: list[Turns]) -> bool:
        return all(
            (a.prompts, a.answers, a.texts) == (b.prompts, b.answers, b.texts)
            and (a.vision is b.vision is None or torch.equal(a.vision, b.vision))  # type: ignore[arg-type]
            for a, b in zip(one, other, strict=True)
        )

    straight, again = _sampler(episodes), _sampler(episodes)
    batches = {step: straight(step) for step in (0, 1, 2)}
    for step in (2, 0, 1, 2):  # in any order
        assert same(again(step), batches[step])
    assert not same(batches[0], batches[1])
    assert not same(_sampler(episodes, seed=1)(0), batches[0])


def test_four_kinds_of_turns_in_the_sizes_asked_for(make: Make) -> None:
    task, plan, verdict, answer = _sampler([make(seed=1), make(HAMMER, 2)])(0)
    assert [t.kind for t in (task, plan, verdict, answer)] == ["task", "plan", "verdict", "answer"]
    for turns, size in ((task, 8), (plan, 6), (verdict, 5), (answer, 4)):
        assert len(turns.prompts) == len(turns.answers) == size
    assert task.vision is None and task.texts is None
    for turns, size, n_times in ((plan, 6, 1), (verdict, 5, N_TUBELETS)):
        assert turns.vision is not None and turns.texts is not None
        assert turns.vision.shape == (size, 2, n_times, 2, 3) and len(turns.texts) == size
        assert turns.vision.dtype == torch.float32


def test_words_alone_need_no_episodes() -> None:
    (turns,) = _sampler([], (4, 0, 0, 0))(0)
    assert turns.kind == "task" and len(turns.prompts) == 4


# --- which task ------------------------------------------------------------------------------


def test_tasks_are_asked_for_and_answered_as_when_routing() -> None:
    sampler, n_told = _sampler([], (16, 0, 0, 0)), Counter[int]()
    for step in range(40):
        (turns,) = sampler(step)
        for prompt, answer in zip(turns.prompts, turns.answers, strict=True):
            said = prompt.removeprefix(BEFORE_WORDS).removesuffix(AFTER_WORDS)
            assert said.strip()
            model: Any = RunTime(answer)
            found = route(model, said, CATALOGUE)
            assert model.prompts[0] == prompt
            assert found.probability > 0.99
            assert spoken(found.tasks) == ("" if answer == REFUSE else answer)
            n_told[len(found.tasks)] += 1
    assert set(n_told) == {0, 1, 2, 3, 4}
    assert 0.2 < n_told[0] / n_told.total() < 0.4


class Requests:
    """A numbered request from a list, and its own task: every tenth is refused."""

    said = tuple(f"r{i:02d} {'very ' * (i % 13)}" for i in range(40))

    def request(self, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        i = int(rng.integers(len(self.said)))
        match i % 10:
            case 0:
                return self.said[i], ()
            case 1:
                return self.said[i], (f"b{i:02d}", f"a{i:02d}")
            case _:
                return self.said[i], (f"t{i:02d}",)

    def ask(self, rng: np.random.Generator, tasks: Sequence[str]) -> str:
        raise AssertionError("no episode to ask about")


def _requested(prompt: str) -> int:
    match = re.search(r"r(\d\d)", prompt)
    assert match is not None
    return int(match[1])


def test_each_request_keeps_its_own_answer() -> None:
    (turns,) = ConversationSampler([], Requests(), (200, 0, 0, 0))(0)
    expected = {0: REFUSE, 1: "b{0:02d}, a{0:02d}"}  # in the order that was asked for
    for prompt, answer in zip(turns.prompts, turns.answers, strict=True):
        i = _requested(prompt)
        assert answer == expected.get(i % 10, "t{0:02d}").format(i)


def test_batches_are_of_like_length_yet_every_request_is_as_likely() -> None:
    sampler, n_steps = ConversationSampler([], Requests(), (16, 0, 0, 0)), 1200
    drawn: Counter[int] = Counter()
    within = []
    for step in range(n_steps):
        (turns,) = sampler(step)
        drawn.update(map(_requested, turns.prompts))
        within.append(np.std([len(p) for p in turns.prompts]))
    lengths = np.array([len(s) for s in Requests.said])
    assert np.mean(within) < 0.6 * lengths.std()
    mean = 16 * n_steps / len(lengths)
    share = np.array([drawn[i] for i in range(len(lengths))]) / mean
    assert share.min() > 0.75 and share.max() < 1.25
    longer = lengths > np.median(lengths)
    assert share[longer].mean() == pytest.approx(share[~longer].mean(), abs=0.2)


# --- plans -----------------------------------------------------------------------------------


def _step_of(turns: Turns, i: int, episode: Recorded) -> int:
    assert turns.vision is not None
    row = int(turns.vision[i, 0, -1, 0, 1])
    return (row - episode.span.first_image) * IMAGE_EVERY


def _experience(prompt: str) -> str:
    match = re.search("Experience: (.*)\n", prompt)
    return "" if match is None else match[1]


@pytest.mark.parametrize("env_id", [DRAWER, HAMMER, "metaworld/reach-v3", "kitchen/microwave"])
def test_plans_are_asked_for_as_at_run_time_and_the_answer_is_the_plan(
    make: Make, env_id: str
) -> None:
    episode, words = make(env_id, length=60), LLTokenizer("byte")
    plan, n_after_failure = episode.meta.plan, 0
    for number in range(8):
        (turns,) = _sampler([episode], (0, 6, 0, 0))(number)
        assert turns.texts is not None
        for i, (prompt, answer) in enumerate(zip(turns.prompts, turns.answers, strict=True)):
            model, experience = RunTime(answer), _experience(prompt)
            instruction = turns.texts[i].partition(PLAN_TEXT.format(""))[2]
            got = model.plan(
                instruction, CATALOGUE[scenes.scene_of(env_id)], experience, plan.tasks
            )
            assert (model.prompts, model.text) == ([prompt], turns.texts[i])
            step = _step_of(turns, i, episode)
            assert got.subgoals == plan.subgoals and got.tasks == plan.tasks
            _check_thought(got.thought, episode, step)
            tokens = [*answer.encode(), words.eos_token]
            matcher = LLMatcher(words, LLMatcher.grammar_from_lark(model.grammar))
            assert matcher.validate_tokens(tokens) == len(tokens)
            n_after_failure += bool(experience)
    assert n_after_failure


@pytest.mark.parametrize("kind", ["ungrounded", "none"])
def test_another_kind_of_thought_is_taught_as_it_is_decoded(make: Make, kind: ThoughtKind) -> None:
    """All else in the batch stays the same."""
    episode, words = make(HAMMER, length=60), LLTokenizer("byte")
    (usual,) = _sampler([episode], (0, 6, 0, 0))(3)
    (turns,) = _sampler([episode], (0, 6, 0, 0), thought=kind)(3)
    assert (turns.prompts, turns.texts) == (usual.prompts, usual.texts)
    assert turns.texts is not None
    for i, answer in enumerate(turns.answers):
        model = RunTime(answer, kind)
        instruction = turns.texts[i].partition(PLAN_TEXT.format(""))[2]
        tasks = episode.meta.plan.tasks
        got = model.plan(instruction, CATALOGUE[HAMMER], "", tasks)
        assert got.subgoals == episode.meta.plan.subgoals and got.text == answer
        nouns = ", ".join(parse_thought(usual.answers[i].split("\n")[0]))
        assert got.thought == ("" if kind == "none" else f"Thought: {nouns}.")
        tokens = [*answer.encode(), words.eos_token]
        matcher = LLMatcher(words, LLMatcher.grammar_from_lark(model.grammar))
        assert matcher.validate_tokens(tokens) == len(tokens)


def _check_thought(thought: str, episode: Recorded, step: int) -> None:
    """The thought places everything where the first camera has it."""
    told = parse_thought(thought)
    assert set(told) == set(episode.places)
    for noun, xy in told.items():
        assert np.abs(episode.places[noun][step, 0] - xy).max() <= 1 / GRID


ALL_IDS = [*(e for e in CATALOGUE if e != "kitchen"), *scenes.task_sets()["kitchen"], SEVERAL]


def test_tasks_are_told_in_every_scene_that_offers_several(make: Make) -> None:
    for env_id in (*ALL_IDS, "kitchen/2"):  # two tasks that the layout's seed draws
        episode = make(SEVERAL if env_id == "kitchen/2" else env_id)
        meta = dataclasses.replace(episode.meta, env_id=env_id)
        episode = dataclasses.replace(episode, meta=meta)
        (turns,) = _sampler([episode], (0, 1, 0, 0))(0)
        several = len(CATALOGUE[scenes.scene_of(env_id)].tasks) > 1
        expected = f"\nTasks: {spoken(episode.tasks)}\n" if several else "Tasks:"
        assert (expected in turns.prompts[0]) == several, env_id


def test_several_tasks_are_planned_one_by_one(make: Make) -> None:
    several = make(SEVERAL, seed=9, length=90)
    alone = [make(f"kitchen/{task}", seed) for seed, task in enumerate(several.tasks)]
    met = set()
    for number in range(30):
        (turns,) = _sampler([several, *alone], (0, 4, 0, 0))(number)
        assert turns.vision is not None and turns.texts is not None
        for i, (prompt, answer) in enumerate(zip(turns.prompts, turns.answers, strict=True)):
            if int(turns.vision[i, 0, -1, 0, 0]) != several.meta.seed:
                continue
            (task,) = re.findall("\nTasks: (.*)\n", prompt)
            model, instruction = RunTime(answer), turns.texts[i].partition(PLAN_TEXT.format(""))[2]
            got = model.plan(instruction, CATALOGUE["kitchen"], _experience(prompt), [task])
            assert (model.prompts, model.text) == ([prompt], turns.texts[i])
            assert got.subgoals == kitchen_tasks.SUBGOALS[task] and got.tasks == (task,)
            met.add(task)
    assert met == set(several.tasks)


def test_what_failed_is_told_as_the_agent_remembers_it(make: Make) -> None:
    episode, told = make(SEVERAL, length=90), set()
    for number in range(40):
        (turns,) = _sampler([episode], (0, 4, 0, 0))(number)
        for i, prompt in enumerate(turns.prompts):
            if not (experience := _experience(prompt)):
                continue
            current = int(episode.subgoal[_step_of(turns, i, episode)])
            subgoal = episode.meta.plan.subgoals[current]
            remembered = {}
            for reason in REASONS["failed"]:
                memory = Memory()
                memory.learn(subgoal, Verdict("failed", reason, 0.9))
                remembered[memory.experience] = reason
            told.add(remembered[experience])
    assert told == set(REASONS["failed"])


def test_half_of_the_plans_are_made_at_the_beginning(make: Make) -> None:
    episode = make(length=60)
    (turns,) = _sampler([episode], (0, 300, 0, 0))(0)
    steps = [_step_of(turns, i, episode) for i in range(300)]
    assert steps.count(0) / 300 == pytest.approx(0.5, abs=0.1)
    assert max(steps) == 58 and not any(
        _experience(p) for p, step in zip(turns.prompts, steps, strict=True) if step == 0
    )


def test_a_plan_leaves_out_what_is_out_of_view(make: Make) -> None:
    episode = make(length=20)
    episode.places["drawer handle"][:, 0] = (0.5, 1.2)
    episode.places["gripper"][:, 1] = np.nan  # in the other camera's picture
    (turns,) = _sampler([episode], (0, 4, 0, 0))(0)
    assert all(set(parse_thought(a.split("\n")[0])) == {"gripper"} for a in turns.answers)


# --- verdicts --------------------------------------------------------------------------------


def test_verdicts_are_asked_for_as_at_run_time_and_can_be_spoken(make: Make) -> None:
    still = make(seed=1, length=60, tag="stopped", fault_step=4, subgoal=[0] * 60)
    by_seed = {1: still, 2: make(HAMMER, 2, 60), 3: make(SEVERAL, 3, 90)}
    drawn: set[str] = set()
    for number in range(15):
        (turns,) = _sampler([*by_seed.values()], (0, 0, 6, 0))(number)
        assert turns.vision is not None and turns.texts is not None
        for i, (prompt, answer) in enumerate(zip(turns.prompts, turns.answers, strict=True)):
            seed, row = (int(x) for x in turns.vision[i, 0, -1, 0, :2])
            episode = by_seed[seed]
            step = (row - episode.span.first_tubelet) * TUBELET_EVERY + IMAGE_EVERY
            subgoals = episode.meta.plan.subgoals
            texts = [JUDGE_TEXT.format(s.text) for s in subgoals]
            index = texts.index(turns.texts[i])
            model = RunTime(answer)
            got = model.judge(subgoals[index], motion_at(episode, step))
            assert (model.prompts, model.text) == ([prompt], turns.texts[i])
            assert answer in verdict_texts()
            assert (got.status, got.reason) == verdict_of(episode, index, step)
            drawn.add(got.status)
    assert drawn == set(STATUSES)


# --- questions -------------------------------------------------------------------------------


def test_questions_are_asked_as_at_run_time_and_true_of_the_clip(make: Make) -> None:
    by_seed = {1: make(seed=1, length=60), 2: make(HAMMER, 2, 60)}
    n_cameras = set()
    for number in range(30):
        (turns,) = _sampler([*by_seed.values()], (0, 0, 0, 6))(number)
        assert turns.vision is not None and turns.texts is not None
        n_cameras.add(turns.vision.shape[1])
        for i, (prompt, answer) in enumerate(zip(turns.prompts, turns.answers, strict=True)):
            seed, row = (int(x) for x in turns.vision[i, 0, -1, 0, :2])
            episode = by_seed[seed]
            step = (row - episode.span.first_tubelet) * TUBELET_EVERY + IMAGE_EVERY
            assert answer in {fact.answer for fact in facts_at(episode, step)}
            question = turns.texts[i].removeprefix(QUESTION_TEXT.format(""))
            assert prompt == question_prompt(question)
    assert n_cameras == {1, 2}  # a video has one


# --- the same request in other words ---------------------------------------------------------

MARKS = ".!?。！？"
SAID = [(lang, s) for ways in language.instructions().values() for lang in ways for s in ways[lang]]
SAID += [(lang, s) for lang, ways in language.refusals().items() for s in ways]
HAN = re.compile("[\u3400-\u9fff]")


def _core(sentence: str) -> str:
    return sentence.lower().rstrip(MARKS)


def _variants(sentence: str, n: int = 60) -> set[str]:
    rng = np.random.default_rng(0)
    return {vary(rng, sentence) for _ in range(n)}


@pytest.fixture
def no_slips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "_TYPOS", 0.0)


@pytest.mark.usefixtures("no_slips")
def test_varied_requests_differ_in_case_courtesies_and_closing_marks_only() -> None:
    rng = np.random.default_rng(0)
    for lang, sentence in SAID:
        before = "|".join(re.escape(b.lower()) for b in conversations._BEFORE[lang])
        after = "|".join(re.escape(a) for a in conversations._AFTER[lang])
        form = re.compile(f"({before})?{re.escape(_core(sentence))}[{MARKS}]*({after})?")
        for _ in range(4):
            varied = vary(rng, sentence)
            assert form.fullmatch(varied.lower()), (sentence, varied)


@pytest.mark.usefixtures("no_slips")
def test_varied_requests_stay_in_their_language() -> None:
    rng = np.random.default_rng(1)
    for lang, sentence in SAID:
        for _ in range(4):
            varied = vary(rng, sentence)
            assert _courtesies_of(varied, sentence) <= {lang}, (sentence, varied)
    assert any(lang == "en" and not s.isascii() for lang, s in SAID)  # “plate → cabinet”


def _courtesies_of(varied: str, sentence: str) -> set[str]:
    """The languages of what was put before and after."""
    before, _, after = varied.lower().partition(_core(sentence))
    added = (before + after).strip(MARKS + "， ")
    return {"zh" if HAN.search(added) else "en"} if added else set()


def test_a_slip_is_in_one_long_word_and_leaves_its_first_letter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversations, "_TYPOS", 1.0)
    rng = np.random.default_rng(2)
    said = "shut the little window 关"
    n_slips = 0
    for _ in range(300):
        varied = vary(rng, said).lower()
        words = re.findall("[a-z]+", varied)
        assert "关" in varied
        n_kept = sum(w in words for w in ("shut", "the", "little", "window"))
        assert n_kept >= 3
        n_slips += n_kept == 3
        assert any(w.startswith("l") for w in words) and any(w.startswith("w") for w in words)
    assert n_slips > 200  # the others are in a courtesy
    assert conversations._mistyped(rng, "关上门") == "关上门"
    assert {len(w) for w in _slips("window")} == {5, 6, 7}


def _slips(word: str) -> set[str]:
    return {conversations._mistyped(np.random.default_rng(i), word) for i in range(60)}


def test_every_courtesy_is_used() -> None:
    for lang, sentence in (("en", "Open the drawer."), ("zh", "打开抽屉。")):
        said = " | ".join(_variants(sentence, 1500)).lower()
        core = _core(sentence)
        assert all(before.lower() + core in said for before in conversations._BEFORE[lang])
        assert all(core + after in said for after in conversations._AFTER[lang])
        assert sentence in _variants(sentence) and core in said


def test_varied_requests_are_never_empty() -> None:
    assert all(v.strip() for _, s in SAID for v in _variants(s, 5))
