"""8. When to look, what to ask, and what to make of the answer: go on, try again, plan anew.

The policy's done head says when a sub-goal may be met, the robot's own state when nothing moves
any more; at either, the planner judges the last frames. Nothing of the simulator's truth comes
here.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from embodied.types import Subgoal, Verdict

Reaction = Literal["go on", "next", "retry", "replan"]
Look = Literal["claimed", "stalled"]


@dataclass(frozen=True)
class MonitorOptions:
    """When to look and how often to try.

    Args:
        claim_above: the done head's probability from which it is believed to claim a sub-goal.
        claims: claims in a row before a look.
        stall_steps: control steps over which the robot is compared with itself.
        stall_range: largest change of any state entry (metres, opening) that counts as no motion.
        patience_steps: control steps without a look after which there is one, as if nothing moved;
            never when 0. A robot that trembles beside a handle does not stand still.
        cooldown_steps: steps after a look before the next one.
        believe_above: the probability from which the judge's "done" is believed where it ends a
            task; below it the sub-goal counts as in progress. On the way there every "done" is
            believed: when it is false, the next sub-goal shows it.
        tries_per_task: failures at a task after which the agent turns to another one that is open,
            and comes back later, from elsewhere; never when 0.
        sure_above: the probability of "done" from which a task is left alone. When nothing else is
            left of several tasks, those below it are done again, the least often repeated first.
        replans_per_subgoal, replans_per_episode: budgets; after them the agent only goes on.
    """

    claim_above: float = 0.5
    claims: int = 2
    stall_steps: int = 24
    stall_range: float = 0.012
    patience_steps: int = 0
    cooldown_steps: int = 12
    believe_above: float = 0.0
    tries_per_task: int = 0
    sure_above: float = 0.0
    replans_per_subgoal: int = 3
    replans_per_episode: int = 8

    def believes(self, verdict: Verdict) -> bool:
        """Whether what was judged is done, surely enough to end a task."""
        return verdict.status == "done" and verdict.probability >= self.believe_above


class Monitor:
    """Watches one episode."""

    def __init__(self, options: MonitorOptions | None = None) -> None:
        self.options = options or MonitorOptions()
        self._states: deque[np.ndarray] = deque(maxlen=self.options.stall_steps)
        self._claims = 0
        self._cooldown = 0
        self._waited = 0
        self._stalls_in_vain = 0
        self._failures: Counter[tuple[str, str]] = Counter()
        self._replans: Counter[str] = Counter()
        self.n_replans = 0
        self.n_retries = 0

    def begin_subgoal(self) -> None:
        """Forget what was seen of the sub-goal before."""
        self._states.clear()
        self._claims = 0
        self._waited = 0
        self._stalls_in_vain = 0
        self._cooldown = 4

    def forget_failures(self) -> None:
        """Every sub-goal may be tried anew, within the episode's budget."""
        self._failures.clear()
        self._replans.clear()

    def watch(self, state: np.ndarray, done_probability: float | None) -> Look | None:
        """One control step. Returns why to look now, or None.

        Args:
            state: the robot's own state (S,).
            done_probability: the done head's, on steps where it was asked.
        """
        self._states.append(np.asarray(state))
        self._waited += 1
        if done_probability is not None:
            claimed = done_probability > self.options.claim_above
            self._claims = self._claims + 1 if claimed else 0
        if self._cooldown > 0:
            self._cooldown -= 1
            return None
        if self._claims >= self.options.claims:
            return "claimed"
        return "stalled" if self._is_still() or self._is_overdue() else None

    def _is_overdue(self) -> bool:
        return 0 < self.options.patience_steps <= self._waited

    def _is_still(self) -> bool:
        if len(self._states) < self.options.stall_steps:
            return False
        return float(np.ptp(np.stack(self._states), axis=0).max()) < self.options.stall_range

    def react(
        self, look: Look, subgoal: Subgoal, verdict: Verdict, ends_task: bool = True
    ) -> Reaction:
        """What to do about a verdict: within the budgets, first try again, then plan anew.

        Args:
            ends_task: whether a task is done once this sub-goal is.
        """
        self._cooldown = self.options.cooldown_steps
        self._claims = 0
        self._waited = 0
        if self.options.believes(verdict) or (verdict.status == "done" and not ends_task):
            return "next"
        if verdict.status != "failed" and not self._stalls_again(look):
            return "go on"
        if not self._may_replan(subgoal):
            return "go on"
        self._states.clear()
        self._failures[subgoal.text, verdict.reason] += 1
        if self._failures[subgoal.text, verdict.reason] % 2 == 1:
            self.n_retries += 1
            return "retry"
        self._replans[subgoal.text] += 1  # the same failure again: a loop, so think anew
        self.n_replans += 1
        return "replan"

    def _stalls_again(self, look: Look) -> bool:
        if look == "stalled":
            self._states.clear()
            self._stalls_in_vain += 1
        return self._stalls_in_vain >= 2

    def _may_replan(self, subgoal: Subgoal) -> bool:
        options = self.options
        return (
            self.n_replans < options.replans_per_episode
            and self._replans[subgoal.text] < options.replans_per_subgoal
        )
