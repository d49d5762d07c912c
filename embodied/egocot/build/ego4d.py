"""Narrated videos and a language model's plans → records.

For each narration the model is asked for a plan (`prompts.py`); the clip is 8 pictures around the
narration's time. A narration or an answer that cannot be used goes to the quarantine, where the
text that came can be read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from embodied.egocot.build import questions
from embodied.egocot.build.cutting import N_FRAMES, clip_name, cut
from embodied.egocot.build.drafts import Draft
from embodied.egocot.build.generators import Generator
from embodied.egocot.build.narrations import Entry, Narration, understand
from embodied.egocot.build.prompts import Planned, Template, parse_answer
from embodied.egocot.fields import RecordError
from embodied.egocot.quarantine import Quarantine
from embodied.egocot.records import Provenance, Record, Split
from embodied.video import count_frames, read_mp4, sample_indices

LICENCE = "personal: frames and words under the user's own Ego4D licence; not to be passed on"


@dataclass(frozen=True)
class Settings:
    """How records are made.

    Args:
        videos: the folder with `<video id>.mp4`.
        templates: one of them is drawn for each narration.
        generator: answers the prompts.
        seed: of the draw.
        longest_s: seconds of video around a narration.
        licence: of videos and words.
        split: which one all of them are in.
        side: pixels of a clip's longer side at most.
    """

    videos: Path
    templates: Sequence[Template]
    generator: Generator
    seed: int = 0
    longest_s: float = 4.0
    licence: str = LICENCE
    split: Split = "train"
    side: int = 224


def build(
    entries: Sequence[Entry], source: Path, folder: Path, settings: Settings, quarantine: Quarantine
) -> Iterator[Draft]:
    """A record of each entry, its clip written to `folder`; the bad ones go to the quarantine.

    Args:
        source: the file that they are from.
    """
    for entry in entries:
        maker = _Maker(entry, folder, settings)
        try:
            record = maker.record()
        except RecordError as error:
            quarantine.reject(error, source, entry.line, maker.text())
            continue
        yield Draft(record, source, entry.line, maker.text())


class _Maker:
    """One narration on its way to a record; remembers the answer for the quarantine."""

    def __init__(self, entry: Entry, folder: Path, settings: Settings) -> None:
        self._entry, self._folder, self._settings = entry, folder, settings
        self._answer: str | None = None

    def text(self) -> str:
        told = {"video": self._entry.video, "narration": self._entry.raw}
        return json.dumps(told | ({} if self._answer is None else {"answer": self._answer}))

    def record(self) -> Record:
        """Raises RecordError; what is quickly seen to be wrong is found before anyone is asked."""
        settings, entry = self._settings, self._entry
        narration = understand(entry, settings.longest_s)
        video = self._video()
        rate, indices = _frames_of(video, narration)
        draw = zlib.crc32(f"{settings.seed} {entry.video} {entry.name}".encode())
        template = settings.templates[draw % len(settings.templates)]
        prompt = template.fill(narration.text, narration.before, narration.after)
        self._answer = settings.generator(prompt)
        planned = parse_answer(self._answer)
        record = self._record(narration, planned, template.version, indices)
        fps = rate * (N_FRAMES - 1) / max(1, int(indices[-1] - indices[0]))
        try:
            cut(self._folder, record.clip, partial(read_mp4, video, indices), fps, settings.side)
        except ValueError as error:
            raise RecordError("video", "cannot be decoded", str(error)) from None
        return record

    def _video(self) -> Path:
        name = f"{self._entry.video}.mp4"
        if "/" in name or not name.isprintable():
            raise RecordError("video", "is no file's name", repr(self._entry.video))
        return self._settings.videos / name

    def _record(
        self, narration: Narration, planned: Planned, version: str, indices: np.ndarray
    ) -> Record:
        settings, entry = self._settings, self._entry
        name = f"ego4d/{entry.video}/{entry.name}"
        provenance = Provenance(
            "Ego4D narrations",
            settings.licence,
            entry.video,
            entry.name,
            "model",
            settings.generator.name,
            version,
        )
        return Record(
            id=name,
            clip=clip_name(name, indices.tolist(), settings.side),
            first_frame=None,
            last_frame=None,
            instruction=planned.task,
            caption=narration.text,
            thought=(),
            plan=planned.plan,
            actions=planned.actions,
            questions=tuple(questions.about_plan(planned.actions)),
            verdict=None,
            provenance=provenance,
            score=None,
            split=settings.split,
        )


def _frames_of(video: Path, narration: Narration) -> tuple[float, np.ndarray]:
    """The video's frames a second, and (N_FRAMES,) numbers of those that show a narration."""
    import av

    try:
        n_frames = count_frames(video)
        with av.open(str(video)) as container:
            rate = float(container.streams.video[0].average_rate or 0)
    except FileNotFoundError:
        raise RecordError("video", "is missing", f"'{video}'") from None
    except (ValueError, OSError) as error:
        raise RecordError("video", "cannot be decoded", str(error)) from None
    if not n_frames or not rate:
        raise RecordError("video", "declares no frames", f"'{video}'")
    first, last = round(narration.first_s * rate), round(narration.last_s * rate)
    if first >= n_frames:
        got = f"{narration.first_s:g} s of {n_frames / rate:g} s"
        raise RecordError("timestamp_sec", "lies behind the video's end", got)
    last = min(last, n_frames - 1)
    return rate, first + sample_indices(last - first + 1, N_FRAMES)
