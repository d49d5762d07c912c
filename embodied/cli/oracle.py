"""A policy that is told where things truly are: a ceiling for the others, and no fair peer.

Only an evaluation gives it that; nothing else in the agent reads the simulator's truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied.egocot.dataset import nouns_at_hand, places_at
from embodied.model.imitation import oracle_state
from embodied.types import Policy


class OraclePolicy:
    """Adds the truth to what the policy is fed.

    Args:
        policy: one that was trained so.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.horizon, self.fed, self.ensemble = policy.horizon, policy.fed, policy.ensemble
        self.truth: Callable[[], np.ndarray] | None = None

    def act(
        self,
        z_instance: Tensor,
        z_global: Tensor,
        state: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As the policy's own.

        Raises:
            ValueError: nobody tells the truth.
        """
        if self.truth is None:
            raise ValueError(
                "this policy is an oracle, which only `embodied evaluate` tells where things are; "
                "give another --policy"
            )
        places = torch.from_numpy(self.truth())[None].to(state.device)
        actions, done = self._policy.act(
            z_instance, z_global, oracle_state(state, places), generator
        )
        return actions, done


@dataclass(frozen=True)
class _Now:
    """As much of a recorded episode as `places_at` reads: one step."""

    places: dict[str, np.ndarray]


def true_places(env: Any, cameras: Sequence[str]) -> np.ndarray:
    """Where the things of the true sub-goal are now, (N_PLACES, cameras, 2); NaN out of view."""
    labels = env.labels()
    subgoal = env.vocabulary.narrowed(env.tasks).subgoals[labels["subgoal"]]
    places = {
        noun: np.array([[seen.get(camera, (np.nan, np.nan)) for camera in cameras]], np.float32)
        for noun, seen in labels["pixels"].items()
    }
    now: Any = _Now(places)
    return places_at(now, nouns_at_hand(subgoal), 0)
