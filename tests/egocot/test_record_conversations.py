"""What is trained on records: their own words, beside what their clips show."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from embodied.config import preset
from embodied.egocot import record_features
from embodied.egocot.clips import read_clip
from embodied.egocot.record_conversations import (
    AlignmentTurns,
    RecordSampler,
    asked_of,
    plan_answer,
    steps_of,
)
from embodied.egocot.record_features import SeenRecord, load_records, see_records
from embodied.egocot.records import Answer, Record
from embodied.model.llm import chat
from embodied.model.planner import JUDGE_PROMPT, Planner, plan_prompt, question_prompt
from embodied.types import STATUSES

SAMPLE = Path(__file__).parents[2] / "data" / "egocot" / "sample"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return load_records(SAMPLE)


@pytest.fixture(scope="module")
def planner() -> Planner:
    torch.manual_seed(0)
    return Planner.build(preset("tiny")).eval()


@pytest.fixture(scope="module")
def seen(records: list[Record]) -> list[SeenRecord]:
    """Each with its number for tokens."""
    shape = (1, 4, 2, 3)
    return [SeenRecord(r, np.full(shape, i, np.float16)) for i, r in enumerate(records)]


def test_a_plan_is_the_records_own(records: list[Record]) -> None:
    record = next(r for r in records if len(r.actions) == 2 and r.thought)
    thought, *steps = plan_answer(record).split("\n")
    assert thought.startswith("Thought: ") and record.thought[0].object in thought
    assert steps == [f"{i}. {action.text}" for i, action in enumerate(record.actions, 1)]


def test_without_thought_or_actions_the_words_are_the_plan(records: list[Record]) -> None:
    row = records[0].to_json() | {"thought": [], "actions": [], "verdict": None}
    plain = Record.from_json(row | {"plan": ["knead the dough", "wait"]})
    assert plan_answer(plain) == "1. knead the dough\n2. wait"
    assert steps_of(plain) == ["knead the dough", "wait"]


def test_a_plan_without_places_or_without_a_thought(records: list[Record]) -> None:
    record = next(r for r in records if len(r.actions) == 2 and r.thought)
    steps = plan_answer(record).partition("\n")[2]
    named = ", ".join(place.object for place in record.thought)
    assert plan_answer(record, "ungrounded") == f"Thought: {named}.\n{steps}"
    assert plan_answer(record, "none") == steps
    sampler = RecordSampler([SeenRecord(record, np.zeros((1, 4, 2, 3)))], (1, 0, 0), thought="none")
    assert sampler(0)[0].answers == [steps]


def test_rows_belong_together(seen: list[SeenRecord]) -> None:
    sampler = RecordSampler(seen, (4, 3, 5))
    for step in range(40):
        plan, verdict, answer = sampler(step)
        assert [t.kind for t in (plan, verdict, answer)] == ["plan", "verdict", "answer"]
        assert [len(t.prompts) for t in (plan, verdict, answer)] == [4, 3, 5]
        for turns in (plan, verdict, answer):
            assert turns.vision is not None and turns.vision.shape[1:] == (1, 4, 2, 3)
            for tokens, prompt, said in zip(
                turns.vision, turns.prompts, turns.answers, strict=True
            ):
                record = seen[int(tokens[0, 0, 0, 0])].record
                if turns.kind == "plan":
                    assert prompt == plan_prompt(record.instruction)
                    assert said == plan_answer(record)
                elif turns.kind == "verdict":
                    about = ", then ".join(action.text for action in record.actions)
                    assert prompt == chat(JUDGE_PROMPT.format(subgoal=about, motion=""))
                    assert record.verdict is not None
                    assert said == f"{record.verdict.status}: {record.verdict.reason}"
                else:
                    asked = {(question_prompt(a.question), a.answer) for a in asked_of(record)}
                    assert (prompt, said) in asked


def test_a_batch_is_a_function_of_seed_and_step(seen: list[SeenRecord]) -> None:
    one, other = RecordSampler(seen, (2, 2, 2)), RecordSampler(seen, (2, 2, 2))
    assert [t.prompts for t in one(7)] == [t.prompts for t in other(7)]
    assert [t.prompts for t in one(7)] != [t.prompts for t in one(8)]
    assert [t.prompts for t in RecordSampler(seen, (2, 2, 2), seed=1)(7)] != [
        t.prompts for t in one(7)
    ]


def test_every_verdict_is_as_frequent_and_captions_are_asked_for(seen: list[SeenRecord]) -> None:
    sampler = RecordSampler(seen, (0, 8, 8))
    statuses: Counter[str] = Counter()
    captions = 0
    for step in range(100):
        verdict, answer = sampler(step)
        statuses.update(said.partition(":")[0] for said in verdict.answers)
        captions += sum(said in {s.record.caption for s in seen} for said in answer.answers)
    assert set(statuses) == set(STATUSES)
    assert max(statuses.values()) < 1.3 * min(statuses.values())
    assert 0.1 < captions / 800 < 0.4


def test_a_batch_is_of_like_length_and_every_record_is_as_likely(seen: list[SeenRecord]) -> None:
    """Against batches of the same rows, put together at random."""
    sampler, rng = RecordSampler(seen, (8, 0, 0)), np.random.default_rng(0)
    lengths, counts = [], Counter[int]()
    for step in range(200):
        (plan,) = sampler(step)
        lengths.append([len(p + a) for p, a in zip(plan.prompts, plan.answers, strict=True)])
        assert plan.vision is not None
        counts.update(plan.vision[:, 0, 0, 0, 0].int().tolist())
    padded = np.array(lengths)
    mixed = rng.permutation(padded.ravel()).reshape(padded.shape)
    waste = [np.sum(x.max(1, keepdims=True) - x) for x in (padded, mixed)]
    assert waste[0] < 0.6 * waste[1]
    expected = 8 * 200 / len(seen)
    assert len(counts) == len(seen) and max(counts.values()) < 2 * expected


def test_what_aligns_belongs_together(seen: list[SeenRecord]) -> None:
    sampler = AlignmentTurns(seen, (3, 4, 5), seed=1)
    for step in range(40):
        batch = sampler(step)
        assert [t.kind for t in batch] == ["caption", "place", "answer"]
        assert [len(t.prompts) for t in batch] == [3, 4, 5]
        for turns in batch:
            assert turns.vision is not None and turns.texts is not None
            rows = zip(turns.vision, turns.prompts, turns.answers, turns.texts, strict=True)
            for tokens, prompt, said, text in rows:
                record = seen[int(tokens[0, 0, 0, 0])].record
                asked = text.removeprefix("answer: ")
                assert prompt == question_prompt(asked)
                if turns.kind == "caption":
                    assert said == record.caption
                elif turns.kind == "answer":
                    assert Answer(asked, said) in record.questions
                else:
                    (place,) = (
                        p for p in record.thought if asked == f"Where is the {p.object} at first?"
                    )
                    assert said == f"at ({int(224 * place.x)}, {int(224 * place.y)})"
    assert sampler(3)[0].prompts == AlignmentTurns(seen, (3, 4, 5), seed=1)(3)[0].prompts


def test_what_no_record_has_is_not_asked_for(seen: list[SeenRecord]) -> None:
    plain = [
        SeenRecord(dataclasses.replace(s.record, thought=(), questions=()), s.tokens) for s in seen
    ]
    assert [t.kind for t in AlignmentTurns(plain, (2, 2, 2))(0)] == ["caption"]
    assert AlignmentTurns([], (2, 2, 2))(0) == []


def test_records_without_verdicts_give_none(seen: list[SeenRecord]) -> None:
    plain = [s for s in seen if s.record.verdict is None]
    assert [t.kind for t in RecordSampler(plain, (2, 2, 2))(0)] == ["plan", "answer"]


# --- what their clips show --------------------------------------------------------------------


def test_tokens_are_those_of_the_clip(
    planner: Planner, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = records[:3]
    found = see_records(planner, SAMPLE, some, tmp_path)
    for one, record in zip(found, some, strict=True):
        frames = read_clip(SAMPLE, record.clip, record.first_frame, record.last_frame).frames
        expected = planner.see(frames[None, None])[0]
        assert one.record is record and one.tokens.shape == expected.shape
        torch.testing.assert_close(
            torch.from_numpy(np.array(one.tokens)).float(), expected, atol=5e-3, rtol=5e-3
        )
    monkeypatch.setattr(planner, "see", None)  # what was computed is not computed again
    again = see_records(planner, SAMPLE, some, tmp_path)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(found, again, strict=True))


def test_what_a_stopped_run_has_seen_is_not_seen_again(
    planner: Planner, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = records[:5]
    whole = see_records(planner, SAMPLE, some, tmp_path / "whole")
    see, looked = planner.see, []

    def stop_at(n: int) -> Callable[[np.ndarray], torch.Tensor]:
        def stopping(frames: np.ndarray) -> torch.Tensor:
            if len(looked) == n:
                raise KeyboardInterrupt
            looked.append(frames)
            return see(frames)

        return stopping

    monkeypatch.setattr(record_features, "_BLOCK", 2)
    monkeypatch.setattr(planner, "see", stop_at(3))
    with pytest.raises(KeyboardInterrupt):
        see_records(planner, SAMPLE, some, tmp_path / "parts")
    monkeypatch.setattr(planner, "see", stop_at(-1))
    found = see_records(planner, SAMPLE, some, tmp_path / "parts")
    n_clips = len({(r.clip, r.first_frame, r.last_frame) for r in some})
    assert len(looked) == 3 + n_clips - 2 > 3  # two were kept, the third was not yet
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(found, whole, strict=True))


def test_one_picture_is_the_first_for_the_plan_and_else_the_last(
    records: list[Record], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    planner = Planner.build(dataclasses.replace(preset("tiny"), sight="picture")).eval()
    record = next(r for r in records if r.verdict and r.actions)
    for _ in range(2):  # computed, then read
        (one,) = see_records(planner, SAMPLE, [record], tmp_path)
        frames = read_clip(SAMPLE, record.clip, record.first_frame, record.last_frame).frames
        for tokens, at in ((one.plan_tokens, 0), (one.tokens, -1)):
            expected = planner.see(frames[[at] * 8][None, None])[0]
            got = torch.from_numpy(np.array(tokens)).float()
            torch.testing.assert_close(got, expected, atol=5e-3, rtol=5e-3)
    plan, verdict = RecordSampler([one], (1, 1, 0))(0)
    assert plan.vision is not None and verdict.vision is not None
    assert torch.equal(plan.vision[0], torch.from_numpy(np.array(one.plan_tokens)).float())
    assert torch.equal(verdict.vision[0], torch.from_numpy(np.array(one.tokens)).float())


def test_other_vision_is_other_tokens(
    planner: Planner, records: list[Record], tmp_path: Path
) -> None:
    see_records(planner, SAMPLE, records[:1], tmp_path)
    larger = dataclasses.replace(planner.config, vision_layers=1)
    torch.manual_seed(0)
    see_records(Planner.build(larger), SAMPLE, records[:1], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_no_records_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("")
    with pytest.raises(ValueError, match="no good record in .* says why"):
        load_records(tmp_path)
