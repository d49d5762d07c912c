"""meta/info.json: the features of a data set, its rate and its counts.

An `Info` is that file as JSON gives it. Everything else that we ask of a data set (its cameras,
its nouns, what is a column of data, what has statistics) is read off its features here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from embodied.episodes.files import DatasetError, read_json

VERSION, OLD = "v3.0", "v2.1"  # what is written; what is read as well
FILES_PER_FOLDER = 1000
DATA_MB, VIDEO_MB = 20, 50  # about the size of one file; small ones open quickly

IMAGES, PIXELS = "observation.images.", "observation.pixels."
NUMBERS = ("episode_index", "index", "task_index")  # known only when an episode is moved in

Info = dict[str, Any]
Feature = dict[str, Any]


def new_info(
    fps: int, features: dict[str, Feature], robot_type: str, extra: Mapping[str, Any]
) -> Info:
    """The file of a data set without episodes."""
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    return {
        "codebase_version": VERSION,
        "robot_type": robot_type,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": FILES_PER_FOLDER,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": fps,
        "splits": {},
        "data_path": f"data/{place}.parquet",
        "video_path": f"videos/{{video_key}}/{place}.mp4",
        "features": features,
        "embodied": {"next_shard": 0, "extra": dict(extra)},
    }


def new_features(
    fps: int,
    cameras: Mapping[str, tuple[int, int]],
    state_names: Sequence[str],
    action_names: Sequence[str],
) -> dict[str, Feature]:
    """What is recorded, but for the pixels: their nouns are known only when episodes come.

    Args:
        fps: control steps a second.
        cameras: name → (height, width).
        state_names, action_names: one name for each entry.

    Raises:
        DatasetError: if the rate or a camera cannot be stored.
    """
    if fps != int(fps) or fps < 1:
        raise DatasetError(f"LeRobot stores whole frames per second, got fps={fps!r}: round it")
    for name, (height, width) in cameras.items():
        if height % 2 or width % 2 or "/" in name:
            raise DatasetError(
                f"camera '{name}' of {height}x{width}: sides must be even, and its name without '/'"
            )
    features = {IMAGES + name: _film(int(fps), *size) for name, size in cameras.items()}
    features["observation.state"] = _feature("float32", state_names)
    features["action"] = _feature("float32", action_names)
    for name, dtype in (
        ("next.reward", "float32"),
        ("next.done", "bool"),
        ("next.success", "bool"),
        ("subgoal_index", "int64"),
        ("subgoal.done", "bool"),
        ("subgoal.met", "int64"),
        ("timestamp", "float32"),
        ("frame_index", "int64"),
        *((number, "int64") for number in NUMBERS),
    ):
        features[name] = _feature(dtype)
    return features


def _film(fps: int, height: int, width: int) -> Feature:
    size = {"video.height": height, "video.width": width, "video.channels": 3}
    codec = {"video.codec": "h264", "video.pix_fmt": "yuv420p", "video.is_depth_map": False}
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": {**size, **codec, "video.fps": fps, "has_audio": False},
    }


def _feature(dtype: str, names: Sequence[str] | None = None) -> Feature:
    shape = [1] if names is None else [len(names)]
    return {"dtype": dtype, "shape": shape, "names": None if names is None else list(names)}


def read_info(root: Path) -> Info:
    """The file of the data set at `root`, v3 or v2.1. DatasetError if there is none, or older."""
    path = root / "meta/info.json"
    if not path.is_file():
        raise DatasetError(
            f"no data set at '{root}' ('{path}' is missing): give the folder of a LeRobotDataset"
        )
    info = cast(Info, read_json(path))
    if not is_v21(info) and not str(info.get("codebase_version")).startswith("v3."):
        raise DatasetError(
            f"'{root}' is a LeRobotDataset {info.get('codebase_version')}, {VERSION} or {OLD} is "
            f"needed: convert it with lerobot's tools"
        )
    if is_v21(info) and info.get("chunks_size") != FILES_PER_FOLDER:
        raise DatasetError(
            f"'{root}' has {info.get('chunks_size')} episodes a folder, {FILES_PER_FOLDER} are "
            f"expected: convert it with lerobot's convert_dataset_v21_to_v30"
        )
    return info


def is_v21(info: Info) -> bool:
    """Whether each episode has files of its own, and a line in meta/episodes.jsonl."""
    return info.get("codebase_version") == OLD


def cameras_of(info: Info) -> dict[str, tuple[int, int]]:
    """Camera → (height, width). DatasetError if there are pictures that we cannot read."""
    cameras = {}
    for name, feature in info["features"].items():
        if feature["dtype"] == "image" or (
            feature["dtype"] == "video" and not name.startswith(IMAGES)
        ):
            raise DatasetError(
                f"the feature '{name}' is not a video named '{IMAGES}<camera>', the only pictures "
                f"that can be read: convert the data set with lerobot's tools"
            )
        if feature["dtype"] == "video":
            cameras[name.removeprefix(IMAGES)] = (feature["shape"][0], feature["shape"][1])
    return cameras


def names_of(info: Info, feature: str) -> list[str]:
    """One name for each entry of a feature; their numbers where they have none."""
    if feature not in info["features"]:
        raise DatasetError(f"meta/info.json lacks the feature '{feature}': {[*info['features']]}")
    names = info["features"][feature]["names"]
    if isinstance(names, dict):  # some group them: {"motors": [...]}
        names = [name for group in names.values() for name in group]
    return list(names or map(str, range(info["features"][feature]["shape"][0])))


def nouns_of(info: Info) -> list[str]:
    """The things that have pixel labels, in the order in which they are stored."""
    for name, feature in info["features"].items():
        if name.startswith(PIXELS):
            return [entry.removesuffix(".x") for entry in feature["names"][::2]]
    return []


def set_nouns(info: Info, nouns: Sequence[str]) -> None:
    """Give every camera a pixel feature for these things; none without things."""
    if nouns:
        names = [f"{noun}.{axis}" for noun in nouns for axis in "xy"]
        for camera in cameras_of(info):
            info["features"][PIXELS + camera] = _feature("float32", names)


def union(lists: Iterable[Iterable[str]]) -> list[str]:
    """Each entry once, in the order in which they first come: so nouns and tasks are numbered."""
    return list(dict.fromkeys(entry for entries in lists for entry in entries))


def stored_features(info: Info) -> dict[str, Feature]:
    """The features that are columns of data files."""
    return {name: f for name, f in info["features"].items() if f["dtype"] != "video"}


def features_with_stats(info: Info) -> list[str]:
    """All but the running numbers and the pixels."""
    return [n for n in info["features"] if n not in NUMBERS and not n.startswith(PIXELS)]
