"""Words beside a picture: a column with the plan and the verdicts, for the videos of a run."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from embodied.types import Clip

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# File names that Pillow looks up in the system's font folders; the first three rows draw Chinese.
_FONTS = (
    ("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf"),
    ("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf"),
    ("PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf", "msyh.ttc", "simhei.ttf"),
    ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf"),
)
_WIDE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"  # CJK may break after any character
_TOKEN = re.compile(rf"[{_WIDE}]|[^\s{_WIDE}]+|\s+")
_BACKGROUND, _TEXT, _HIGHLIGHT = (24, 26, 31), (222, 224, 228), (38, 84, 140)


def side_panel(
    frame: np.ndarray, lines: Sequence[str], width: int, *, highlight: Collection[int] = ()
) -> np.ndarray:
    """Put a column of wrapped text to the right of a picture.

    Args:
        frame: uint8 (H, W, 3).
        lines: what to write, one paragraph each: the plan, verdicts …
        width: of the column, in pixels; one more when that makes the whole even, for `write_mp4`.
        highlight: indices of lines to set off by a bar, such as the current sub-goal's.

    Returns:
        uint8 (H, W + width, 3). Text is shrunk to fit, and cut with "…" when it cannot.
    """
    Clip(frame[None])  # checks type and shape
    height, frame_width = frame.shape[:2]
    width += (frame_width + width) % 2
    panel = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(panel)
    font, step, rows = _fit(lines, width - 12, height - 8)
    for row, (line, text) in enumerate(rows):
        y = 4 + row * step
        if line in highlight:
            draw.rectangle((0, y, width, y + step - 1), fill=_HIGHLIGHT)
        draw.text((6, y), text, fill=_TEXT, font=font)
    return np.concatenate([frame, np.asarray(panel)], axis=1)


def _fit(lines: Sequence[str], width: int, height: int) -> tuple[Font, int, list[tuple[int, str]]]:
    """The largest font at which the lines fit, its line height, and (line number, text) rows."""
    largest = max(9, min(20, height // 14))
    for size in range(largest, 8, -1):
        font, step = _font(size), round(size * 1.3)
        rows = [(i, row) for i, line in enumerate(lines) for row in _wrap(line, font, width)]
        if len(rows) * step <= height:
            return font, step, rows
    room = max(1, height // step)
    line, text = rows[room - 1]
    return font, step, [*rows[: room - 1], (line, text[:-1] + "…")]


def _wrap(line: str, font: Font, width: int) -> list[str]:
    """Break a line at spaces, after Chinese characters, and within words that are too long."""
    rows, row = [], ""
    for token in _TOKEN.findall(line):
        pieces = [token] if font.getlength(token) <= width else list(token)
        for piece in pieces:
            if row.strip() and font.getlength(row + piece) > width:
                rows.append(row.rstrip())
                row = piece.lstrip()
            else:
                row += piece
    return [*rows, row.rstrip()]


@lru_cache(maxsize=64)
def _font(size: int) -> Font:
    path = _font_file()
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


@lru_cache(maxsize=1)
def _font_file() -> str | None:
    for name in (name for row in _FONTS for name in row):
        try:
            return str(ImageFont.truetype(name, 10).path)
        except OSError:
            continue
    return None
