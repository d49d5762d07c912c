"""8. Which of several tasks to turn to: in the order said, and what to come back to.

What the agent was asked for is gone through in order. A task that keeps failing is put off until
the others are done, for it is often enough to come from elsewhere. What has come undone since is
done again; and when nothing is left, so is what may not have been done after all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from embodied.agent.monitor import MonitorOptions
from embodied.types import Subgoal, Verdict, Vocabulary


class Agenda:
    """The tasks of one episode.

    `n_put_off` and `n_repeats` count how often a task was put off, and how often one was done again
    because it might not have been done.

    Args:
        vocabulary: of the scene; it says which task a sub-goal serves.
        options: the monitor's.
        judge: what the last frames show of a sub-goal.
        is_watched: whether anything is judged; else the plan is gone through once.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        options: MonitorOptions,
        judge: Callable[[Subgoal], Verdict],
        is_watched: bool = True,
    ) -> None:
        self._vocabulary, self._options, self._judge = vocabulary, options, judge
        self._is_watched = is_watched and len(vocabulary.tasks) > 1
        self._subgoals: tuple[Subgoal, ...] = ()
        self._owners: list[str] = []
        self._worked_on: set[str] = set()
        self._failures: Counter[str] = Counter()  # of each task, since it was turned to
        self._put_off: list[str] = []
        self._doubts: Counter[str] = Counter()
        self.done_at_first: set[str] = set()
        self.n_put_off = 0
        self.n_repeats = 0

    def follow(self, subgoals: Sequence[Subgoal]) -> None:
        """Go by another plan; what was learnt about its tasks stays."""
        self._subgoals = tuple(subgoals)
        self._owners = [self._vocabulary.owner(s) for s in subgoals]

    def look_first(self) -> None:
        """See which tasks are done before anything is."""
        if self._is_watched:
            self.done_at_first = {
                task
                for task, last in self._lasts.items()
                if self._options.believes(self._judge(last))
            }

    def turn_to(self, index: int) -> None:
        """Remember that sub-goal `index` is worked on from now on."""
        task = self._owners[index]
        self._worked_on.add(task)
        self._put_off = [other for other in self._put_off if other != task]

    def span(self, index: int) -> tuple[int, int]:
        """The first and the last sub-goal that serve the same task as `index` does."""
        first = last = index
        while first > 0 and self._owners[first - 1] == self._owners[index]:
            first -= 1
        while last + 1 < len(self._owners) and self._owners[last + 1] == self._owners[index]:
            last += 1
        return first, last

    # ------------------------------------------------------------------------------- what next

    def first_open(self, index: int) -> int | None:
        """The sub-goal from `index` on to turn to; None when nothing is left.

        Tasks that are seen to be done are passed over, and those that were put off.
        """
        while index < len(self._subgoals):
            first, last = self.span(index)
            if index > first or not self._passes_over(last):
                return index
            index = last + 1
        return None

    def after(self, index: int) -> int | None:
        """What to turn to when sub-goal `index` is done; None to keep at it."""
        found = self._next_open(index + 1)
        return found if found is not None else self._doubtful(index)

    def instead(self, index: int) -> int | None:
        """What to turn to when sub-goal `index` has failed; None to try again.

        A task that has failed often enough is put off, if there is another one.
        """
        task, tries = self._owners[index], self._options.tries_per_task
        self._failures[task] += 1
        if not (self._is_watched and 0 < tries <= self._failures[task]):
            return None
        self._put_off.append(task)
        found = self._next_open(self.span(index)[1] + 1)
        if found is None or self._owners[found] == task:
            return None
        self._failures[task] = 0
        self.n_put_off += 1
        return found

    # ------------------------------------------------------------------------------ one by one

    @property
    def _lasts(self) -> dict[str, Subgoal]:
        """Task → its last sub-goal, in the plan's order."""
        return dict(zip(self._owners, self._subgoals, strict=True))

    def _passes_over(self, last: int) -> bool:
        """Whether the task whose last sub-goal this is needs nothing more for now.

        What was neither done at first nor worked on since is not done, whatever the clip of the
        task before looks like. What was believed to be done is not doubted again here: with the
        hand elsewhere the judge is less sure of it.
        """
        task = self._owners[last]
        if not self._is_watched:
            return False
        if task in self._put_off:
            return True
        if task not in self._worked_on | self.done_at_first:
            return False
        return self._judge(self._subgoals[last]).status == "done"

    def _next_open(self, index: int) -> int | None:
        """What is open from `index` on, else what has come undone since, else what was put off."""
        found = self.first_open(index)
        if found is None and self._is_watched:
            found = self.first_open(0)
        if found is None and self._put_off:
            found = self._owners.index(self._put_off.pop(0))
        return found

    def _doubtful(self, index: int) -> int | None:
        """Where to begin with a task that looks done, but not surely; the least often doubted.

        Only of several: one by itself is worked on until the end anyway.
        """
        lasts, threshold = self._lasts, self._options.sure_above
        if not (self._is_watched and threshold > 0 and len(lasts) > 1):
            return None
        sure = {t: _sureness(self._judge(s)) for t, s in lasts.items() if t in self._worked_on}
        unsure = [task for task in sure if sure[task] < threshold]
        if not unsure:
            return None
        task = min(unsure, key=lambda t: (self._doubts[t], sure[t]))
        self._doubts[task] += 1
        if task == self._owners[index] and self._doubts[task] == 1:
            return None  # it is being worked on: that may be enough
        self.n_repeats += 1
        return self._owners.index(task)


def _sureness(verdict: Verdict) -> float:
    """The probability that what was judged is done, as far as the verdict tells."""
    return verdict.probability if verdict.status == "done" else 0.0
