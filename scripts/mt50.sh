#!/usr/bin/env bash
# One policy for Meta-World's fifty tasks, from the moved corner2 alone and with the wrist.
# The table goes to outputs/mt50/table.md and table.json; run again to go on. Options: --help.
#     scripts/mt50.sh [--full] [--model PLANNER] [--output_dir D]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 OMP_NUM_THREADS=1
exec .venv/bin/python scripts/benchmark.py --name mt50 "$@"
