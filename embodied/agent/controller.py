"""6. Carries out one sub-goal: looks every few steps, and hands out the policy's actions.

The sub-goal's words go into the Embodied-former once, in `begin`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from embodied.model.features import control_features
from embodied.model.former import EmbodiedFormer
from embodied.model.planner import CONTROL_TEXT, Planner, stack_cameras
from embodied.types import ActionChunk, Observation, Policy, Subgoal


@dataclass(frozen=True)
class Command:
    """One action, and the done head's probability on the steps where the policy was asked."""

    action: np.ndarray
    done_probability: float | None = None


class Controller:
    """Vision, Embodied-former and policy in a row.

    Args:
        planner: its frozen vision encoder and word embeddings are used.
        former: the Embodied-former that the policy was trained with.
        policy: features → action chunks.
        execute: actions of a chunk that are carried out before the next look.
    """

    def __init__(
        self, planner: Planner, former: EmbodiedFormer, policy: Policy, execute: int
    ) -> None:
        self._planner, self._former, self._policy = planner, former, policy
        self._execute = execute
        self._queue: deque[np.ndarray] = deque()

    def begin(self, subgoal: Subgoal | None, first: Sequence[np.ndarray] = ()) -> None:
        """Turn to a sub-goal; without one the former gets no words at all.

        Args:
            first: actions to carry out before the policy is asked.
        """
        words = "" if subgoal is None else subgoal.text
        embedded, mask = self._planner.embed_texts([CONTROL_TEXT.format(words)])
        if subgoal is None:
            embedded, mask = embedded * 0, torch.zeros_like(mask)
        with torch.inference_mode():
            self._text = self._former.encode_text(embedded, mask)
        self._queue = deque(first)

    def act(self, observation: Observation) -> Command:
        """The next action.

        Raises:
            ValueError: the policy gave NaN or infinity (`ActionChunk` checks).
        """
        done_probability = self._look(observation) if not self._queue else None
        return Command(self._queue.popleft(), done_probability)

    @torch.inference_mode()
    def _look(self, observation: Observation) -> float:
        frames = stack_cameras([observation], self._planner.config.cameras)
        vision = self._planner.see(frames)
        z_instance, z_global = control_features(self._former, vision, self._text)
        state = torch.from_numpy(observation.state)[None]
        actions, done = self._policy.act(z_instance, z_global, state)
        chunk = ActionChunk(actions[0].float().numpy())
        self._queue.extend(chunk.actions[: self._execute])
        return float(done.sigmoid()[0])
