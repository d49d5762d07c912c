#!/usr/bin/env bash
# What fine-tuning, sight, grounding, the thought and each adapter bring: one table.
# It goes to outputs/ablations/table.md and table.json; run again to go on. Options: --help.
#     scripts/ablations.sh --start PLANNER --look_at DATASETS --test DATASETS [--rows lora,blind]
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 OMP_NUM_THREADS=1
exec .venv/bin/python scripts/ablations.py "$@"
