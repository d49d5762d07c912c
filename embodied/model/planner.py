"""4. The planner: a task in words and a video → a grounded plan; a clip → a verdict.

Vision encoder and base language model are frozen; the Embodied-former, the language mapping and
the adapter are trained. Everything that the model says about a scene goes through the same path:
vision tokens → Embodied-former, with the words at hand as its text → language mapping → visual
tokens in front of the prompt. Small heads may help it: one says where things are, from the former's
tokens and the picture, one looks at a clip for itself and shares in the verdict, and one weighs
answers by what that one has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embodied import checkpoint, weights
from embodied.config import ModelConfig, from_dict, to_dict
from embodied.model import llm as llm_parts
from embodied.model import routing
from embodied.model.adapter_files import adapter_files, read_adapters
from embodied.model.answer_head import N_WEIGHED, AnswerHead, weighed
from embodied.model.decoding import GrammarDecoder
from embodied.model.former import EmbodiedFormer, TextState, text_states
from embodied.model.place_head import PlaceHead
from embodied.model.plan import (
    GRIPPER,
    MAX_STEPS,
    N_PLACES,
    join_thoughts,
    likeliest_verdict,
    parse_plan,
    plan_grammar,
    read_place,
    spoken_place,
    verdict_texts,
)
from embodied.model.routing import Route
from embodied.model.verdict_head import VerdictHead, pooled
from embodied.model.vision import VisionEncoder
from embodied.types import Observation, Plan, Subgoal, Verdict, Vocabulary
from embodied.video import to_chw

PLAN_PROMPT = "Instruction: {instruction}\n{experience}Look at the scene and plan."
TASKS = "Tasks: {tasks}\n"
EXPERIENCE = "Experience: {experience}\n"
JUDGE_PROMPT = "Sub-goal: {subgoal}\n{motion}Watch the clip. Is it done?"
MOTION = "The robot {motion}.\n"
QUESTION_PROMPT = "Question: {question}\nWatch the clip and answer."

PLAN_TEXT = "plan: {0}"
FIND_TEXT = "find: {0}; "
CONTROL_TEXT = "do: {0}"
JUDGE_TEXT = "check: {0}"
QUESTION_TEXT = "answer: {0}"
"""What the Embodied-former is told, in its four uses."""

ADAPTER = "adapter."
"""What the names of the language model's trained tensors begin with."""


class Planner(nn.Module):
    """Vision encoder, Embodied-former, language mapping and language model, put together.

    Args:
        config: sizes and names.
        vision: the frozen vision encoder.
        language: the frozen causal language model, without an adapter; it gets a fresh one.
        tokenizer: its tokenizer.
    """

    def __init__(
        self, config: ModelConfig, vision: VisionEncoder, language: Any, tokenizer: Any
    ) -> None:
        super().__init__()
        self.config = config
        self.vision = vision
        self.former = EmbodiedFormer(config.former)
        width = language.get_input_embeddings().weight.shape[1]
        self.mapping = nn.Linear(config.former.width, width)
        head = config.verdict_head
        self.verdict_head = None if head is None else VerdictHead(head)
        self.answer_head = None
        if self.verdict_head is not None and config.answers:
            self.answer_head = AnswerHead(self.verdict_head)
        self.place_head = PlaceHead(config.former) if config.placed else None
        self._match_scale_of_words(language)
        self.llm = llm_parts.add_adapter(language, config.adapter)
        self.tokenizer = tokenizer
        self.decoder = GrammarDecoder(self.llm, tokenizer)

    def _match_scale_of_words(self, language: Any) -> None:
        """Start the mapping so that visual tokens are as large as word embeddings."""
        words = language.get_input_embeddings().weight.detach()
        if words.is_meta:
            return
        nn.init.normal_(self.mapping.weight, std=float(words.float().std()) / 16)
        nn.init.zeros_(self.mapping.bias)

    # ---------------------------------------------------------------- making, saving, loading

    @classmethod
    def build(cls, config: ModelConfig, device: torch.device | None = None) -> Planner:
        """Frozen towers with their pretrained weights; fresh former, mapping and adapter.

        Args:
            device: where all of it goes; the CPU when not given.
        """
        device = device or torch.device("cpu")
        dtype = getattr(torch, config.dtype)
        vision = VisionEncoder.load(config.vision, config.image_size, config.vision_layers, dtype)
        quantization = llm_parts.quantization_config(config.quantize)
        language, tokenizer = weights.load_llm(
            config.llm, dtype, quantization=quantization, device=device
        )
        return cls(config, vision, language, tokenizer).to(device)

    @classmethod
    def load(
        cls,
        folder: Path,
        adapter_from: Path | None = None,
        quantize: llm_parts.QuantizeKind | None = None,
        device: torch.device | None = None,
        fresh_adapter: llm_parts.AdapterConfig | None = None,
    ) -> Planner:
        """A planner that `save` wrote.

        Args:
            folder: of the planner.
            adapter_from: another planner of the same language model, whose adapter is taken
                instead.
            quantize: how the frozen language model is stored; as it was when not given.
            device: where all of it goes; the CPU when not given.
            fresh_adapter: one that is trained from its beginning, instead of the planner's own.

        Raises:
            CheckpointError: a folder is damaged, or the two do not fit together.
        """
        tensors, config = read_planner(folder)
        config = replace(config, quantize=quantize or config.quantize)
        if adapter_from is not None:
            theirs, other = read_planner(adapter_from)
            if other.llm != config.llm:
                raise checkpoint.CheckpointError(
                    f"{adapter_from} adapts {other.llm}, but {folder} speaks by {config.llm}"
                )
            config = replace(config, adapter=other.adapter)
            mine = {k: v for k, v in tensors.items() if not k.startswith(ADAPTER)}
            tensors = mine | {k: v for k, v in theirs.items() if k.startswith(ADAPTER)}
        if fresh_adapter is not None:
            config = replace(config, adapter=fresh_adapter)
        planner = cls.build(config, device)
        if fresh_adapter is not None:
            fresh = {k: v for k, v in planner.trained_tensors().items() if k.startswith(ADAPTER)}
            tensors = {k: v for k, v in tensors.items() if not k.startswith(ADAPTER)} | fresh
        planner.load_trained(tensors)
        return planner.eval()

    def for_inference(self) -> Planner:
        """This planner, never to be trained again: the adapter is folded into the model."""
        llm_parts.merge_adapter(self.llm)
        return self.eval().requires_grad_(False)

    def trained_tensors(self) -> dict[str, Tensor]:
        """The weights that are trained: former, mapping, adapter and heads."""
        adapter = llm_parts.adapter_tensors(self.llm)
        parts = {name: part.state_dict() for name, part in self._own_parts()}
        tensors = {f"{part}.{k}": v for part, state in parts.items() for k, v in state.items()}
        return tensors | {ADAPTER + k: v for k, v in adapter.items()}

    def _own_parts(self) -> list[tuple[str, nn.Module]]:
        """What is trained besides the adapter."""
        parts = {
            "former": self.former,
            "mapping": self.mapping,
            "verdict_head": self.verdict_head,
            "answer_head": self.answer_head,
            "place_head": self.place_head,
        }
        return [(name, part) for name, part in parts.items() if part is not None]

    def load_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `trained_tensors` gave.

        Raises:
            CheckpointError: a tensor is missing, unknown or of another shape.
        """
        wanted = {k: v.shape for k, v in self.trained_tensors().items()}
        given = {k: v.shape for k, v in tensors.items()}
        if wanted != given:
            odd = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
            raise checkpoint.CheckpointError(
                f"{len(odd)} tensors do not fit the model, the first is {odd[0]!r}; "
                "was the checkpoint made with other sizes?"
            )
        part = lambda name: {  # noqa: E731
            k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")
        }
        for name, own in self._own_parts():
            own.load_state_dict({k: v.float() for k, v in part(name).items()})
        llm_parts.load_adapter_tensors(self.llm, part("adapter"))

    def save(self, folder: Path, **notes: Any) -> None:
        """Write config and trained weights, adapters in peft's own format beside the others.

        `notes` go into config.json.
        """
        base = weights.hub_name(self.config.llm)
        adapters = adapter_files(self.llm, base, torch.bfloat16)
        tensors = {
            k: v.to(torch.bfloat16)
            for k, v in self.trained_tensors().items()
            if not (adapters and k.startswith(ADAPTER))
        }
        checkpoint.save(folder, tensors, {"model": to_dict(self.config), **notes}, adapters)

    # ----------------------------------------------------------------------------- the path

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mapping.weight.device

    def see(self, frames: np.ndarray) -> Tensor:
        """Pictures uint8 (B, cameras, T, H, W, 3) → vision tokens (B, cameras, T', N, W).

        T' is 1 for one frame and T / 2 tubelets for a clip. They are where the encoder is.
        """
        batch, cameras, n_frames = frames.shape[:3]
        pixels = to_chw(frames).flatten(0, 2).to(self.vision.mean.device)
        pixels = shrink(pixels, self.config.image_size)
        if n_frames == 1:
            return self.vision.images(pixels).unflatten(0, (batch, cameras, 1))
        tokens = self.vision.clips(pixels.unflatten(0, (batch * cameras, n_frames)))
        return tokens.unflatten(0, (batch, cameras))

    def shown(self, clip: np.ndarray) -> np.ndarray:
        """A clip (cameras, T, H, W, 3) as the planner is to see it: its newest picture, or all."""
        if self.config.sight != "picture":
            return clip
        return clip[:, -1:].repeat(clip.shape[1], axis=1)

    def in_sight(self, vision: Tensor) -> Tensor:
        """Vision tokens (B, cameras, T', N, W), or those of black pictures when it is blind."""
        if self.config.sight != "none":
            return vision
        return self._black.to(vision).expand_as(vision)

    @cached_property
    def _black(self) -> Tensor:
        size = self.config.image_size
        return self.see(np.zeros((1, 1, 1, size, size, 3), np.uint8))  # (1, 1, 1, N, W)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts for the former → frozen word embeddings (B, L, W), and their mask (B, L).

        Both are where the language model is. The former reads the first `max_text` tokens; the
        language model reads everything.
        """
        limit = self.config.former.max_text
        return llm_parts.embed_texts(self.llm, self.tokenizer, texts, limit)

    def text_state(self, text: str) -> TextState:
        """What one text contributes to every layer of the former; computed once per sub-goal."""
        return self.former.encode_text(*self.embed_texts([text]))

    def visual_tokens(self, vision: Tensor, text: str) -> Tensor:
        """Vision tokens, on any device, and the words at hand → tokens for the language model
        (1, Q, W)."""
        return self.mapping(self.embodied_tokens(vision, text))

    def embodied_tokens(self, vision: Tensor, text: str) -> Tensor:
        """What the former's queries see, (1, Q, D)."""
        seen = self.in_sight(vision.to(self.device))
        return self.former(seen.float(), self.text_state(text))

    # -------------------------------------------------------------------- what it is asked

    @torch.no_grad()
    def route(
        self,
        instruction: str,
        catalogue: Mapping[str, Vocabulary],
        env_id: str | None = None,
    ) -> Route:
        """Which environment of `catalogue` offers what is asked; see `embodied.model.routing`."""
        return routing.route(self.decoder, instruction, catalogue, env_id)

    @torch.no_grad()
    def plan(
        self,
        observation: Observation,
        instruction: str,
        vocabulary: Vocabulary,
        experience: str = "",
        tasks: Sequence[str] = (),
    ) -> Plan:
        """Look at the scene and decode a thought and sub-goals under its grammar.

        Args:
            experience: what was learnt from a failed attempt, in words.
            tasks: in order, where the scene offers several; all that it offers when empty.
        """
        vision = self.see(stack_cameras([observation], self.config.cameras))
        return self.plan_tokens(vision, instruction, vocabulary, experience, tasks)

    @torch.no_grad()
    def plan_tokens(
        self,
        vision: Tensor,
        instruction: str,
        vocabulary: Vocabulary,
        experience: str = "",
        tasks: Sequence[str] = (),
    ) -> Plan:
        """The same from the picture's vision tokens (1, cameras, 1, N, W).

        Several tasks are planned one after the other, in their order.
        """
        if len(tasks) > 1:
            return self._plan_each(vision, instruction, vocabulary, experience, tasks)
        return self._plan_one(vision, instruction, vocabulary, experience, tasks, MAX_STEPS)

    def _plan_each(
        self,
        vision: Tensor,
        instruction: str,
        vocabulary: Vocabulary,
        experience: str,
        tasks: Sequence[str],
    ) -> Plan:
        share = MAX_STEPS // len(tasks)
        parts = []
        for task in tasks:
            most = max(share, len(vocabulary.narrowed([task]).subgoals))
            parts.append(self._plan_one(vision, instruction, vocabulary, experience, [task], most))
        thought = join_thoughts([part.thought for part in parts], self.config.thought)
        subgoals = tuple(subgoal for part in parts for subgoal in part.subgoals)
        return Plan(instruction, thought, subgoals, tuple(tasks))

    def _plan_one(
        self,
        vision: Tensor,
        instruction: str,
        vocabulary: Vocabulary,
        experience: str,
        tasks: Sequence[str],
        max_steps: int,
    ) -> Plan:
        offered = vocabulary.narrowed(tasks) if tasks else vocabulary
        queries = self.embodied_tokens(vision, plan_text(instruction, offered.nouns))
        places = self._places(queries, vision, offered.nouns)
        prompt = plan_prompt(instruction, experience, tasks if len(vocabulary.tasks) > 1 else ())
        kind = self.config.thought
        grammar = plan_grammar(offered, max_steps, kind, places)
        decoded = self.decoder.decode(self.mapping(queries), prompt, grammar)
        return parse_plan(decoded.text, instruction, offered, kind)

    def _places(
        self, queries: Tensor, vision: Tensor, nouns: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        """Noun → x and y in 0..1, where the place head was trained on all of them."""
        things = [noun for noun in nouns if noun != GRIPPER]
        if self.place_head is None or len(things) >= N_PLACES:
            return {}
        if not set(things) <= set(self.config.placed):
            return {}
        points = self._points(queries, vision)
        return {
            noun: (x, y)
            for noun, (x, y) in zip(
                (*things, GRIPPER), (*points[: len(things)], points[-1]), strict=True
            )
        }

    def _points(self, queries: Tensor, vision: Tensor) -> list[list[float]]:
        """x and y in 0..1 of each of the head's places."""
        assert self.place_head is not None
        seen = self.in_sight(vision.to(self.device))
        points: list[list[float]] = self.place_head(queries, seen)[0].clamp(0.0, 1.0).tolist()
        return points

    def forget_places(self) -> None:
        """Drop the place head, as it can read the tokens of one former only."""
        self.place_head, self.config = None, replace(self.config, placed=())

    def forget_answers(self) -> None:
        """Drop the answer head: the language model is about to learn answers that it lacks."""
        self.answer_head, self.config = None, replace(self.config, answers=())

    @torch.no_grad()
    def judge(self, clip: np.ndarray, subgoal: Subgoal, motion: str = "") -> Verdict:
        """Whether `subgoal` is done.

        Args:
            clip: uint8 (cameras, T, H, W, 3).
            motion: the robot's own, as `embodied.model.motion` says it; unknown when empty.
        """
        return self.judge_tokens(self.see(self.shown(clip)[None]), subgoal, motion)

    @torch.no_grad()
    def judge_tokens(self, vision: Tensor, subgoal: Subgoal, motion: str = "") -> Verdict:
        """The same from the clip's vision tokens (1, cameras, T', N, W)."""
        visual = self.visual_tokens(vision, JUDGE_TEXT.format(subgoal.text))
        prompt = judge_prompt(subgoal, motion)
        texts = verdict_texts()
        scores = self.decoder.score(visual, prompt, texts).softmax(0).tolist()
        chances = dict(zip(texts, scores, strict=True))
        if subgoal.text in self.config.judged:
            chances = pooled(chances, self.second_opinion(vision, [subgoal], [motion])[0].tolist())
        return likeliest_verdict(chances)

    def second_opinion(
        self, vision: Tensor, subgoals: Sequence[Subgoal], motions: Sequence[str]
    ) -> Tensor:
        """The verdict head's log-probabilities (B, statuses), in the order of `STATUSES`.

        Args:
            vision: clips' vision tokens (B, cameras, T', N, W), on any device.

        Raises:
            ValueError: the planner has no verdict head.
        """
        head = self.verdict_head
        if head is None:
            raise ValueError("this planner has no verdict head; train one in stage heads")
        texts = [JUDGE_TEXT.format(subgoal.text) for subgoal in subgoals]
        seen = self.in_sight(vision.to(head.former.queries.device)).float()
        return head(seen, text_states(head.former, self.embed_texts, texts), motions).log_softmax(1)

    def answer(self, clip: np.ndarray, question: str) -> str:
        """A free answer in a few words, from the clip uint8 (cameras, T, H, W, 3).

        One camera is enough: a clip may come from anywhere.
        """
        return self.answer_tokens(self.see(self.shown(clip)[None]), question)

    @torch.no_grad()
    def answer_tokens(self, vision: Tensor, question: str) -> str:
        """The same from the clip's vision tokens (1, cameras, T', N, W)."""
        queries = self.embodied_tokens(vision, QUESTION_TEXT.format(question))
        visual = self.mapping(queries)
        said = self.decoder.speak(visual, question_prompt(question))
        if said in self.config.answers:
            return self._weighed(vision, visual, question, said)
        if read_place(said) is not None and self._finds(question):
            return spoken_place(*self._points(queries, vision)[0])
        return said

    def _weighed(self, vision: Tensor, visual: Tensor, question: str, said: str) -> str:
        """The likeliest of what was said and what the answer head holds likely, by both."""
        answers = self.config.answers
        log_chances = self.answer_chances(vision, [question])[0].cpu()
        chosen = log_chances.topk(min(N_WEIGHED, len(answers))).indices.tolist()
        chosen = list(dict.fromkeys([answers.index(said), *chosen]))
        options = [answers[i] for i in chosen]
        scores = self.decoder.score(visual, question_prompt(question), options)
        return weighed(log_chances, scores, answers, chosen)

    def _finds(self, question: str) -> bool:
        """Whether it names something that the place head was trained to find."""
        if self.place_head is None:
            return False
        return any(noun in question.lower() for noun in self.config.placed)

    def answer_chances(self, vision: Tensor, questions: Sequence[str]) -> Tensor:
        """The answer head's log-probabilities (B, answers), in the order of `config.answers`.

        Args:
            vision: clips' vision tokens (B, cameras, T', N, W), on any device.

        Raises:
            ValueError: the planner has no answer head.
        """
        if self.answer_head is None or self.verdict_head is None:
            raise ValueError("this planner has no answer head; train one in stage heads")
        former = self.verdict_head.former
        texts = [QUESTION_TEXT.format(question) for question in questions]
        seen = self.in_sight(vision.to(former.queries.device)).float()
        looked = self.verdict_head.look(seen, text_states(former, self.embed_texts, texts))
        answers = text_states(former, self.embed_texts, [*self.config.answers])
        return self.answer_head(looked, answers).log_softmax(1)


def read_planner(folder: Path) -> tuple[dict[str, Tensor], ModelConfig]:
    """A planner's trained tensors and its config. Raises CheckpointError."""
    tensors, values = checkpoint.load(folder)
    if "model" not in values:
        raise checkpoint.CheckpointError(f"{folder} holds no planner; give another folder")
    tensors |= {ADAPTER + name: tensor for name, tensor in read_adapters(folder).items()}
    return tensors, from_dict(values["model"])


def plan_text(instruction: str, nouns: Sequence[str] = ()) -> str:
    """What the Embodied-former is told for a plan: which things to find, and what for."""
    said = PLAN_TEXT.format(instruction)
    things = [noun for noun in nouns if noun != GRIPPER]
    return FIND_TEXT.format(", ".join(things)) + said if things else said


def plan_prompt(instruction: str, experience: str = "", tasks: Sequence[str] = ()) -> str:
    """What the language model is asked for a plan, in chat form."""
    told = TASKS.format(tasks=routing.spoken(tasks)) if tasks else ""
    told += EXPERIENCE.format(experience=experience) if experience else ""
    return llm_parts.chat(PLAN_PROMPT.format(instruction=instruction, experience=told))


def judge_prompt(subgoal: Subgoal, motion: str = "") -> str:
    """What the language model is asked for a verdict, in chat form."""
    told = MOTION.format(motion=motion) if motion else ""
    return llm_parts.chat(JUDGE_PROMPT.format(subgoal=subgoal.text, motion=told))


def question_prompt(question: str) -> str:
    """What the language model is asked for an answer, in chat form."""
    return llm_parts.chat(QUESTION_PROMPT.format(question=question))


def shrink(pixels: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) → (B, 3, size, size), averaging over the pixels that fall together."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="area")


def stack_cameras(observations: Sequence[Observation], cameras: Sequence[str]) -> np.ndarray:
    """Observations in time → uint8 (1, cameras, T, H, W, 3).

    Raises:
        ValueError: an observation lacks a camera that the model needs.
    """
    names = cameras_of(cameras, tuple(observations[0].images))
    return np.stack([np.stack([o.images[c] for o in observations]) for c in names])[None]


def cameras_of(wanted: Sequence[str], there: Sequence[str]) -> tuple[str, ...]:
    """The cameras to look through, in the model's order.

    A scene whose cameras have other names shows its first ones, in the same places of the order:
    one that sees the whole, then one at the hand. What a policy looks through besides comes after.

    Raises:
        ValueError: there are others, and too few.
    """
    if set(wanted) <= set(there):
        return tuple(wanted)
    if len(wanted) <= len(there):
        return tuple(there[: len(wanted)])
    raise ValueError(f"the model needs the cameras {list(wanted)}, got {list(there)}")
