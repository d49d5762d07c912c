"""The stages of `embodied finetune` in which the language model learns to speak: words and plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from embodied.egocot.conversations import ConversationSampler, Turns
from embodied.model import llm as llm_parts
from embodied.model.alignment import text_states
from embodied.model.planner import Planner
from embodied.train import train
from sims import language

if TYPE_CHECKING:
    from embodied.cli.finetune import FinetuneOptions

_WORDS_ONLY = (16, 0, 0)
_ALL = (10, 7, 12)


class Speech(nn.Module):
    """Language mapping and adapter under training; the former is frozen."""

    def __init__(self, planner: Planner) -> None:
        super().__init__()
        self._planner = [planner]  # in a list, so that the frozen towers are not its sub-modules
        self.mapping, self.llm = planner.mapping, planner.llm
        llm_parts.use_plain_attention(planner.llm)

    def loss(self, batch: list[Turns]) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy of the answers, each kind of turn weighed the same."""
        losses = {}
        for turns in batch:
            losses[turns.kind] = self._turns_loss(turns)
        total = torch.stack(list(losses.values())).sum()
        return total, {name: float(value.detach()) for name, value in losses.items()}

    def _turns_loss(self, turns: Turns) -> Tensor:
        planner = self._planner[0]
        tokens = llm_parts.make_batch(planner.tokenizer, turns.prompts, turns.answers)
        visual = None
        if turns.vision is not None and turns.texts is not None:
            with torch.no_grad():
                text = text_states(planner.former, planner.embed_texts, turns.texts)
                queries = planner.former(turns.vision, text)
            visual = self.mapping(queries)
        with llm_parts.half_precision(self.llm):
            return llm_parts.answer_loss(self.llm, visual, tokens)


def finetune_plan(planner: Planner, options: FinetuneOptions) -> int:
    """Stages 2 and 3: what tasks are called, then plans and verdicts from what is seen."""
    from embodied.cli.finetune import _train_options, load_datasets, print_trained

    words_only = options.stage == "words"
    names = "" if words_only else f"{options.dataset},{options.look_at}"
    episodes = load_datasets(planner, names, options.features_dir)
    sampler = ConversationSampler(
        episodes,
        language,
        _WORDS_ONLY if words_only else _ALL,
        seed=options.seed,
    )
    planner.former.requires_grad_(False)
    planner.mapping.requires_grad_(not words_only)
    module = Speech(planner)
    print_trained(module)
    figures: dict[str, Any] = train(module, sampler, _train_options(options))
    notes = {"trained_on": [options.dataset, options.look_at], "figures": figures}
    planner.save(options.output_dir / "planner", **notes)
    return 0
