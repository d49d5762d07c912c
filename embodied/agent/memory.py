"""What was learnt in this episode, in the words that go into the next plan's prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from embodied.model.plan import REASONS
from embodied.types import Subgoal, Verdict

_KEPT = 2
STANDSTILL = REASONS["failed"][3]


@dataclass
class Memory:
    """The failures of one episode, newest last."""

    _lessons: list[str] = field(default_factory=list)

    def learn(self, subgoal: Subgoal, verdict: Verdict) -> None:
        """Remember that `subgoal` failed, and why; whatever was said, a standstill is one."""
        reason = verdict.reason if verdict.status == "failed" else STANDSTILL
        self._lessons.append(lesson(subgoal, reason))

    @property
    def experience(self) -> str:
        """The last lessons in words; empty when there are none."""
        return " ".join(self._lessons[-_KEPT:])


def lesson(subgoal: Subgoal, reason: str) -> str:
    """One failure in words, as the planner was trained to read it."""
    return f"{subgoal.text} failed: {reason}."
