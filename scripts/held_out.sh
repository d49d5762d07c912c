#!/usr/bin/env bash
# A planner, and two policies, that have seen nothing of the tasks of mw5 and fk5, for mw5.sh and
# fk5.sh to start from: no episode, plan or sentence of them is in any stage. Every step resumes
# where it was interrupted.
#     scripts/held_out.sh [FOLDER]
#     scripts/mw5.sh --model FOLDER/plan/planner --init FOLDER/align/policy
#     scripts/fk5.sh --model FOLDER/plan/planner --init FOLDER/kitchen/policy
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
embodied=.venv/bin/embodied
out=${1:-outputs/held_out}
data=$out/data
mkdir -p "$out"

# The environments of a set without those of mw5 and fk5, comma-separated.
others() {
  .venv/bin/python -c "from sims.scenes import resolve_env_ids as ids
print(','.join(env for env in ids('$1') if env not in ids('mw5,fk5')))"
}
record() {
  $embodied record --noise 0.02 --output_dir "$data/$1" --env "$(others "$2")" "${@:3}"
}
record mt10 mt10 --n_episodes 56 --fault_fraction 0.2
record mt50 mt50 --n_episodes 5 --seed 1000 --fault_fraction 0.5
record mt50_more mt50 --n_episodes 14 --seed 50000
record mt10_faults mt10 --n_episodes 24 --seed 4000 --fault_fraction 1.0
record kitchen kitchen --n_episodes 20 --fault_fraction 0.2
record kitchen_faults kitchen --n_episodes 12 --seed 7000 --fault_fraction 0.9
record kitchen_others kitchen --n_episodes 50 --seed 9000
looked_at=$data/mt50,$data/mt10_faults,$data/kitchen,$data/kitchen_faults

finetune() {
  $embodied finetune --leave_out mw5,fk5 --threads 1 --features_dir "$out/features" "$@"
}
finetune --stage align --dataset "$data/mt10,$data/mt50_more" --look_at "$looked_at" \
  --steps 3300 --output_dir "$out/align"
# The former that policies start from is the same before the plan stage and after it.
OMP_NUM_THREADS=1 $embodied train-policy --dataset "$data/kitchen,$data/kitchen_others" --tasks "kettle,top burner" \
  --model "$out/align/planner" --steps 1500 --features_dir "$out/features" \
  --output_dir "$out/kitchen" 2> "$out/kitchen.log" &
finetune --stage plan --model "$out/align/planner" \
  --look_at "$data/mt10,$data/mt50_more,$looked_at" \
  --steps 180 --batch_size 24 --learning_rate 0.0007 --output_dir "$out/plan"
wait $!
echo "$out/plan/planner $out/align/policy $out/kitchen/policy"
