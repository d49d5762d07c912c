"""Evaluations as tests write and read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embodied.cli import eval_info

DRAWER, REACH = "metaworld/drawer-open-v3", "metaworld/reach-v3"


def told(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def record(seed: int, success: bool, **more: Any) -> dict[str, Any]:
    outcome = "success" if success else "failure"
    return {"env": DRAWER, "seed": seed, "layout_sha": f"{seed:x}", "outcome": outcome} | {
        "success": success,
        **more,
    }


def write(folder: Path, records: list[dict[str, Any]]) -> str:
    folder.mkdir()
    eval_info.write(folder, {"per_task": [{"per_episode": records}]})
    return str(folder)
