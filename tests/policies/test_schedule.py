"""The noise schedule against diffusers, as tests/golden/make_ddpm.py wrote it down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from policies.schedule import NoiseSchedule, Sampler, squared_cosine_betas

N = 100
RUNS: list[tuple[Sampler, int]] = [("ddpm", 100), ("ddpm", 20), ("ddim", 10)]
AS_DIFFUSERS = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(Path(__file__).parents[1] / "golden" / "ddpm.safetensors")


def test_betas_and_mixing(golden: dict[str, Tensor]) -> None:
    torch.testing.assert_close(squared_cosine_betas(N), golden["betas"], **AS_DIFFUSERS)
    noisy = NoiseSchedule(N, "ddpm", N).add_noise(*(golden[k] for k in ("clean", "noise", "level")))
    torch.testing.assert_close(noisy, golden["noisy"], **AS_DIFFUSERS)


@pytest.mark.parametrize(("sampler", "n"), RUNS)
def test_every_step_of_taking_noise_away(
    golden: dict[str, Tensor], sampler: Sampler, n: int
) -> None:
    schedule = NoiseSchedule(N, sampler, n)
    visited = [int(key.split(".")[2]) for key in golden if key.startswith(f"{sampler}.{n}.")]
    assert schedule.levels == sorted(visited, reverse=True) and len(visited) == n
    sample, generator = golden["start"], torch.Generator().manual_seed(1)
    for level in schedule.levels:
        sample = schedule.step(golden[f"predicted.{level}"], level, sample, generator)
        expected = golden[f"{sampler}.{n}.{level}"]
        torch.testing.assert_close(sample, expected, **AS_DIFFUSERS)


def test_the_check_can_fail(golden: dict[str, Tensor]) -> None:
    """A level off by one, or the other sampler, is far more than 1e-4 away."""
    start, said = golden["start"], golden["predicted.90"]
    expected = golden["ddim.10.90"]
    for schedule, level in (
        (NoiseSchedule(N, "ddim", 10), 89),
        (NoiseSchedule(N, "ddim", 11), 90),
        (NoiseSchedule(N, "ddpm", 10), 90),
    ):
        off = schedule.step(said, level, start, torch.Generator().manual_seed(1)) - expected
        assert off.abs().max() > 1e-3


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_told_the_truth_it_finds_the_clean_chunk(sampler: Sampler) -> None:
    schedule = NoiseSchedule(N, sampler, 20)
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(4, 8, 2, generator=generator) * 2 - 1
    sample = torch.randn(4, 8, 2, generator=generator)
    for level in schedule.levels:
        kept = schedule.kept[level]
        truth = (sample - kept.sqrt() * clean) / (1 - kept).sqrt()
        sample = schedule.step(truth, level, sample, generator)
    torch.testing.assert_close(sample, clean, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("sampler", "n"), [("euler", 10), ("ddim", 0), ("ddim", 101)])
def test_what_cannot_be(sampler: Sampler, n: int) -> None:
    with pytest.raises(ValueError, match=r"'ddpm', 'ddim'\) with 1 to 100 steps, got"):
        NoiseSchedule(N, sampler, n)
