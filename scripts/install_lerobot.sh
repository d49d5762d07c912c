#!/usr/bin/env bash
# Puts lerobot 0.4.4 with its Meta-World into a virtual environment of its own, once, and prints
# that environment's Python:
#
#   scripts/install_lerobot.sh      into $LEROBOT_VENV, else outputs/lerobot-0.4.4
#
# torch comes from PyTorch's index of CPU wheels where that can be reached (about 2 GB in all), else
# from the usual one with CUDA's libraries (about 8 GB).
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=0.4.4
VENV=${LEROBOT_VENV:-outputs/lerobot-$VERSION}
CPU_WHEELS=https://download.pytorch.org/whl/cpu

installed() {
  "$VENV/bin/python" -c "import importlib.metadata as m; m.version('metaworld')
raise SystemExit(m.version('lerobot') != '$VERSION')" 2>/dev/null
}

if ! installed; then
  echo "installing lerobot $VERSION into $VENV" >&2
  "${PYTHON:-python3.11}" -m venv "$VENV"
  pip=("$VENV/bin/python" -m pip install -qq --disable-pip-version-check)
  if "$VENV/bin/python" -c "import urllib.request as u; u.urlopen('$CPU_WHEELS/torch/', timeout=9)" \
    2>/dev/null; then
    "${pip[@]}" --index-url "$CPU_WHEELS" "torch<2.11" "torchvision<0.26" >&2
  fi
  "${pip[@]}" "lerobot[metaworld]==$VERSION" "mujoco==3.3.0" >&2  # the one that ours has too
fi
echo "$VENV/bin/python"
