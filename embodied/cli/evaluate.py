"""`embodied evaluate`: success on fixed layouts, resumable, with everything needed to repeat it."""

from __future__ import annotations

import hashlib
import json as json_format
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from embodied import engines
from embodied.cli import eval_info
from embodied.cli.common import stdout_to_stderr, writable_dir
from embodied.cli.eval_info import EpisodeLog, Record
from embodied.cli.trials import (
    Ablation,
    ActorKind,
    Instructions,
    Job,
    Rule,
    Setting,
    Trials,
)
from embodied.cli.unseen import TrainLayouts
from embodied.engines import Engine
from embodied.video import replacing

_DEFAULT_EPISODES = 20
_SETTINGS = "settings.json"


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure success on layouts that nobody trained on: others are refused.

    A second run with the same settings and --output_dir goes on where the first one ended.

    Args:
        env: environment ids, comma-separated, or a set: mt10, mt50, mw5, kitchen, fk5; kitchen/N
            for N tasks that the layout's seed draws.
        policy: folder of a trained policy instead of the shipped one.
        model: folder of a trained model instead of the shipped one.
        n_episodes: per task; 20, or as many as --seeds has.
        seeds: FIRST:LAST, the layout seeds to take them from in order, both ends included; the
            test family when not given.
        actor: who acts: the agent, the scripted expert (ceiling) or uniform noise (floor).
        ablate: what is taken from the agent, to see what it was worth.
        instructions: the plainest words; one of the paraphrases, drawn by the seed; or the plainest
            for another task of the scene, while the environment's own is what counts.
        rule: what ends an episode of the kitchen with success; both are counted.
        level: of the kitchen's starts: 1, elements that are not asked for may be open; 2, those
            too, all but one.
        horizon: control steps an episode; the environment's own when not given.
        workers: processes, one thread each.
        engine: what starts them: this machine, or Ray where it is installed. Ray joins the cluster
            that RAY_ADDRESS names, or starts on this machine.
        device: auto, cpu, cuda or cuda:N: where the networks are; a GPU where there is one if auto.
        n_videos: of the first episodes of each task.
        output_dir: outputs/eval/<date>/<time>_<actor> when not given.
        json: print eval_info.json on one line and nothing else.
    """

    env: str
    policy: Path | None = None
    model: Path | None = None
    n_episodes: int | None = None
    seeds: str | None = None
    actor: ActorKind = "agent"
    ablate: Ablation = "none"
    instructions: Instructions = "canonical"
    rule: Rule | None = None
    level: int = 0
    horizon: int | None = None
    workers: int = 1
    engine: Engine = "process"
    device: str = "auto"
    n_videos: int = 2
    output_dir: Path | None = None
    json: bool = False

    def __post_init__(self) -> None:
        engines.check(self.engine)
        if self.actor != "agent" and (self.ablate != "none" or self.model or self.policy):
            raise ValueError(f"--ablate, --model and --policy change the agent, not '{self.actor}'")
        for name, least in (("horizon", 1), ("workers", 1), ("n_videos", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} is at least {least}, got {value}")


def evaluate(options: EvaluateOptions) -> int:
    """Evaluate, or go on with it. Returns 0, or 1 when an episode crashed."""
    from sims import scenes

    env_ids = scenes.resolve_env_ids(options.env)
    seeds = layout_seeds(options.seeds, options.n_episodes)
    wanted = [(env_id, seed) for env_id in env_ids for seed in seeds]
    trained = TrainLayouts()
    if options.actor == "agent":
        trained = TrainLayouts.of(options.model, options.policy)
    trained.check_seeds(wanted)
    folder = writable_dir(options.output_dir or _default_folder(options))
    log = EpisodeLog(folder / "episodes.jsonl")
    settings = _keep_settings(folder, options, begun=bool(log.records))
    with stdout_to_stderr():
        jobs = _jobs(env_ids, seeds, folder, options.n_videos)
        _run_missing(log, wanted, jobs, options, trained)
    done = {(r["env"], r["seed"]): r for r in log.records}
    info = eval_info.summarise([done[key] for key in wanted], settings)
    path = eval_info.write(folder, info)
    print(json_format.dumps(info, ensure_ascii=False) if options.json else eval_info.table(info))
    print(f"written to {path}", file=sys.stderr)
    n_crashes = info["overall"]["n_crashes"]
    if n_crashes:
        print(f"{n_crashes} crash(es), counted apart: mend them first", file=sys.stderr)
    return 1 if n_crashes else 0


def layout_seeds(text: str | None, n_episodes: int | None) -> list[int]:
    """`FIRST:LAST` and the number wanted → seeds, in order; of the test family without `text`.

    Raises:
        ValueError: it reads differently, or has fewer seeds than wanted.
    """
    from sims import seeds as families

    if n_episodes is not None and n_episodes < 1:
        raise ValueError(f"--n_episodes is at least 1, got {n_episodes}")
    if text is None:
        return list(families.seeds("test", n_episodes or _DEFAULT_EPISODES))
    first_text, colon, last_text = text.partition(":")
    if not (colon and first_text.isdecimal() and last_text.isdecimal()):
        raise ValueError(f"--seeds is FIRST:LAST, like 200000:200019, got '{text}'")
    first, last = int(first_text), int(last_text)
    if not first <= last < 2**32:
        raise ValueError(f"--seeds {text}: expected FIRST <= LAST < 2^32")
    available = last - first + 1
    if n_episodes is not None and n_episodes > available:
        raise ValueError(f"--seeds {text} has {available} layouts, fewer than {n_episodes} wanted")
    return list(range(first, first + (n_episodes or available)))


def _default_folder(options: EvaluateOptions) -> Path:
    now = datetime.now()
    return Path("outputs/eval") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}_{options.actor}"


def _keep_settings(folder: Path, options: EvaluateOptions, *, begun: bool) -> dict[str, Any]:
    """What decides an episode's outcome; the same for all episodes in one folder.

    Raises:
        ValueError: the folder holds episodes made with other settings.
    """
    settings = {
        "actor": options.actor,
        "ablate": options.ablate,
        "instructions": options.instructions,
        "horizon": options.horizon,
        "rule": options.rule,
        "level": options.level,
        "model": _fingerprint(options.model, options),
        "policy": _fingerprint(options.policy, options),
    }
    path = folder / _SETTINGS
    if begun and path.exists():
        try:
            read = json_format.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): delete {folder}") from None
        before = {"level": 0, **read}  # a folder that names no level was begun at 0
        if changed := [key for key in settings if _which(before.get(key)) != _which(settings[key])]:
            told = ", ".join(f"{key} was {before.get(key)}" for key in changed)
            raise ValueError(
                f"{folder} holds an evaluation with other settings ({told}): choose another "
                "--output_dir, or delete it"
            )
    with replacing(path) as partial:
        partial.write_text(json_format.dumps(settings, indent=2), encoding="utf-8")
    return settings


def _fingerprint(folder: Path | None, options: EvaluateOptions) -> dict[str, str] | None:
    """Which weights: the folder, and a hash over its manifests. None for actors without any."""
    if options.actor != "agent":
        return None
    import embodied
    from embodied.checkpoint import MANIFEST

    root = folder or Path(embodied.__path__[0]) / "pretrained" / "small"
    digest = hashlib.sha256()
    for manifest in sorted(root.rglob(MANIFEST)):
        digest.update(manifest.read_bytes())
    name = "shipped" if folder is None else str(folder)
    return {"name": name, "sha256": digest.hexdigest()[:16]}


def _which(setting: Any) -> Any:
    """What has to be the same: of weights what they are, not where they lie."""
    return setting.get("sha256") if isinstance(setting, dict) else setting


def _jobs(env_ids: list[str], seeds: list[int], folder: Path, n_videos: int) -> Iterator[Job]:
    for env_id in env_ids:
        for i, seed in enumerate(seeds):
            name = f"{env_id.replace('/', '_')}_{seed}.mp4"
            yield Job(env_id, seed, folder / "videos" / name if i < n_videos else None)


def _run_missing(
    log: EpisodeLog,
    wanted: list[tuple[str, int]],
    jobs: Iterator[Job],
    options: EvaluateOptions,
    trained: TrainLayouts,
) -> None:
    finished = {(r["env"], r["seed"]) for r in log.records}
    missing = [job for job in jobs if (job.env_id, job.seed) not in finished]
    before = [r for r in log.records if (r["env"], r["seed"]) in set(wanted)]
    n_success = sum(r["success"] for r in before)
    bar = tqdm(total=len(wanted), initial=len(before), unit="episode", desc="evaluate")
    with bar, closing(_results(missing, options)) as results:
        for record in results:
            trained.check_layout(record["env"], record["seed"], record["layout_sha"])
            log.append(record)
            n_success += record["success"]
            bar.set_postfix(success=n_success, refresh=False)
            bar.update()


def _results(jobs: list[Job], options: EvaluateOptions) -> Generator[Record, None, None]:
    """The records of `jobs` as they are finished."""
    if not jobs:
        return
    setting = Setting(
        options.actor,
        options.model,
        options.policy,
        options.ablate,
        options.instructions,
        options.horizon,
        options.rule,
        options.level,
        options.device,
    )
    if options.engine == "ray" or min(options.workers, len(jobs)) > 1:
        make, on_gpus = partial(Trials, setting), options.actor == "agent"
        yield from engines.run(options.engine, make, jobs, options.workers, on_gpus)
        return
    with closing(Trials(setting)) as trials:
        for job in jobs:
            yield trials(job)
