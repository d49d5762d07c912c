"""Stage align on records: the former and the mapping learn, the language model stays as it is."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embodied import checkpoint
from embodied.cli import align_records
from embodied.cli.align_records import Both, BothBatch, speech_of_the_former
from embodied.cli.finetune import FinetuneOptions, finetune, load_datasets
from embodied.egocot.former_batches import AlignmentSampler
from embodied.egocot.record_conversations import AlignmentTurns
from embodied.egocot.record_features import SeenRecord
from embodied.egocot.records import read_records
from embodied.model.alignment import Alignment
from embodied.model.planner import Planner
from embodied.sharing import fractions, share_of
from sims import language

SAMPLE = Path(__file__).parents[2] / "data" / "egocot" / "sample"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def planner(tiny_planner: Path) -> Planner:
    return Planner.load(tiny_planner)


def _seen(planner: Planner, n: int = 64) -> list[SeenRecord]:
    """Records of the sample, with pictures of noise."""
    rng, config = np.random.default_rng(0), planner.config
    shape = (1, config.n_frames // 2, config.former.n_patches, config.former.vision_width)
    records = list(read_records(SAMPLE, clips=False))[:n]
    return [SeenRecord(r, rng.normal(size=shape).astype(np.float16)) for r in records]


def test_the_former_and_the_mapping_are_reached_and_nothing_else(planner: Planner) -> None:
    module = speech_of_the_former(planner)
    loss, figures = module.loss(AlignmentTurns(_seen(planner), (3, 3, 3))(0))
    loss.backward()
    assert set(figures) == {"caption", "place", "answer"}
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"former", "mapping"}
    assert not [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert not [n for n, p in planner.llm.named_parameters() if p.grad is not None]
    assert not [n for n, p in planner.vision.named_parameters() if p.grad is not None]


def test_the_loss_falls_on_one_batch_though_the_model_stays_as_it_is(planner: Planner) -> None:
    """As far as it can: the tiny model is random, and what it is shown moves it little."""
    module = speech_of_the_former(planner)
    batch = AlignmentTurns(_seen(planner), (2, 2, 2))(0)
    language_before = {k: v.clone() for k, v in planner.llm.state_dict().items()}
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    losses = []
    for _ in range(25):
        loss, _ = module.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.15 and losses[-1] < losses[5] - 0.01
    after = planner.llm.state_dict()
    assert all(torch.equal(after[k], v) for k, v in language_before.items())


def _align(folder: Path, **changes: Any) -> dict[str, Any]:
    """One run of the stage. Returns the saved planner's config."""
    settings: dict[str, Any] = dict(
        records=str(SAMPLE), records_split="select", steps=2, warmup=1, learning_rate=0.01
    )
    settings |= dict(threads=1, batch_size=9, log_every=1) | changes
    assert finetune(FinetuneOptions("align", folder, **settings)) == 0
    return checkpoint.load(folder / "planner")[1]


def test_a_planner_is_aligned_on_records_alone(
    tiny_planner: Path, planner: Planner, tmp_path: Path, features_dir: Path
) -> None:
    config = _align(tmp_path / "a", model=tiny_planner, features_dir=features_dir)
    assert set(config["figures"]) == {"loss", "lr", "caption", "place", "answer"}
    assert config["trained_on"] == [{"stage": "align", "records": str(SAMPLE)}]
    before = planner.trained_tensors()
    after = Planner.load(tmp_path / "a" / "planner").trained_tensors()
    changed = {k.split(".")[0] for k, v in before.items() if not torch.equal(v, after[k])}
    assert changed == {"former", "mapping"} and not (tmp_path / "a" / "policy").exists()


def test_with_episodes_the_policy_learns_along(
    tiny_planner: Path, recorded_set: Path, tmp_path: Path, features_dir: Path
) -> None:
    given = {"dataset": str(recorded_set), "model": tiny_planner, "features_dir": features_dir}
    config = _align(tmp_path / "a", **given, batch_size=0)
    spoken = {"record_caption", "record_place", "record_answer"}
    assert spoken | {"action", "done", "place"} < set(config["figures"])
    (stage,) = config["trained_on"]
    assert stage == {"stage": "align", "dataset": str(recorded_set), "records": str(SAMPLE)}
    state, _ = checkpoint.load(tmp_path / "a" / "training_state")
    parts = {tuple(k.split(".")[2:4]) for k in state if k.startswith("adam.exp_avg_sq.")}
    assert {("alignment", "former"), ("alignment", "policy"), ("mapping", "weight")} <= parts
    assert not {part for part in parts if part[0] == "llm"}
    assert (tmp_path / "a" / "policy" / "model.safetensors").is_file()


def test_shares_of_both_add_up(
    planner: Planner, recorded_set: Path, features_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, in which nothing is rounded share by share."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    episodes = load_datasets(planner, str(recorded_set), features_dir)
    alignment = Alignment(planner.former, None, planner.embed_texts, len(planner.config.cameras))
    module = Both(alignment, speech_of_the_former(planner)).eval()
    looking = AlignmentSampler([], episodes, language.Phrases(()), 8, (0, 4, 4, 4))
    sample = align_records.of_both(looking, AlignmentTurns(_seen(planner), (4, 5, 6)))
    batch = sample(0)
    assert isinstance(batch, BothBatch)
    whole, figures = module.loss(batch)
    counts, total, parts = module.counts(batch), torch.zeros(()), dict.fromkeys(figures, 0.0)
    for i in range(3):
        share = share_of(batch, i, 3)
        loss, told = module.loss(share, fractions(module.counts(share), counts))
        total = total + loss
        parts = {name: value + told[name] for name, value in parts.items()}
    torch.testing.assert_close(total, whole, atol=1e-4, rtol=1e-4)
    assert parts == pytest.approx(figures, abs=1e-4)


def test_all_left_out_is_an_error(tiny_planner: Path, tmp_path: Path, features_dir: Path) -> None:
    from sims import scenes

    every = ",".join(t for v in scenes.catalogue().values() for t in v.tasks)
    with pytest.raises(ValueError, match="--leave_out leaves no episode and no record to learn"):
        _align(tmp_path, preset="tiny", features_dir=features_dir, leave_out=every)
