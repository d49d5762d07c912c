"""Kills trainings at random moments, resumes them, and compares with one that was left alone.

A moment is any time after the start of the process, or just after some step, or one while a state
is being written. A run that was killed is started again with `--resume` when it has a run.json,
else as at first. In the end weights, Adam's moments, averages, random states, figures and log must
be equal to the bit.

`finetune` is `embodied finetune --stage words` of a tiny random planner. `toy` is a small network
with dropout that also draws from the generators of NumPy and Python.

usage: check_kill.py [--kills N] [--training toy|finetune] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embodied import checkpoint
from embodied.train import TrainOptions, train
from embodied.training_state import seed_all

os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")

_PRELOAD = {
    "toy": ["__main__", "accelerate", "torch.utils.tensorboard"],
    "finetune": ["__main__", "accelerate", "torch.utils.tensorboard", "embodied.cli.finetune_plan"],
}
"""So that a process spends its life with training and not with imports."""

_STEPS, _SAVE_EVERY = {"toy": 300, "finetune": 24}, {"toy": 7, "finetune": 3}


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 32), nn.GELU(), nn.Dropout(0.5), nn.LayerNorm(32), nn.Linear(32, 1)
        )

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        noise = random.random() + float(np.random.random())  # noqa: NPY002
        guess = self.layers(batch).squeeze(1)
        return (guess - batch.sum(1).sin() - noise).square().mean(), {"noise": noise}


def _sample(step: int) -> Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(step))


def _run(training: str, folder: Path, planner: Path) -> None:
    """What the process that is killed does."""
    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    steps, save_every = _STEPS[training], _SAVE_EVERY[training]
    if training == "toy":
        seed_all(3)
        options = TrainOptions(folder, steps=steps, save_every=save_every, log_every=5)
        train(Toy(), _sample, options)
        return
    from embodied.cli.main import main

    flags = ["--stage", "words", "--model", planner, "--output_dir", folder, "--threads", 1]
    flags += ["--steps", steps, "--save_every", save_every, "--log_every", 2]
    resume = ["--resume", folder] if (folder / "run.json").is_file() else flags
    sys.exit(main(["finetune", *map(str, resume)]))


def _killed(process: Any, folder: Path, rng: random.Random, seconds: float, steps: int) -> bool:
    """Kill the process at a random moment, unless it ends before."""
    started, seen = time.monotonic(), _half_written(folder)
    saved = max(0, _next_step(folder))
    after_s, after_step = rng.uniform(0, seconds), saved + rng.randint(0, (steps - saved + 1) // 2)
    kind = rng.choices(("time", "step", "save"), (0.2, 0.4, 0.4))[0]

    def has_come() -> bool:
        match kind:
            case "time":
                return time.monotonic() > started + after_s
            case "step":
                return _last_logged(folder) >= after_step
            case _:
                return _last_logged(folder) >= after_step and bool(_half_written(folder) - seen)

    while process.is_alive() and not has_come():
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.01))
    if not process.is_alive():
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def _half_written(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(".*.new-*")}


def _last_logged(folder: Path) -> int:
    """The last step in the log; what is not a whole line does not count."""
    path = folder / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def _result(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for the time it took and when it was."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    result: dict[str, Any] = {"log": [{**line, "seconds": 0} for line in log]}
    for part in ("training_state", "planner"):
        if (folder / part).is_dir():
            tensors, config = checkpoint.load(folder / part)
            for option in ("output_dir", "resume"):
                config.get("options", {}).pop(option, None)
            result[part] = ({k: v.numpy().tobytes() for k, v in _plain(tensors).items()}, config)
    result["left over"] = sorted(p.name for p in folder.glob(".*"))
    return result


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in tensors.items()}


def _check(training: str, n_kills: int, rng: random.Random, root: Path) -> int:
    """The number of runs that were killed and then did not end like the one left alone."""
    steps = _STEPS[training]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD[training])
    planner = root / "tiny"

    def start(folder: Path) -> Any:
        process = context.Process(target=_run, args=(training, folder, planner))
        process.start()
        return process

    def wait(process: Any) -> None:
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"a run ended with status {process.exitcode}")

    wait(start(root / "first"))  # which warms up
    began = time.monotonic()
    wait(start(root / "alone"))
    seconds = time.monotonic() - began
    alone, n_killed, n_wrong, n_runs = _result(root / "alone"), 0, 0, 0
    while n_killed < n_kills:
        folder, moments = root / f"run{n_runs}", list[int]()
        n_runs += 1
        while n_killed < n_kills and _killed(start(folder), folder, rng, seconds, steps):
            n_killed += 1
            moments.append(_next_step(folder))
            if moments[-1] == steps and rng.random() < 0.7:
                break
        wait(start(folder))
        result = _result(folder)
        odd = [part for part in alone if result.get(part) != alone[part]]
        n_wrong += bool(odd)
        verdict = f"DIFFERENT: {', '.join(odd)}" if odd else "as if never stopped"
        print(f"{training}: killed after saved steps {moments}: {verdict}", flush=True)
    print(
        f"{training}: {n_killed} kills, {n_runs} runs of {seconds:.1f} s, {n_wrong} different",
        flush=True,
    )
    return n_wrong


def _next_step(folder: Path) -> int:
    """The step that the state in `folder` goes on from; -1 when there is none."""
    path = folder / "training_state" / checkpoint.CONFIG
    return json.loads(path.read_text())["next_step"] if path.is_file() else -1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--training", choices=("toy", "finetune"), default="finetune")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        if args.training == "finetune":
            from embodied.config import preset
            from embodied.model.planner import Planner

            torch.manual_seed(0)
            Planner.build(preset("tiny")).save(Path(root) / "tiny")
        return bool(_check(args.training, args.kills, random.Random(args.seed), Path(root)))


if __name__ == "__main__":
    sys.exit(main())
