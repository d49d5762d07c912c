"""Who answers a prompt: a language model here, or one behind an endpoint; once, and then kept."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol


class Generator(Protocol):
    """Answers prompts.

    Attributes:
        name: the model's, for the provenance.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, prompt: str) -> str: ...


class LocalModel:
    """A causal language model on this machine, decoded greedily.

    Args:
        name: one of the forms in the table of `embodied.weights`.
        max_tokens: of an answer.
        device: where it computes.
    """

    def __init__(self, name: str, max_tokens: int = 256, device: Any = "cpu") -> None:
        import torch

        from embodied import weights

        self.name = name
        self._max_tokens = max_tokens
        model, self._tokenizer = weights.load_llm(name, torch.bfloat16)
        self._model: Any = model.to(device)
        self._device = device

    def __call__(self, prompt: str) -> str:
        import torch

        inputs = self._tokenizer(self._in_turns(prompt), return_tensors="pt").to(self._device)
        with torch.no_grad():
            output: Any = self._model.generate(
                **inputs,
                max_new_tokens=self._max_tokens,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        new = output[0, inputs["input_ids"].shape[1] :]
        return str(self._tokenizer.decode(new, skip_special_tokens=True))

    def _in_turns(self, prompt: str) -> str:
        """In the model's own chat form; ours for a model that has none."""
        if self._tokenizer.chat_template is None:
            from embodied.model.llm import chat

            return chat(prompt)
        turns = [{"role": "user", "content": prompt}]
        return str(
            self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )


class Kept:
    """Asks `generator` once for each prompt; answers are on the disk before they are used.

    Args:
        generator: the one that is asked.
        path: a JSON line for each answer; what a killed process left of a line is dropped.
    """

    def __init__(self, generator: Generator, path: Path) -> None:
        self.name = generator.name
        self._generator, self._path = generator, path
        self._answers = _read(path)
        self.n_asked = 0

    def __len__(self) -> int:
        return len(self._answers)

    def __call__(self, prompt: str) -> str:
        key = hashlib.sha256(json.dumps([self.name, prompt]).encode()).hexdigest()
        if key not in self._answers:
            answer = self._generator(prompt)
            self.n_asked += 1
            self._append({"key": key, "model": self.name, "prompt": prompt, "answer": answer})
            self._answers[key] = answer
        return self._answers[key]

    def _append(self, row: dict[str, str]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")  # ASCII, so that half a line is never half a letter
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        os.truncate(path, len(whole) + 1 if whole else 0)
    found = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            found[str(row["key"])] = str(row["answer"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number} is no answer: delete that line") from None
    return found
