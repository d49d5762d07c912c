"""LeRobot's policies beside ours, trained for the same time. See compare_lerobot.sh.

For every environment the expert is recorded; `embodied train-policy` learns from the first so many
demonstrations, from pictures to policy, by the clock; LeRobot's policies learn from the same ones,
in processes of their own, for as many seconds on the same CPU. All are then tried on the same test
layouts in our environments under our rule of success.

One policy for each environment: LeRobot's two are told no task. Each looks through the same
cameras; LeRobot's see a new picture at every step, as the demonstrations have them, ours at every
second one. A planner that has not seen the tasks learns them from the same demonstrations first,
and the others get the seconds that this takes as well.

On two cores the default, one environment, takes about an hour, with a held-out planner 80 minutes:
ours 12 or 17 minutes (2,000 steps at 3 a second, features, 5 to tune the planner), as long for each
of LeRobot's two, and 30 test layouts each: 2 minutes for ours, at 4 s an episode, and at most 12
for each of the others, which made 38 to 60 (ACT) and 21 to 33 (Diffusion Policy) steps a second.
Every environment more takes as long again; with --steps 500 --n_layouts 10 and the shipped planner,
one takes about 15 minutes.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import few_shot
import tyro
from lerobot_peer import LeRobotActor, server_command
from safetensors import safe_open
from tqdm import tqdm

from embodied.cli import eval_info
from embodied.cli.compare import CompareOptions, compare
from embodied.cli.eval_info import EpisodeLog, Record
from embodied.cli.trials import Job, Setting, Trials
from embodied.egocot.demos import choose_demos, sources_of
from embodied.episodes import DatasetReader, EpisodeMeta
from embodied.video import replacing
from sims import scenes, seeds

Peer = Literal["act", "diffusion"]
OURS = "mlp"
_TRAIN = Path(__file__).with_name("lerobot_train.py")
_SPENT = "spent.json"
_TOLD = ("n_updates", "n_parameters", "backbone")


@dataclass(frozen=True)
class PeersOptions:
    """What is compared, and for how long.

    Args:
        lerobot: the Python of the virtual environment that has lerobot.
        env: environment ids, comma-separated, or a set: mw5.
        peers: LeRobot's policies to train.
        n_demos: demonstrations of each task.
        n_layouts: test layouts of each task.
        steps: of our training, which decides how many seconds the others get.
        seconds: how long LeRobot's policies are trained instead.
        cameras: what everyone looks through, comma-separated.
        model: the planner that ours starts from, such as scripts/held_out.sh makes; the shipped
            one, which has seen the tasks, when not given.
        init: a policy that ours starts from, such as held_out.sh makes beside its planner; a fresh
            one when not given. LeRobot's start from nothing but ImageNet.
        image_px: pictures that LeRobot's policies get, square.
        batch_size: of LeRobot's policies; `lerobot-train` has 8 too.
        seed: of every training.
        output_dir: for everything.
    """

    lerobot: Path
    env: str = "metaworld/drawer-open-v3"
    peers: tuple[Peer, ...] = ("act", "diffusion")
    n_demos: int = 10
    n_layouts: int = 30
    steps: int = 2000
    seconds: float | None = None
    cameras: str = "workspace,wrist"
    model: Path | None = None
    init: Path | None = None
    image_px: int = 112
    batch_size: int = 8
    seed: int = 0
    output_dir: Path = Path("outputs/peers")

    def folder(self, who: str, env_id: str) -> Path:
        return self.output_dir / who / env_id.replace("/", "_")


@dataclass(frozen=True)
class Spent:
    """What a training took, on the clock and of the processor."""

    wall_s: float
    cpu_s: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


def timed(command: list[str], **more: str) -> Spent:
    """Run a command, with `more` in its environment, and wait for it. Stops when it fails."""
    print(" ".join(command), file=sys.stderr, flush=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=False, env={**os.environ, **more})
    wall_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1) or (done.returncode and "evaluate" not in command):
        raise SystemExit(done.returncode)  # 1 of `evaluate` are crashes, which are counted
    return Spent(wall_s, sum(after[:2]) - sum(before[:2]))


def embodied(*argv: str) -> Spent:
    """Run a command of ours."""
    return timed([sys.executable, "-m", "embodied.cli.main", *argv])


def keep_settings(options: PeersOptions) -> None:
    """Write down what decides the figures.

    Raises:
        ValueError: the folder holds a comparison with other settings.
    """
    apart = ("lerobot", "env", "peers", "output_dir")
    told = {k: str(v) for k, v in asdict(options).items() if k not in apart}
    if options.init is None:
        del told["init"]  # as in folders from before there was one
    path = options.output_dir / "settings.json"
    if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))) != told:
        keys = dict.fromkeys([*told, *before])
        changed = [f"{k} was {before.get(k)}" for k in keys if before.get(k) != told.get(k)]
        raise ValueError(f"{path.parent} has other settings ({', '.join(changed)}): delete it")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(told, indent=2), encoding="utf-8")


# --- demonstrations and training --------------------------------------------------------------


def record(options: PeersOptions, env_id: str) -> tuple[Path, list[EpisodeMeta]]:
    """The expert's data set, and the demonstrations of it that everyone is trained on."""
    folder = options.folder("demos", env_id)
    spare = 2 + options.n_demos // 3  # noise makes the expert fail now and then
    argv = ["--env", env_id, "--n_episodes", str(options.n_demos + spare), "--noise", "0.02"]
    embodied("record", *argv, "--cameras", options.cameras, "--output_dir", str(folder))
    chosen = choose_demos(sources_of(DatasetReader(folder)), options.n_demos)
    return folder, [source.meta for source in chosen]


def train_ours(options: PeersOptions, env_id: str, demos: Path) -> Spent:
    """From pictures to a policy, and to a planner that knows the task where it did not.

    What is cached of an earlier run would not be counted.
    """
    folder = options.folder(OURS, env_id)
    if (spent := _spent(folder)) is None:
        spent = Spent(0.0, 0.0)
        if options.model is not None and is_tuned(options, env_id):
            argv = few_shot.tuning(options.model, demos, options.n_demos, folder / "features")
            spent += embodied("finetune", *argv, "--output_dir", str(folder / "plan"))
        argv = ["--dataset", str(demos), "--n_demos", str(options.n_demos), "--policy", "mlp"]
        argv += ["--cameras", options.cameras, "--steps", str(options.steps), "--save_every", "0"]
        argv += ["--seed", str(options.seed), "--features_dir", str(folder / "features")]
        argv += [] if options.model is None else ["--model", str(options.model)]
        argv += [] if options.init is None else ["--init", str(options.init)]
        spent += embodied("train-policy", *argv, "--output_dir", str(folder / "train"))
        _keep_spent(folder, spent)
    return spent


def is_tuned(options: PeersOptions, env_id: str) -> bool:
    """Whether the planner has to learn an environment's tasks: it would not route to them."""
    return few_shot.held_out([options.model], ",".join(scenes.tasks_of(env_id)))


def acting_planner(options: PeersOptions, env_id: str) -> Path | None:
    """The planner that acts; None is the shipped one."""
    tuned = options.folder(OURS, env_id) / "plan" / "planner"
    return tuned if is_tuned(options, env_id) else options.model


def train_peer(
    options: PeersOptions, kind: Peer, env_id: str, demos: Path, episodes: list[int], seconds: float
) -> Spent:
    """LeRobot's policy `kind`, for `seconds`."""
    folder = options.folder(kind, env_id)
    if (spent := _spent(folder)) is None:
        command = [str(options.lerobot), str(_TRAIN), kind, "--dataset", str(demos)]
        command += ["--episodes", ",".join(map(str, episodes)), "--seconds", str(seconds)]
        command += ["--image_px", str(options.image_px), "--seed", str(options.seed)]
        command += ["--batch_size", str(options.batch_size), "--output", str(folder / "train")]
        with tempfile.TemporaryDirectory() as cache:  # copies of the tables
            spent = timed(command, HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=cache)
        _keep_spent(folder, spent)
    return spent


def _spent(folder: Path) -> Spent | None:
    """Of a finished training; what is left of another is deleted, its time is not known."""
    path = folder / _SPENT
    if path.exists():
        return Spent(**json.loads(path.read_text(encoding="utf-8")))
    if folder.exists():
        shutil.rmtree(folder)
    return None


def _keep_spent(folder: Path, spent: Spent) -> None:
    with replacing(folder / _SPENT) as partial:
        partial.write_text(json.dumps(asdict(spent)), encoding="utf-8")


# --- evaluation -------------------------------------------------------------------------------


class PeerTrials(Trials):
    """`embodied evaluate`'s trials, with a LeRobot policy for the agent."""

    def __init__(self, actor: LeRobotActor, cameras: tuple[str, ...], train_seeds: list[int]):
        super().__init__(Setting("agent", None, None, "none", "canonical", None))
        self._peer, self._peer_cameras, self._train_seeds = actor, cameras, train_seeds

    def __call__(self, job: Job) -> Record:
        found = super().__call__(job)
        of_peer = {"cameras": list(self._peer_cameras), "train_seeds": self._train_seeds}
        return found | {"setup": found["setup"] | of_peer}

    def _open(self, env_id: str) -> Any:
        if self._env is None:  # always the same; a new picture at every step, as recorded
            self._env = scenes.make(env_id, cameras=self._peer_cameras)
        return self._env

    def _actor(self, env: Any, seed: int) -> Any:
        return self._peer


def evaluate_peer(
    options: PeersOptions, kind: Peer, env_id: str, demos: list[EpisodeMeta]
) -> list[Record]:
    """LeRobot's policy `kind` on the test layouts; goes on where it was interrupted."""
    folder = options.folder(kind, env_id)
    wanted = seeds.seeds("test", options.n_layouts)
    log = EpisodeLog(folder / "episodes.jsonl")
    missing = [seed for seed in wanted if seed not in {r["seed"] for r in log.records}]
    if missing:
        cameras = tuple(options.cameras.split(","))
        command = server_command(options.lerobot, folder / "train")
        with ExitStack() as stack:
            actor = stack.enter_context(closing(LeRobotActor(command, f"LeRobot, {kind}")))
            trials = PeerTrials(actor, cameras, [demo.seed for demo in demos])
            stack.enter_context(closing(trials))
            for seed in tqdm(missing, unit="episode", desc=kind):
                video = folder / "videos" / f"{seed}.mp4" if seed == wanted[0] else None
                log.append(trials(Job(env_id, seed, video)))
    return sorted(log.records, key=lambda r: wanted.index(r["seed"]))


def evaluate_ours(options: PeersOptions, env_id: str) -> list[Record]:
    """Our agent on the same layouts, in one process as well."""
    folder = options.folder(OURS, env_id)
    argv = ["--env", env_id, "--n_episodes", str(options.n_layouts), "--n_videos", "1"]
    argv += ["--policy", str(folder / "train" / "policy"), "--output_dir", str(folder / "eval")]
    planner = acting_planner(options, env_id)
    argv += [] if planner is None else ["--model", str(planner)]
    embodied("evaluate", *argv)
    return EpisodeLog(folder / "eval" / "episodes.jsonl").records


def check_unseen(records: list[Record], demos: list[EpisodeMeta]) -> None:
    """Raises ValueError when a layout was trained on."""
    seen = {(demo.env_id, demo.layout_sha) for demo in demos}
    if clashes := [r for r in records if (r["env"], r["layout_sha"]) in seen]:
        raise ValueError(f"{len(clashes)} test layouts are those of demonstrations")


# --- the table --------------------------------------------------------------------------------


def about_ours(options: PeersOptions, env_id: str) -> dict[str, Any]:
    """The sizes of our training. The planner and the vision encoder are not trained."""
    folder = options.folder(OURS, env_id) / "train" / "policy"
    n = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as tensors:
            names = list(tensors.keys())
            n += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return {"n_updates": options.steps, "n_parameters": n}


def about_peer(options: PeersOptions, kind: Peer, env_id: str) -> dict[str, Any]:
    """What lerobot_train.py tells of itself."""
    path = options.folder(kind, env_id) / "train" / "train.json"
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return told


def seen_or_not(options: PeersOptions) -> str:
    """What our planner, and the policy that ours starts from, knew before."""
    tasks = ",".join(_tasks(options))
    starts = [options.model, *([] if options.init is None else [options.init])]
    seen = "tasks held out" if few_shot.held_out(starts, tasks) else "tasks seen"
    return f"{seen}; the policy starts from {'nothing' if options.init is None else 'another'}"


def _tasks(options: PeersOptions) -> list[str]:
    return [t for env_id in scenes.resolve_env_ids(options.env) for t in scenes.tasks_of(env_id)]


def markdown(options: PeersOptions, rows: list[dict[str, Any]]) -> str:
    """A row for every policy and environment."""
    lines = [
        f"# {options.n_demos} demonstrations, the same seconds of training",
        "",
        "| environment | policy | trained weights | updates | s | CPU s | success | steps/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = (100 * bound for bound in row["wilson95"] or (0.0, 1.0))
        rate = f"{row['k']}/{row['n']} [{low:.0f}, {high:.0f}] %"
        rate += f" ({row['n_apart']} crashed or broke the simulator)" if row["n_apart"] else ""
        cells = [row["env"], row["who"], f"{row['n_parameters'] / 1e6:.1f} M"]
        cells += [str(row["n_updates"]), f"{row['wall_s']:.0f}", f"{row['cpu_s']:.0f}", rate]
        cells += [f"{row['control_hz']:.0f}" if row["control_hz"] else ""]
        lines.append(f"| {' | '.join(cells)} |")
    backbones = {
        f"{row['who']}'s ResNet-18: {row['backbone']}" for row in rows if "backbone" in row
    }
    notes = [
        f"{OURS}: `embodied train-policy`, features included, on a frozen vision encoder and a "
        f"planner ({seen_or_not(options)}), which are pretrained; it also learns from the "
        "sub-goals and places that the recordings are labelled with. A planner without the tasks "
        "is tuned on the same demonstrations, within these seconds.",
        "The others: lerobot's policies, made smaller (see scripts/lerobot_train.py), from "
        f"{options.image_px} pixels, the robot's state and actions.",
        *sorted(backbones),
        "Success with Wilson's 95 % interval. The machine's load is in the CPU seconds.",
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def row_of(
    env_id: str, who: str, spent: Spent, about: dict[str, Any], records: list[Record]
) -> dict[str, Any]:
    """One line of the table, as table.json has it."""
    rate = eval_info.rate_of(records)
    told: dict[str, Any] = {k: v for k, v in about.items() if k in _TOLD}
    hz = [r["control_hz"] for r in records if r["control_hz"]]
    return {
        "env": env_id,
        "who": who,
        **told,
        **asdict(spent),
        **{"k": rate.k, "n": rate.n, "wilson95": rate.wilson95},
        "n_apart": len(records) - rate.n,
        "control_hz": sum(hz) / len(hz) if hz else None,
    }


def run_env(options: PeersOptions, env_id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Everything for one environment. Returns rows of the table, and who → records."""
    data, demos = record(options, env_id)
    episodes = [demo.index for demo in demos]
    spent: dict[str, Spent] = {OURS: train_ours(options, env_id, data)}
    seconds = options.seconds or spent[OURS].wall_s
    for kind in options.peers:
        spent[kind] = train_peer(options, kind, env_id, data, episodes, seconds)
    records = {OURS: evaluate_ours(options, env_id)}
    records |= {kind: evaluate_peer(options, kind, env_id, demos) for kind in options.peers}
    about = {OURS: about_ours(options, env_id)}
    about |= {kind: about_peer(options, kind, env_id) for kind in options.peers}
    for of in records.values():
        check_unseen(of, demos)
    rows = [row_of(env_id, who, spent[who], about[who], records[who]) for who in records]
    return rows, records


def main() -> None:
    options = tyro.cli(PeersOptions, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True)
    keep_settings(options)
    rows: list[dict[str, Any]] = []
    records: dict[str, list[Record]] = {}
    for env_id in scenes.resolve_env_ids(options.env):
        more, of_env = run_env(options, env_id)
        rows += more
        for who, of in of_env.items():
            records.setdefault(who, []).extend(of)
    for who, of in records.items():
        info = eval_info.summarise(of, {"actor": who, **json.loads(_settings_text(options))})
        eval_info.write(options.output_dir / who, info)
    with replacing(options.output_dir / "table.json") as partial:
        partial.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    text = markdown(options, rows)
    with replacing(options.output_dir / "table.md") as partial:
        partial.write_text(text, encoding="utf-8")
    print(text)
    for kind in options.peers:
        compare(CompareOptions(str(options.output_dir / kind), str(options.output_dir / OURS)))
        print()


def _settings_text(options: PeersOptions) -> str:
    return (options.output_dir / "settings.json").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
