from collections.abc import Callable

import numpy as np
import pytest

from embodied.egocot.dataset import Recorded
from embodied.egocot.own_words import OwnWords
from sims import language

Make = Callable[..., Recorded]
HAMMER = "metaworld/hammer-v3"


@pytest.fixture
def words(make: Make) -> OwnWords:
    episodes = [make(seed=1), make(HAMMER, 2), make(HAMMER, 3)]
    return OwnWords(episodes, language.Phrases(("drawer-open", "hammer")))


def test_only_what_the_episodes_of_a_task_were_asked_for(words: OwnWords) -> None:
    rng = np.random.default_rng(0)
    hammered = {e.meta.instruction for e in words.episodes if e.tasks == ("hammer",)}
    assert {words.ask(rng, ["hammer"]) for _ in range(50)} == hammered


def test_requests_are_the_episodes_own_or_of_other_tasks(words: OwnWords) -> None:
    rng = np.random.default_rng(1)
    drawn = [words.request(rng) for _ in range(600)]
    own = {(e.meta.instruction, e.tasks) for e in words.episodes}
    others = [row for row in drawn if row not in own]
    assert own <= set(drawn) and 1 - len(others) / 600 == pytest.approx(0.6, abs=0.06)
    assert not any({"hammer", "drawer-open"} & set(tasks) for _, tasks in others)
    assert any(tasks for _, tasks in others) and any(not tasks for _, tasks in others)
