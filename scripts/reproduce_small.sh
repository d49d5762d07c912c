#!/usr/bin/env bash
# From nothing to an agent for Meta-World and its figures: record, train, evaluate.
# scripts/reproduce_kitchen.sh goes on from here to the shipped weights, which do the kitchen too.
# Every step resumes where it was interrupted; run again to go on.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
embodied=.venv/bin/embodied
out=${1:-outputs/small}
data=$out/data
hard=metaworld/reach-v3,metaworld/push-v3,metaworld/pick-place-v3,metaworld/peg-insert-side-v3

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
mkdir -p "$out"

# 1. which task the words mean needs no pictures, so it is learnt beside the first two steps:
# the ten tasks to imitate, all fifty to look at, failures among them, and clips to judge
$embodied finetune --stage words --steps 1800 --threads 1 --output_dir "$out/words" \
  >"$out/words.log" 2>&1 &
words=$!
$embodied record --env mt10 --n_episodes 56 --noise 0.02 --fault_fraction 0.2 \
  --output_dir "$data/mt10"
$embodied record --env mt50 --n_episodes 5 --seed 1000 --noise 0.02 --fault_fraction 0.5 \
  --output_dir "$data/mt50"
$embodied record --env mt10 --n_episodes 8 --family select --noise 0.02 --fault_fraction 0.6 \
  --output_dir "$data/verdicts"

# 2. Embodied-former and policy
$embodied finetune --stage align --dataset "$data/mt10" --look_at "$data/mt50" --steps 3000 \
  --threads 1 --features_dir "$out/features" --output_dir "$out/align"
wait $words

# 3. the language model says plans and verdicts from what is seen; meanwhile the policy learns
# what the expert would have done where the policy went (DAgger)
$embodied finetune --stage plan --model "$out/align/planner" --adapter_from "$out/words/planner" \
  --dataset "$data/mt10" --look_at "$data/mt50" --steps 220 --learning_rate 0.0003 --threads 1 \
  --features_dir "$out/features" --output_dir "$out/plan" >"$out/plan.log" 2>&1 &
plan=$!
$embodied record --env "$hard" --n_episodes 45 --seed 2000 --horizon 110 \
  --model "$out/align/planner" --policy "$out/align/policy" --output_dir "$data/corrections"
OMP_NUM_THREADS=1 $embodied train-policy --dataset "$data/mt10,$data/corrections" \
  --model "$out/align/planner" --init "$out/align/policy" --steps 1500 --batch_size 48 \
  --learning_rate 0.0003 --features_dir "$out/features" --output_dir "$out/policy"
wait $plan

# 4. figures on layouts and words that nothing was trained on
$embodied evaluate-plans --instructions tests/data/instructions_heldout.jsonl \
  --scenes metaworld --verdicts "$data/verdicts" --model "$out/plan/planner" --features_dir "$out/features"
$embodied evaluate --env mt10 --n_episodes 20 --workers 2 --model "$out/plan/planner" \
  --policy "$out/policy/policy" --output_dir "$out/eval/mt10"
