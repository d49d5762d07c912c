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

from embodied.model.llm import device_of, prompt_ids, splice, word_embeddings


class DecodingError(RuntimeError):
    """The model's output cannot be used: NaN or infinite logits, or a text cut short."""


@dataclass(frozen=True)
class Decoded:
    """A decoded text.

    Args:
        text: what was said.
        mean_logprob: of its free tokens, under the grammar.
    """

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
        """Read the prompt. Returns the last place's logits (V,), on the CPU, and the cache."""
        ids = torch.tensor(prompt_ids(self._tokenizer, [prompt]))
        words = word_embeddings(self._model, ids).to(self._model.dtype)
        inputs = splice(visual, words)
        out = self._model(inputs_embeds=inputs, use_cache=True, logits_to_keep=1)
        return _checked(out.logits[0, -1].cpu()), out.past_key_values

    def _feed(self, tokens: Sequence[int], cache: Any) -> tuple[Tensor, Any]:
        ids = torch.tensor([list(tokens)], device=device_of(self._model))
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return _checked(out.logits[0, -1].cpu()), out.past_key_values

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
        n_fed = 0
        while len(tokens) < max_tokens:
            new = matcher.compute_ff_tokens()  # what the grammar leaves no choice about
            if not new:
                if n_fed < len(tokens):
                    logits, cache = self._feed(tokens[n_fed:], cache)
                    n_fed = len(tokens)
                fill_next_token_bitmask(matcher, mask)
                new = [self._choose(logits, mask, logprobs)]
            matcher.consume_tokens(new)
            tokens += new
            if matcher.is_error():
                raise DecodingError(f"the grammar cannot be followed: {matcher.get_error()}")
            if matcher.is_stopped():
                mean_logprob = sum(logprobs) / max(1, len(logprobs))
                return Decoded(self._text(tokens), mean_logprob)
        raise DecodingError(f"no end within {max_tokens} tokens: {self._text(tokens)!r}")

    @torch.no_grad()
    def speak(self, visual: Tensor | None, prompt: str, max_tokens: int = 64) -> str:
        """The model's greedy answer in its own words, up to its own end token.

        Args:
            visual: (1, Q, W) tokens before the words, or None.
            prompt: the whole prompt in chat form.
            max_tokens: after so many the answer is cut.

        Raises:
            DecodingError: NaN or infinite logits.
        """
        tokens: list[int] = []
        logits, cache = self._start(visual, prompt)
        while len(tokens) < max_tokens:
            best = int(logits.argmax())
            if best == self._tokenizer.eos_token_id:
                break
            tokens.append(best)
            logits, cache = self._feed([best], cache)
        return self._text(tokens).strip()

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
    def score(
        self,
        visual: Tensor | None,
        prompt: str,
        options: Sequence[str],
        closed: Sequence[bool] | None = None,
    ) -> Tensor:
        """Log-probability of each option as the answer to `prompt`: (len(options),), on the CPU.

        The options are laid out as a tree of shared beginnings, so that one forward pass over the
        prompt and the tree's inner nodes scores them all.

        Args:
            visual: (1, Q, W) tokens before the words, or None.
            closed: whether an option is the whole answer, ended by the end-of-turn token, or only
                its beginning; all are whole when not given.
        """
        (head,) = prompt_ids(self._tokenizer, [prompt])
        tails = self._tokenizer(list(options), add_special_tokens=False).input_ids
        end = self._tokenizer.eos_token_id
        whole = closed or [True] * len(tails)
        tree = TokenTree.of([[*t, end] if w else t for t, w in zip(tails, whole, strict=True)])
        words = word_embeddings(self._model, torch.tensor([[*head, *tree.tokens[1:]]]))
        inputs = splice(visual, words.to(self._model.dtype))
        n_read = inputs.shape[1] - len(tree.tokens) + 1
        out = self._model(
            inputs_embeds=inputs,
            attention_mask=tree.mask(n_read, inputs.dtype).to(inputs.device),
            position_ids=tree.positions(n_read).to(inputs.device),
            logits_to_keep=len(tree.tokens),  # the prompt's last place is the root
        )
        return tree.path_sums(_checked(out.logits[0]).log_softmax(-1)).cpu()


@dataclass(frozen=True)
class TokenTree:
    """Token sequences as a tree of shared beginnings; node 0 is the root, before any token.

    Only nodes that something follows are kept; a sequence's last token is looked up at its parent.

    Args:
        tokens: of each node; the root's is meaningless.
        parents: of each node; the root's is itself. A parent comes before its children.
        paths: for each sequence, (node, next token) for every one of its tokens.
    """

    tokens: list[int]
    parents: list[int]
    paths: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> TokenTree:
        """The tree of `sequences`."""
        tokens, parents, known = [-1], [0], {}
        paths = []
        for sequence in sequences:
            node, path = 0, []
            for i, token in enumerate(sequence):
                path.append((node, token))
                if i + 1 == len(sequence):
                    break
                if (node, token) not in known:
                    known[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = known[node, token]
            paths.append(path)
        return cls(tokens, parents, paths)

    def _above(self) -> Tensor:
        """(nodes, nodes), true where the second is the first or one of its ancestors."""
        above = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            above[node] |= above[parent]
        return above

    def mask(self, n_read: int, dtype: torch.dtype) -> Tensor:
        """Additive attention mask (1, 1, L, L) of `n_read` places and the tree after them.

        The root is the last place read.
        """
        length = n_read + len(self.tokens) - 1
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        seen[n_read - 1 :, n_read - 1 :] = self._above()
        return torch.zeros(length, length, dtype=dtype).masked_fill(~seen, -math.inf)[None, None]

    def positions(self, n_read: int) -> Tensor:
        """Position of every place (1, L): siblings stand at the same one."""
        depth = self._above().sum(1) - 1
        return torch.cat([torch.arange(n_read - 1), n_read - 1 + depth])[None]

    def path_sums(self, logprobs: Tensor) -> Tensor:
        """Log-probabilities of what follows each node (nodes, V) → of each sequence."""
        nothing = logprobs.new_zeros(())
        return torch.stack([sum((logprobs[step] for step in path), nothing) for path in self.paths])


def _checked(logits: Tensor) -> Tensor:
    logits = logits.float()
    if not torch.isfinite(logits).all():
        raise DecodingError("the language model gave NaN or infinity; its weights are damaged")
    return logits


def _unpack(mask: Any) -> Any:
    """An llguidance bit mask (1, words) as booleans (V,)."""
    import numpy as np

    return np.unpackbits(mask[0].view(np.uint8), bitorder="little").astype(bool)
