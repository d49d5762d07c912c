"""What `make bench` runs, runs as it is written there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import tyro

ROOT = Path(__file__).resolve().parent.parent


def _recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert found is not None
    return [line.strip() for line in found[1].splitlines()]


def _understood(name: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The options that a script makes of its flags, before it does anything."""

    class Stop(Exception):
        pass

    parse, options = tyro.cli, []

    def stop(target: Any, **more: Any) -> Any:
        options.append(parse(target, args=argv, **more))
        raise Stop

    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        patch.setattr(tyro, "cli", stop)
        with pytest.raises(Stop):
            importlib.import_module(name).main()
    return options[0]


def test_bench_gives_every_script_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = _recipe("bench")
    found = [re.fullmatch(r"\$\(BIN\)/python scripts/(\w+)\.py(.*)", c) for c in commands]
    assert len(found) == 2 and all(found)
    for match in filter(None, found):
        assert _understood(match[1], match[2].split(), monkeypatch) is not None


@pytest.mark.parametrize("name", ["bench_lerobot_eval", "benchmark"])
def test_what_needs_more_is_not_among_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Known to be bad: these end with status 2 when they are told nothing."""
    assert not [command for command in _recipe("bench") if f"/{name}.py" in command]
    with pytest.raises(SystemExit) as end:
        _understood(name, [], monkeypatch)
    assert end.value.code == 2 and "equired" in capfd.readouterr().err


def test_the_peer_s_target_calls_its_script() -> None:
    (command,) = _recipe("bench-lerobot")
    script = ROOT / command.split()[0]
    assert script.name == "bench_lerobot_eval.sh" and script.stat().st_mode & 0o100
