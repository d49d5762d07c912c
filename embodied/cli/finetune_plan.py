"""The stages of `embodied finetune` in which the language model learns to speak: words and plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from embodied.cli.records import chosen_records, layouts_of
from embodied.cli.shares import plan_shares, words_shares
from embodied.cli.splits import LEFT_OUT, left_out_of, without
from embodied.cli.stages import trained_on
from embodied.cli.training import run_training
from embodied.cli.unseen import looked_at_notes
from embodied.egocot.conversations import ConversationSampler, Turns
from embodied.egocot.dataset import Phrasebook, Recorded
from embodied.egocot.demos import choose_demos
from embodied.egocot.halting import with_halts
from embodied.egocot.own_words import OwnWords
from embodied.egocot.record_conversations import RecordSampler, said_of
from embodied.egocot.record_features import SeenRecord
from embodied.model import llm as llm_parts
from embodied.model.former import text_states
from embodied.model.planner import Planner
from embodied.processes import Processes
from embodied.sharing import Fractions, on_device
from sims import language

if TYPE_CHECKING:
    from embodied.cli.finetune import FinetuneOptions


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
                queries = planner.former(planner.in_sight(turns.vision), text)
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
    sampler = _sampler(planner, episodes, records, options, left_out)
    train_former = options.train_former and not words_only
    planner.former.requires_grad_(train_former)
    if train_former:
        planner.forget_places()
    if not words_only:
        planner.forget_answers()
    planner.mapping.requires_grad_(not words_only or bool(options.records))
    if not (llm_parts.trained_parameters(planner.llm) or planner.mapping.weight.requires_grad):
        raise ValueError("stage words trains the adapter, and this planner has none")
    if options.gradient_checkpointing:
        llm_parts.use_gradient_checkpointing(planner.llm)
    module = Speech(planner, train_former)
    print_trained(planner, module)
    figures: dict[str, Any] = run_training("finetune", module, sampler, options)
    if not Processes.here().is_main:
        return 0
    notes = trained_on(options, (options.model, options.adapter_from))
    notes |= {"few_shot": options.few_shot, LEFT_OUT: list(left_out), "figures": figures}
    notes |= looked_at_notes(
        [*((e.meta.env_id, e.meta.seed) for e in episodes), *layouts_of(records)],
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


def _sampler(
    planner: Planner,
    episodes: list[Recorded],
    records: list[SeenRecord],
    options: FinetuneOptions,
    left_out: tuple[str, ...],
) -> Callable[[int], list[Turns]]:
    """Turns of our scenes, and of the user's records where there are any."""
    words_only = options.stage == "words"
    kinds = said_of(records)
    shares = words_shares(kinds) if words_only else plan_shares(options.mix, bool(episodes), kinds)
    sizes = shares.scaled(options.batch_size)
    phrases: Phrasebook = language.Phrases(left_out)
    if options.few_shot:
        phrases = _own_words(episodes, options)
    episodes = with_halts(episodes, options.n_halts, options.seed)
    told: dict[str, Any] = {"seed": options.seed, "thought": planner.config.thought}
    samplers: list[Callable[[int], list[Turns]]] = [
        ConversationSampler(episodes, phrases, sizes.scenes, **told),
        RecordSampler(records, sizes.records, **told),
    ]
    return lambda step: [turns for sampler in samplers for turns in sampler(step)]


def _own_words(episodes: list[Recorded], options: FinetuneOptions) -> OwnWords:
    """The episodes' instructions; beside them, other tasks that the planner to start from knows."""
    own = {task for episode in episodes for task in episode.tasks}
    unknown = () if options.model is None else left_out_of(options.model)
    return OwnWords(episodes, language.Phrases(tuple(own.union(unknown))))
