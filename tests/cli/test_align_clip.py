"""`embodied align-clip`: from recorded episodes to a CLIP that `build-egocot` takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from embodied.cli.build_egocot import load_encoder, split_by_layout
from embodied.cli.main import main
from embodied.config import preset
from embodied.egocot.build.rollouts import Settings
from embodied.egocot.captions import Captioned, CaptionSampler, load_captioned
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.records import read_records
from embodied.episodes import DatasetReader
from embodied.model.planner import Planner
from sims import language


def align(recorded_set: Path, features_dir: Path, out: Path, *more: object) -> int:
    flags = ["--preset", "tiny", "--features_dir", features_dir, "--steps", 3, "--batch_size", 8]
    given = ["--dataset", recorded_set, "--output_dir", out, *flags, *more]
    return main(["align-clip", *map(str, given)])


def test_from_episodes_to_scores(
    recorded_set: Path, features_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert align(recorded_set, features_dir, out, "--check", recorded_set) == 0
    said = capsys.readouterr().out
    assert f"use it: embodied build-egocot --clip {out}/clip" in said
    assert "clip: " in said and "captions against" in said and "<- chosen" in said
    assert json.loads((out / "run.json").read_text())["command"] == "align-clip"
    records = tmp_path / "records"
    flags = ["--dataset", recorded_set, "--output_dir", records, "--false_positive_rate", 0.99]
    status = main(["build-egocot", *map(str, flags), "--clip", str(out / "clip")])
    printed = capsys.readouterr()
    assert f"{out}/clip: " in printed.out and "AUC" in printed.out
    if status == 0:  # three steps may well be too few to pass the least AUC
        assert all(r.score is not None for r in read_records(records))
    else:
        assert "no threshold of it means anything" in printed.err


def test_cached_pictures_are_those_that_the_encoder_sees(
    recorded_set: Path, features_dir: Path, tmp_path: Path
) -> None:
    assert align(recorded_set, features_dir, tmp_path / "run") == 0
    encoder = load_encoder(str(tmp_path / "run" / "clip"))
    torch.manual_seed(0)
    planner = Planner.build(preset("tiny"))
    settings = Settings(language, split_by_layout, variants=1)
    with Quarantine() as quarantine:
        one = load_captioned(planner, recorded_set, features_dir, settings, 2, quarantine)
    reader = DatasetReader(recorded_set)
    of_first = range((reader.episodes[0].length + 1) // 2)  # every second picture is cached
    clips = [r for rows in one.clips.values() for r in rows if set(r) <= set(of_first)]
    assert len(clips) > 5
    for rows in clips:
        frames = reader.frames(0, next(iter(reader.cameras)), np.unique(rows) * 2)
        with torch.no_grad():
            cached = encoder.model.picture(one.pictures[np.unique(rows)].float())
        np.testing.assert_allclose(cached.numpy(), encoder.images(frames), atol=0.02)


def _set(captions: list[str], first: int) -> Captioned:
    clips = {c: np.array([[first + 2 * i, first + 2 * i + 1]]) for i, c in enumerate(captions)}
    return Captioned(torch.arange(40.0)[:, None].half(), clips)


def test_batches_have_every_caption_once_with_a_clip_of_its_own() -> None:
    sets = [_set(["a", "b", "c"], 0), _set(["c", "d"], 20)]
    sampler = CaptionSampler(sets, 3, seed=0)
    assert sampler.captions == ["a", "b", "c", "d"] and sampler.n_clips == 5
    own = {"a": {0}, "b": {2}, "c": {4, 20}, "d": {22}}
    seen: dict[str, set[int]] = {c: set() for c in own}
    for step in range(50):
        batch = sampler(step)
        assert batch.clips.shape == (3, 2, 1) and len(set(batch.captions)) == 3
        for caption, clip in zip(batch.captions, batch.clips, strict=True):
            assert clip[1, 0] == clip[0, 0] + 1
            seen[caption].add(int(clip[0, 0]))
    assert seen == own
    again = CaptionSampler(sets, 3, seed=0)(7)
    assert again.captions == sampler(7).captions and torch.equal(again.clips, sampler(7).clips)
    assert len(CaptionSampler(sets, 128, seed=0)(0).captions) == 4
    with pytest.raises(ValueError, match="1 captions are too few to tell apart"):
        CaptionSampler([_set(["a"], 0)], 3, seed=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n_fields", "0"], "--n_fields is at least 1 and --batch_size at least 2, got 0 and"),
        (["--batch_size", "1"], "got 2 and 1"),
        (["--accumulation", "2"], "leave out --accumulation"),
        (["--dataset", " "], "align-clip needs --dataset DIR[,DIR]"),
        (["--dataset", "/nowhere"], "/nowhere"),
        (["--camera", "side"], "no camera 'side' in"),
    ],
)
def test_bad_input_is_one_line(
    recorded_set: Path,
    features_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert align(recorded_set, features_dir, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "clip").exists()
