#!/usr/bin/env bash
# A planner that has seen nothing of a benchmark's tasks, for mw5.sh and fk5.sh to start from: no
# episode, plan or sentence of them is in any of its three stages. The recipe is otherwise that of
# reproduce_small.sh and reproduce_kitchen.sh. Every step resumes where it was interrupted.
#     scripts/held_out.sh mw5|fk5 [FOLDER]      # the planner is then FOLDER/plan/planner
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
embodied=.venv/bin/embodied
set=${1:?name the benchmark: mw5 or fk5}
out=${2:-outputs/held_out/$set}
data=$out/data
mkdir -p "$out"

# All fifty Meta-World tasks and the kitchen are recorded; --leave_out drops what it has to.
$embodied record --env mt50 --n_episodes 12 --noise 0.02 --fault_fraction 0.3 \
  --output_dir "$data/mt50"
$embodied record --env kitchen --n_episodes 20 --noise 0.02 --fault_fraction 0.3 \
  --output_dir "$data/kitchen"

finetune() {
  $embodied finetune --leave_out "$set" --threads 1 --features_dir "$out/features" "$@"
}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
finetune --stage words --steps 1800 --output_dir "$out/words" >"$out/words.log" 2>&1 &
words=$!
# no policy: the former learns to look, and the few demonstrations are all that is imitated
finetune --stage align --look_at "$data/mt50,$data/kitchen" --steps 4000 --output_dir "$out/align"
wait $words
finetune --stage plan --model "$out/align/planner" --adapter_from "$out/words/planner" \
  --look_at "$data/mt50,$data/kitchen" --steps 220 --learning_rate 0.0003 --output_dir "$out/plan"
echo "$out/plan/planner"
