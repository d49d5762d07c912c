"""Cached features: their arithmetic against brute force, and their content against the planner."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embodied.model import features
from embodied.model.features import (
    N_TUBELETS,
    EpisodeSpan,
    FeatureCache,
    control_features,
    global_feature,
    n_images,
    n_tubelets,
)
from embodied.model.planner import Planner

LENGTHS = range(1, 41)


def _pictures(length: int) -> list[int]:
    """Steps with a cached picture: every second one."""
    return [step for step in range(length) if step % 2 == 0]


def _pairs(length: int) -> list[tuple[int, int]]:
    """Steps of the pictures of each tubelet; a very short episode repeats its only picture."""
    pictures = _pictures(length)
    pairs = [(a, b) for a, b in zip(pictures[::2], pictures[1::2], strict=False)]
    return pairs or [(0, 0)]


@pytest.mark.parametrize("length", LENGTHS)
def test_spans_against_brute_force(length: int) -> None:
    pictures, pairs = _pictures(length), _pairs(length)
    assert (n_images(length), n_tubelets(length)) == (len(pictures), len(pairs))
    span = EpisodeSpan(100, 500, length)
    for step in range(length):
        newest = max(i for i, p in enumerate(pictures) if p <= step)
        assert span.image(step) == 100 + newest
        ended = [i for i, (_, last) in enumerate(pairs) if last <= step] or [0]
        clip = ([ended[0]] * N_TUBELETS + ended)[-N_TUBELETS:]
        assert span.tubelets(step) == [500 + i for i in clip]


def test_spans_of_many_episodes_do_not_overlap() -> None:
    spans = features._spans(list(LENGTHS))
    images = [span.image(step) for span in spans for step in range(span.length)]
    tubelets = [row for span in spans for s in range(span.length) for row in span.tubelets(s)]
    for rows, total in ((images, n_images), (tubelets, n_tubelets)):
        assert set(rows) == set(range(sum(map(total, LENGTHS))))
    for one, following in pairwise(spans):
        assert one.image(one.length - 1) < following.first_image
        assert max(one.tubelets(one.length - 1)) < following.first_tubelet


class _Reader:
    """Two recorded episodes of noise."""

    def __init__(self) -> None:
        self.cameras = dict.fromkeys(("workspace", "wrist"), (224, 224))
        self.info: dict[str, Any] = {}
        rng = np.random.default_rng(0)
        self.videos = [rng.integers(0, 256, (n, 2, 64, 64, 3), dtype=np.uint8) for n in (9, 2)]
        self.episodes = [
            SimpleNamespace(env_id="metaworld/reach-v3", seed=i, tag="expert", length=len(video))
            for i, video in enumerate(self.videos)
        ]

    def frames(self, episode: int, camera: str, steps: np.ndarray) -> np.ndarray:
        return self.videos[episode][steps, list(self.cameras).index(camera)]


@pytest.fixture
def cache(planner: Planner, tmp_path: Path) -> FeatureCache:
    reader: Any = _Reader()
    return FeatureCache.build(planner, reader, tmp_path)


def test_cached_tokens_are_the_planners_own(planner: Planner, cache: FeatureCache) -> None:
    reader = _Reader()
    assert cache.images.shape == (5 + 1, 2, 16, 192) and cache.tubelets.shape == (2 + 1, 2, 16, 192)
    for i, video in enumerate(reader.videos):
        frames = video.swapaxes(0, 1)[None]  # (1, cameras, T, H, W, 3)
        for step in range(len(video)):
            at = step - step % 2
            expected = planner.see(frames[:, :, at : at + 1])[0, :, 0]
            got = torch.from_numpy(cache.images[cache.spans[i].image(step)].astype(np.float32))
            torch.testing.assert_close(got, expected, atol=5e-3, rtol=2e-3)
        for row, (a, b) in zip(
            range(cache.spans[i].first_tubelet, 99), _pairs(len(video)), strict=False
        ):
            expected = planner.see(frames[:, :, [a, b]])[0, :, 0]
            got = torch.from_numpy(cache.tubelets[row].astype(np.float32))
            torch.testing.assert_close(got, expected, atol=5e-3, rtol=2e-3)


def test_computed_once_and_anew_for_another_model_or_data_set(
    planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader: Any = _Reader()
    first = FeatureCache.build(planner, reader, tmp_path)
    computed: list[int] = []
    monkeypatch.setattr(features, "_fill", lambda *_: computed.append(1))
    again = FeatureCache.build(planner, reader, tmp_path)
    assert not computed and again.spans == first.spans
    assert np.array_equal(again.images, first.images)
    key = features._key(planner.config, reader)
    assert features._key(replace(planner.config, image_size=96), reader) != key
    assert features._key(replace(planner.config, vision_layers=3), reader) != key
    reader.episodes[1].seed = 7
    assert features._key(planner.config, reader) != key


def _as_before(config: Any, reader: Any) -> str:
    """How caches were named when picture sizes, cameras and weights were not told apart."""
    parts = [config.vision, config.image_size, config.vision_layers, ["workspace", "wrist"]]
    parts += [config.dtype, *[(e.env_id, e.seed, e.tag, e.length) for e in reader.episodes]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def test_keys_tell_apart_what_changes_the_tokens_and_keep_the_usual_names(
    planner: Planner, tmp_path: Path
) -> None:
    config, usual = planner.config, _as_before(planner.config, _Reader())
    readers: list[Any] = [_Reader() for _ in range(6)]
    assert features._key(config, readers[0]) == usual
    readers[1].cameras = {"workspace": (224, 224), "wrist": (96, 96)}
    flags = {"quality": "high", "px": 224}
    readers[2].info = {"embodied": {"extra": {"render_flags": flags}}}
    for i in (3, 4):
        readers[i].root = tmp_path / str(i)
        (readers[i].root / "meta").mkdir(parents=True)
        (readers[i].root / "meta/info.json").write_text(str(i))
        readers[i].episodes[0].env_id = ""  # other software does not say
    keys = {usual, *(features._key(config, reader) for reader in readers[1:5])}
    keys.add(features._key(config, readers[5], cameras=("wrist", "workspace")))
    keys.add(features._key(config, readers[5], cameras=("wrist",)))
    keys.add(features._key(config, readers[5], weights="of another training"))
    assert len(keys) == 8


def test_weights_are_told_apart_where_their_name_does_not_do_so(planner: Planner) -> None:
    assert features._fingerprint(planner) == ""  # random weights, told by their name
    named: Any = SimpleNamespace(
        config=replace(planner.config, vision="timm:some"), vision=torch.nn.Linear(3, 2)
    )
    before = features._fingerprint(named)
    assert before == features._fingerprint(named) and len(before) == 64
    with torch.no_grad():
        named.vision.weight[0, 0] += 1e-3
    assert features._fingerprint(named) != before


def test_a_part_shows_what_the_whole_does(planner: Planner, tmp_path: Path) -> None:
    """From the whole cache where there is one, else computed by itself."""
    reader: Any = _Reader()
    alone = FeatureCache.build_part(planner, reader, tmp_path / "a", ("wrist",), [1])
    whole = FeatureCache.build(planner, reader, tmp_path / "b")
    shown = FeatureCache.build_part(planner, reader, tmp_path / "b", ("wrist",), [1])
    swapped = FeatureCache.build_part(planner, reader, tmp_path / "b", ("wrist", "workspace"), [1])
    assert len(list((tmp_path / "b").iterdir())) == 1
    row, own = shown.spans[1].image(0), alone.spans[1].image(0)
    assert own == 0 and row == 5
    assert np.array_equal(shown.images[row], whole.images[row][1:])
    assert np.array_equal(swapped.images[row : row + 1], whole.images[row : row + 1, ::-1])
    np.testing.assert_allclose(alone.images[own], shown.images[row], atol=5e-3, rtol=2e-3)
    first = alone.spans[1].first_tubelet, shown.spans[1].first_tubelet
    ours, theirs = alone.tubelets[first[0]], shown.tubelets[first[1]]
    np.testing.assert_allclose(ours, theirs, atol=5e-3, rtol=2e-3)


def test_altered_copies_differ_and_are_computed_once(
    planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader: Any = _Reader()
    cameras = ("workspace", "wrist")
    build = lambda n: FeatureCache.build_part(planner, reader, tmp_path, cameras, [0, 1], n)  # noqa: E731
    plain, one, two = (build(n) for n in range(3))
    assert plain.shifts is None and one.tubelets is None
    assert one.shifts is not None and one.shifts.shape == (6, 2, 2)
    assert not np.allclose(one.images, plain.images, atol=0.05)
    assert not np.allclose(one.images, two.images, atol=0.05)
    monkeypatch.setattr(features, "_fill", lambda *_: pytest.fail("computed again"))
    assert np.array_equal(build(1).images, one.images)


def test_an_unfinished_cache_is_computed_again(
    planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader: Any = _Reader()

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features, "_tokens", dies)
        with pytest.raises(KeyboardInterrupt):
            FeatureCache.build(planner, reader, tmp_path)
    assert FeatureCache.build(planner, reader, tmp_path).images.any()


def test_global_feature_is_the_newest_pictures_mean_camera_by_camera() -> None:
    vision = torch.randn(3, 2, 4, 5, 6)
    expected = np.concatenate([vision[:, c, 3].numpy().mean(1) for c in range(2)], axis=1)
    torch.testing.assert_close(global_feature(vision), torch.from_numpy(expected))


@torch.no_grad()
def test_control_features_depend_on_picture_and_sub_goal(planner: Planner) -> None:
    vision = torch.randn(2, 2, 1, 16, 192, generator=torch.Generator().manual_seed(0))
    outs = [
        control_features(planner.former, vision, planner.text_state(text).expand(2))
        for text in ("do: reach(nut)", "do: push(door handle)")
    ]
    (one, seen), (other, seen_again) = outs
    assert one.shape == (2, 8, 32) and seen.shape == (2, planner.config.global_width)
    assert torch.equal(seen, seen_again)
    assert not torch.allclose(one, other) and not torch.allclose(one[0], one[1])
