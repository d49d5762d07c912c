"""LeRobot's ACT or Diffusion Policy on a recorded data set, for so many seconds and no longer.

Run by the Python of lerobot's own virtual environment; the data set, the policies, their losses,
optimisers and processors are lerobot's:

    python scripts/lerobot_train.py act --dataset D --episodes 0,1,2 --seconds S --output O

The clock starts with the process, so that imports and reading count, as they do on our side. What
is other than lerobot's defaults, because a CPU has minutes and not days, is in `config_of`; also:

- Every picture is decoded once and kept small in memory, which lerobot does anew at each step.
- ACT's ResNet-18 begins from ImageNet where torchvision can fetch that. Where it cannot, it begins
  at random, with the statistics of its frozen batch norms taken from the demonstrations.
- Diffusion's learning rate falls along lerobot's cosine, over the seconds and not over steps.

Checkpoint and train.json, which tells all this, go to the folder O.
"""

from __future__ import annotations

import time

_STARTED = time.perf_counter()

import argparse
import json
import math
import resource
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.factory import IMAGENET_STATS, resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import make_policy, make_pre_post_processors
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, SubsetRandomSampler

ACTION, STATE, IMAGES = "action", "observation.state", "observation.images."
_WARMUP = 0.03  # of the time
_DOWNLOAD_TIMEOUT_S = 5.0
_LEAST_SPREAD = 1e-3


def shrink(pictures: Tensor, px: int) -> Tensor:
    """(T, 3, H, W) in 0..1 → uint8 (T, 3, px, px), smoothed."""
    small = functional.interpolate(pictures, (px, px), mode="bilinear", antialias=True)
    return (small.clamp(0, 1) * 255).round().to(torch.uint8)


class InMemory(LeRobotDataset):
    """LeRobot's data set, with all its pictures small in memory."""

    def keep_pictures(self, px: int) -> None:
        self._kept: dict[tuple[int, str], Tensor] = {}  # episode, camera → uint8 (T, 3, px, px)
        for episode in self.episodes:
            times_s = [i / self.fps for i in range(self.meta.episodes[episode]["length"])]
            for key in self.meta.video_keys:
                whole = super()._query_videos({key: times_s}, episode)[key]
                self._kept[episode, key] = shrink(whole, px)

    def _query_videos(
        self, query_timestamps: dict[str, list[float]], ep_idx: int
    ) -> dict[str, Tensor]:
        def frames(key: str, times_s: list[float]) -> Tensor:
            return self._kept[ep_idx, key][[round(t * self.fps) for t in times_s]]

        return {k: frames(k, t).squeeze(0) / 255 for k, t in query_timestamps.items()}

    def column(self, key: str) -> Tensor:
        """A column of the chosen episodes, (frames, …)."""
        return torch.stack(list(self.hf_dataset[key]))


def config_of(kind: str, px: int) -> ACTConfig | DiffusionConfig:
    """What is smaller than lerobot's default, and ACT's learning rate, ten times as large."""
    if kind == "act":
        return ACTConfig(
            device="cpu",
            chunk_size=16,
            n_action_steps=8,
            dim_model=256,
            dim_feedforward=1024,
            optimizer_lr=1e-4,
            optimizer_lr_backbone=1e-4,
            pretrained_backbone_weights=None,  # see `begin_backbone`
            push_to_hub=False,
        )
    crop = px * 9 // 10  # as the paper crops, 76 of 84 pixels
    return DiffusionConfig(
        device="cpu",
        crop_shape=(crop, crop),
        down_dims=(128, 256, 512),
        noise_scheduler_type="DDIM",
        num_inference_steps=10,
        push_to_hub=False,
    )


def open_dataset(root: Path, episodes: list[int], config: Any, px: int) -> InMemory:
    """The chosen episodes, with the chunks and frames that `config` wants."""
    meta = LeRobotDatasetMetadata("local/peers", root=root)
    dataset = InMemory(
        "local/peers",
        root=root,
        episodes=episodes,
        delta_timestamps=resolve_delta_timestamps(config, meta),
        video_backend=_video_backend(),
    )
    dataset.keep_pictures(px)
    return dataset


def _video_backend() -> str:
    try:  # the default wants FFmpeg's libraries on the system
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError):
        return "pyav"
    return "torchcodec"


def input_features(dataset: InMemory, px: int) -> dict[str, PolicyFeature]:
    """Pictures and the robot's state: nothing else of the data set is shown to a policy."""
    pictures = PolicyFeature(FeatureType.VISUAL, (3, px, px))
    state = PolicyFeature(FeatureType.STATE, tuple(dataset.features[STATE]["shape"]))
    return {**dict.fromkeys(dataset.meta.video_keys, pictures), STATE: state}


def statistics(dataset: InMemory) -> dict[str, dict[str, Tensor]]:
    """Of the chosen episodes alone; pictures have ImageNet's, as `lerobot-train` gives them.

    A number of the state that did not vary gets a little room: divided by next to nothing, the
    least deviation would drown the rest.
    """
    stats: dict[str, dict[str, Tensor]] = {}
    for key, room in ((STATE, _LEAST_SPREAD), (ACTION, 0.0)):
        values = dataset.column(key)
        mean, std = values.mean(0), values.std(0).clamp(min=room)
        low = torch.minimum(values.amin(0), mean - room)
        high = torch.maximum(values.amax(0), mean + room)
        stats[key] = {"mean": mean, "std": std, "min": low, "max": high}
    for key in dataset.meta.video_keys:
        stats[key] = {name: torch.tensor(value) for name, value in IMAGENET_STATS.items()}
    return stats


def batches(dataset: InMemory, config: Any, size: int) -> Iterator[dict[str, Any]]:
    """Shuffled, without end; without the last frames where lerobot's sampler drops those."""
    dropped = getattr(config, "drop_n_last_frames", 0)
    lengths = [dataset.meta.episodes[int(e)]["length"] for e in dataset.column("episode_index")]
    left = torch.tensor(lengths) - dataset.column("frame_index")  # ≥ 1
    chosen = torch.nonzero(left > dropped).flatten().tolist()
    loader = DataLoader(dataset, batch_size=size, sampler=SubsetRandomSampler(chosen))
    while True:
        yield from loader


# --- ACT's backbone ---------------------------------------------------------------------------


def begin_backbone(policy: Any, pictures: Tensor) -> str:
    """ImageNet's weights if they can be fetched; else random ones. Returns which."""
    from torchvision.models import ResNet18_Weights

    backbone = policy.model.backbone
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
    try:
        weights = ResNet18_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True, weights_only=True)
    except OSError as error:  # URLError and time-outs are such
        print(f"no ImageNet weights for ACT's ResNet-18 ({error}): random ones", file=sys.stderr)
        calibrate(backbone, pictures)
        return "random, frozen batch norms calibrated on the demonstrations' pictures"
    finally:
        socket.setdefaulttimeout(before)
    own = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    backbone.load_state_dict(own)
    return "ImageNet (torchvision's IMAGENET1K_V1)"


@torch.no_grad()
def calibrate(backbone: torch.nn.Module, pictures: Tensor) -> None:
    """Set the statistics of frozen batch norms to those of `pictures`, layer by layer.

    Without weights they would be 0 and 1, and the activations grow with every block.
    """
    from torchvision.ops.misc import FrozenBatchNorm2d

    def measure(layer: Any, inputs: tuple[Tensor]) -> None:
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)

    norms = [layer for layer in backbone.modules() if isinstance(layer, FrozenBatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(measure) for layer in norms]
    backbone(pictures)
    for hook in hooks:
        hook.remove()


# --- training ---------------------------------------------------------------------------------


def elapsed_s() -> float:
    """Since the process started."""
    return time.perf_counter() - _STARTED


def rate_factor(kind: str, done: float) -> float:
    """Of the learning rate, when `done` (0..1) of the time is over: lerobot's ACT keeps it."""
    if kind == "act":
        return 1.0
    rise = min(1.0, done / _WARMUP)
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(policy: Any, prepare: Any, source: Iterator[Any], kind: str, until_s: float) -> Any:
    """Steps until there is no time for another. Returns how many, and the last loss."""
    preset = policy.config.get_optimizer_preset()
    optimizer = preset.build(policy.get_optim_params())
    peaks = [group["lr"] for group in optimizer.param_groups]
    policy.train()
    begun_s, step_s, n_updates, loss = elapsed_s(), 0.0, 0, torch.tensor(math.nan)
    told_s = begun_s
    while elapsed_s() + step_s < until_s:
        step_begun_s = elapsed_s()
        factor = rate_factor(kind, (step_begun_s - begun_s) / (until_s - begun_s))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * max(factor, 1e-3)
        loss, _ = policy(prepare(next(source)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), preset.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        n_updates += 1
        step_s = elapsed_s() - step_begun_s
        if elapsed_s() - told_s > 10 or n_updates == 1:
            told_s = elapsed_s()
            print(f"{told_s:6.0f} s  update {n_updates}  loss {loss.item():.4f}", file=sys.stderr)
    return n_updates, loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=("act", "diffusion"))
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--episodes", required=True, help="numbers, comma-separated")
    parser.add_argument("--seconds", type=float, required=True, help="since the process started")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--image_px", type=int, default=112)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    episodes = [int(number) for number in options.episodes.split(",")]
    config = config_of(options.kind, options.image_px)
    dataset = open_dataset(options.dataset, episodes, config, options.image_px)
    config.input_features = input_features(dataset, options.image_px)
    policy = make_policy(config, ds_meta=dataset.meta)
    prepare, finish = make_pre_post_processors(config, dataset_stats=statistics(dataset))
    source = batches(dataset, config, options.batch_size)
    backbone = "random, group norms instead of batch norms: lerobot's default"
    fetching_s = 0.0
    if options.kind == "act":
        pictures = prepare(next(source))[dataset.meta.video_keys[0]]
        asked_s = elapsed_s()
        backbone = begin_backbone(policy, pictures)
        fetching_s = elapsed_s() - asked_s  # looking for weights is not training
    ready_s = elapsed_s()
    until_s = options.seconds + fetching_s
    n_updates, loss = train(policy, prepare, source, options.kind, until_s)
    if n_updates == 0:
        sys.exit(f"no update within {options.seconds:.0f} s: getting ready took {ready_s:.0f} s")

    options.output.mkdir(parents=True, exist_ok=True)
    for part in (policy, prepare, finish):
        part.save_pretrained(options.output)
    used = resource.getrusage(resource.RUSAGE_SELF)
    told = {
        "policy": options.kind,
        "n_updates": n_updates,
        "batch_size": options.batch_size,
        "n_parameters": sum(p.numel() for p in policy.parameters()),
        "backbone": backbone,
        "image_px": options.image_px,
        "episodes": episodes,
        "seed": options.seed,
        "last_loss": loss,
        "ready_s": ready_s - fetching_s,
        "wall_s": elapsed_s() - fetching_s,
        "cpu_s": used.ru_utime + used.ru_stime,
        "threads": torch.get_num_threads(),
        "versions": {name: metadata.version(name) for name in ("lerobot", "torch")},
    }
    (options.output / "train.json").write_text(json.dumps(told, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
