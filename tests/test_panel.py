"""Words beside a picture: they fit, and the picture is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embodied.panel import side_panel
from embodied.video import write_mp4

LINES = ["打开抽屉 open the drawer", "1. reach(drawer handle)", "2. pull(drawer handle)"]


def test_side_panel_keeps_the_picture_and_sets_off_one_line(tmp_path: Path) -> None:
    frame = np.full((128, 64, 3), (40, 90, 120), np.uint8)
    plain, marked = (side_panel(frame, LINES, 151, highlight=h) for h in ((), (1,)))
    assert plain.shape == (128, 64 + 152, 3) and plain.dtype == np.uint8
    assert np.array_equal(plain[:, :64], frame)
    assert (plain[:, 64:] > 150).any()  # something is written
    rows = np.flatnonzero((plain != marked).any(axis=(1, 2)))
    assert 0 < len(rows) < 40 and (np.diff(rows) == 1).all()
    write_mp4(tmp_path / "panel.mp4", marked[None], 10)


@pytest.mark.parametrize("lines", [[], [""], ["x" * 400], ["a word " * 300], LINES * 30])
def test_side_panel_takes_any_text(lines: list[str]) -> None:
    assert side_panel(np.zeros((64, 64, 3), np.uint8), lines, 60).shape == (64, 124, 3)
