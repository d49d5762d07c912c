"""How one batch is shared by processes, and by the rounds of gradient accumulation.

All that a step learns from is one batch, a function of the step's number and the seed, and every
process draws the whole of it. It is cut into P · N shares, for P processes with N rounds each
(`--accumulation N`): share i has the rows i, i + PN, i + 2PN … of every use of the model that is
in the batch.

Losses are means, over answer tokens, known places, valid steps of a chunk, and shares have
unequal numbers of those: the mean of their means is not the mean over the batch. So a module
tells by `counts(batch)` over how many things each part of its loss is a mean. A share's counts
divided by the whole batch's are its `fractions`, and `loss(share, fractions)` multiplies every
part with its fraction. What comes out are contributions: over all shares they add up to the loss,
the figures and the gradients of the whole batch. Nothing needs to be exchanged for that but the
gradients, as every process knows the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Fractions = Mapping[str, float]
"""Part of the loss → the share's part of what it is a mean over."""


def share_of(batch: Any, index: int, n: int) -> Any:
    """Rows `index`, `index + n` … of a batch.

    Tensors, arrays and lists have rows. Of dataclasses, dicts, and lists of dataclasses (several
    uses of the model in one batch) each entry is shared by itself; all else is the same for all.

    Raises:
        ValueError: something has fewer rows than there are shares.
    """

    def rows(value: Any) -> Any:
        if len(value) < n:
            raise ValueError(
                f"{len(value)} rows of a batch cannot be shared by {n}, which is the number of"
                " processes times --accumulation: lower one of them, or take a larger batch"
            )
        return value[index::n]

    return _mapped(batch, rows)


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`."""
    if device.type == "cpu":
        return batch
    return _mapped(batch, lambda rows: rows.to(device) if isinstance(rows, Tensor) else rows)


def fractions(counts: Mapping[str, float], whole: Mapping[str, float]) -> dict[str, float]:
    """What part of the whole batch's counts a share has; 0 of what there is none."""
    return {name: counts[name] / n if n else 0.0 for name, n in whole.items()}


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with `change` done to everything in it that has rows."""
    if is_dataclass(value) and not isinstance(value, type):
        entries = {f.name: _mapped(getattr(value, f.name), change) for f in fields(value)}
        return replace(value, **entries)
    if isinstance(value, dict):
        return {key: _mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple) and value and is_dataclass(value[0]):
        return [_mapped(use, change) for use in value]
    has_rows = isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0
    return change(value) if has_rows else value


_Sizes = TypeVar("_Sizes", bound=tuple[int, ...])


def scaled(sizes: _Sizes, total: int) -> _Sizes:
    """Numbers of rows in the proportions of `sizes` that make `total`; 0 for as it is.

    What there is some of stays at least one.

    Raises:
        ValueError: `total` is too small for that.
    """
    if total == 0:
        return sizes
    kinds = [i for i, n in enumerate(sizes) if n]
    if total < len(kinds):
        raise ValueError(
            f"a batch of {total} cannot have some of {len(kinds)} uses: make it {len(kinds)} or "
            "more, or 0 for the usual one"
        )
    exact = [n * total / sum(sizes) for n in sizes]
    rows = [max(1, round(x)) if x else 0 for x in exact]
    while (missing := total - sum(rows)) != 0:
        one = 1 if missing > 0 else -1
        furthest = max(kinds, key=lambda i: (rows[i] + one > 0, one * (exact[i] - rows[i])))
        rows[furthest] += one
    return cast(_Sizes, tuple(rows))
