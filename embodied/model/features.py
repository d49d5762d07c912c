"""5. (frame, sub-goal) → z_instance and z_global, at run time and cached for training.

z_instance is what the Embodied-former's queries see with the sub-goal's words as text; z_global is
the vision tokens' mean over each picture, the cameras side by side (EmbodiedGPT, section 3.3).
The frozen vision tokens of a data set are computed once and memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from embodied.config import ModelConfig
from embodied.episodes import DatasetReader
from embodied.model.augment import Augmenter
from embodied.model.former import EmbodiedFormer, TextState
from embodied.model.planner import Planner, cameras_of
from embodied.random_weights import is_random
from embodied.types import Features
from embodied.video import replacing
from embodied.weights import WHEELS

IMAGE_EVERY = 2
"""Control steps between cached pictures; also a clip's frame stride."""

TUBELET_EVERY = 2 * IMAGE_EVERY
N_TUBELETS = 4
_BATCH = 16
_DONE = "done.json"
_USUAL_SIZE = (224, 224)
"""Height and width of recorded pictures which, like everything usual, the keys do not mention."""


def global_feature(vision: Tensor) -> Tensor:
    """Vision tokens (B, cameras, T', N, W) of the newest frame → z_global (B, cameras · W)."""
    return vision[:, :, -1].float().mean(2).flatten(1)


def control_features(
    former: EmbodiedFormer, vision: Tensor, text: TextState
) -> tuple[Tensor, Tensor]:
    """Vision tokens (B, cameras, 1, N, W) and words → z_instance (B, Q, D), z_global (B, C)."""
    return former(vision.float(), text), global_feature(vision)


def policy_features(
    features: Features, former: EmbodiedFormer, vision: Tensor, text: TextState
) -> tuple[Tensor, Tensor]:
    """`control_features`, or what a baseline leaves of them: zeros in place of the rest."""
    if features in ("former", "blind"):
        return control_features(former, vision, text)
    z_global = global_feature(vision)
    nothing = z_global.new_zeros(len(vision), former.config.n_queries, former.config.width)
    return nothing, z_global * (features in ("r3m", "global"))


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


def finish(folder: Path, what: dict[str, Any]) -> None:
    """Say in a cache's folder that all of it is there, and what that is."""
    with replacing(folder / _DONE) as partial:
        partial.write_text(json.dumps(what))


def is_finished(folder: Path) -> bool:
    """Whether all of a cache is there, and not what an interrupted run has left."""
    return (folder / _DONE).is_file()


class FeatureCache:
    """Frozen vision tokens of a data set's pictures and tubelets, float16, memory-mapped.

    Args:
        folder: made by `build` or `build_part`.
        cameras: which of its cameras to show, in this order; all when None.

    Attributes:
        images: (pictures, cameras, N, W).
        tubelets: (tubelets, cameras, N, W); None for altered pictures.
        shifts: (pictures, cameras, 2), how far altered pictures were moved to the right and down,
            as a part of their size; None where nothing was altered.
        spans: episode number → where it lies.
    """

    images: Any
    tubelets: Any
    spans: Sequence[EpisodeSpan] | Mapping[int, EpisodeSpan]

    def __init__(self, folder: Path, cameras: Sequence[int] | None = None) -> None:
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        altered = (folder / "shifts.npy").is_file()
        self.shifts = np.load(folder / "shifts.npy") if altered else None
        self.tubelets = None if altered else np.load(folder / "tubelets.npy", mmap_mode="r")
        if cameras is not None and list(cameras) != list(range(self.images.shape[1])):
            self.images = _OfCameras(self.images, cameras)
            self.tubelets = _OfCameras(self.tubelets, cameras)
        done = json.loads((folder / _DONE).read_text())
        spans = _spans(done["lengths"])
        numbers = done.get("episodes")
        self.spans = spans if numbers is None else dict(zip(numbers, spans, strict=True))

    @classmethod
    def build(cls, planner: Planner, reader: DatasetReader, root: Path) -> FeatureCache:
        """The cache of `reader`'s data set under `root`, computed unless it is there already.

        It is keyed by the data set and by everything that changes the tokens.
        """
        lengths = [episode.length for episode in reader.episodes]
        folder = root / _key(planner.config, reader, weights=_fingerprint(planner))
        if not is_finished(folder):
            cameras = cameras_of(planner.config.cameras, tuple(reader.cameras))
            _fill(planner, reader, folder, cameras, range(len(lengths)))
            finish(folder, {"lengths": lengths})
        return cls(folder)

    @classmethod
    def build_part(
        cls,
        planner: Planner,
        reader: DatasetReader,
        root: Path,
        cameras: Sequence[str],
        episodes: Sequence[int],
        variant: int = 0,
    ) -> FeatureCache:
        """The cache of some episodes, as some cameras see them; that of `build` where there is one.

        Args:
            cameras: of the data set.
            episodes: their numbers.
            variant: 0 for the pictures as they are; from 1 on, altered at random by that number.
        """
        usual = usual_cameras(planner.config, reader)
        if not variant and tuple(cameras) == usual and len(episodes) == len(reader.episodes):
            return cls.build(planner, reader, root)
        weights = _fingerprint(planner)
        if not variant and set(cameras) <= set(usual):
            whole = root / _key(planner.config, reader, weights=weights)
            if is_finished(whole):
                return cls(whole, [usual.index(camera) for camera in cameras])
        part = [list(episodes), *([f"altered {variant}"] if variant else [])]
        key = _key(planner.config, reader, cameras=cameras, weights=weights, part=part)
        folder = root / key
        if not is_finished(folder):
            _fill(planner, reader, folder, cameras, episodes, variant)
            lengths = [reader.episodes[i].length for i in episodes]
            finish(folder, {"lengths": lengths, "episodes": list(episodes)})
        return cls(folder)


class _OfCameras:
    """Rows (cameras, N, W) of a cache, with some of its cameras."""

    def __init__(self, rows: np.ndarray, cameras: Sequence[int]) -> None:
        self._rows, self._cameras = rows, list(cameras)

    def __getitem__(self, row: int | slice) -> np.ndarray:
        return self._rows[row][..., self._cameras, :, :]


def usual_cameras(config: ModelConfig, reader: DatasetReader) -> tuple[str, ...]:
    """The cameras that `build` takes; none where the data set does not have them."""
    there = tuple(reader.cameras)
    enough = set(config.cameras) <= set(there) or len(config.cameras) == len(there)
    return cameras_of(config.cameras, there) if enough else ()


def _key(
    config: ModelConfig,
    reader: DatasetReader,
    *,
    cameras: Sequence[str] | None = None,
    weights: str = "",
    part: Sequence[Any] = (),
) -> str:
    """Names a cache by its data set and all that changes its tokens.

    What is as usual is left out, so that caches keep their names when there is more to tell apart.
    """
    if cameras is None:
        cameras = cameras_of(config.cameras, tuple(reader.cameras))
    parts: list[Any] = [config.vision, config.image_size, config.vision_layers]
    parts += [list(cameras), config.dtype]
    parts += [(e.env_id, e.seed, e.tag, e.length) for e in reader.episodes]
    parts += [text for text in (weights, *_unusual(reader, cameras), *part) if text]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _unusual(reader: DatasetReader, cameras: Sequence[str]) -> list[Any]:
    """What pictures depend on besides the episodes: their size, how they were drawn, by whom."""
    told: list[Any] = []
    sizes = [list(reader.cameras[camera]) for camera in cameras]
    if any(size != list(_USUAL_SIZE) for size in sizes):
        told.append({"sizes": sizes})
    extra = reader.info.get("embodied", {}).get("extra", {})
    if (quality := extra.get("render_flags", {}).get("quality", "fast")) != "fast":
        told.append({"quality": quality})
    if not all(episode.env_id for episode in reader.episodes):  # recorded by other software
        files = sorted(path for path in (reader.root / "meta").glob("*.json*") if path.is_file())
        told.append({"meta": [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]})
    return told


def vision_parts(planner: Planner) -> list[Any]:
    """Everything of a planner that its vision tokens depend on."""
    config = planner.config
    size = [config.image_size, config.vision_layers]
    return [config.vision, *size, config.dtype, _fingerprint(planner)]


def _fingerprint(planner: Planner) -> str:
    """Of the vision weights, unless their name stands for them."""
    name = planner.config.vision
    if name in WHEELS or is_random(name):
        return ""
    digest = hashlib.sha256()
    for key, tensor in sorted(planner.vision.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _spans(lengths: list[int]) -> list[EpisodeSpan]:
    spans, image, tubelet = [], 0, 0
    for length in lengths:
        spans.append(EpisodeSpan(image, tubelet, length))
        image += n_images(length)
        tubelet += n_tubelets(length)
    return spans


def _fill(
    planner: Planner,
    reader: DatasetReader,
    folder: Path,
    cameras: Sequence[str],
    episodes: Sequence[int],
    variant: int = 0,
) -> None:
    """Compute a cache; of altered pictures without tubelets, which are for plans and verdicts."""
    folder.mkdir(parents=True, exist_ok=True)
    config = planner.config
    lengths = [reader.episodes[i].length for i in episodes]
    shape = (len(cameras), config.former.n_patches, config.former.vision_width)
    n_pictures, n_tubes = sum(map(n_images, lengths)), sum(map(n_tubelets, lengths))
    create = np.lib.format.open_memmap
    images = create(folder / "images.npy", "w+", np.float16, (n_pictures, *shape))
    tubelets, shifts = None, np.zeros((n_pictures, len(cameras), 2), np.float32)
    if not variant:
        tubelets = create(folder / "tubelets.npy", "w+", np.float16, (n_tubes, *shape))
    augmenter = Augmenter(variant)
    spans = list(zip(episodes, _spans(lengths), strict=True))
    for i, span in tqdm(spans, desc="vision features", unit="episode"):
        steps = np.arange(0, span.length, IMAGE_EVERY)
        rows = slice(span.first_image, span.first_image + len(steps))
        frames = np.stack([reader.frames(i, c, steps) for c in cameras], 1)
        # (pictures, cameras, H, W, 3)
        if variant:
            frames, shifts[rows] = augmenter(frames)
        images[rows] = _tokens(planner, frames[:, :, None])
        if tubelets is not None:
            pairs = _pairs(frames, n_tubelets(span.length))
            tubelets[span.first_tubelet : span.first_tubelet + len(pairs)] = _tokens(planner, pairs)
    images.flush()
    if tubelets is not None:
        tubelets.flush()
    else:
        np.save(folder / "shifts.npy", shifts)


def _pairs(frames: np.ndarray, n: int) -> np.ndarray:
    """Pictures (P, cameras, H, W, 3) → pairs of neighbours (n, cameras, 2, H, W, 3)."""
    firsts = np.arange(n) * 2
    seconds = np.minimum(firsts + 1, len(frames) - 1)
    return np.stack([frames[firsts], frames[seconds]], axis=2)


def _tokens(planner: Planner, frames: np.ndarray) -> np.ndarray:
    """Pictures (B, cameras, T, H, W, 3), T = 1 or 2 → tokens (B, cameras, N, W), float16."""
    with torch.inference_mode():
        parts = [
            planner.see(frames[i : i + _BATCH])[:, :, 0].half().cpu().numpy()
            for i in range(0, len(frames), _BATCH)
        ]
    return np.concatenate(parts)
