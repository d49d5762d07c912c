"""The catalogue of scenes and what people say to them, all without a simulator."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from sims import language, metaworld, scenes
from sims.subgoals import TASKS

N_PARAPHRASES = 15


def _plain(text: str) -> str:
    """What is said, regardless of capitals and punctuation."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def test_the_catalogue_needs_no_simulator() -> None:
    code = (
        "import sys; from sims import language, scenes; "
        "scenes.catalogue(); scenes.resolve_env_ids('mt50'); language.canonical('reach'); "
        "language.refusals(); "
        "print({'mujoco', 'metaworld', 'gymnasium', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


def test_the_catalogue_is_what_the_environments_say() -> None:
    catalogue = scenes.catalogue()
    assert list(catalogue) == metaworld.env_ids()
    for env_id in ("metaworld/drawer-open-v3", "metaworld/reach-wall-v3"):
        env = scenes.make(env_id, render=False, horizon=7)
        assert (env.env_id, env.horizon, env.vocabulary) == (env_id, 7, catalogue[env_id])
        env.close()


def test_vocabularies_offer_every_step_of_their_plans() -> None:
    for vocabulary in scenes.catalogue().values():
        (task,) = vocabulary.tasks
        assert vocabulary.subgoals == TASKS[task].subgoals
        assert set(vocabulary.verbs) == {subgoal.verb for subgoal in TASKS[task].subgoals}
        nouns = {noun for subgoal in TASKS[task].subgoals for noun in subgoal.args}
        assert set(vocabulary.nouns) == nouns


def test_named_sets() -> None:
    sets = scenes.task_sets()
    assert {name: len(set(ids)) for name, ids in sets.items()} == {"mt10": 10, "mt50": 50, "mw5": 5}
    for name, ids in sets.items():
        assert set(ids) <= set(scenes.catalogue())
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
    assert set(language.instructions()) == set(TASKS)
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
    assert language.canonical("drawer-open") == "open the drawer"
    assert len({language.canonical(task) for task in TASKS}) == len(TASKS)
    for task in TASKS:
        assert language.canonical(task, "zh") == language.instructions()[task]["zh"][0]


def test_unknown_tasks_and_languages_have_no_canonical_way() -> None:
    with pytest.raises(ValueError, match="no instructions for task 'fly'; there are: assembly"):
        language.canonical("fly")
    with pytest.raises(ValueError, match="no instructions in 'fr'; there are: en, zh"):
        language.canonical("reach", "fr")
