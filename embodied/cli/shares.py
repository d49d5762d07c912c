"""What a batch of `embodied finetune` is of: so many samples of each use, of scenes and records."""

from __future__ import annotations

from typing import NamedTuple

from embodied.sharing import scaled

OfScenes = tuple[int, int, int, int]
OfRecords = tuple[int, int, int]

_NONE = (0, 0, 0)
_REQUESTS = 16
_SPOKEN = (18, 7, 10, 13)
_SPOKEN_OF_RECORDS = (6, 4, 6)
_N_ANSWERS = 12
_ACTING, _LOOKING = (48, 12, 16, 0), (0, 20, 28, 40)
_SHOWN = (8, 8, 8)


class Shares(NamedTuple):
    """How many samples a batch has.

    Args:
        scenes: of recorded episodes and what people say: tasks, plans, verdicts, answers; in stage
            align control, plans, verdicts, answers.
        records: of records: plans, verdicts, answers; in stage align captions, places, answers.
    """

    scenes: OfScenes
    records: OfRecords

    def scaled(self, batch_size: int) -> Shares:
        """The same in proportion, `batch_size` in all; as they are when that is 0."""
        rows = scaled((*self.scenes, *self.records), batch_size)
        return Shares(rows[:4], rows[4:])


def align_shares(acts: bool, looks: bool, kinds: tuple[bool, bool, bool]) -> Shares:
    """What stage align has.

    Args:
        acts: whether there are episodes to imitate.
        looks: whether there are episodes at all.
        kinds: whether records have captions, places and questions.
    """
    scenes: OfScenes = _ACTING if acts else _LOOKING if looks else (0, *_NONE)
    return Shares(scenes, _there(_SHOWN, kinds))


def words_shares(kinds: tuple[bool, bool, bool]) -> Shares:
    """What stage words has: requests, and the answers of records."""
    return Shares((_REQUESTS, *_NONE), _there((0, 0, _N_ANSWERS), kinds))


def plan_shares(mix: str, looks: bool, kinds: tuple[bool, bool, bool]) -> Shares:
    """What stage plan has, or what `mix` asks for.

    Args:
        mix: as in `FinetuneOptions`.
        looks: whether there are episodes.
        kinds: whether records have plans, verdicts and answers.

    Raises:
        ValueError: `mix` is not as many numbers as there must be, or asks for nothing that is
            there.
    """
    numbers = _numbers(mix, also=7 if looks and any(kinds) else 4)
    tasks, *spoken = numbers[:4] or (_SPOKEN if looks else (_REQUESTS, *_NONE))
    of_records = numbers[4:] or _SPOKEN_OF_RECORDS
    if numbers and not looks:
        spoken, of_records = list(_NONE), numbers[1:4]
    plans, verdicts, answers = spoken
    shares = Shares((tasks, plans, verdicts, answers), _there(of_records, kinds))
    if not any((*shares.scenes, *shares.records)):
        raise ValueError(f"--mix {mix} leaves nothing to learn: no record has any of that")
    return shares


def _numbers(mix: str, also: int) -> tuple[int, ...]:
    """Raises ValueError unless they are 4, or `also` as many, from 0 on, and one is more."""
    if not mix:
        return ()
    numbers = [part.strip() for part in mix.split(",")]
    if (
        len(numbers) not in (4, also)
        or not all(n.isdecimal() for n in numbers)
        or not any(map(int, numbers))
    ):
        of_records = ", or seven like 18,7,10,13,6,4,6" if also == 7 else ""
        raise ValueError(f"mix must be four numbers like 18,7,10,13{of_records}, got {mix!r}")
    return tuple(map(int, numbers))


def _there(sizes: tuple[int, ...], kinds: tuple[bool, bool, bool]) -> OfRecords:
    """None of what there is none of."""
    first, second, third = (n if some else 0 for n, some in zip(sizes, kinds, strict=True))
    return first, second, third
