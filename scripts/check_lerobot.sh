#!/usr/bin/env bash
# Opens a recorded data set with LeRobot's own LeRobotDataset class and reads every frame of it.
#
#   scripts/check_lerobot.sh DATASET
#
# lerobot needs older packages than ours, so it gets a virtual environment of its own, once.
set -euo pipefail

if [ $# -ne 1 ] || [ ! -f "$1/meta/info.json" ]; then
  echo "usage: scripts/check_lerobot.sh DATASET   (a folder with meta/info.json), got: $*" >&2
  exit 2
fi
DATASET=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
LEROBOT=$(scripts/install_lerobot.sh)

CACHE=$(mktemp -d)
trap 'rm -rf "$CACHE"' EXIT
export HF_HUB_OFFLINE=1 HF_HOME="$CACHE" TOKENIZERS_PARALLELISM=false
"$LEROBOT" - "$DATASET" <<'PYTHON'
import logging
import sys
from collections import Counter

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

try:  # the default decoder wants FFmpeg's libraries on the system
    import torchcodec.decoders  # noqa: F401

    backend = "torchcodec"
except (ImportError, RuntimeError):
    backend = "pyav"

logging.disable(logging.WARNING)
root = sys.argv[1]
dataset = LeRobotDataset("local/check", root=root, video_backend=backend)
meta = dataset.meta
print(f"{root}: {dataset.num_episodes} episodes, {len(dataset)} frames, {meta.total_tasks} tasks")
print(f"videos decoded by {backend}; {dataset.fps} frames/s; statistics of {len(meta.stats)} features")

counts: Counter[int] = Counter()
tasks: Counter[str] = Counter()
for i in range(len(dataset)):
    item = dataset[i]
    assert item["index"] == i, f"frame {i} says that it is number {item['index']}"
    for key, feature in dataset.features.items():
        shape = tuple(feature["shape"])
        if feature["dtype"] == "video":
            shape = (shape[2], shape[0], shape[1])
            assert 0 <= item[key].min() and item[key].max() <= 1, f"{key} of frame {i} not in 0..1"
        expected = () if shape == (1,) else shape
        assert tuple(item[key].shape) == expected, f"{key} of frame {i}: {tuple(item[key].shape)}"
    assert torch.isfinite(item["action"]).all() and torch.isfinite(item["observation.state"]).all()
    counts[int(item["episode_index"])] += 1
    tasks[item["task"]] += 1
for episode in meta.episodes:
    index, length = episode["episode_index"], episode["length"]
    assert counts[index] == length, f"episode {index}: {counts[index]} frames, {length} promised"
assert sum(counts.values()) == meta.total_frames
for key, value in item.items():
    print(f"  {key:32} {tuple(value.shape) if torch.is_tensor(value) else repr(value)}")
print("frames per episode:", dict(sorted(counts.items())))
print("frames per task:", dict(tasks))

# As training reads it: shuffled batches, with chunks of actions and two frames of each camera.
deltas = {"action": [t / dataset.fps for t in range(4)]}
deltas |= {key: [-1 / dataset.fps, 0.0] for key in meta.video_keys}
chunks = LeRobotDataset("local/check", root=root, delta_timestamps=deltas, video_backend=backend)
generator = torch.Generator().manual_seed(0)
loader = torch.utils.data.DataLoader(chunks, batch_size=8, shuffle=True, generator=generator)
batch = next(iter(loader))
print("a training batch:", {key: tuple(batch[key].shape) for key in deltas})
print("ok")
PYTHON
