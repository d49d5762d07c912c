"""4. Where the things of a plan are, read from the Embodied-former's tokens.

A language model of this size says numbers badly. The head reads the places from the tokens that
the plan is made from; the language model says which things are in view, and what to do. Trained by
`embodied finetune --stage heads`.
"""

from __future__ import annotations

from torch import Tensor, nn

from embodied.model.former import FormerConfig
from embodied.model.plan import N_PLACES

_SQUEEZED, _HIDDEN = 12, 96


class PlaceHead(nn.Module):
    """Embodied tokens → places in the first camera's picture.

    Args:
        config: of the former that the tokens are from.
    """

    def __init__(self, config: FormerConfig) -> None:
        super().__init__()
        self.squeeze = nn.Linear(config.width, _SQUEEZED)
        self.out = nn.Sequential(
            nn.Linear(_SQUEEZED * config.n_queries, _HIDDEN),
            nn.GELU(),
            nn.Linear(_HIDDEN, 2 * N_PLACES),
        )

    def forward(self, queries: Tensor) -> Tensor:
        """Embodied tokens (B, Q, D) → (B, N_PLACES, 2), x and y in 0..1 within the picture.

        The first two are the plan's things in the order in which the former was told of them, the
        last one is the gripper.
        """
        flat = self.out(self.squeeze(queries.float()).flatten(1))
        return flat.unflatten(1, (N_PLACES, 2)) + 0.5
