"""The guard of every test figure: no layout of it was trained on, by policy or planner."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import embodied

if TYPE_CHECKING:
    from embodied.episodes import EpisodeMeta

_SEEDS, _HASHES = "train_seeds", "train_layouts"
_LOOKED_AT, _LOOKED_AT_HASHES = "looked_at_seeds", "looked_at_layouts"
_SHIPPED = Path(embodied.__path__[0]) / "pretrained" / "small"


def seen_notes(episodes: Iterable[EpisodeMeta], start: Path | None = None) -> dict[str, Any]:
    """What a policy's config.json says of the layouts that it was trained on.

    Args:
        start: the policy that training went on from.
    """
    before: dict[str, Any] = {}
    if start is not None:
        before = json.loads((start / "config.json").read_text(encoding="utf-8"))
    seeds, hashes = set(before.get(_SEEDS) or ()), set(before.get(_HASHES) or ())
    for episode in episodes:
        seeds.add(episode.seed)
        hashes.add(episode.layout_sha)
    return {_SEEDS: sorted(seeds), _HASHES: sorted(hashes - {""})}


def looked_at_notes(
    looked_at: Iterable[tuple[str, int]],
    starts: Iterable[Path | None] = (),
    hashes: Iterable[str] = (),
) -> dict[str, Any]:
    """What a planner's config.json says of the layouts that it learned to plan and judge from.

    Seeds stand there by simulator and as ranges, {"kitchen": "0:19,500:535"}: thousands of them
    take a line.

    Args:
        looked_at: environment id and layout seed; those without an id are nobody's test layouts.
        starts: what training went on from, whose own layouts count as well.
        hashes: of layouts, where they are few: those are known under another seed too.

    Returns:
        Nothing at all when nothing was looked at.
    """
    seeds: dict[str, set[int]] = {}
    layouts = set(hashes)
    for env_id, seed in looked_at:
        if env_id:
            seeds.setdefault(env_id.partition("/")[0], set()).add(seed)
    for folder in filter(None, starts):
        before = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layouts.update(before.get(_LOOKED_AT_HASHES) or ())
        for scene, text in (before.get(_LOOKED_AT) or {}).items():
            seeds.setdefault(scene, set()).update(_seeds_in(text))
    notes = {
        _LOOKED_AT: {scene: _as_ranges(seeds[scene]) for scene in sorted(seeds)},
        _LOOKED_AT_HASHES: sorted(layouts - {""}),
    }
    return {name: value for name, value in notes.items() if value}


def _as_ranges(seeds: Iterable[int]) -> str:
    """Seeds → `FIRST:LAST`, both ends included, and single ones, comma-separated."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], seed]
        else:
            ranges.append([seed])
    return ",".join(":".join(map(str, ends)) for ends in ranges)


def _seeds_in(text: str) -> Iterator[int]:
    """What `_as_ranges` was given."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition(":")
        yield from range(int(first), int(last or first) + 1)


@dataclass(frozen=True)
class TrainLayouts:
    """The layouts that the weights of one agent were trained on, as their configs tell.

    Args:
        seeds: simulator, as environment ids begin → seed → the folder that says so.
        hashes: hash of a layout → the folder that says so.
    """

    seeds: dict[str, dict[int, Path]] = field(default_factory=dict)
    hashes: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Path | None, policy: Path | None) -> TrainLayouts:
        """Of a planner and of a policy, or a folder of policies; the shipped ones when None."""
        seen = cls()
        for folder in (model or _SHIPPED / "planner", policy or _SHIPPED / "policies"):
            own = folder / "config.json"
            for path in [own] if own.is_file() else sorted(folder.glob("*/config.json")):
                seen._add(path)
        return seen

    def _add(self, path: Path) -> None:
        try:
            config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return  # damaged: whoever loads the weights says so
        for scene in config.get("scenes", ("metaworld",)):
            known = self.seeds.setdefault(scene, {})
            known.update(dict.fromkeys(config.get(_SEEDS) or (), path.parent))
        for scene, text in (config.get(_LOOKED_AT) or {}).items():
            known = self.seeds.setdefault(scene, {})
            known.update(dict.fromkeys(_seeds_in(text), path.parent))
        for name in (_HASHES, _LOOKED_AT_HASHES):
            self.hashes.update(dict.fromkeys(config.get(name) or (), path.parent))

    def check_seeds(self, wanted: Iterable[tuple[str, int]]) -> None:
        """Raises ValueError when one of the (environment id, seed) was trained on."""
        clashes = [
            (env_id, seed, self.seeds[scene][seed])
            for env_id, seed in wanted
            if seed in self.seeds.get(scene := env_id.partition("/")[0], ())
        ]
        if clashes:
            env_id, _, folder = clashes[0]
            seeds = list(dict.fromkeys(seed for _, seed, _ in clashes))
            shown = ", ".join(map(str, seeds[:5])) + (", …" if len(seeds) > 5 else "")
            raise ValueError(
                f"{len(clashes)} of the test layouts were trained on, so their figure would say "
                f"nothing: {env_id.partition('/')[0]}, seed(s) {shown}, by {folder}; choose other "
                "--seeds, or leave them out for the test family"
            )

    def check_layout(self, env_id: str, seed: int, layout_sha: str) -> None:
        """Raises ValueError when the layout itself was trained on, under whatever seed."""
        if layout_sha and layout_sha in self.hashes:
            raise ValueError(
                f"{env_id}, seed {seed} is layout {layout_sha}, which {self.hashes[layout_sha]} "
                "was trained on; choose other --seeds"
            )
