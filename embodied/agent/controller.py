"""6. Carries out one sub-goal: looks every few steps, and hands out the policy's actions.

The sub-goal's words go into the Embodied-former once, in `begin`. Of each chunk the first few
actions are carried out before the next look (receding horizon); a policy may ask for overlapping
chunks to be averaged (temporal ensembling). What the policy is fed is what it was trained on.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embodied.agent.chunking import Ensemble
from embodied.model.features import policy_features
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
        self._ensemble = None if policy.ensemble is None else Ensemble(policy.ensemble)
        self._cameras = policy.fed.cameras or planner.config.cameras
        self._black: Tensor | None = None

    def begin(self, subgoal: Subgoal | None, first: Sequence[np.ndarray] = ()) -> None:
        """Turn to a sub-goal; without one the former gets no words at all.

        Args:
            first: actions to carry out before the policy is asked.
        """
        if self._policy.fed.ablate == "plan_zeroed":
            subgoal = None
        words = "" if subgoal is None else subgoal.text
        embedded, mask = self._planner.embed_texts([CONTROL_TEXT.format(words)])
        if subgoal is None:
            embedded, mask = embedded * 0, torch.zeros_like(mask)
        with torch.inference_mode():
            self._text = self._former.encode_text(embedded, mask)
        self._queue = deque(first)
        self._generator: torch.Generator | None = None
        if self._ensemble is not None:
            self._ensemble.clear()

    def act(self, observation: Observation) -> Command:
        """The next action.

        Raises:
            ValueError: the policy gave NaN or infinity (`ActionChunk` checks).
        """
        done_probability = self._look(observation) if not self._queue else None
        return Command(self._queue.popleft(), done_probability)

    @torch.inference_mode()
    def _look(self, observation: Observation) -> float:
        vision = self._see(observation)
        features = policy_features(self._policy.fed.features, self._former, vision, self._text)
        state = torch.from_numpy(observation.state)[None].to(vision.device)
        actions, done = self._policy.act(*features, state, self._noise(observation))
        chunk = ActionChunk(actions[0].float().cpu().numpy()).actions
        if self._ensemble is None:
            self._queue.extend(chunk[: self._execute])
        else:
            self._queue.extend(self._ensemble.add(chunk, self._execute))
        return float(done.sigmoid()[0])

    def _see(self, observation: Observation) -> Tensor:
        """The vision tokens (1, cameras, 1, N, W) of what the policy is shown."""
        frames = stack_cameras([observation], self._cameras)
        match self._policy.fed.features:
            case "blind":
                if self._black is None:
                    self._black = self._planner.see(np.zeros_like(frames))
                return self._black
            case "state" | "oracle":
                width = self._planner.config.former.vision_width
                shape = (1, len(self._cameras), 1, 1, width)
                return torch.zeros(shape, device=self._text.mask.device)
            case _:
                return self._planner.see(frames)

    def _noise(self, observation: Observation) -> torch.Generator:
        """Of what the policy draws: for a sub-goal, told by the first look and nothing else."""
        if self._generator is None:
            pictures = b"".join(image.tobytes() for image in observation.images.values())
            seed = zlib.crc32(pictures, zlib.crc32(observation.state.tobytes()))
            self._generator = torch.Generator().manual_seed(seed)
        return self._generator
