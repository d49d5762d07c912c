"""5. (frame, sub-goal) → z_instance and z_global, at run time and cached for training.

z_instance is what the Embodied-former's queries see with the sub-goal's words as text; z_global is
the vision tokens' mean over each picture, the cameras side by side (EmbodiedGPT, section 3.3).
The frozen vision tokens of a data set are computed once and memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from embodied.config import ModelConfig
from embodied.episodes import DatasetReader
from embodied.model.former import EmbodiedFormer, TextState
from embodied.model.planner import Planner, cameras_of

IMAGE_EVERY = 2
"""Control steps between cached pictures; also a clip's frame stride."""

TUBELET_EVERY = 2 * IMAGE_EVERY
N_TUBELETS = 4
_BATCH = 16


def global_feature(vision: Tensor) -> Tensor:
    """Vision tokens (B, cameras, T', N, W) of the newest frame → z_global (B, cameras · W)."""
    return vision[:, :, -1].float().mean(2).flatten(1)


def control_features(
    former: EmbodiedFormer, vision: Tensor, text: TextState
) -> tuple[Tensor, Tensor]:
    """Vision tokens (B, cameras, 1, N, W) and words → z_instance (B, Q, D), z_global (B, C)."""
    return former(vision.float(), text), global_feature(vision)


@dataclass(frozen=True)
class EpisodeSpan:
    """Where one episode's cached pictures and tubelets lie."""

    first_image: int
    first_tubelet: int
    length: int

    def image(self, step: int) -> int:
        """The row of the cached picture at or before control step `step`."""
        return self.first_image + step // IMAGE_EVERY

    def tubelets(self, step: int) -> list[int]:
        """The rows of the clip of `N_TUBELETS` that ends at or before `step`, oldest first."""
        last = max(0, (step - IMAGE_EVERY) // TUBELET_EVERY)
        return [self.first_tubelet + max(0, last - k) for k in reversed(range(N_TUBELETS))]


def n_images(length: int) -> int:
    """Cached pictures of an episode of `length` steps."""
    return (length + IMAGE_EVERY - 1) // IMAGE_EVERY


def n_tubelets(length: int) -> int:
    """Cached tubelets of an episode of `length` steps, at least one."""
    return max(1, (length - IMAGE_EVERY - 1) // TUBELET_EVERY + 1)


class FeatureCache:
    """Frozen vision tokens of a data set's pictures and tubelets, float16, memory-mapped.

    Args:
        folder: made by `build`.

    Attributes:
        images: (pictures, cameras, N, W).
        tubelets: (tubelets, cameras, N, W).
        spans: one an episode.
    """

    def __init__(self, folder: Path) -> None:
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        self.tubelets = np.load(folder / "tubelets.npy", mmap_mode="r")
        lengths = json.loads((folder / "done.json").read_text())["lengths"]
        self.spans = _spans(lengths)

    @classmethod
    def build(cls, planner: Planner, reader: DatasetReader, root: Path) -> FeatureCache:
        """The cache of `reader`'s data set under `root`, computed unless it is there already.

        It is keyed by the data set and by everything that changes the tokens.
        """
        lengths = [episode.length for episode in reader.episodes]
        folder = root / _key(planner.config, reader)
        if not (folder / "done.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _fill(planner, reader, folder, lengths)
            (folder / "done.json").write_text(json.dumps({"lengths": lengths}))
        return cls(folder)


def _key(config: ModelConfig, reader: DatasetReader) -> str:
    cameras = cameras_of(config.cameras, tuple(reader.cameras))
    parts = [config.vision, config.image_size, config.vision_layers, cameras, config.dtype]
    parts += [(e.env_id, e.seed, e.tag, e.length) for e in reader.episodes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _spans(lengths: list[int]) -> list[EpisodeSpan]:
    spans, image, tubelet = [], 0, 0
    for length in lengths:
        spans.append(EpisodeSpan(image, tubelet, length))
        image += n_images(length)
        tubelet += n_tubelets(length)
    return spans


def _fill(planner: Planner, reader: DatasetReader, folder: Path, lengths: list[int]) -> None:
    config = planner.config
    cameras = cameras_of(config.cameras, tuple(reader.cameras))
    shape = (len(config.cameras), config.former.n_patches, config.former.vision_width)
    n_pictures, n_tubes = sum(map(n_images, lengths)), sum(map(n_tubelets, lengths))
    images = np.lib.format.open_memmap(
        folder / "images.npy", "w+", np.float16, (n_pictures, *shape)
    )
    tubelets = np.lib.format.open_memmap(
        folder / "tubelets.npy", "w+", np.float16, (n_tubes, *shape)
    )
    for i, span in enumerate(tqdm(_spans(lengths), desc="vision features", unit="episode")):
        steps = np.arange(0, span.length, IMAGE_EVERY)
        frames = np.stack([reader.frames(i, c, steps) for c in cameras], 1)
        # (pictures, cameras, H, W, 3)
        images[span.first_image : span.first_image + len(steps)] = _tokens(
            planner, frames[:, :, None]
        )
        pairs = _pairs(frames, n_tubelets(span.length))
        tubelets[span.first_tubelet : span.first_tubelet + len(pairs)] = _tokens(planner, pairs)
    images.flush()
    tubelets.flush()


def _pairs(frames: np.ndarray, n: int) -> np.ndarray:
    """Pictures (P, cameras, H, W, 3) → pairs of neighbours (n, cameras, 2, H, W, 3)."""
    firsts = np.arange(n) * 2
    seconds = np.minimum(firsts + 1, len(frames) - 1)
    return np.stack([frames[firsts], frames[seconds]], axis=2)


def _tokens(planner: Planner, frames: np.ndarray) -> np.ndarray:
    """Pictures (B, cameras, T, H, W, 3), T = 1 or 2 → tokens (B, cameras, N, W), float16."""
    with torch.inference_mode():
        parts = [
            planner.see(frames[i : i + _BATCH])[:, :, 0].half().numpy()
            for i in range(0, len(frames), _BATCH)
        ]
    return np.concatenate(parts)
