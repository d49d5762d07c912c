"""The light policy: shapes, what it reads, what it learns, and that it is saved exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import policies
from embodied import checkpoint
from embodied.checkpoint import CheckpointError
from embodied.cli.assemble import load_policy, save_policy
from embodied.config import preset
from embodied.model.former import EmbodiedFormer
from embodied.types import Policy
from policies.mlp import MLPPolicy

SIZES: dict[str, Any] = dict(
    n_queries=8, width=32, global_width=384, state_size=5, action_size=3, horizon=6, hidden=64
)


def _policy(**changes: Any) -> MLPPolicy:
    torch.manual_seed(0)
    return policies.make("mlp", **SIZES | changes)


def _features(batch: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((batch, 8, 32), (batch, 384), (batch, 5))
    z_instance, z_global, state = (torch.randn(s, generator=generator) for s in shapes)
    return z_instance, z_global, state


def test_shapes_and_protocol() -> None:
    policy = _policy()
    assert isinstance(policy, Policy) and policy.horizon == 6
    actions, done = policy.act(*_features())
    assert actions.shape == (7, 6, 3) and done.shape == (7,)
    assert actions.dtype == done.dtype == torch.float32


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    policy, features = _policy(), _features()
    actions, done = policy.act(*features)
    alone, done_alone = policy.act(*(f[3:4] for f in features))
    torch.testing.assert_close(alone[0], actions[3])
    torch.testing.assert_close(done_alone[0], done[3])


def test_gradients_reach_every_weight_and_every_input() -> None:
    policy, features = _policy(), [f.requires_grad_() for f in _features()]
    actions, done = policy.act(*features)
    (actions.square().sum() + done.square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.parameters())
    for feature in features:
        assert feature.grad is not None and feature.grad.flatten(1).any(1).all()


@torch.no_grad()
def test_states_are_normalised_by_the_training_data() -> None:
    plain, normed = _policy(), _policy()
    mean, std = torch.arange(5.0), torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0])
    normed.set_state_statistics(mean, std)
    z_instance, z_global, state = _features()
    safe = std.clamp_min(1e-3)  # an entry that never moved must not blow up
    raw = normed.act(z_instance, z_global, state * safe + mean)[0]
    torch.testing.assert_close(raw, plain.act(z_instance, z_global, state)[0], atol=1e-3, rtol=1e-3)
    again = _policy()
    again.load_state_dict(normed.state_dict())
    assert torch.equal(again.state_mean, mean)


def _fit(policy: MLPPolicy, blind: bool) -> float:
    """Error on new states after learning to move towards the origin from the state alone."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    z_instance, z_global, _ = _features(64)

    def error(seed: int) -> Tensor:
        state = torch.randn(64, 5, generator=torch.Generator().manual_seed(seed))
        actions, _ = policy.act(z_instance * 0, z_global * 0, state * (not blind))
        return (actions + state[:, None, :3].clamp(-1, 1)).abs().mean()

    for seed in range(150):
        optimizer.zero_grad()
        error(seed).backward()
        optimizer.step()
    with torch.no_grad():
        return float(error(9999))


def test_reading_the_state_beats_a_constant_policy() -> None:
    constant, reads = _fit(_policy(), blind=True), _fit(_policy(), blind=False)
    assert constant > 0.5  # the mean absolute value of what it should have said
    assert reads < 0.4 * constant


def test_made_again_from_its_description() -> None:
    policy = _policy(query_width=5)
    again = policies.make(**policies.describe(policy))
    assert again.config == policy.config
    again.load_state_dict(policy.state_dict())


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown policy 'lstm'; there are: mlp, tr"):
        policies.make("lstm")


# --- saved and loaded ------------------------------------------------------------------------


def _planner(**changes: Any) -> Any:
    """What `load_policy` needs of a planner."""
    config = preset("tiny")
    config = replace(config, former=replace(config.former, **changes))
    torch.manual_seed(2)
    return SimpleNamespace(
        config=config, former=EmbodiedFormer(config.former), device=torch.device("cpu")
    )


@pytest.mark.parametrize("own_former", [True, False])
@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path, own_former: bool) -> None:
    planner, policy = _planner(), _policy()
    policy.set_state_statistics(torch.arange(5.0) / 3, torch.arange(5.0) + 0.1)
    own = EmbodiedFormer(planner.config.former) if own_former else None
    save_policy(tmp_path / "a", policy, own, agent={"execute": 4})
    loaded, former, config = load_policy(tmp_path / "a", planner)
    assert config["agent"] == {"execute": 4} and not loaded.training
    assert (former is planner.former) == (not own_former)
    assert torch.equal(loaded.state_mean, policy.state_mean)
    save_policy(tmp_path / "b", loaded, former if own_former else None)
    again, former_again, _ = load_policy(tmp_path / "b", planner)
    assert torch.equal(again.act(*_features())[0], loaded.act(*_features())[0])
    for a, b in zip(former.parameters(), former_again.parameters(), strict=True):
        assert torch.equal(a, b)
    difference = loaded.act(*_features())[0] - policy.act(*_features())[0]
    assert difference.abs().max() < 0.05  # bfloat16 on disk


def test_what_does_not_fit_the_planner(tmp_path: Path) -> None:
    save_policy(tmp_path / "p", _policy(), None)
    with pytest.raises(CheckpointError, match="former of width 32, the planner's is 64; give the"):
        load_policy(tmp_path / "p", _planner(width=64))
    save_policy(tmp_path / "q", _policy(), _planner().former)
    with pytest.raises(CheckpointError, match="does not hold this former: size mismatch") as caught:
        load_policy(tmp_path / "q", _planner(n_queries=4))
    assert "\n" not in str(caught.value)
    checkpoint.save(tmp_path / "r", {}, {"model": {}})
    with pytest.raises(CheckpointError, match="holds no policy"):
        load_policy(tmp_path / "r", _planner())
