"""Statistics: of an episode's vectors, of its pictures, and of all episodes together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embodied.video import sample_indices

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATS = ("min", "max", "mean", "std", "count", *QUANTILES)


def vector_stats(values: np.ndarray) -> dict[str, np.ndarray]:
    """(T, D) → statistic → (D,); count (1,)."""
    x = values.astype(np.float64)
    stats = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    stats |= dict(zip(QUANTILES, np.quantile(x, list(QUANTILES.values()), axis=0), strict=True))
    return stats | {"count": np.array([len(x)])}


def image_stats(frames: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 (T, H, W, 3) → statistic → (3, 1, 1) in 0..1, of at most 100 frames; count (1,)."""
    t, h, w, _ = frames.shape
    sample = frames[sample_indices(t, min(t, 100)), :: 1 + h // 150, :: 1 + w // 150]
    levels = np.arange(256) / 255
    stats: dict[str, list[float]] = {stat: [] for stat in STATS if stat != "count"}
    for channel in range(3):
        counts = np.bincount(sample[..., channel].reshape(-1), minlength=256)
        share, present = counts / counts.sum(), levels[counts > 0]
        mean = float(share @ levels)
        stats["min"].append(present[0])
        stats["max"].append(present[-1])
        stats["mean"].append(mean)
        stats["std"].append(float(np.sqrt(share @ (levels - mean) ** 2)))
        for name, q in QUANTILES.items():
            stats[name].append(levels[min(255, int(np.searchsorted(share.cumsum(), q)))])
    arrays = {name: np.reshape(values, (3, 1, 1)) for name, values in stats.items()}
    return arrays | {"count": np.array([len(sample)])}


def total_stats(rows: Sequence[Mapping[str, Any]], feature: str) -> dict[str, list[Any]]:
    """All episodes' statistics from those of each; quantiles by weighted mean, as LeRobot does.

    Args:
        rows: of meta/episodes, with the columns `stats/<feature>/<statistic>`.
        feature: the feature's name.
    """
    x = {stat: np.array([row[f"stats/{feature}/{stat}"] for row in rows]) for stat in STATS}
    count = x.pop("count").reshape(len(rows), *[1] * (x["mean"].ndim - 1))
    share = count / count.sum()
    total = {name: (x[name] * share).sum(0) for name in ("mean", *QUANTILES)}
    spread = ((x["std"] ** 2 + (x["mean"] - total["mean"]) ** 2) * share).sum(0)
    total |= {"min": x["min"].min(0), "max": x["max"].max(0), "std": np.sqrt(spread)}
    return {stat: total[stat].tolist() for stat in total} | {"count": [int(count.sum())]}
