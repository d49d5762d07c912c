"""4. Where the things of a plan are, read from the Embodied-former's tokens and the picture.

A language model of this size says numbers badly. The head reads the places from the tokens that
the plan is made from, and looks for them in the picture again: each place asks all patches
(attention), and its answer is the patches' mean position, with a correction, added to a first guess
from the tokens alone. The language model says which things are in view, and what to do. Trained by
`embodied finetune --stage places`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embodied.model.former import FormerConfig
from embodied.model.plan import N_PLACES

_SQUEEZED, _HIDDEN, _KEY = 12, 72, 24


class PlaceHead(nn.Module):
    """Embodied tokens and vision tokens → places in the first camera's picture.

    Args:
        config: of the former that the tokens are from. Its patches are a square grid.
    """

    centres: Tensor

    def __init__(self, config: FormerConfig) -> None:
        super().__init__()
        self.squeeze = nn.Linear(config.width, _SQUEEZED)
        self.hidden = nn.Linear(_SQUEEZED * config.n_queries, _HIDDEN)
        self.guess = nn.Linear(_HIDDEN, 2 * N_PLACES)
        self.ask = nn.Linear(_HIDDEN, _KEY * N_PLACES)
        self.key = nn.Linear(config.vision_width, _KEY)
        self.position = nn.Parameter(torch.randn(config.n_patches, _KEY) * 0.02)
        self.correct = nn.Linear(_KEY, 2)
        self.register_buffer("centres", _centres(config.n_patches), persistent=False)

    def forward(self, queries: Tensor, vision: Tensor) -> Tensor:
        """Embodied tokens (B, Q, D) → (B, N_PLACES, 2), x and y in 0..1 within the picture.

        The first two are the things in the order in which the former was told of them, the last
        one is the gripper.

        Args:
            vision: the tokens that the former looked at, (B, cameras, T', N, W).
        """
        hidden = F.gelu(self.hidden(self.squeeze(queries.float()).flatten(1)))
        newest = vision[:, 0, -1].float()
        keys = self.key(F.layer_norm(newest, newest.shape[-1:])) + self.position  # (B, N, K)
        asked = self.ask(hidden).unflatten(1, (N_PLACES, _KEY))
        share = (asked @ keys.transpose(1, 2) * _KEY**-0.5).softmax(-1)  # (B, N_PLACES, N)
        found = share @ self.centres + self.correct(share @ keys)
        return self.guess(hidden).unflatten(1, (N_PLACES, 2)) + found


def _centres(n_patches: int) -> Tensor:
    """x and y of each patch's middle in 0..1, row by row: (N, 2)."""
    side = math.isqrt(n_patches)
    middles = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)
