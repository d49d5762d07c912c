"""The stages of `embodied finetune` in which the language model learns to speak: words and plan."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from embodied.cli.splits import LEFT_OUT, left_out_of, of_splits, records_without, without
from embodied.cli.training import run_training
from embodied.cli.unseen import looked_at_notes
from embodied.egocot.conversations import ConversationSampler, Turns
from embodied.egocot.dataset import Phrasebook, Recorded
from embodied.egocot.demos import choose_demos
from embodied.egocot.halting import with_halts
from embodied.egocot.own_words import OwnWords
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.record_conversations import RecordSampler
from embodied.egocot.record_features import SeenRecord, load_records, see_records
from embodied.model import llm as llm_parts
from embodied.model.alignment import text_states
from embodied.model.planner import Planner
from embodied.processes import Processes
from embodied.sharing import Fractions, on_device, scaled
from sims import language

if TYPE_CHECKING:
    from embodied.cli.finetune import FinetuneOptions

_WORDS_ONLY = (16, 0, 0, 0)
_ALL = (18, 7, 10, 13)
_OF_RECORDS = (6, 4, 6)
_N_ANSWERS = 12


class Speech(nn.Module):
    """Language mapping, adapter and, if it does not stay frozen, Embodied-former under training."""

    def __init__(self, planner: Planner, train_former: bool = False) -> None:
        super().__init__()
        self._planner = [planner]  # in a list, so that the frozen towers are not its sub-modules
        self._trains_former = train_former
        if train_former:
            self.former = planner.former
        self.mapping, self.llm = planner.mapping, planner.llm
        if Processes.here().device.type == "cpu":
            llm_parts.use_plain_attention(planner.llm)

    def counts(self, batch: list[Turns]) -> dict[str, float]:
        """Over how many answer tokens the loss of each kind of turn is a mean."""
        return {name: float(self._tokens(t).answer.sum()) for name, t in _named(batch).items()}

    def loss(
        self, batch: list[Turns], fractions: Fractions | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy of the answers, each kind of turn weighed the same.

        Args:
            fractions: each kind's, when the batch is a share, see `embodied.sharing`.
        """
        losses = {}
        for name, turns in _named(batch).items():
            losses[name] = self._turns_loss(turns)
            if fractions is not None:
                losses[name] = fractions[name] * losses[name]
        total = torch.stack(list(losses.values())).sum()
        return total, {name: float(value.detach()) for name, value in losses.items()}

    def _tokens(self, turns: Turns) -> llm_parts.TokenBatch:
        return llm_parts.make_batch(self._planner[0].tokenizer, turns.prompts, turns.answers)

    def _turns_loss(self, turns: Turns) -> Tensor:
        planner, device = self._planner[0], self.mapping.weight.device
        tokens = on_device(self._tokens(turns), device)
        visual = None
        if turns.vision is not None and turns.texts is not None:
            with torch.set_grad_enabled(self._trains_former and torch.is_grad_enabled()):
                planner.former.to(device)  # it may be no part of this module
                text = text_states(planner.former, planner.embed_texts, turns.texts)
                queries = planner.former(turns.vision, text)
            visual = self.mapping(queries)
        with llm_parts.half_precision(self.llm):
            return llm_parts.answer_loss(self.llm, visual, tokens)


def _named(batch: list[Turns]) -> dict[str, Turns]:
    """Turns by kind; where episodes have given one of that kind already, by whose they are."""
    found: dict[str, Turns] = {}
    for turns in batch:
        found[turns.kind if turns.kind not in found else f"record_{turns.kind}"] = turns
    return found


def finetune_plan(
    planner: Planner, options: FinetuneOptions, left_out: tuple[str, ...] = ()
) -> int:
    """Stages 2 and 3: what tasks are called, then plans and verdicts from what is seen.

    Raises:
        ValueError: nothing would be trained.
    """
    from embodied.cli.finetune import print_trained

    words_only = options.stage == "words"
    episodes = _episodes(planner, options, left_out)
    records = chosen_records(planner, options, left_out)
    sampler = _sampler(episodes, records, options, left_out)
    train_former = options.train_former and not words_only
    planner.former.requires_grad_(train_former)
    planner.mapping.requires_grad_(not words_only or bool(options.records))
    if not (llm_parts.trained_parameters(planner.llm) or planner.mapping.weight.requires_grad):
        raise ValueError("stage words trains the adapter, and this planner has none")
    if options.gradient_checkpointing:
        llm_parts.use_gradient_checkpointing(planner.llm)
    module = Speech(planner, train_former)
    print_trained(module)
    figures: dict[str, Any] = run_training("finetune", module, sampler, options)
    if not Processes.here().is_main:
        return 0
    notes: dict[str, Any] = {"trained_on": [options.dataset, options.look_at], "figures": figures}
    notes |= {"records": options.records, "few_shot": options.few_shot, LEFT_OUT: list(left_out)}
    notes |= looked_at_notes(
        [*((e.meta.env_id, e.meta.seed) for e in episodes), *_layouts_of(records)],
        (options.model, options.adapter_from),
        (e.meta.layout_sha for e in episodes if options.few_shot),
    )
    planner.save(options.output_dir / "planner", **notes)
    return 0


def _episodes(
    planner: Planner, options: FinetuneOptions, left_out: tuple[str, ...]
) -> list[Recorded]:
    """What is looked at; none in stage words."""
    from embodied.cli.finetune import load_datasets

    names = "" if options.stage == "words" else f"{options.dataset},{options.look_at}"
    episodes = without(load_datasets(planner, names, options.features_dir), left_out)
    return choose_demos(episodes, options.few_shot) if options.few_shot else episodes


def _layouts_of(records: Sequence[SeenRecord]) -> list[tuple[str, int]]:
    """Environment id and seed of the records that were made of rollouts.

    Their provenance names the episode `simulator/task/seed/…`.
    """
    sources = [seen.record.provenance for seen in records]
    parts = [source.episode.split("/") for source in sources if source.method == "simulator"]
    return [("/".join(of[:2]), int(of[2])) for of in parts if len(of) > 2 and of[2].isdecimal()]


def _sampler(
    episodes: list[Recorded],
    records: list[SeenRecord],
    options: FinetuneOptions,
    left_out: tuple[str, ...],
) -> Callable[[int], list[Turns]]:
    """Turns of our scenes, and of the user's records where there are any."""
    words_only = options.stage == "words"
    scenes_share = _mixed(options.mix, _ALL) if episodes else _WORDS_ONLY
    record_share = (0, 0, _N_ANSWERS) if words_only else _OF_RECORDS
    phrases: Phrasebook = language.Phrases(left_out)
    if options.few_shot:
        phrases = _own_words(episodes, options)
    episodes = with_halts(episodes, options.n_halts, options.seed)
    sizes = scaled(scenes_share, options.batch_size)
    samplers: list[Callable[[int], list[Turns]]] = [
        ConversationSampler(episodes, phrases, sizes, seed=options.seed)
    ]
    if records:
        of_records = scaled(record_share, options.batch_size)
        samplers.append(RecordSampler(records, of_records, seed=options.seed))
    return lambda step: [turns for sampler in samplers for turns in sampler(step)]


def _mixed(mix: str, usual: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The numbers of tasks, plans, verdicts and answers that `mix` asks for, or the usual ones.

    Raises:
        ValueError: they are not four numbers from 0 on, of which one is more.
    """
    if not mix:
        return usual
    numbers = [part.strip() for part in mix.split(",")]
    if (
        len(numbers) != len(usual)
        or not all(n.isdecimal() for n in numbers)
        or set(numbers) == {"0"}
    ):
        raise ValueError(f"mix must be four numbers like 18,7,10,13, got {mix!r}")
    tasks, plans, verdicts, answers = map(int, numbers)
    return tasks, plans, verdicts, answers


def _own_words(episodes: list[Recorded], options: FinetuneOptions) -> OwnWords:
    """The episodes' instructions; beside them, other tasks that the planner to start from knows."""
    own = {task for episode in episodes for task in episode.tasks}
    unknown = () if options.model is None else left_out_of(options.model)
    return OwnWords(episodes, language.Phrases(tuple(own.union(unknown))))


def chosen_records(
    planner: Planner, options: FinetuneOptions, left_out: tuple[str, ...]
) -> list[SeenRecord]:
    """The good records of the wanted splits, with what their clips show.

    Bad ones go to quarantine.jsonl in the output directory; how many for which reason to stderr.

    Raises:
        ValueError: a folder has none of these splits.
    """
    found: list[SeenRecord] = []
    for i, name in enumerate(filter(None, options.records.split(","))):
        folder, path = Path(name), options.output_dir / f"quarantine_{i}.jsonl"
        with Processes.here().main_first(), Quarantine(path) as quarantine:
            records = load_records(folder, quarantine)
            print(f"{folder}: {quarantine.counts}", file=sys.stderr)
            wanted = of_splits(folder, records, options.records_split)
            kept = records_without(wanted, left_out)
            found += see_records(planner, folder, kept, options.features_dir)
    return found
