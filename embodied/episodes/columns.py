"""An episode's steps ↔ arrays, one for each feature that is a column of data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from embodied.episodes.info import PIXELS, Info, cameras_of
from embodied.types import Episode, Observation, Step


def columns_of(episode: Episode, info: Info, nouns: Sequence[str]) -> dict[str, np.ndarray]:
    """Feature → (T, D), but for videos and running numbers.

    Args:
        episode: one with at least one step.
        info: the data set's.
        nouns: the things that have pixel labels in this episode.
    """
    steps, length = episode.steps, len(episode.steps)
    frame = np.arange(length)
    columns = {
        "observation.state": np.stack([step.observation.state for step in steps]),
        "action": np.stack([step.action for step in steps]),
        "next.reward": np.array([step.reward for step in steps]),
        "next.done": frame == length - 1,
        "next.success": np.array([step.success for step in steps]),
        "subgoal_index": np.array([step.subgoal for step in steps]),
        "subgoal.done": np.array([step.done for step in steps]),
        "subgoal.met": np.array([step.met for step in steps]),
        "timestamp": frame / info["fps"],
        "frame_index": frame,
    }
    for camera in cameras_of(info) if nouns else ():
        pixels = np.full((length, len(nouns), 2), np.nan)
        for t, step in enumerate(steps):
            for noun, places in step.pixels.items():
                pixels[t, nouns.index(noun)] = places.get(camera, np.nan)
        columns[PIXELS + camera] = pixels
    dtypes = {name: feature["dtype"] for name, feature in info["features"].items()}
    return {
        name: values.reshape(length, -1).astype(dtypes.get(name, "float32"))
        for name, values in columns.items()
    }


def steps_of(
    columns: Mapping[str, np.ndarray],
    clips: Mapping[str, np.ndarray],
    cameras: Collection[str],
    nouns: Sequence[str],
) -> list[Step]:
    """The steps again; what other software did not record is 0 or false.

    Args:
        columns: feature → (T,), or (T, D) for the state, the action and the pixels.
        clips: camera → uint8 (T, H, W, 3), of the cameras that are wanted.
        cameras: those that have pixel labels.
        nouns: the things that have them.
    """
    pixels = _to_pixels(columns, cameras, nouns)
    nothing = np.zeros(len(pixels))
    names = ("subgoal_index", "subgoal.done", "subgoal.met", "next.reward", "next.success")
    labels = zip(*(columns.get(name, nothing) for name in names), strict=True)
    steps = []
    for t, (subgoal, done, met, reward, success) in enumerate(labels):
        images = {camera: clip[t] for camera, clip in clips.items()}
        seen = Observation(images, columns["observation.state"][t])
        labelled = (int(subgoal), bool(done), float(reward), bool(success), pixels[t])
        steps.append(Step(seen, columns["action"][t], *labelled, met=int(met)))
    return steps


def _to_pixels(
    columns: Mapping[str, np.ndarray], cameras: Collection[str], nouns: Sequence[str]
) -> list[dict[str, dict[str, tuple[float, float]]]]:
    """A mapping noun → (camera → (x, y)) for each step, without those that were not given."""
    steps: list[dict[str, dict[str, tuple[float, float]]]] = [{} for _ in columns["timestamp"]]
    for camera in cameras if nouns else ():
        pixels = columns[PIXELS + camera].reshape(len(steps), len(nouns), 2)
        for t, n in np.argwhere(np.isfinite(pixels).all(axis=2)):
            x, y = pixels[t, n]
            steps[t].setdefault(nouns[n], {})[camera] = (float(x), float(y))
    return steps
