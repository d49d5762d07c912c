"""4. Decoding under a grammar: llguidance masks what may come next, the model chooses.

Tokens that the grammar leaves no choice about are appended without asking the model one by one,
so a plan costs one forward pass per free token only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from torch import Tensor

from embodied.model.llm import splice, word_embeddings


class DecodingError(RuntimeError):
    """The model's output cannot be used: NaN or infinite logits, or a text cut short."""


@dataclass(frozen=True)
class Decoded:
    """A decoded text and the mean log-probability of its free tokens, under the grammar."""

    text: str
    mean_logprob: float


class GrammarDecoder:
    """Greedy decoding of one causal language model under Lark grammars.

    Args:
        model: the language model, adapter included.
        tokenizer: its fast tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer

    @cached_property
    def _grammar_tokenizer(self) -> LLTokenizer:
        n_vocab = self._model.get_output_embeddings().weight.shape[0]
        return from_tokenizer(self._tokenizer, n_vocab=n_vocab)

    def _start(self, visual: Tensor | None, prompt: str) -> tuple[Tensor, Any]:
        """Read the prompt. Returns the last place's logits (V,) and the cache."""
        ids = self._tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        words = word_embeddings(self._model, ids).to(self._model.dtype)
        inputs = splice(visual, words)
        out = self._model(inputs_embeds=inputs, use_cache=True, logits_to_keep=1)
        return _checked(out.logits[0, -1]), out.past_key_values

    def _feed(self, tokens: Sequence[int], cache: Any) -> tuple[Tensor, Any]:
        ids = torch.tensor([list(tokens)])
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return _checked(out.logits[0, -1]), out.past_key_values

    @torch.no_grad()
    def decode(
        self, visual: Tensor | None, prompt: str, grammar: str, max_tokens: int = 256
    ) -> Decoded:
        """The model's greedy answer within `grammar`.

        Args:
            visual: (1, Q, W) tokens before the words, or None.
            prompt: the whole prompt in chat form.
            grammar: in llguidance's Lark form.

        Raises:
            DecodingError: NaN or infinite logits, no end within `max_tokens`, or a grammar that
                turned out too hard to follow.
        """
        matcher = LLMatcher(self._grammar_tokenizer, LLMatcher.grammar_from_lark(grammar))
        if matcher.is_error():
            raise ValueError(f"grammar does not compile: {matcher.get_error()}")
        mask = allocate_token_bitmask(1, self._grammar_tokenizer.vocab_size)
        tokens: list[int] = []
        logprobs: list[float] = []
        logits, cache = self._start(visual, prompt)
        while len(tokens) < max_tokens:
            forced = matcher.compute_ff_tokens()
            if not forced:
                fill_next_token_bitmask(matcher, mask)
                forced = [self._choose(logits, mask, logprobs)]
            matcher.consume_tokens(forced)
            tokens += forced
            if matcher.is_error():
                raise DecodingError(f"the grammar cannot be followed: {matcher.get_error()}")
            if matcher.is_stopped():
                return Decoded(self._text(tokens), sum(logprobs) / max(1, len(logprobs)))
            logits, cache = self._feed(forced, cache)
        raise DecodingError(f"no end within {max_tokens} tokens: {self._text(tokens)!r}")

    def _text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    @staticmethod
    def _choose(logits: Tensor, mask: Any, logprobs: list[float]) -> int:
        allowed = torch.from_numpy(_unpack(mask))[: logits.shape[0]]
        masked = logits.masked_fill(~allowed, -math.inf)
        best = int(masked.argmax())
        logprobs.append(float(masked.log_softmax(0)[best]))
        return best

    @torch.no_grad()
    def first_token_chances(
        self, visual: Tensor | None, prompt: str, options: Sequence[str]
    ) -> Tensor:
        """How likely the answer begins as each option does, among them: (len(options),).

        Raises:
            ValueError: two options begin with the same token.
        """
        logits, _ = self._start(visual, prompt)
        answers = self._tokenizer(list(options), add_special_tokens=False).input_ids
        firsts = [ids[0] for ids in answers]
        if len(set(firsts)) != len(firsts):
            raise ValueError(f"the options {list(options)} do not differ in their first token")
        return logits[firsts].softmax(0)

    @torch.no_grad()
    def score(self, visual: Tensor | None, prompt: str, options: Sequence[str]) -> Tensor:
        """Log-probability of each option as the whole answer to `prompt`: (len(options),).

        The prompt is read once; the options, closed by the end-of-turn token, share its cache.
        """
        first_logits, cache = self._start(visual, prompt)
        tails = self._tokenizer(list(options), add_special_tokens=False).input_ids
        tails = [[*tail, self._tokenizer.eos_token_id] for tail in tails]
        length = max(map(len, tails))
        ids = torch.full((len(tails), length), self._tokenizer.eos_token_id)
        real = torch.zeros(len(tails), length, dtype=torch.bool)
        for i, tail in enumerate(tails):
            ids[i, : len(tail)] = torch.tensor(tail)
            real[i, : len(tail)] = True
        cache.batch_repeat_interleave(len(tails))
        out = self._model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        after = _checked(out.logits).log_softmax(-1)  # (options, length - 1, V)
        first = first_logits.log_softmax(-1).expand(len(tails), 1, -1)
        logprobs = torch.cat([first, after], dim=1).gather(2, ids[:, :, None]).squeeze(2)
        return (logprobs * real).sum(1)


def _checked(logits: Tensor) -> Tensor:
    logits = logits.float()
    if not torch.isfinite(logits).all():
        raise DecodingError("the language model gave NaN or infinity; its weights are damaged")
    return logits


def _unpack(mask: Any) -> Any:
    """An llguidance bit mask (1, words) as booleans (V,)."""
    import numpy as np

    return np.unpackbits(mask[0].view(np.uint8), bitorder="little").astype(bool)
