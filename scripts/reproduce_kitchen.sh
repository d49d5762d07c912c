#!/usr/bin/env bash
# Goes on from scripts/reproduce_small.sh to the shipped weights: one planner for both robots, and
# a policy for each. Every step resumes where it was interrupted; run again to go on.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
embodied=.venv/bin/embodied
small=${1:-outputs/small}
out=${2:-outputs/kitchen}
data=$out/data
features=$small/features

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
mkdir -p "$out"

# 1. the expert: each element by itself, two and four in a row, three with some open already
record() {
  $embodied record --noise 0.02 --output_dir "$data/$1" "${@:2}"
}
record single --env kitchen --n_episodes 20 --fault_fraction 0.2
record four --env kitchen/4 --n_episodes 36 --seed 500 --fault_fraction 0.3
record two --env kitchen/2 --n_episodes 60 --seed 1000 --fault_fraction 0.2
record three --env kitchen/3 --n_episodes 20 --seed 1500 --level 2 --fault_fraction 0.2
record verdicts_single --env kitchen --n_episodes 4 --family select --fault_fraction 0.6
record verdicts_two --env kitchen/2 --n_episodes 12 --seed 100 --family select --fault_fraction 0.6
# what goes wrong, for the judge of both robots
record mt10_faults --env mt10 --n_episodes 24 --seed 4000 --fault_fraction 1.0
record kitchen_faults --env kitchen --n_episodes 12 --seed 7000 --fault_fraction 0.9
record mt10_faults2 --env mt10 --n_episodes 36 --seed 14000 --fault_fraction 0.8
record kitchen_faults2 --env kitchen --n_episodes 14 --seed 17000 --fault_fraction 0.8
record two_faults --env kitchen/2 --n_episodes 40 --seed 7500 --fault_fraction 0.7
expert=$data/single,$data/two,$data/three,$data/four
faults=$data/mt10_faults,$data/mt10_faults2,$data/kitchen_faults,$data/kitchen_faults2
faults=$faults,$data/two_faults
looked_at=$small/data/mt10,$small/data/mt50,$expert,$faults

# 2. which tasks the words mean, longer than before, beside the next steps
$embodied finetune --stage words --model "$small/words/planner" --steps 2200 --seed 1 --threads 1 \
  --output_dir "$out/words" >"$out/words.log" 2>&1 &
words=$!

# 3. the Embodied-former goes on with the kitchen, and keeps looking at Meta-World; then it looks
# for plans, verdicts and answers alone, for the planner (each policy keeps the former that it was tuned with)
$embodied finetune --stage align --model "$small/plan/planner" --dataset "$expert" \
  --look_at "$small/data/mt10,$small/data/mt50" --steps 2400 --threads 1 \
  --features_dir "$features" --output_dir "$out/align"

$embodied finetune --stage align --model "$out/align/planner" --look_at "$looked_at" --steps 2600 \
  --threads 1 --features_dir "$features" --output_dir "$out/look"
wait $words

# 4. plans, verdicts and answers in both; meanwhile the policy learns from the expert's corrections
# (DAgger), seven times
$embodied finetune --stage plan --model "$out/look/planner" --adapter_from "$out/words/planner" \
  --look_at "$looked_at" --steps 300 --learning_rate 0.0003 --threads 1 \
  --features_dir "$features" --output_dir "$out/plan" >"$out/plan.log" 2>&1 &
plan=$!
# corrected POLICY ROUND SEED n_SINGLE n_FOUR BETA_SINGLE BETA_FOUR
corrected() {
  common=(--model "$out/align/planner" --policy "$1" --noise 0)
  $embodied record --env kitchen --horizon 180 --n_episodes "$4" --seed "$3" --beta "$6" \
    "${common[@]}" --output_dir "$data/corrections$2"
  $embodied record --env kitchen/4 --horizon 560 --n_episodes "$5" --seed "$(($3 + 500))" \
    --beta "$7" "${common[@]}" --output_dir "$data/corrections$2_four"
}
# improved ROUND INIT STEPS LEARNING_RATE DATASETS
improved() {
  OMP_NUM_THREADS=1 $embodied train-policy --model "$out/align/planner" --dataset "$5" \
    --init "$2" --steps "$3" --batch_size 48 --learning_rate "$4" \
    --features_dir "$features" --output_dir "$out/policy$1"
}
seen=$expert,$data/corrections1,$data/corrections1_four
corrected "$out/align/policy" 1 3000 9 12 0.3 0.3
improved 1 "$out/align/policy" 1500 0.0003 "$seen"
corrected "$out/policy1/policy" 2 6000 12 14 0.15 0.25
seen=$seen,$data/corrections2,$data/corrections2_four
improved 2 "$out/policy1/policy" 4000 0.0005 "$seen"
# what is missed most is corrected most
corrected "$out/policy2/policy" 3 9200 4 8 0.15 0.2
missed() {
  $embodied record --env "$2" --n_episodes "$3" --seed "$4" --horizon 180 --beta 0.15 --noise 0 \
    --model "$out/align/planner" --policy "$out/policy2/policy" --output_dir "$data/$1"
}
missed corrections3_light "kitchen/light switch" 36 9000
missed corrections3_kettle "kitchen/kettle,kitchen/slide cabinet" 18 9100
seen=$seen,$data/corrections3,$data/corrections3_four
seen=$seen,$data/corrections3_light,$data/corrections3_kettle
improved 3 "$out/policy2/policy" 1800 0.0004 "$seen"
# two in a row as the agent goes: late turns, and letting go to try again
again() {
  $embodied record --env "$2" --n_episodes "$3" --seed "$4" --horizon "$5" --beta 0.15 --noise 0 \
    --model "$out/align/planner" --policy "$out/policy3/policy" --output_dir "$data/corrections4$1"
}
again _two kitchen/2 60 12000 340
again _four kitchen/4 12 12500 620
again "" kitchen 5 12700 200
seen=$seen,$data/corrections4_two,$data/corrections4_four,$data/corrections4
improved 4 "$out/policy3/policy" 2400 0.0005 "$seen"
# the light switch, by itself and after each of the others
switch() {
  $embodied record --env "$2" --n_episodes "$3" --seed "$4" --horizon "$5" --beta 0.1 --noise 0 \
    --model "$out/align/planner" --policy "$out/policy4/policy" --output_dir "$data/corrections5$1"
}
light="light switch"
switch _light "kitchen/$light" 76 13000 220
switch _then "kitchen/microwave+$light,kitchen/kettle+$light,kitchen/hinge cabinet+$light,\
kitchen/slide cabinet+$light,kitchen/top burner+$light,kitchen/bottom burner+$light" 11 15100 360
seen=$seen,$data/corrections5_light,$data/corrections5_then
improved 5 "$out/policy4/policy" 2500 0.0005 "$seen"
# what was missed as a second element: behind the open hinge cabinet the slide cabinet most of all
second() {
  $embodied record --env "$2" --n_episodes "$3" --seed "$4" --horizon "$5" --beta "$6" --noise 0 \
    --model "$out/align/planner" --policy "$out/policy$7/policy" --output_dir "$data/corrections$1"
}
hidden="kitchen/hinge cabinet+slide cabinet"
second 6_weak "$hidden,kitchen/kettle+$light,kitchen/kettle+microwave,\
kitchen/microwave+slide cabinet,kitchen/microwave+$light,kitchen/kettle+slide cabinet,\
kitchen/$light+hinge cabinet" 7 16100 300 0.3 5
second 6_four kitchen/4 16 16300 600 0.3 5
seen=$seen,$data/corrections6_weak,$data/corrections6_four
improved 6 "$out/policy5/policy" 2000 0.0005 "$seen"
second 7_slide "$hidden" 18 16500 300 0.2 6
second 7_weak "kitchen/kettle+$light,kitchen/microwave+$light,kitchen/kettle+microwave" \
  5 16600 300 0.2 6
seen=$seen,$data/corrections7_slide,$data/corrections7_weak
improved 7 "$out/policy6/policy" 2000 0.0005 "$seen"
wait $plan

# 5. the former learns along, so that places and answers come out finer
$embodied finetune --stage plan --train_former --model "$out/plan/planner" \
  --look_at "$looked_at" --steps 330 --learning_rate 0.0004 --seed 7 --threads 1 \
  --features_dir "$features" --output_dir "$out/finer"
# and then stays, while the language model learns mostly to answer, and failures made of successes
$embodied finetune --stage plan --model "$out/finer/planner" --look_at "$looked_at" \
  --mix 12,4,6,26 --halts 1 --steps 435 --learning_rate 0.0004 --seed 21 --threads 1 \
  --features_dir "$features" --output_dir "$out/answers"

# three small heads: second opinions on clips and answers, and where things are
$embodied record --env mt10 --n_episodes 60 --seed 30000 --noise 0.02 --fault_fraction 0.6 \
  --output_dir "$data/heads"
$embodied record --env mt10 --n_episodes 40 --seed 35000 --noise 0.02 --fault_fraction 0.75 \
  --output_dir "$data/heads2"
$embodied record --env mt50 --n_episodes 4 --seed 36000 --noise 0.02 --fault_fraction 0.6 \
  --output_dir "$data/heads3"
$embodied record --env mt50 --n_episodes 14 --seed 50000 --noise 0.02 --output_dir "$data/heads_mt50"
every_pair=$(.venv/bin/python -c 'import itertools; from sims.kitchen_elements import ELEMENTS
print(",".join(f"kitchen/{a}+{b}" for a, b in itertools.permutations(ELEMENTS, 2)))')
record heads_k1 --env kitchen --n_episodes 14 --seed 30000 --fault_fraction 0.6
record heads_k2 --env kitchen/2 --n_episodes 50 --seed 31000 --fault_fraction 0.6
record heads_one --env kitchen --n_episodes 40 --seed 43000 --fault_fraction 0.5
record heads_two --env "$every_pair" --n_episodes 3 --seed 44000 --fault_fraction 0.4
record heads_three --env kitchen/3 --n_episodes 20 --seed 46000 --level 2 --fault_fraction 0.3
record heads_four --env kitchen/4 --n_episodes 50 --seed 45000 --fault_fraction 0.3
acted() {
  $embodied record --env "$2" --n_episodes "$3" --seed "$4" --horizon "$5" --beta "$6" --noise 0 \
    --model "$out/answers/planner" --policy "$out/policy7/policy" --output_dir "$data/acted_$1"
}
acted one kitchen 10 40000 180 0.1
acted two "$every_pair" 2 41000 320 0.15
acted four kitchen/4 40 42000 560 0.2
acted four2 kitchen/4 60 32000 560 0.15
to_head=$data/heads,$data/heads2,$data/heads3,$data/heads_mt50
for name in heads_k1 heads_k2 heads_one heads_two heads_three heads_four \
  acted_one acted_two acted_four acted_four2; do
  to_head=$to_head,$data/$name
done
$embodied finetune --stage heads --model "$out/answers/planner" --look_at "$to_head" --judge_in metaworld \
  --steps 8700 --learning_rate 0.001 --weight_decay 0.05 --threads 1 \
  --features_dir "$features" --output_dir "$out/second"
$embodied finetune --stage places --model "$out/second/planner" --look_at "$to_head" \
  --steps 12000 --learning_rate 0.002 --threads 1 \
  --features_dir "$features" --output_dir "$out/heads"

# 6. figures on starts and words that nothing was trained on; both robots
mkdir -p "$out/policies"
cp -r "$small/policy/policy" "$out/policies/metaworld"
cp -r "$out/policy7/policy" "$out/policies/kitchen"
evaluate() {
  $embodied evaluate --workers 2 --model "$out/heads/planner" --policy "$out/policies" "$@"
}
$embodied evaluate-plans --instructions tests/data/instructions_test.jsonl \
  --scenes metaworld,kitchen --verdicts "$data/verdicts_single,$data/verdicts_two" \
  --questions "$small/data/verdicts,$data/verdicts_single,$data/verdicts_two" --model "$out/heads/planner" \
  --features_dir "$features"
evaluate --env mt10 --n_episodes 20 --output_dir "$out/eval/mt10"
evaluate --env kitchen --n_episodes 15 --rule strict --output_dir "$out/eval/kitchen"
evaluate --env kitchen/2 --n_episodes 100 --rule strict --output_dir "$out/eval/kitchen2"
evaluate --env kitchen/4 --n_episodes 100 --rule strict --output_dir "$out/eval/kitchen4"
