"""The similarity filter: against an independent AUC, and with encoders that see and that do not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from embodied.egocot.fields import RecordError
from embodied.egocot.filter import Calibration, calibrate, check_score, threshold_of
from embodied.types import Clip
from embodied.weights import WeightsError
from embodied.weights.clip import OpenClip, load_encoder

WORDS = ("black", "grey", "white", "red", "green", "blue")
COLOURS = np.array([(0, 0, 0), (128,) * 3, (255,) * 3, (255, 0, 0), (0, 255, 0), (0, 0, 255)])


class ByColour:
    """Sees which of six colours a picture has, blurred by `noise`, and reads their names."""

    name = "by colour"

    def __init__(self, noise: float = 0.0) -> None:
        self._noise, self._rng = noise, np.random.default_rng(0)

    def images(self, frames: np.ndarray) -> np.ndarray:
        away = np.abs(frames.mean((1, 2))[:, None] - COLOURS).sum(-1)
        seen = (away == away.min(-1, keepdims=True)).astype(float)
        return 7 * seen + self._noise * self._rng.normal(size=seen.shape)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[float(word in text) for word in WORDS] for text in texts])


def data(n: int = 60, n_wrong: int = 6) -> tuple[list[Clip], list[str]]:
    """Clips of one colour with their captions; the first ones have another's."""
    clips = [Clip(np.full((2, 8, 8, 3), COLOURS[i % 6], np.uint8)) for i in range(n)]
    captions = [f"It is {WORDS[(i + (i < n_wrong)) % 6]}, no. {i}." for i in range(n)]
    return clips, captions


def test_a_seeing_encoder_finds_the_wrong_captions() -> None:
    clips, captions = data()
    found = calibrate(ByColour(0.5), clips, captions, np.random.default_rng(0))
    assert len(found.own) == 60 and len(found.shuffled) == 60 * 20
    said: list[str] = []
    threshold = threshold_of(found, 0.2, said.append)
    assert [i for i, score in enumerate(found.own) if score < threshold] == list(range(6))
    assert "AUC 0.8" in said[0] and "20.0%" in said[0] and "<- chosen" in said[0]
    again = calibrate(ByColour(0.5), clips, captions, np.random.default_rng(0))
    np.testing.assert_array_equal(again.shuffled, found.shuffled)


def test_a_blind_encoder_is_refused() -> None:
    clips, captions = data(n_wrong=0)
    found = calibrate(ByColour(1e6), clips, captions, np.random.default_rng(0))
    said: list[str] = []
    with pytest.raises(ValueError, match=r"by colour tells captions .* AUC of 0\.\d\d, below 0.6"):
        threshold_of(found, 0.05, said.append)
    assert said  # the curve is shown all the same


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(1)
    own, shuffled = rng.integers(0, 6, 40) / 5, rng.integers(0, 5, 90) / 5  # with many ties
    above = own[:, None] > shuffled
    expected = (above + 0.5 * (own[:, None] == shuffled)).mean()
    assert Calibration("x", own, shuffled).auc == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5, 0.99])
def test_no_more_wrong_captions_pass_than_were_asked_for(rate: float) -> None:
    rng = np.random.default_rng(2)
    found = Calibration("x", rng.normal(1, 1, 50), np.round(rng.normal(0, 1, 333), 1))
    threshold = found.threshold(rate)
    passed = (found.shuffled >= threshold).mean()
    assert passed <= rate
    lower = found.shuffled[found.shuffled < threshold].max()
    assert (found.shuffled >= lower).mean() > rate  # and the next lower one lets more through


def test_too_few_captions_are_refused() -> None:
    clips, _ = data(30)
    with pytest.raises(ValueError, match=r"30 records with 1 captions that differ are too few"):
        calibrate(ByColour(), clips, ["the same"] * 30, np.random.default_rng(0))


def test_a_score_below_the_threshold_is_told() -> None:
    assert check_score(1.0000001, 0.3, 0.05) == 1.0
    with pytest.raises(RecordError, match=r"score: is below 0.3000, which 5.0% .*, got 0.2000"):
        check_score(0.2, 0.3, 0.05)


# --- open_clip -------------------------------------------------------------------------------


def test_a_clip_of_open_clip_is_an_encoder() -> None:
    import open_clip
    import torch
    from open_clip.transform import image_transform

    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(
        layers=1, width=32, head_width=16, patch_size=16, image_size=32
    )
    text = open_clip.CLIPTextCfg(context_length=16, vocab_size=49408, width=32, heads=2, layers=1)
    model = open_clip.CLIP(8, vision, text).eval()
    encoder = OpenClip(
        "tiny",
        model,
        image_transform(32, is_train=False),
        open_clip.SimpleTokenizer(context_length=16),
    )
    frames = np.random.default_rng(0).integers(0, 256, (40, 24, 48, 3), np.uint8)
    seen = encoder.images(frames)
    assert seen.shape == (40, 8) and np.isfinite(seen).all()
    np.testing.assert_allclose(encoder.images(frames[35:]), seen[35:], atol=1e-5)  # any batch
    words = ["a drawer", "机器人 " * 100, "a drawer"]
    said = encoder.texts(words)
    assert said.shape == (3, 8) and np.allclose(said[0], said[2]) and not np.allclose(*said[:2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-32", "no CLIP called 'ViT-B-32': expected open_clip:<arch>/<pretrained>"),
        ("open_clip:ViT-B-32", "expected open_clip:<arch>/<pretrained>"),
        ("open_clip:ViT-Z/openai", "open_clip has no architecture 'ViT-Z'"),
        ("open_clip:ViT-B-32/nobody", "no 'ViT-B-32/nobody'; pretrained for 'ViT-B-32': openai"),
    ],
)
def test_what_cannot_be_a_clip(name: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message.replace("(", r"\(")):
        load_encoder(name)


def test_weights_that_are_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import embodied.weights.clip as clip

    def unreachable(repository: str) -> None:
        with clip._errors_of(repository):
            raise OSError("no network")

    monkeypatch.setattr(clip, "_ask", unreachable)
    with pytest.raises(WeightsError, match=r"could not get '.*' from the model hub \(OSError\)"):
        load_encoder("open_clip:ViT-B-32/laion2b_s34b_b79k")
