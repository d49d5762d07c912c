"""The guard of every test figure: no layout of it was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import embodied

if TYPE_CHECKING:
    from embodied.episodes import EpisodeMeta

_SEEDS, _HASHES = "train_seeds", "train_layouts"
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
        self.hashes.update(dict.fromkeys(config.get(_HASHES) or (), path.parent))

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
