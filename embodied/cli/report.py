"""`embodied report RUN [RUN …]`: evaluations side by side on one page that opens from disk."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from embodied.cli import compare, eval_info
from embodied.cli.common import writable_dir
from embodied.report import Key, Pairing, Run, page
from embodied.video import replacing

_PAGE, _VIDEOS = "index.html", "videos"


@dataclass(frozen=True)
class ReportOptions:
    """Put evaluations side by side: rates with intervals, paired differences, curves, videos.

    Args:
        runs: folders of evaluations, or their eval_info.json.
        output_dir: becomes a folder with index.html and the videos, which can be moved as a whole.
        without_videos: leave the videos out.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN …]")]
    output_dir: Path
    without_videos: bool = False

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name at least one evaluation: embodied report RUN --output_dir D")


def report(options: ReportOptions) -> int:
    """Write the page. Returns 0; raises ValueError when a run or a video is not there."""
    infos = [_whole(path) for path in options.runs]
    names = _names(options.runs)
    sources = [
        {} if options.without_videos else _videos(path, info)
        for path, info in zip(options.runs, infos, strict=True)
    ]
    folder = writable_dir(options.output_dir)
    runs = [
        Run(name, info, _copy(of, folder, number))
        for number, (name, info, of) in enumerate(zip(names, infos, sources, strict=True))
    ]
    pairings = [_paired(a, b, options.runs, names) for a, b in combinations(range(len(runs)), 2)]
    path = folder / _PAGE
    with replacing(path) as partial:
        partial.write_text(page(runs, pairings), encoding="utf-8")
    print(f"written to {path}", file=sys.stderr)
    return 0


def _whole(path: Path) -> dict[str, Any]:
    """An eval_info.json with everything that the page shows. Raises ValueError when it has not."""
    info = eval_info.read_info(path)
    if missing := {"overall", "settings"} - set(info):
        raise ValueError(f"{path} lacks {sorted(missing)}: evaluate it again with this version")
    return info


def _names(paths: tuple[Path, ...]) -> list[str]:
    """The folders' names; whole paths where those are not all different.

    Raises:
        ValueError: a run is given twice.
    """
    folders = [path if path.is_dir() else path.parent for path in paths]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"an evaluation is given twice: {', '.join(map(str, paths))}")
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _videos(run: Path, info: dict[str, Any]) -> dict[Key, Path]:
    """Where the videos are that an evaluation names.

    Raises:
        ValueError: one is not there.
    """
    home = run if run.is_dir() else run.parent
    found: dict[Key, Path] = {}
    for task in info["per_task"]:
        for record in task["per_episode"]:
            if record["video"] is None:
                continue
            told = Path(record["video"])  # as seen from where `evaluate` was started
            places = (home / _VIDEOS / told.name, told)
            here = next((place for place in places if place.is_file()), None)
            if here is None:
                raise ValueError(
                    f"{home} names a video of {record['env']}, seed {record['seed']}, and there is "
                    f"neither {places[0]} nor {told}: copy it there, or give --without_videos"
                )
            found[record["env"], record["seed"]] = here
    return found


def _copy(videos: dict[Key, Path], folder: Path, number: int) -> dict[Key, str]:
    """Copy a run's videos beside the page; their places as seen from it."""
    placed: dict[Key, str] = {}
    for key, source in videos.items():
        target = folder / _VIDEOS / f"{number}_{source.name}"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        placed[key] = f"{_VIDEOS}/{target.name}"
    return placed


def _paired(a: int, b: int, paths: tuple[Path, ...], names: list[str]) -> Pairing:
    try:
        pairs, _ = compare.pair_up(paths[a], paths[b])
    except ValueError as reason:  # said on the page, and the rest is still worth seeing
        return Pairing(names[a], names[b], None, str(reason))
    return Pairing(names[a], names[b], compare.summarise([pairs]))
