#!/usr/bin/env bash
# LeRobot's ACT and Diffusion Policy beside our policy: the same demonstrations, the same seconds of
# training on the same CPU, the same test layouts. lerobot is installed at the first run.
# The table goes to outputs/peers/table.md; run again to go on. Options: --help.
#     scripts/compare_lerobot.sh [--env ID|mw5] [--n_demos N] [--model PLANNER] [--init POLICY]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
lerobot=$(scripts/install_lerobot.sh)
exec .venv/bin/python scripts/compare_lerobot.py --lerobot "$lerobot" "$@"
