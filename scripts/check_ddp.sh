#!/usr/bin/env bash
# The three stages in one process, in two with DDP and accumulation, and in two with FSDP: the same
# losses and weights? Tiny random models, gloo on the CPU. Ends with status 1 if not.
# `align` computes in bfloat16: its first losses agree to 1e-6, and rounding drives them apart then.
# tests/test_sharing.py and tests/cli/test_training.py do the same in float32 with a narrower bar.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
python=.venv/bin/python
out=${1:-$(mktemp -d)}
bar=${BAR:-1e-3}
mkdir -p "$out"

env=metaworld/coffee-button-v3
test -e "$out/set" || $python -m embodied.cli.main record --env $env --n_episodes 2 \
  --image_size 32 --horizon 90 --workers 1 --output_dir "$out/set"
$python - "$out/planner" <<'PYTHON'
import sys
import torch
from embodied.config import preset
from embodied.model.planner import Planner

torch.manual_seed(0)
Planner.build(preset("tiny")).save(sys.argv[1])
PYTHON

train() { # name of the run, what starts python, stage, more flags
  local name=$1 start=$2 stage=$3
  shift 3
  rm -rf "${out:?}/$stage/$name"
  echo "== $stage, $name" >&2
  $start -m embodied.cli.main finetune --stage "$stage" --model "$out/planner" --steps 20 \
    --log_every 1 --output_dir "$out/$stage/$name" --features_dir "$out/features" "$@"
}

launch="$python -m accelerate.commands.launch --config_file scripts/accelerate"
for stage in align words plan; do
  data=()
  test $stage = words || data=(--dataset "$out/set")
  train one "$python" $stage "${data[@]}"
  train ddp "$launch/cpu2.yaml" $stage "${data[@]}" --accumulation 2
  train fsdp "$launch/fsdp.yaml --num_processes 2" $stage "${data[@]}"
done

$python - "$out" "$bar" <<'PYTHON'
import json
import sys
from pathlib import Path

from embodied import checkpoint


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").open()]


def weights(folder: Path) -> dict:
    state = checkpoint.load(folder / "training_state")[0]
    return {k: v for k, v in state.items() if k.startswith(("weight.", "ema."))}


out, bar = Path(sys.argv[1]), float(sys.argv[2])
worst = 0.0
for stage in ("align", "words", "plan"):
    alone, one = losses(out / stage / "one"), weights(out / stage / "one")
    for name in ("ddp", "fsdp"):
        shared, theirs = losses(out / stage / name), weights(out / stage / name)
        assert len(alone) == len(shared) == 20 and one.keys() == theirs.keys()
        of_loss = max(abs(a - b) for a, b in zip(alone, shared))
        of_weights = max(float((one[k] - theirs[k]).abs().max()) for k in one)
        first = abs(alone[0] - shared[0])
        print(
            f"{stage:5s} {name:4s} largest difference: loss {of_loss:.1e} (first {first:.1e}),"
            f" weight {of_weights:.1e}"
        )
        worst = max(worst, of_loss, of_weights)
print(f"{'equal' if worst <= bar else 'NOT equal'} within {bar:g}")
sys.exit(worst > bar)
PYTHON
