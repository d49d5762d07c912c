"""How a planner that has not seen a benchmark's tasks learns them, for those who measure policies.

Of the demonstrations' pictures, plans and own instructions, that is. The former, which the policies
start from, stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embodied.cli.splits import left_out_of
from sims import scenes

_STEPS = 60


def held_out(starts: Sequence[Path | None], tasks: str) -> bool:
    """Whether none of the checkpoints has seen any of the tasks; the shipped one, None, has.

    Args:
        tasks: names, or a set like mw5. Of none, as where the seed draws them, nothing is sure.
    """
    wanted = set(scenes.resolve_tasks(tasks))
    return bool(wanted) and all(
        start is not None and wanted <= set(left_out_of(start)) for start in starts
    )


def tuning(model: Path, demos: Path, n_demos: int, features_dir: Path) -> list[str]:
    """The flags of `embodied finetune`, but for where the planner goes."""
    argv = ["--stage", "plan", "--model", str(model), "--look_at", str(demos)]
    argv += ["--few_shot", str(n_demos), "--steps", str(_STEPS)]
    argv += ["--batch_size", "24", "--learning_rate", "0.0005"]
    return [*argv, "--features_dir", str(features_dir)]
