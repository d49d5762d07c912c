#!/usr/bin/env bash
# Five Franka Kitchen tasks (R3M's, arXiv 2203.12601) at 10 and 25 demonstrations.
# The table goes to outputs/fk5/table.md and table.json; run again to go on. Options: --help.
#     scripts/fk5.sh [--full] [--model PLANNER] [--output_dir D]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 OMP_NUM_THREADS=1
exec .venv/bin/python scripts/benchmark.py --name fk5 "$@"
