"""`embodied align-clip`: a small CLIP of our own rollouts, for `embodied build-egocot --clip DIR`.

The image tower is a planner's and stays locked; a small text tower learns to meet it on captions of
recorded episodes (`embodied.model.locked_clip`). Minutes on one core from cached features.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from embodied.cli.build_egocot import dataset_roots, first_few, split_by_layout
from embodied.cli.start import StartOptions, planner_to_train
from embodied.cli.training import run_training
from embodied.config import Preset
from embodied.egocot.build.rollouts import Settings
from embodied.egocot.captions import Captioned, CaptionSampler, load_captioned
from embodied.egocot.filter import Calibration, compare
from embodied.egocot.quarantine import Quarantine
from embodied.model.llm import embed_texts
from embodied.model.locked_clip import LockedClip, LockedClipConfig
from embodied.model.planner import Planner
from embodied.processes import Processes
from embodied.train import LoopOptions
from embodied.training_state import seed_all
from sims import language

CLIP = "clip"
"""The folder in the output directory that `--clip` takes."""
RATE = 0.05
"""The share of shuffled captions that is marked in the curve, `build-egocot`'s own."""


@dataclass(frozen=True)
class AlignClipOptions(LoopOptions):
    """What to align, on what.

    Args:
        dataset: data sets of `embodied record`, comma-separated.
        output_dir: for the log, the state and the result, the folder `clip`.
        check: data sets of other layouts, comma-separated: how well their captions are told from
            shuffled ones is printed at the end, as `build-egocot` does.
        preset: which planner's towers are taken.
        llm: the language model whose word embeddings are read, instead of the preset's.
        vision: the vision tower, instead of the preset's.
        camera: whose pictures; each data set's first when not given.
        n_fields: the picture is averaged over so many fields along either side.
        batch_size: captions that are told from each other at once.
        features_dir: where frozen features are cached.
        threads: CPU threads; torch's own choice when 0.
    """

    dataset: str
    output_dir: Path
    _: KW_ONLY
    check: str = ""
    preset: Preset = "small"
    llm: str | None = None
    vision: str | None = None
    camera: str | None = None
    n_fields: int = 2
    batch_size: int = 128
    features_dir: Path = Path("outputs/features")
    steps: int = 400
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    ema_decay: float = 0.99
    threads: int = 0


def align_clip(options: AlignClipOptions) -> int:
    """Train, and save the result. Returns the exit status.

    Raises:
        ValueError: an option is out of range, or there is too little to learn from.
    """
    _check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    start = StartOptions(preset=options.preset, llm=options.llm, vision=options.vision)
    planner = planner_to_train(start)
    sets = _captioned(planner, options.dataset, options)
    others = _captioned(planner, options.check, options)
    seed_all(options.seed)  # here, so that the planner's own draws change nothing
    config = LockedClipConfig.of(planner.config, n_fields=options.n_fields)
    embed = partial(embed_texts, planner.llm, planner.tokenizer, limit=config.max_text)
    module = LockedClip(config, embed)
    sampler = CaptionSampler(sets, options.batch_size, options.seed)
    n_weights = sum(p.numel() for p in module.parameters())
    told = f"{sampler.n_clips} clips, {len(sampler.captions)} captions, {n_weights:,} weights"
    print(told, file=sys.stderr)
    figures = run_training("align-clip", module, sampler, options)
    trained_on = [root.name for root in dataset_roots(options.dataset)]
    module.save(options.output_dir / CLIP, trained_on=trained_on, figures=figures)
    if others:
        print(checked(module, others, np.random.default_rng(options.seed)).roc(RATE))
    print(f"{told}; use it: embodied build-egocot --clip {options.output_dir / CLIP}")
    return 0


def checked(module: LockedClip, sets: Sequence[Captioned], rng: np.random.Generator) -> Calibration:
    """Scores of clips with their own captions and with others of `sets`, in eval mode."""
    captions = [text for one in sets for text, rows in one.clips.items() for _ in rows]
    module.eval()
    with torch.no_grad():
        seen = [
            module.seen(one.pictures[rows].float()) for one in sets for rows in one.clips.values()
        ]
        texts = lambda words: module.read(words).numpy()  # noqa: E731
        return compare(CLIP, torch.cat(seen).double().numpy(), captions, texts, rng)


def _check(options: AlignClipOptions) -> None:
    if not dataset_roots(options.dataset):
        raise ValueError("align-clip needs --dataset DIR[,DIR], data sets of `embodied record`")
    if options.n_fields < 1 or options.batch_size < 2:
        raise ValueError(
            "--n_fields is at least 1 and --batch_size at least 2, got "
            f"{options.n_fields} and {options.batch_size}"
        )
    if options.accumulation != 1 or Processes.here().count != 1:
        raise ValueError(
            "captions are told from all others of a batch, so it cannot be shared: leave out "
            "--accumulation and start one process"
        )


def _captioned(planner: Planner, names: str, options: AlignClipOptions) -> list[Captioned]:
    """The clips of every data set; what cannot be used is counted, and its reason printed."""
    settings = Settings(
        phrases=language,
        split_of=split_by_layout,
        seed=options.seed,
        variants=1,
        camera=options.camera,
    )
    with Quarantine(None, first_few()) as quarantine:
        sets = [
            load_captioned(
                planner, root, options.features_dir, settings, options.n_fields, quarantine
            )
            for root in dataset_roots(names)
        ]
    if sets:
        print(f"{names}: {quarantine.counts}", file=sys.stderr)
    return sets
