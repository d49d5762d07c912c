#!/usr/bin/env bash
# A LLaMA-7B in nf4 learns on a CPU within 10 GB: three steps with LoRA, then with prefixes, each in
# a process of its own, whose peak memory is measured. A few minutes and 8 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
for adapter in lora prefix; do
  .venv/bin/python scripts/prove_7b.py --adapter "$adapter" "$@"
done
