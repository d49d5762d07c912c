"""What every policy network promises: shapes, what it reads, units, gradients, and being saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import policies
from embodied import checkpoint
from embodied.types import Policy

SIZES: dict[str, Any] = dict(n_queries=3, width=16, global_width=12, state_size=5, action_size=3)
SMALL = {
    "mlp": dict(horizon=4, hidden=32, query_width=8),
    "r3m": dict(hidden=32),
    "transformer": dict(horizon=4, hidden=32, n_layers=2),
    "unet": dict(horizon=4, hidden=32, query_width=8, denoiser_width=16),
    "denoising transformer": dict(
        horizon=4, hidden=32, query_width=8, denoiser="transformer", n_layers=2, sampler="ddpm"
    ),
}
NAMES = list(SMALL)
DRAWN = ["unet", "denoising transformer"]


def _policy(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    kind = "diffusion" if name in DRAWN else name
    return policies.make(kind, **SIZES | SMALL[name] | changes)


def _features(batch: int = 7, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, 3, 16), (batch, 12), (batch, 5))
    z_instance, z_global, state = (torch.randn(s, generator=generator) for s in shapes)
    return z_instance, z_global, state


def _targets(policy: Any, batch: int = 7) -> tuple[Tensor, Tensor]:
    actions = torch.rand(batch, policy.horizon, 3, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(batch, policy.horizon, dtype=torch.bool)
    return actions * 2 - 1, valid


def _seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_protocol(name: str) -> None:
    policy = _policy(name)
    assert isinstance(policy, Policy) and policy.horizon == (1 if name == "r3m" else 4)
    actions, done = policy.act(*_features())
    assert actions.shape == (7, policy.horizon, 3) and done.shape == (7,)
    error, logits = policy.loss(*_features(), *_targets(policy))
    assert error.shape == () and logits.shape == (7,)
    again = policies.make(**policies.describe(policy))
    assert again.config == policy.config


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_generator_decides_what_is_drawn(name: str) -> None:
    policy, features = _policy(name).eval(), _features()
    one, same, other = (policy.act(*features, _seeded(s))[0] for s in (5, 5, 6))
    assert torch.equal(one, same) and torch.equal(one, other) == (name not in DRAWN)
    targets = _targets(policy)
    one, same, other = (policy.loss(*features, *targets, _seeded(s))[0] for s in (5, 5, 6))
    assert torch.equal(one, same) and torch.equal(one, other) == (name not in DRAWN)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in DRAWN])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    policy, features = _policy(name).eval(), _features()
    alone = policy.act(*(f[3:4] for f in features))
    for part, whole in zip(alone, policy.act(*features), strict=True):
        torch.testing.assert_close(part[0], whole[3])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_weight_and_what_it_reads(name: str) -> None:
    policy, features = _policy(name), [f.requires_grad_() for f in _features()]
    error, done = policy.loss(*features, *_targets(policy), _seeded())
    (error + done.square().sum()).backward()
    missed = [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missed
    read = [f.grad is not None and bool(f.grad.flatten(1).any(1).all()) for f in features]
    assert read == [name != "r3m", True, True]


@pytest.mark.parametrize("name", NAMES)
def test_steps_after_the_end_of_an_episode_teach_nothing(name: str) -> None:
    policy, features = _policy(name), _features()
    actions, valid = _targets(policy)
    valid[2:, -1] = False
    spoilt = torch.where(valid[..., None], actions, actions + 9)
    if name in DRAWN:  # each step by itself, as convolutions and attention would not have it
        policy.denoiser = NoisyAsIs()
    errors = [policy.loss(*features, a, valid, _seeded())[0] for a in (actions, spoilt)]
    assert torch.equal(*errors)
    policy_all = policy.loss(*features, spoilt, torch.ones_like(valid), _seeded())[0]
    assert policy_all > 1.5 * errors[1]


class NoisyAsIs(torch.nn.Module):
    """Takes everything for noise."""

    def forward(self, noisy: Tensor, level: Tensor, seen: Tensor) -> Tensor:
        return noisy


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_units_of_states_and_actions_are_the_policys_own(name: str) -> None:
    """The same data in other units is the same behaviour, in those units."""
    z_instance, z_global, _ = _features()
    generator = torch.Generator().manual_seed(3)
    states, actions = (torch.randn(200, n, generator=generator) for n in (5, 3))
    plain, other = _policy(name).eval(), _policy(name).eval()
    factor, offset = torch.tensor([100.0, 0.1, 5.0]), torch.tensor([-300.0, 0.0, 1.0])
    rescaled = actions * factor + offset
    plain.set_statistics(states, actions, z_global)
    other.set_statistics(states * 50 + 7, rescaled, z_global)
    here = plain.act(z_instance, z_global, states[:7], _seeded())[0]
    there = other.act(z_instance, z_global, states[:7] * 50 + 7, _seeded())[0]
    owns_units = name not in ("mlp", "r3m")  # theirs are the environment's
    expected = here * factor + offset if owns_units else here
    torch.testing.assert_close(there, expected, rtol=1e-3, atol=2e-2 if owns_units else 1e-3)
    unfitted = _policy(name).eval().act(z_instance, z_global, states[:7], _seeded())[0]
    assert not torch.allclose(unfitted, here, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_saved_and_loaded_with_its_statistics(name: str, tmp_path: Path) -> None:
    policy, features = _policy(name).eval(), _features()
    rows = torch.randn(50, 5, generator=_seeded(4)) * 3 + 1
    policy.set_statistics(rows, rows[:, :3], features[1])
    checkpoint.save(tmp_path / "p", policy.state_dict(), policies.describe(policy))
    tensors, config = checkpoint.load(tmp_path / "p")
    torch.manual_seed(99)
    again = policies.make(**config).eval()
    again.load_state_dict(tensors)
    assert torch.equal(again.act(*features, _seeded())[0], policy.act(*features, _seeded())[0])


@pytest.mark.parametrize("name", DRAWN)
@torch.no_grad()
def test_what_is_seen_is_worked_out_once_a_call(name: str) -> None:
    policy = _policy(name, n_noise_levels=20, n_inference_steps=5).eval()
    calls: list[str] = []
    for part in ("memory", "denoiser"):
        module = getattr(policy, part)
        module.register_forward_hook(lambda *_, part=part: calls.append(part))
    policy.act(*_features())
    assert calls == ["memory"] + ["denoiser"] * 5


@torch.no_grad()
def test_the_scale_of_what_never_moves_does_not_blow_up() -> None:
    policy = _policy("unet").eval()
    still = torch.full((20, 3), 0.25)
    policy.set_statistics(torch.ones(20, 5), still, torch.ones(20, 12))
    z_instance, z_global, _ = _features()
    actions, _ = policy.act(z_instance, z_global, torch.ones(7, 5), _seeded())
    torch.testing.assert_close(actions, torch.full_like(actions, 0.25), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("kind", "sizes", "said"),
    [
        ("diffusion", {"horizon": 5}, "even horizon, got 5"),
        ("diffusion", {"denoiser": "lstm"}, "unet or transformer, got 'lstm'"),
        ("r3m", {"horizon": 8}, "one action at a time, got horizon 8"),
        ("lstm", {}, "unknown policy 'lstm'; there are: mlp, transformer, diffusion, r3m"),
    ],
)
def test_what_cannot_be_built(kind: str, sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        policies.make(kind, **sizes)


# --- two equally good ways --------------------------------------------------------------------

FAST: dict[str, Any] = dict(horizon=2, hidden=16, n_draws=2, n_noise_levels=50)
WAY = torch.tensor([0.8, -0.5, 0.3])


def _two_ways(policy: Any, steps: int) -> tuple[float, float]:
    """Trained where going one way or the very opposite is equally good, told by nothing.

    Returns:
        How far its actions are from the nearer of both ways, and the share that goes the first.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 3, 16), (64, 12), (64, 5))
    features = [torch.randn(s, generator=generator) for s in shapes]
    rows = torch.stack([WAY, -WAY])
    policy.set_statistics(features[2], rows, features[1])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    valid = torch.ones(64, policy.horizon, dtype=torch.bool)
    policy.train()
    for _ in range(steps):
        side = torch.randint(2, (64, 1, 1), generator=generator) * 2 - 1
        actions = (side * WAY).expand(-1, policy.horizon, -1)
        error, _ = policy.loss(*features, actions, valid, generator)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    with torch.no_grad():
        drawn, _ = policy.eval().act(*features, _seeded())
    distances = torch.stack([(drawn - way).norm(dim=2).mean(1) for way in (WAY, -WAY)])
    return float(distances.amin(0).mean()), float((distances[0] < distances[1]).float().mean())


@pytest.mark.parametrize("name", DRAWN)
def test_diffusion_goes_one_way_or_the_other(name: str) -> None:
    distance, first = _two_ways(_policy(name, **FAST), steps=300)
    assert distance < 0.25 and 0.25 < first < 0.75


def test_the_least_squares_go_neither_way() -> None:
    distance, _ = _two_ways(_policy("r3m"), steps=250)
    assert distance > 0.7  # the mean of both is |WAY| = 0.99 from either
