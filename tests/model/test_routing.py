"""Which tasks the words mean, with a decoder whose likelihoods the test decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from embodied.model.plan import REFUSE
from embodied.model.routing import Route, route, spoken
from embodied.types import Subgoal, Vocabulary

_STEPS = {t: Subgoal("do", (t,)) for t in ("hammer", "light", "kettle", "microwave")}
KITCHEN = ("light", "kettle", "microwave")
CATALOGUE = {
    "metaworld/hammer-v3": Vocabulary(("hammer",), (_STEPS["hammer"],)),
    "kitchen": Vocabulary(KITCHEN, tuple(_STEPS[t] for t in KITCHEN), KITCHEN),
}


class FakeDecoder:
    """Likelihoods of whole answers; the beginning of an answer is as likely as all that follow."""

    def __init__(self, answers: Mapping[str, float]) -> None:
        self._answers = answers

    def score(
        self, visual: None, prompt: str, options: Sequence[str], closed: Sequence[bool]
    ) -> Tensor:
        said = prompt.rpartition("assistant\n")[2]
        sums = [self._mass(said + o, c) for o, c in zip(options, closed, strict=True)]
        return (torch.tensor(sums) + 1e-9).log()

    def _mass(self, said: str, closed: bool) -> float:
        if closed:
            return self._answers.get(said, 0.0)
        return sum(p for a, p in self._answers.items() if a == said or a.startswith(said + ","))


def _route(answers: Mapping[str, float], env_id: str | None = None) -> Route:
    decoder: Any = FakeDecoder(answers)
    return route(decoder, "do it", CATALOGUE, env_id)


def test_a_scene_of_one_task_is_one_answer() -> None:
    got = _route({"hammer": 0.8, "light": 0.1, REFUSE: 0.1})
    assert (got.env_id, got.tasks, got.refused) == ("metaworld/hammer-v3", ("hammer",), None)
    assert got.nearest[:2] == ("hammer", "light") and got.probability == pytest.approx(0.8)


@pytest.mark.parametrize(
    "tasks", [("light",), ("kettle", "light"), ("microwave", "kettle", "light")], ids=spoken
)
def test_tasks_come_in_the_order_of_the_answer(tasks: tuple[str, ...]) -> None:
    got = _route({spoken(tasks): 0.7, "light, microwave, kettle": 0.2, REFUSE: 0.1})
    assert (got.env_id, got.tasks) == ("kitchen", tasks)
    assert got.probability == pytest.approx(0.7, abs=1e-3)


def test_an_answer_never_names_a_task_twice() -> None:
    got = _route({"light, light, light": 1.0})
    assert len(set(got.tasks)) == len(got.tasks)


def test_refusals_name_the_nearest() -> None:
    got = _route({REFUSE: 0.8, "kettle": 0.15, "hammer": 0.05})
    assert got.env_id is None and got.tasks == () and got.probability == pytest.approx(0.8)
    assert got.refused == "no scene can do 'do it'; the nearest are: kettle, hammer, light"


def test_the_scene_at_hand_only_has_to_be_a_likely_reading() -> None:
    answers = {"hammer": 0.7, "kettle, light": 0.2, REFUSE: 0.1}
    assert _route(answers, "kitchen").tasks == ("kettle", "light")
    told = _route({"hammer": 0.99, REFUSE: 0.01}, "kitchen").refused
    assert told is not None and told.startswith("kitchen offers light, kettle, microwave, and 'do")
