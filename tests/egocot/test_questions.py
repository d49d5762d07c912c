"""Questions about recorded clips: true, and of no use to who does not look."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from embodied.egocot.dataset import Recorded, group_by_task
from embodied.egocot.questions import (
    ALL_DONE,
    TO_LEARN,
    TO_WEIGH,
    Asked,
    closed_answers,
    draw_question,
    facts_at,
    questions_for,
)
from embodied.egocot.wordings import CHINESE, STATES
from embodied.model.plan import GRIPPER, read_place
from sims import scenes

Make = Callable[..., Recorded]

DRAWER, PICK = "metaworld/drawer-open-v3", "metaworld/pick-place-v3"
HAN = re.compile("[\u4e00-\u9fff]")


def _known(episode: Recorded, step: int) -> dict[str, set[str]]:
    """Kind and slots → the answers, at one moment."""
    found = defaultdict(set)
    for fact in facts_at(episode, step):
        found[" ".join([fact.kind, *fact.slots.values()])].add(fact.answer)
    return found


def _told(episode: Recorded, said: str) -> Recorded:
    return dataclasses.replace(episode, meta=dataclasses.replace(episode.meta, instruction=said))


def test_what_is_true_of_a_drawer_at_first_and_at_the_end(make: Make) -> None:
    episode = _told(make(DRAWER), "open it")
    first, last = _known(episode, 6), _known(episode, 38)
    assert first["doing"] == {"reaching the drawer handle"}
    assert first["now open it"] == {"reach the drawer handle"}
    assert first["done reach the drawer handle"] == first["done pull the drawer handle"] == {"no"}
    assert first["state pull(drawer handle)"] == {"no"}
    assert "doing" not in last and last["now open it"] == {ALL_DONE}
    assert last["done pull the drawer handle"] == last["state pull(drawer handle)"] == {"yes"}
    assert last["caption"] == {"The robot pulls the drawer handle."}


def test_a_drawer_on_its_way_is_neither_open_nor_shut(make: Make) -> None:
    half = _known(make(DRAWER), 26)
    assert half["doing"] == {"pulling the drawer handle"}
    assert not [name for name in half if name.startswith("state")]


def test_what_is_in_the_hand(make: Make) -> None:
    episode = make(PICK, length=60)
    before, carried = _known(episode, 6), _known(episode, 50)
    assert before["holding"] == {"nothing"} and before["holds puck"] == {"no"}
    assert carried["holding"] == {"the puck"} and carried["holds puck"] == {"yes"}
    assert not any(name.startswith("hold") for name in _known(make(DRAWER), 6))


def test_fingers_by_what_the_robot_feels(make: Make) -> None:
    episode = make(DRAWER)
    assert _known(episode, 6)["gripper"] == {"open"}  # the fourth number of the state is 1
    for width, said in ((0.3, {"closed"}), (0.6, set())):
        episode.state[:, 3] = width
        assert _known(episode, 6)["gripper"] == said


def test_places_are_those_of_the_last_picture(make: Make) -> None:
    known = _known(make(DRAWER), 10)
    xy = make(DRAWER).places["drawer handle"][10, 0]
    assert known["where drawer handle"] == {f"at ({int(xy[0] * 224)}, {int(xy[1] * 224)})"}
    episode = make(DRAWER)
    episode.places["drawer handle"][..., 0] = 0.9
    assert _known(episode, 10)["side drawer handle"] == {"right of it"}
    episode.places["drawer handle"][..., 0] = 1.2
    assert _known(episode, 10)["where drawer handle"] == {"out of view"}


def test_a_robot_that_halts_is_at_nothing(make: Make) -> None:
    episode = make(DRAWER, tag="stopped", fault_step=10, outcome="failure", subgoal=[0] * 40)
    assert "doing" in _known(episode, 6)
    halted = _known(episode, 34)
    assert "doing" not in halted
    assert halted["caption"] == {
        "The robot tries to reach the drawer handle, but the gripper stopped short."
    }


def test_several_tasks_are_asked_for_one_by_one(make: Make) -> None:
    episode = make("kitchen/microwave+light switch", length=80)
    late = _known(episode, 50)
    assert late["state pull(microwave handle)"] == {"yes"}
    assert late["state flip(light switch)"] == {"no"}


@pytest.fixture
def many(make: Make) -> list[Recorded]:
    """An episode of every task, its things where chance puts them."""
    rng, found = np.random.default_rng(0), []
    ids = [env_id for name in ("mt50", "kitchen") for env_id in scenes.task_sets()[name]]
    for seed, env_id in enumerate(ids):
        episode = _told(make(env_id, seed, 92), f"please do {env_id}")
        for noun in episode.places:
            episode.places[noun][:] = rng.random(2)
        if seed % 2:
            episode.state[:, :] = 0
        found.append(episode)
    return found


def _drawn(episodes: list[Recorded], n: int, seed: int = 0) -> list[Asked]:
    rng, by_task = np.random.default_rng(seed), group_by_task(episodes)
    return [draw_question(rng, by_task) for _ in range(n)]


def test_who_does_not_look_is_seldom_right(many: list[Recorded]) -> None:
    """Not even who knows of each kind of question which answer is the most frequent."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for asked in _drawn(many, 3000):
        answers[asked.kind][asked.answer] += 1
    assert len(answers) == 10
    for kind, counts in answers.items():
        assert counts.most_common(1)[0][1] / counts.total() < 0.6, (kind, counts.most_common(3))
    n_best = sum(counts.most_common(1)[0][1] for counts in answers.values())
    assert n_best / 3000 < 0.45


def test_what_is_drawn_is_true_in_short_english(many: list[Recorded]) -> None:
    for asked in _drawn(many, 500):
        facts = [f for f in facts_at(asked.episode, asked.step) if f.kind == asked.kind]
        assert asked.answer in {fact.answer for fact in facts}
        assert not HAN.search(asked.answer) and len(asked.answer) < 90
        assert "{" not in asked.question


def test_questions_come_in_both_languages_and_many_wordings(many: list[Recorded]) -> None:
    asked = [a.question for a in _drawn(many, 1500)]
    n_chinese = sum(bool(HAN.search(question)) for question in asked)
    assert 0.15 < n_chinese / len(asked) < 0.5
    assert len(set(asked)) > 450
    assert not [q for q in asked if HAN.search(q) and re.search("[a-z] *(?:在|吗)", q)]


def test_the_same_seed_asks_the_same(many: list[Recorded]) -> None:
    def said(seed: int) -> list[tuple[str, str]]:
        return [(a.question, a.answer) for a in _drawn(many, 30, seed)]

    assert said(1) == said(1) != said(2)


def test_training_asks_most_for_what_has_to_be_looked_for(many: list[Recorded]) -> None:
    rng, by_task = np.random.default_rng(0), group_by_task(many)
    kinds = Counter(draw_question(rng, by_task, TO_LEARN).kind for _ in range(1000))
    usual = Counter(asked.kind for asked in _drawn(many, 1000))
    assert set(kinds) == set(usual)
    assert all(kinds[kind] > 1.2 * usual[kind] for kind in ("doing", "where", "caption"))


def test_answers_of_a_closed_set_are_all_but_captions_and_places(many: list[Recorded]) -> None:
    answers = closed_answers(many)
    assert {"yes", "no", "open", "left of it", "nothing", "the puck", "the kettle"} <= answers
    assert {"pulling the drawer handle", "pull the drawer handle", ALL_DONE} <= answers
    assert not any(read_place(answer) or answer.endswith(".") for answer in answers)
    by_task = group_by_task(many)
    rng = np.random.default_rng(4)
    asked = [draw_question(rng, by_task) for _ in range(300)]
    open_ended = {"caption", "where"}
    assert all((a.answer in answers) == (a.kind not in open_ended) for a in asked)


def test_a_head_is_asked_only_what_it_can_weigh(many: list[Recorded]) -> None:
    rng, by_task, answers = np.random.default_rng(0), group_by_task(many), closed_answers(many)
    asked = [draw_question(rng, by_task, TO_WEIGH) for _ in range(300)]
    assert {a.kind for a in asked} == set(TO_LEARN) - {"where", "caption"}
    assert all(a.answer in answers for a in asked)


def test_one_moment_can_be_asked_about_alone(make: Make) -> None:
    episode, rng = make(DRAWER), np.random.default_rng(0)
    pairs = {questions_for(episode, 38, rng) for _ in range(200)}
    assert ("Is the drawer open?", "yes") in pairs and ("抽屉开着吗？", "yes") in pairs


def test_nothing_known_is_an_error(make: Make) -> None:
    episode = make(DRAWER, tag="stopped", fault_step=0, outcome="failure", length=8)
    with pytest.raises(ValueError, match="none of the episodes has a clip"):
        draw_question(np.random.default_rng(0), group_by_task([episode]))


def test_every_noun_and_state_of_our_scenes_has_its_words() -> None:
    offered = scenes.catalogue().values()
    assert {noun for v in offered for noun in v.nouns} | {GRIPPER} == set(CHINESE)
    assert set(STATES) <= {s.text for v in offered for s in v.subgoals}
