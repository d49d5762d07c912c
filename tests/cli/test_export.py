"""`embodied export`: what other people's programs read is the model that was trained."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from embodied import checkpoint, weights
from embodied.cli.assemble import SHIPPED
from embodied.cli.export import ExportOptions, export
from embodied.cli.main import main
from embodied.config import ModelConfig, preset, with_adapter, with_llm
from embodied.model.adapter_files import CONFIG, TENSORS
from embodied.model.llm import AdapterKind, trained_parameters
from embodied.model.planner import Planner

KINDS: tuple[AdapterKind, ...] = ("lora", "prefix", "both", "full", "none")
IDS = torch.arange(40, 60)[None]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny language model, as people keep theirs."""
    folder = tmp_path_factory.mktemp("base")
    model, tokenizer = weights.load_llm("random:tiny", torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _trained(config: ModelConfig, folder: Path) -> Planner:
    """A planner with random values in every trained weight of its language model, and its folder.

    They are such as bfloat16 can hold, which is what is saved.
    """
    planner = Planner.build(config).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in trained_parameters(planner.llm):
        values = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data.copy_(values.bfloat16())
    planner.save(folder, trained_on=["data/mine", ""], figures={"loss": 0.25})
    return planner


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tensor]]:
    """Adapter → the planner's folder, and its logits."""
    found = {}
    tiny = with_llm(preset("tiny"), str(base))
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind) / "planner"
        planner = _trained(with_adapter(tiny, kind), folder)
        found[kind] = folder, _logits(planner.llm)
    return found


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    return model.eval()(input_ids=IDS).logits.float()


def _plain_peft(base: Path, folder: Path) -> Any:
    """The base with the adapter or adapters of `folder`, by peft alone."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if not (folder / "lora").is_dir():
        return peft.PeftModel.from_pretrained(model, str(folder))
    lora = peft.PeftModel.from_pretrained(model, str(folder / "lora"))
    return peft.PeftModel.from_pretrained(lora.get_base_model(), str(folder / "prefix"))


# --- peft -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "prefix", "both"])
def test_a_checkpoint_is_read_by_plain_peft(
    kind: str, saved: dict[str, tuple[Path, Tensor]], base: Path
) -> None:
    folder, logits = saved[kind]
    bare = _logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    assert float((logits - bare).abs().max()) > 0.01
    torch.testing.assert_close(_logits(_plain_peft(base, folder)), logits)


@pytest.mark.parametrize("kind", ["lora", "prefix", "both"])
def test_peft_format_is_the_adapter_alone(
    kind: str, saved: dict[str, tuple[Path, Tensor]], base: Path, tmp_path: Path
) -> None:
    folder, logits = saved[kind]
    out = tmp_path / "out"
    assert main(["export", str(folder), "--format", "peft", "--output_dir", str(out)]) == 0
    places = ("lora/", "prefix/") if kind == "both" else ("",)
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    wanted = {f"{place}{name}" for place in places for name in (CONFIG, TENSORS)}
    assert files == {checkpoint.MANIFEST, *wanted}
    torch.testing.assert_close(_logits(_plain_peft(base, out)), logits)
    told = json.loads((out / f"{places[0]}{CONFIG}").read_text())
    assert told["base_model_name_or_path"] == str(base)


def test_a_planner_from_before_there_were_peft_files(
    saved: dict[str, tuple[Path, Tensor]], base: Path, tmp_path: Path
) -> None:
    """All its tensors are in model.safetensors; it is loaded and exported like the others."""
    folder, logits = saved["lora"]
    planner, old = Planner.load(folder), tmp_path / "old"
    tensors = {k: v.bfloat16() for k, v in planner.trained_tensors().items()}
    checkpoint.save(old, tensors, checkpoint.load(folder)[1])
    assert torch.equal(_logits(Planner.load(old).llm), logits)
    export(ExportOptions(old, "peft", tmp_path / "out"))
    torch.testing.assert_close(_logits(_plain_peft(base, tmp_path / "out")), logits)


def test_a_damaged_adapter_is_found(
    saved: dict[str, tuple[Path, Tensor]], base: Path, tmp_path: Path
) -> None:
    planner = Planner.load(saved["both"][0])
    planner.save(tmp_path / "p")
    path = tmp_path / "p" / "prefix" / TENSORS
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=f"prefix/{TENSORS} is damaged"):
        Planner.load(tmp_path / "p")


# --- merged -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "full", "none"])
def test_merged_is_a_plain_model(
    kind: str, saved: dict[str, tuple[Path, Tensor]], tmp_path: Path
) -> None:
    folder, logits = saved[kind]
    export(ExportOptions(folder, "merged", tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(_logits(model), logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("open the drawer").input_ids and tokenizer.chat_template
    loaded, _ = weights.load_llm(str(tmp_path / "out"), torch.float32)  # as --llm DIR does
    assert torch.equal(_logits(loaded), _logits(model))


@pytest.mark.parametrize(
    ("kind", "form", "said"),
    [
        ("prefix", "merged", "prefix, which cannot be folded into the model's weights; use"),
        ("both", "merged", "prefix, which cannot be folded into the model's weights; use"),
        ("full", "peft", "has no adapter: .* trained with --adapter full; use --format merged"),
        ("none", "peft", "has no adapter: .* trained with --adapter none; use --format merged"),
    ],
)
def test_what_has_no_such_form(
    kind: str, form: Any, said: str, saved: dict[str, tuple[Path, Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        export(ExportOptions(saved[kind][0], form, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


# --- hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_hub_layout_is_a_planner_with_a_card(
    kind: str, saved: dict[str, tuple[Path, Tensor]], base: Path, tmp_path: Path
) -> None:
    folder, logits = saved[kind]
    out = tmp_path / "out"
    export(ExportOptions(folder, "hub", out))
    assert torch.equal(_logits(Planner.load(out).llm), logits)
    if kind in ("lora", "prefix", "both"):
        torch.testing.assert_close(_logits(_plain_peft(base, out)), logits)
    card = huggingface_hub.ModelCard.load(out / "README.md")
    assert card.data.library_name == "embodied-planner" and kind in card.data.tags
    assert card.data.base_model is None  # a directory of somebody's is no name for others
    assert "data/mine" in card.text and "loss 0.25" in card.text and "{" not in card.text
    n_trained = sum(t.numel() for t in Planner.load(out).trained_tensors().values())
    counted = [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) weights", card.text)]
    assert len(counted) == 2 and sum(counted) == n_trained


_GIVEN = {"dataset": "data/a", "look_at": "data/b", "records": "my_videos"}
_OLD_NOTES = {"trained_on": ["", "data/old"], "records": "my_videos"}


def test_the_card_of_the_small_planner_names_its_base() -> None:
    from embodied.cli.model_card import model_card

    text = model_card(preset("small"), {}, {})
    data = huggingface_hub.ModelCard(text).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.license == "apache-2.0" and "not recorded" in text
    notes = {"trained_on": ["data/old", "", {"stage": "words"}, {"stage": "plan", **_GIVEN}]}
    told = "| data/old; words: requests in words; plan: data/a, data/b, my_videos (records) |"
    assert told in model_card(preset("small"), notes, {})
    assert "| data/old; my_videos |" in model_card(preset("small"), _OLD_NOTES, {})
    other = replace(preset("small"), llm="someone/something")
    assert huggingface_hub.ModelCard(model_card(other, {}, {})).data.license == "other"
    assert "language mapping: " in text
    heads = replace(preset("small"), judged=("reach(puck)",), placed=("puck",))
    assert "language mapping, small heads (verdicts, places): " in model_card(heads, {}, {})


class Hub:
    """What `huggingface_hub.HfApi` is asked for."""

    asked: list[tuple[Any, ...]]

    def model_info(self, repo: str, timeout: float) -> None:
        self.asked.append(("info", repo))

    def create_repo(self, repo: str, exist_ok: bool) -> str:
        self.asked.append(("create", repo, exist_ok))
        return f"https://hub/{repo}"

    def upload_folder(self, repo_id: str, folder_path: Path) -> None:
        files = sorted(p.name for p in folder_path.iterdir())
        self.asked.append(("upload", repo_id, files))


def test_push_uploads_the_folder(
    saved: dict[str, tuple[Path, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    Hub.asked = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    out = str(tmp_path / "out")
    argv = ["export", str(saved["lora"][0]), "--format", "hub", "--output_dir", out]
    assert main([*argv, "--push", "me/planner"]) == 0
    files = ["README.md", "SHA256SUMS", CONFIG, TENSORS, "config.json", "model.safetensors"]
    assert Hub.asked == [
        ("info", "me/planner"),
        ("create", "me/planner", True),
        ("upload", "me/planner", sorted(files)),
    ]
    assert capfd.readouterr().out == "https://hub/me/planner\n"


def test_a_hub_that_cannot_be_reached_is_one_line(
    saved: dict[str, tuple[Path, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Nobody listens on the port that discards."""
    monkeypatch.setattr(
        huggingface_hub, "HfApi", lambda: huggingface_hub.hf_api.HfApi("http://127.0.0.1:9")
    )
    argv = ["export", str(saved["lora"][0]), "--format", "hub", "--push", "me/planner"]
    assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "cannot be reached for 'me/planner'" in err
    assert "leave out --push" in err and list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(
    saved: dict[str, tuple[Path, Tensor]], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; name another folder"):
        export(ExportOptions(saved["lora"][0], "hub", tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# --- real weights -----------------------------------------------------------------------------


def test_the_shipped_planner_by_plain_peft_and_transformers(tmp_path: Path) -> None:
    shipped = SHIPPED / "planner"
    if not (shipped / checkpoint.MANIFEST).is_file():
        pytest.skip("needs the shipped weights")
    planner = Planner.load(shipped)
    logits = _logits(planner.llm)
    base, _ = weights.load_llm(planner.config.llm, torch.bfloat16)
    export(ExportOptions(shipped, "peft", tmp_path / "peft"))
    read = peft.PeftModel.from_pretrained(base, str(tmp_path / "peft"))
    assert torch.equal(_logits(read), logits)
    told = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert told["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    export(ExportOptions(shipped, "merged", tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    planner.for_inference()
    assert torch.equal(_logits(merged), _logits(planner.llm))
    assert str(Path.home()) not in (tmp_path / "merged" / "config.json").read_text()
