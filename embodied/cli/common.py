"""What several commands share: checks of what the user gave, and where output goes."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

MAX_INSTRUCTION = 400


def quiet_libraries() -> None:
    """Keep off stderr what libraries warn of and nobody who runs a command can mend."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="Constant.* may be too high", module="metaworld")


def check_instruction(text: str) -> str:
    """The instruction without white space around it. Raises ValueError as `check_words`."""
    return check_words(text, "instruction", "say what to do, like 'open the drawer'")


def check_words(text: str, what: str, wanted: str) -> str:
    """What a person said, without white space around it.

    Args:
        what: it is called in errors.
        wanted: what to do when it is empty.

    Raises:
        ValueError: it is empty, longer than `MAX_INSTRUCTION` characters, or has control
            characters or bytes that are no text in it.
    """
    text = text.strip()
    for position, character in enumerate(text, 1):
        if unicodedata.category(character) in ("Cc", "Cs"):
            code = f"U+{ord(character):04X}"
            raise ValueError(
                f"the {what} has a control character ({code}) at position {position}: "
                "write it in one line of plain text"
            )
    if not any(unicodedata.category(c)[0] in "LNPS" for c in text):
        raise ValueError(f"the {what} is empty: {wanted}")
    if len(text) > MAX_INSTRUCTION:
        raise ValueError(
            f"the {what} has {len(text)} characters and at most {MAX_INSTRUCTION} are read: "
            "say it shorter"
        )
    return text


def writable_dir(path: Path) -> Path:
    """Make the folder `path` when it is missing, and try to write in it.

    Raises:
        OSError: it cannot be written to; the message names the folder and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x" * 4096)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot write to the folder {path}: {reason}") from error
    return path


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Within, whatever is printed to stdout goes to stderr, from C libraries too."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
