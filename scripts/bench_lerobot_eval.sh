#!/usr/bin/env bash
# Episodes an hour: `lerobot-eval` on its own Meta-World environment against our loop, one
# environment at a time. lerobot is installed at the first run. Options: --help.
#     scripts/bench_lerobot_eval.sh [--env ID] [--n_episodes N] [--json]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
lerobot=$(scripts/install_lerobot.sh)
exec .venv/bin/python scripts/bench_lerobot_eval.py --lerobot "$lerobot" "$@"
