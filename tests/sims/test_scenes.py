"""The catalogue of scenes and what people say to them, all without a simulator."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embodied.cli.common import MAX_INSTRUCTION
from sims import kitchen_tasks, language, metaworld, scenes
from sims.subgoals import TASKS

N_PARAPHRASES = 15
DATA = Path(__file__).parents[1] / "data"
HELD_OUT = (
    "instructions_heldout",
    "instructions_dev",
    "kitchen_heldout",
    "kitchen_dev",
    "instructions_test",
)


def _plain(text: str) -> str:
    """What is said, regardless of capitals and punctuation."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def test_the_catalogue_needs_no_simulator() -> None:
    code = (
        "import sys; from sims import language, scenes; "
        "scenes.catalogue(); scenes.resolve_env_ids('mt50'); language.canonical(['reach']); "
        "language.refusals(); "
        "print({'mujoco', 'metaworld', 'gymnasium', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


def test_the_catalogue_is_what_the_environments_say() -> None:
    catalogue = scenes.catalogue()
    assert list(catalogue) == [*metaworld.env_ids(), "kitchen"]
    assert list(scenes.catalogue(("metaworld",))) == metaworld.env_ids()
    for env_id in ("metaworld/drawer-open-v3", "metaworld/reach-wall-v3"):
        env = scenes.make(env_id, render=False, horizon=7)
        assert (env.env_id, env.horizon, env.vocabulary) == (env_id, 7, catalogue[env_id])
        env.close()


def test_vocabularies_offer_every_step_of_their_plans() -> None:
    for vocabulary in scenes.catalogue(("metaworld",)).values():
        (task,) = vocabulary.tasks
        assert vocabulary.subgoals == TASKS[task].subgoals
        assert set(vocabulary.verbs) == {subgoal.verb for subgoal in TASKS[task].subgoals}
        nouns = {noun for subgoal in TASKS[task].subgoals for noun in subgoal.args}
        assert set(vocabulary.nouns) == nouns


def test_named_sets() -> None:
    sets = scenes.task_sets()
    sizes = {"mt10": 10, "mt50": 50, "mw5": 5, "kitchen": 7, "fk5": 5}
    assert {name: len(set(ids)) for name, ids in sets.items()} == sizes
    for name, ids in sets.items():
        assert [scenes.check_env_id(env_id) for env_id in ids] == ids
        assert scenes.resolve_env_ids(name) == ids


def test_lists_of_ids() -> None:
    reach, push = "metaworld/reach-v3", "metaworld/push-v3"
    assert scenes.resolve_env_ids(push) == [push]
    assert scenes.resolve_env_ids(f" {push}, {reach},{push},") == [push, reach]
    both = scenes.resolve_env_ids(f"mw5,{reach},mw5")
    assert both == [*scenes.task_sets()["mw5"], reach]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("metaworld/drawer-opn-v3", "metaworld/drawer-open-v3"),
        ("metaworld/drawer-open-v2", "metaworld/drawer-open-v3"),
        ("drawer-open", "metaworld/drawer-open-v3"),
        ("Reach", "metaworld/reach-v3"),
        ("mt-10", "mt10"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown environment {text!r}; did you mean {meant}"):
        scenes.resolve_env_ids(f"metaworld/push-v3,{text}")


@pytest.mark.parametrize("text", ["atari/pong", "", " , "])
def test_nonsense_is_answered_with_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match="mt10, mt50, mw5") as error:
        scenes.resolve_env_ids(text)
    assert "did you mean" not in str(error.value)


def test_making_an_unknown_environment_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"did you mean.*drawer-open-v3.*there are: metaworld/"):
        scenes.make("metaworld/draweropen-v3")
    with pytest.raises(ValueError, match="and the sets mt10"):
        scenes.make("mt10")


def test_every_task_can_be_asked_for_in_many_ways_and_both_languages() -> None:
    assert set(language.instructions()) == {*TASKS, *kitchen_tasks.TASKS}
    for task, ways in language.instructions().items():
        assert set(ways) == {"en", "zh"}, task
        for said in ways.values():
            assert len({_plain(text) for text in said}) >= N_PARAPHRASES, task
            assert all(text == text.strip() and text for text in said), task


def test_languages_are_not_mixed_up() -> None:
    han = re.compile(r"[\u4e00-\u9fff]")
    sets = [*language.instructions().values(), language.refusals()]
    assert all(han.search(text) for ways in sets for text in ways["zh"])
    assert not any(han.search(text) for ways in sets for text in ways["en"])


def test_no_two_tasks_are_asked_for_in_the_same_words() -> None:
    every_way = [ways.values() for ways in language.instructions().values()]
    count = Counter(_plain(text) for way in every_way for said in way for text in said)
    assert [text for text, n in count.items() if n > 1] == []


def test_refusals_are_requests_for_no_task() -> None:
    asked = {
        _plain(text)
        for ways in language.instructions().values()
        for said in ways.values()
        for text in said
    }
    refusals = language.refusals()
    assert set(refusals) == {"en", "zh"}
    for texts in refusals.values():
        assert len(texts) >= 100
        assert not asked & {_plain(text) for text in texts}


def test_the_canonical_way_is_the_first() -> None:
    assert language.canonical(["drawer-open"]) == "open the drawer"
    assert len({language.canonical([task]) for task in TASKS}) == len(TASKS)
    for task in TASKS:
        assert language.canonical([task], "zh") == language.instructions()[task]["zh"][0]
    both = language.canonical(["microwave", "light switch"])
    assert both == "open the microwave, then turn on the light"


def test_unknown_tasks_and_languages_have_no_canonical_way() -> None:
    with pytest.raises(ValueError, match=r"no instructions for \['fly'\]; there are: assembly"):
        language.canonical(["fly"])
    with pytest.raises(ValueError, match="no instructions in 'fr'; there are: en, zh"):
        language.canonical(["reach"], "fr")


# --- what is asked for in the kitchen ---------------------------------------------------------


def test_every_frame_takes_every_clause_and_leaves_no_slot_open() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1500):
        n_tasks = int(rng.integers(1, language.MAX_TASKS + 1))
        said = language.ask(rng, rng.permutation(kitchen_tasks.TASKS)[:n_tasks].tolist())
        assert said.strip() == said and said.isprintable() and not set("{}") & set(said)


_SLOT = re.compile(r"\{([a-z]+)(\d)\}")


def _wordings(frame: str) -> list[str]:
    """All that a frame can become by its choices: no less than one."""
    parts = re.split(r"\[([^][]*\|[^][]*)\]", frame)
    ways = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(way) for way in itertools.product(*ways)]


@pytest.mark.parametrize("kind", ["frames", "alike"])
def test_a_frame_names_all_its_tasks_and_excludes_none_of_them(kind: str) -> None:
    book = language._read("kitchen")
    for n_tasks, ways in book[kind].items():
        for frame in itertools.chain(*ways.values()):
            for wording in _wordings(frame):
                slots = {(form, int(number)) for form, number in _SLOT.findall(wording)}
                assert {n for _, n in slots} >= set(range(int(n_tasks))), wording
                assert all(n >= int(n_tasks) for form, n in slots if form in ("not", "stays"))
                assert not set("[]|") & set(wording), wording


def test_frames_are_many_and_all_different() -> None:
    for kind in ("frames", "alike"):
        for ways in language._read("kitchen")[kind].values():
            assert all(len(set(frames)) == len(frames) for frames in ways.values())
    for n_tasks in ("2", "3", "4"):
        frames = language._read("kitchen")["frames"][n_tasks]
        assert len(frames["en"]) >= 200 and len(frames["zh"]) >= 100


def test_frames_fit_all_tasks_or_for_tasks_alike_some() -> None:
    book = language._read("kitchen")
    orders = list(itertools.permutations(kitchen_tasks.TASKS))[::7]
    for n_tasks, by_language in book["frames"].items():
        for frame in itertools.chain(*by_language.values()):
            forms = {form for form, _ in _SLOT.findall(frame)}
            assert all(set(book[form]) == set(kitchen_tasks.TASKS) for form in forms), n_tasks
    for frame in {f for ways in book["alike"].values() for fs in ways.values() for f in fs}:
        fitting = sum(language._fits(frame, order) for order in orders)
        assert 0 < fitting < len(orders), frame


def test_both_burners_are_asked_for_in_their_order() -> None:
    rng = np.random.default_rng(2)
    said = [language.ask(rng, ["top burner", "bottom burner"]) for _ in range(400)]
    both = [re.search(r"(top|upper|back|rear) one first", text) for text in said]
    assert any(both) and not any(re.search(r"(bottom|lower|front) one first", s) for s in said)


def test_requests_are_of_every_kind_and_told_apart() -> None:
    rng = np.random.default_rng(1)
    drawn = [language.request(rng) for _ in range(600)]
    refused = {said for said, tasks in drawn if not tasks}
    assert 0.2 < len([1 for _, tasks in drawn if not tasks]) / len(drawn) < 0.4
    assert {len(tasks) for _, tasks in drawn} == {0, 1, 2, 3, 4}
    assert not refused & {said for said, tasks in drawn if tasks}
    every_refusal = {text for texts in language.refusals().values() for text in texts}
    assert 0.45 < len(refused - every_refusal) / len(refused) < 0.75  # put together


def test_refusals_put_together_are_many_and_ask_for_nothing() -> None:
    rng, han = np.random.default_rng(0), re.compile(r"[\u4e00-\u9fff]")
    drawn = [language.composed_refusal(rng) for _ in range(3000)]
    book = language.instructions()
    asked = {_plain(text) for ways in book.values() for said in ways.values() for text in said}
    assert not asked & {_plain(text) for text in drawn}
    assert len(set(drawn)) > 2500
    assert 0.2 < np.mean([bool(han.search(text)) for text in drawn]) < 0.5
    assert all(said.strip() == said and not set("{}[]|") & set(said) for said in drawn)
    again = np.random.default_rng(0)
    assert drawn[:50] == [language.composed_refusal(again) for _ in range(50)]


def test_every_part_of_a_refusal_has_its_words_and_its_language() -> None:
    han = re.compile(r"[\u4e00-\u9fff]")
    for code, parts in language._read("refused_parts").items():
        words = parts["words"]
        kinds = {**parts["deeds"], **parts["talk"]}
        frames = [frame for ways in kinds.values() for frame in ways]
        texts = [*frames, *(text for ways in words.values() for text in ways)]
        used = {slot for text in texts for slot in re.findall(r"\{([a-z_]+)\}", text)}
        assert used == set(words)
        assert len(set(frames)) > 500
        assert all(text.count("{said}") == 1 for text in parts["wrap"])
        assert all({"first", "second"} == set(re.findall(r"\{(\w+)\}", p)) for p in parts["pairs"])
        if code == "en":
            assert not any(han.search(text) for text in [*texts, *parts["wrap"], *parts["pairs"]])


@pytest.mark.parametrize("left_out", [kitchen_tasks.FK5, kitchen_tasks.TASKS])
def test_refusals_put_together_do_not_name_what_is_left_out(left_out: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    drawn = [language.composed_refusal(rng, left_out) for _ in range(1000)]
    assert not any(language.names_any(said, left_out) for said in drawn)
    every = [language.composed_refusal(rng) for _ in range(300)]
    assert any(language.names_any(said, left_out) for said in every)


@pytest.mark.parametrize(
    "env_id", ["kitchen", "kitchen/kettle", "kitchen/light switch+microwave", "kitchen/7"]
)
def test_goals_of_the_kitchen_are_ids(env_id: str) -> None:
    assert scenes.check_env_id(env_id) == env_id


@pytest.mark.parametrize("env_id", ["kitchen/oven", "kitchen/kettle+kettle", "kitchen/8"])
def test_goals_that_the_kitchen_does_not_have(env_id: str) -> None:
    with pytest.raises(ValueError, match=f"unknown environment '{re.escape(env_id)}'"):
        scenes.check_env_id(env_id)


def _held_out(name: str) -> list[dict[str, Any]]:
    text = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_requests_held_out_are_not_trained_on() -> None:
    known = {
        _plain(text)
        for ways in [*language.instructions().values(), language.refusals()]
        for texts in ways.values()
        for text in texts
    }
    for name in HELD_OUT:
        rows = _held_out(name)
        assert len(rows) >= 100
        assert not known & {_plain(row["instruction"]) for row in rows}, name


def test_requests_of_the_last_test_are_of_every_kind_and_in_no_other_set() -> None:
    rows = _held_out("instructions_test")
    said = {_plain(row["instruction"]) for row in rows}
    others = {_plain(row["instruction"]) for name in HELD_OUT[:-1] for row in _held_out(name)}
    assert len(said) == len(rows)
    assert not said & others
    han = re.compile(r"[\u4e00-\u9fff]")
    assert all((row["lang"] == "zh") == bool(han.search(row["instruction"])) for row in rows)
    asked = [tuple(row["tasks"] or ()) for row in rows]
    count = Counter(asked)
    assert all(count[(task,)] >= 2 for task in (*TASKS, *kitchen_tasks.TASKS))
    assert count[()] == 100
    several = [tasks for tasks in asked if len(tasks) > 1]
    assert several and all(kitchen_tasks.check_tasks(tasks) for tasks in several)


@pytest.mark.parametrize("n_tasks", [5, 6, 7])
def test_more_than_a_sentence_asks_for_is_said_in_a_row(n_tasks: int) -> None:
    rng, tasks = np.random.default_rng(0), kitchen_tasks.TASKS[:n_tasks]
    plain = {language.canonical(tasks, code) for code in language.LANGUAGES}
    assert {language.ask(rng, tasks) for _ in range(50)} == plain
    assert max(map(len, plain)) <= MAX_INSTRUCTION


@pytest.mark.parametrize("tasks", [("drawer-open",), ("microwave", "light switch")])
def test_the_plainest_words_are_heard_often(tasks: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    plain = {language.canonical(tasks, code) for code in language.LANGUAGES}
    heard = [language.ask(rng, tasks) for _ in range(500)]
    assert plain <= set(heard)
    assert 0.08 < np.mean([said in plain for said in heard]) < 0.2
