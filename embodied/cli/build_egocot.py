"""`embodied build-egocot`: records of video chain-of-thought, from rollouts or narrated videos.

    rollouts    recorded labels ──────────────▶ moments ─▶ drafts ┐
    ego4d       narrations ─▶ a model's plans ────────────▶ drafts ┴▶ CLIP score ─▶ records.jsonl

In the output folder: `records.jsonl` and `clips/`, the records; `quarantine.jsonl`, what cannot be
used and why; `build.json`, how they were made; `.build/`, what a run that goes on needs. A run that
was stopped goes on when the same command is given again: clips that are there are not cut again,
and no answer is asked for twice.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

import embodied
from embodied.cli.common import stdout_to_stderr, writable_dir
from embodied.egocot.build import ego4d, rollouts
from embodied.egocot.build.cutting import remove_others
from embodied.egocot.build.drafts import Draft
from embodied.egocot.build.generators import Generator, Kept
from embodied.egocot.build.narrations import read_entries
from embodied.egocot.build.prompts import PROMPTS, load_templates
from embodied.egocot.build.selection import choose
from embodied.egocot.clips import read_clip
from embodied.egocot.filter import Calibration, Encoder, calibrate, check_score, threshold_of
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.records import Record, Split, write_records
from embodied.episodes import EpisodeMeta
from embodied.video import replacing
from embodied.weights import WeightsError
from embodied.weights.clip import PREFIX as OPEN_CLIP
from embodied.weights.clip import load_encoder as load_open_clip
from sims import language, seeds

RECORDS, QUARANTINE, BUILD, STATE = "records.jsonl", "quarantine.jsonl", "build.json", ".build"
SHIPPED_CLIP = Path(embodied.__path__[0]) / "pretrained" / "small" / "clip"
_N_SHOWN = 20


@dataclass(frozen=True)
class BuildOptions:
    """Make a folder of records, as data/egocot/README.md describes them.

    Args:
        output_dir: where they go; a new folder, or one to go on with.
        source: rollouts: what `embodied record` wrote; ego4d: narrated videos of your own licence.
        dataset: rollouts: the data sets, comma-separated.
        camera: rollouts: whose pictures; each data set's first when not given.
        paraphrases: rollouts: ways to ask for each plan.
        narrations: ego4d: narration.json.
        videos: ego4d: the folder with <video id>.mp4.
        generator: ego4d: the language model that plans: a hub name, a folder, or
            smollm2-135m-instruct.
        endpoint: ego4d: instead of that, a server that speaks chat/completions, as in
            http://localhost:8000/v1.
        endpoint_model: the model's name there.
        key_env: the environment variable that holds the key for it.
        rate_per_min: requests a minute at most.
        retries: how often a request that failed is sent again.
        prompts: ego4d: the folder of prompt templates.
        clip_s: ego4d: seconds of video around a narration at most.
        n_records: how many to make; all when not given. Of rollouts every kind and task takes its
            turn; of narrations so many are drawn.
        seed: of instructions, draws and shuffled captions.
        image_size: pixels of a clip's longer side at most.
        licence: of the clips; what the source says when not given.
        split: train, select or test; of rollouts by their layout's seed when not given.
        clip: score clips and captions with this CLIP and drop what does not fit: open_clip:<arch>/
            <pretrained>, a folder that `embodied align-clip` wrote, or small, the shipped one of
            those, for our own rollouts; nothing is scored when not given.
        false_positive_rate: the share of shuffled captions that may pass.
        device: of language model and CLIP: auto, cpu, cuda or cuda:N; a GPU where there is one if
            auto.
    """

    output_dir: Path
    source: Literal["rollouts", "ego4d"] = "rollouts"
    dataset: str = ""
    camera: str | None = None
    paraphrases: int = 2
    narrations: Path | None = None
    videos: Path | None = None
    generator: str = ""
    endpoint: str = ""
    endpoint_model: str = ""
    key_env: str = "OPENAI_API_KEY"
    rate_per_min: float = 60.0
    retries: int = 5
    prompts: Path = PROMPTS
    clip_s: float = 4.0
    n_records: int | None = None
    seed: int = 0
    image_size: int = 224
    licence: str | None = None
    split: Split | None = None
    clip: str = ""
    false_positive_rate: float = 0.05
    device: str = "auto"


def build_egocot(options: BuildOptions) -> int:
    """Build records. Returns 0, or 1 if not one is good.

    Raises:
        ValueError: an option is wrong, the folder holds something else, or another run is at it.
    """
    _check(options)
    out = _claim(options)
    with _alone_in(out):
        return _build(options, out)


def _build(options: BuildOptions, out: Path) -> int:
    # first: it may not be there
    encoder = load_encoder(options.clip, options.device) if options.clip else None
    with Quarantine(out / QUARANTINE, first_few()) as quarantine:
        drafts, left_out = _drafts(options, out, quarantine)
        calibration = _calibration(encoder, options, out, drafts)
        records = list(_admit(options, drafts, calibration, quarantine))
        write_records(out / RECORDS, records)
    remove_others(out, {record.clip for record in records})
    _save_build(options, out, records, left_out, quarantine, calibration)
    print(f"{out}: {quarantine.counts}")
    print(_summary(records, left_out))
    return 0 if records else 1


# ---- what was asked for -------------------------------------------------------------------------


def _check(options: BuildOptions) -> None:
    """Raises ValueError for options that are out of range or do not go together."""
    if options.n_records is not None and options.n_records < 1:
        raise ValueError(f"--n_records is at least 1, got {options.n_records}")
    if options.paraphrases < 1 or options.image_size < 16 or options.seed < 0:
        raise ValueError(
            "--paraphrases is at least 1, --image_size at least 16, --seed at least 0; got "
            f"{options.paraphrases}, {options.image_size}, {options.seed}"
        )
    if not 0 < options.false_positive_rate < 1:
        raise ValueError(
            f"--false_positive_rate is between 0 and 1, got {options.false_positive_rate}"
        )
    if not 0 < options.clip_s < 600:
        raise ValueError(f"--clip_s is above 0 and below 600, got {options.clip_s:g}")
    if options.source == "rollouts":
        if not dataset_roots(options.dataset):
            raise ValueError("--source rollouts needs --dataset DIR[,DIR], data sets of `record`")
        return
    if options.narrations is None or options.videos is None:
        raise ValueError("--source ego4d needs --narrations narration.json and --videos DIR")
    if not options.videos.is_dir():
        raise ValueError(f"no folder of videos at '{options.videos}'")
    if bool(options.generator) == bool(options.endpoint):
        raise ValueError("--source ego4d needs either --generator NAME or --endpoint URL")


def dataset_roots(names: str) -> list[Path]:
    """The folders of `--dataset`, comma-separated."""
    return [Path(name.strip()) for name in names.split(",") if name.strip()]


def _claim(options: BuildOptions) -> Path:
    """The output folder, marked as ours. Raises ValueError if it holds something else."""
    out, source = options.output_dir, _inputs(options)
    mark = out / STATE / "inputs.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"'{out}' is a file: give a new --output_dir")
    if mark.is_file():
        if json.loads(mark.read_text(encoding="utf-8")) != source:
            raise ValueError(f"'{out}' holds records of other inputs: give a new --output_dir")
        return out
    if out.is_dir() and any(path.name != STATE for path in out.iterdir()):
        raise ValueError(f"'{out}' holds something else: give a new --output_dir")
    writable_dir(out)
    with replacing(mark) as partial_mark:
        partial_mark.write_text(json.dumps(source), encoding="utf-8")
    return out


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """No other run writes there meanwhile; what a killed one left half-written is removed."""
    lock = FileLock(out / STATE / "lock", timeout=0)
    try:
        with lock:
            for path in out.glob(".*.partial.*"):
                path.unlink()
            yield
    except Timeout:
        raise ValueError(f"another run is writing to '{out}': let it finish") from None


def _inputs(options: BuildOptions) -> dict[str, Any]:
    """What the records are of; everything else may change when a run goes on."""
    paths = (*dataset_roots(options.dataset), options.narrations, options.videos)
    return {"source": options.source, "paths": [str(p.resolve()) for p in paths if p is not None]}


# ---- the way of a record ------------------------------------------------------------------------


def _drafts(
    options: BuildOptions, out: Path, quarantine: Quarantine
) -> tuple[list[Draft], Counter[str]]:
    """Records without scores, their clips cut, and what was left out for which reason."""
    if options.source == "rollouts":
        return _of_rollouts(options, out, quarantine)
    return _of_narrations(options, out, quarantine), Counter()


def _of_rollouts(
    options: BuildOptions, out: Path, quarantine: Quarantine
) -> tuple[list[Draft], Counter[str]]:
    settings = rollouts.Settings(
        phrases=language,
        split_of=lambda meta: options.split or split_by_layout(meta),
        seed=options.seed,
        variants=options.paraphrases,
        camera=options.camera,
        licence=options.licence,
        side=options.image_size,
    )
    found, left_out = rollouts.candidates(dataset_roots(options.dataset), settings, quarantine)
    if options.n_records is not None:
        rng = np.random.default_rng(options.seed)
        found = choose(rng, found, options.n_records, _traits)
    drafts = rollouts.build(found, out, settings, quarantine)
    return list(_progress(drafts, len(found), "clips")), left_out


def _traits(candidate: rollouts.Candidate) -> tuple[str, str, str]:
    return candidate.kind, candidate.reason, candidate.group


def split_by_layout(meta: EpisodeMeta) -> Split:
    """That of the layout's seed."""
    return seeds.family_of(meta.seed)


def _of_narrations(options: BuildOptions, out: Path, quarantine: Quarantine) -> list[Draft]:
    assert options.narrations is not None and options.videos is not None
    entries = read_entries(options.narrations)
    if options.n_records is not None:
        if options.n_records > len(entries):
            raise ValueError(
                f"--n_records {options.n_records}: there are {len(entries)} narrations"
            )
        drawn = np.random.default_rng(options.seed).permutation(len(entries))[: options.n_records]
        entries = [entries[i] for i in sorted(drawn.tolist())]
    templates = load_templates(options.prompts)
    generator = Kept(_generator(options), out / STATE / "answers.jsonl")
    settings = ego4d.Settings(
        videos=options.videos,
        templates=templates,
        generator=generator,
        seed=options.seed,
        longest_s=options.clip_s,
        licence=options.licence or ego4d.LICENCE,
        split=options.split or "train",
        side=options.image_size,
    )
    drafts = ego4d.build(entries, options.narrations, out, settings, quarantine)
    found = list(_progress(drafts, len(entries), "narrations"))
    print(f"{generator.name}: {generator.n_asked} asked, {len(generator)} answers kept")
    return found


def _generator(options: BuildOptions) -> Generator:
    if options.endpoint:
        from embodied.egocot.build.endpoint import Endpoint

        return Endpoint(
            options.endpoint,
            options.endpoint_model,
            key_env=options.key_env,
            rate_per_min=options.rate_per_min,
            retries=options.retries,
        )
    from embodied import devices
    from embodied.egocot.build.generators import LocalModel

    with stdout_to_stderr():
        return LocalModel(options.generator, device=devices.pick(options.device))


def load_encoder(name: str, device: str = "auto") -> Encoder:
    """The CLIP to score with, by one of the forms that `--clip` takes.

    Raises:
        WeightsError: the name is of another form, or what it names cannot be had.
        CheckpointError: the folder is damaged.
        ValueError: there is no such device.
    """
    from embodied import devices

    where = devices.pick(device)
    with stdout_to_stderr():
        if name.startswith(OPEN_CLIP):
            return load_open_clip(name, where)
        folder = SHIPPED_CLIP if name == "small" else Path(name)
        if not folder.is_dir():
            raise WeightsError(
                f"no CLIP called '{name}': expected {OPEN_CLIP}<arch>/<pretrained>, small, or a "
                "folder that `embodied align-clip` wrote"
            )
        from embodied.model.locked_clip import load_locked

        return load_locked(folder, name, where)


def _calibration(
    encoder: Encoder | None, options: BuildOptions, out: Path, drafts: Sequence[Draft]
) -> Calibration | None:
    """Scores, when asked for."""
    if encoder is None:
        return None
    clips = (read_clip(out, draft.record.clip) for draft in drafts)
    captions = [draft.record.caption for draft in drafts]
    rng = np.random.default_rng([options.seed, 1])
    return calibrate(encoder, _progress(clips, len(drafts), "scores"), captions, rng)


def _admit(
    options: BuildOptions,
    drafts: Sequence[Draft],
    calibration: Calibration | None,
    quarantine: Quarantine,
) -> Iterator[Record]:
    """The records that fit their captions; no id twice."""
    rate = options.false_positive_rate
    threshold = None if calibration is None else threshold_of(calibration, rate)
    for i, draft in enumerate(drafts):
        make = partial(_same, draft.record)
        if calibration is not None and threshold is not None:
            make = partial(_scored, draft.record, float(calibration.own[i]), threshold, rate)
        record = quarantine.admit(make, draft.file, draft.line, draft.text)
        if record is not None:
            yield record


def _same(record: Record) -> Record:
    return record


def _scored(record: Record, score: float, threshold: float, rate: float) -> Record:
    return replace(record, score=check_score(score, threshold, rate))


# ---- what is told -------------------------------------------------------------------------------


def first_few() -> Any:
    """Says on stderr what is wrong with the first records that go to the quarantine."""
    shown = iter(range(_N_SHOWN))

    def show(reason: str) -> None:
        if next(shown, None) is not None:
            print(reason, file=sys.stderr)

    return show


def _progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    return tqdm(items, total=total, desc=what, disable=not sys.stderr.isatty())


def _summary(records: Sequence[Record], left_out: Counter[str]) -> str:
    """How many of what."""
    verdicts = Counter(r.verdict.status if r.verdict else "no verdict" for r in records)
    n_questions = sum(len(record.questions) for record in records)
    told = ", ".join(f"{n} {status}" for status, n in sorted(verdicts.items()))
    lines = [
        f"verdicts: {told or 'none'}",
        f"{n_questions} questions, {len({r.instruction for r in records})} instructions",
    ]
    lines += [f"left out: {n} moments, {reason}" for reason, n in left_out.most_common()]
    return "\n".join(lines)


def _save_build(
    options: BuildOptions,
    out: Path,
    records: Sequence[Record],
    left_out: Counter[str],
    quarantine: Quarantine,
    calibration: Calibration | None,
) -> None:
    from embodied.cli.eval_info import versions

    told: dict[str, Any] = {
        "options": {name: _plain(value) for name, value in asdict(options).items()},
        "versions": versions(),
        "n_records": len(records),
        "quarantined": dict(quarantine.counts.bad),
        "left_out": dict(left_out),
        "similarity": None,
    }
    if calibration is not None:
        threshold = calibration.threshold(options.false_positive_rate)
        figures = {
            "auc": calibration.auc,
            "threshold": threshold,
            "kept": calibration.kept(threshold),
        }
        told["similarity"] = {"encoder": calibration.encoder, **figures}
    with replacing(out / BUILD) as partial_file:
        partial_file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
