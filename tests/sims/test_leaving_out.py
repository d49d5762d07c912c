"""What is said when some tasks are left out: nothing of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sims import kitchen_tasks, language, scenes

LEFT_OUT = scenes.resolve_tasks("mw5,fk5")


def test_no_sentence_of_what_is_left_out_in_2000_draws() -> None:
    """Neither those that ask for it, nor, in the kitchen, those that name it or refuse it."""
    rng, book = np.random.default_rng(0), language.instructions()
    theirs = {s for task in LEFT_OUT for ways in book[task].values() for s in ways}
    counts: Counter[str] = Counter()
    for _ in range(2000):
        said, tasks = language.request(rng, LEFT_OUT)
        assert not set(tasks) & set(LEFT_OUT)
        assert said not in theirs and not language.names_any(said, LEFT_OUT)
        if set(tasks) & set(kitchen_tasks.TASKS):
            assert not {"microwave", "cabinet", "cupboard", "lamp"} & set(said.lower().split())
        counts.update(tasks or ["refused"])
    left = set(book) - set(LEFT_OUT)
    assert set(counts) == {*left, "refused"}  # and all the rest is still asked for
    assert 0.2 < counts["refused"] / 2000 < 0.4


def test_without_it_the_same_check_fails() -> None:
    rng = np.random.default_rng(0)
    drawn = [language.request(rng) for _ in range(500)]
    assert any(language.names_any(said, LEFT_OUT) for said, _ in drawn)
    assert any(set(tasks) & set(LEFT_OUT) for _, tasks in drawn)


@pytest.mark.parametrize(
    ("said", "task", "named"),
    [
        ("open the Microwave door", "microwave", True),
        ("not the sliding cabinet, the hinged one", "slide cabinet", True),
        ("别碰微波炉", "microwave", True),
        ("move the kettle to the top burner", "bottom burner", False),
        ("a delightful kettle", "light switch", False),
        ("close the drawer", "drawer-open", False),
    ],
)
def test_naming(said: str, task: str, named: bool) -> None:
    assert language.names_any(said, [task]) == named


def test_nothing_left_out_changes_nothing() -> None:
    plain, phrases = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(200):
        assert language.request(plain) == language.Phrases().request(phrases)


def test_other_tasks_are_not_named_in_passing() -> None:
    rng, phrases = np.random.default_rng(0), language.Phrases(kitchen_tasks.FK5)
    for _ in range(300):
        said = phrases.ask(rng, ("kettle", "top burner"))
        assert not language.names_any(said, kitchen_tasks.FK5)


def test_nothing_left_to_say() -> None:
    every = scenes.resolve_tasks("mt50,kitchen")
    with pytest.raises(ValueError, match="no task is left"):
        language.request(np.random.default_rng(0), every)


def test_tasks_and_sets_by_name() -> None:
    assert (*scenes.MW5, *kitchen_tasks.FK5) == LEFT_OUT
    assert scenes.resolve_tasks("kettle, fk5,kettle") == ("kettle", *kitchen_tasks.FK5)
    assert scenes.resolve_tasks("") == ()
    with pytest.raises(ValueError, match="unknown task 'hamer'; did you mean 'hammer'"):
        scenes.resolve_tasks("mw5,hamer")
