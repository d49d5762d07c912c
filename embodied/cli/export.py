"""`embodied export`: a trained planner in the forms that other people's programs read.

peft     the language model's adapter alone, for `PeftModel.from_pretrained`
merged   the language model with LoRA folded in, for `AutoModelForCausalLM.from_pretrained`
hub      the whole planner with its adapter and a model card, as a model hub shows it
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from tyro.conf import Positional, arg

from embodied import checkpoint, weights
from embodied.cli.model_card import model_card
from embodied.config import ModelConfig
from embodied.model import adapter_files
from embodied.model import llm as llm_parts
from embodied.model.planner import ADAPTER, read_planner

README = "README.md"
PUSH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ExportOptions:
    """Which planner to write in which form.

    Args:
        model: DIR, the planner's folder.
        format: peft, merged or hub.
        output_dir: a new or empty folder for the result.
        push: a repository <owner>/<name> of the model hub to upload the result to.
    """

    model: Annotated[Positional[Path], arg(metavar="DIR")]
    format: Literal["peft", "merged", "hub"]
    output_dir: Path
    push: str | None = None


def export(options: ExportOptions) -> int:
    """Write the folder, and upload it where that is asked for. Returns the exit status.

    Raises:
        ValueError: the planner has nothing of that form, the folder is taken, or the hub cannot
            be reached.
        CheckpointError: the planner is damaged.
    """
    if options.output_dir.exists() and any(options.output_dir.iterdir()):
        raise ValueError(f"{options.output_dir} is not empty; name another folder")
    if options.push is not None:
        check_hub(options.push)
    write = {"peft": write_peft, "merged": write_merged, "hub": write_hub}[options.format]
    write_whole(options.output_dir, lambda folder: write(options.model, folder))
    print(f"{options.format}: {options.output_dir}", file=sys.stderr)
    if options.push is not None:
        print(upload(options.output_dir, options.push))
    return 0


def write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that takes its place once it is complete."""
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        write(scratch)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# --- the forms --------------------------------------------------------------------------------


def write_peft(model: Path, folder: Path) -> None:
    """The files of the adapter, without loading a language model.

    Raises:
        ValueError: the planner has no adapter.
    """
    tensors, config = read_planner(model)
    if config.adapter.kind in ("full", "none"):
        raise ValueError(
            f"{model} has no adapter: its language model was trained with --adapter"
            f" {config.adapter.kind}; use --format merged"
        )
    checkpoint.write_files(folder, checkpoint.checked(folder, _peft_files(tensors, config)))


def _peft_files(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Path → content of peft's files; what they hold is known from the sizes alone."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(weights.llm_config(config.llm))
        language = llm_parts.add_adapter(bare, config.adapter)
    given = _adapter_of(tensors, language)
    files = adapter_files.adapter_files(language, weights.hub_name(config.llm), torch.bfloat16)
    return {
        path: {name: given.get(name, value) for name, value in content.items()}
        for path, content in files.items()
    }


def _adapter_of(tensors: Mapping[str, Tensor], language: Any) -> dict[str, Tensor]:
    """The adapter among a planner's tensors. Raises CheckpointError where it does not fit."""
    given = {k.removeprefix(ADAPTER): v for k, v in tensors.items() if k.startswith(ADAPTER)}
    wanted = llm_parts.adapter_tensors(language)
    if {k: v.shape for k, v in given.items()} != {k: v.shape for k, v in wanted.items()}:
        raise checkpoint.CheckpointError(
            f"the adapter has {len(given)} tensors and its language model takes {len(wanted)};"
            " was it made with other sizes?"
        )
    return given


def write_merged(model: Path, folder: Path) -> None:
    """The language model as if it had always been so, and its tokenizer.

    Raises:
        ValueError: there is a prefix, which has no place in plain weights.
    """
    tensors, config = read_planner(model)
    if config.adapter.kind in ("prefix", "both"):
        raise ValueError(
            f"{model} has a prefix, which cannot be folded into the model's weights; use"
            " --format peft"
        )
    dtype = getattr(torch, config.dtype)
    bare, tokenizer = weights.load_llm(config.llm, dtype)  # not quantised, whatever training did
    language = llm_parts.add_adapter(bare, config.adapter)
    llm_parts.load_adapter_tensors(language, _adapter_of(tensors, language))
    if config.adapter.kind == "lora":
        language = language.merge_and_unload()
    language.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_hub(model: Path, folder: Path) -> None:
    """The planner as `embodied` loads it, peft's files in it, and a model card."""
    tensors, config = read_planner(model)
    notes = checkpoint.load(model)[1]
    files = _peft_files(tensors, config)
    rest = {k: v for k, v in tensors.items() if not (files and k.startswith(ADAPTER))}
    checkpoint.save(folder, rest, notes, files)
    (folder / README).write_text(model_card(config, notes, tensors), encoding="utf-8")


# --- the hub ----------------------------------------------------------------------------------


def check_hub(repo: str) -> None:
    """Raise ValueError unless the hub answers within a few seconds, before anything is written."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with _hub_errors(repo, "nothing was written; leave out --push to get the folder"):
        try:
            HfApi().model_info(repo, timeout=PUSH_TIMEOUT_S)
        except RepositoryNotFoundError:
            pass  # it will be made


def upload(folder: Path, repo: str) -> str:
    """Upload everything in `folder`, making the repository if need be. Returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(repo, f"the folder is written: `hf upload {repo} {folder}` tries again"):
        address = str(api.create_repo(repo, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder)
    return address


@contextmanager
def _hub_errors(repo: str, remedy: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise ValueError(
            f"the model hub does not let us write '{repo}' ({error}); log in by `hf auth login`;"
            f" {remedy}"
        ) from error
    except (HTTPError, OSError) as error:
        raise ValueError(
            f"the model hub cannot be reached for '{repo}' ({type(error).__name__}); {remedy}"
        ) from error
