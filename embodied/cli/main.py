"""`embodied COMMAND …`: finds the command, reads its options, and turns errors into one line.

Imports nothing heavy: a command's module is imported when that command is chosen.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from typing import Any, get_type_hints

from embodied.cli.common import quiet_libraries

_BAD_INPUT, _INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Command:
    """Where a command is, and what it does in a few words.

    Args:
        path: `module:function`; the function takes `options`, a dataclass, or flags of its own,
            and returns the exit status.
    """

    path: str
    help: str


COMMANDS = {
    "run": Command("embodied.cli.run:run", "give the simulated agent a task; saves a video"),
    "plan": Command("embodied.cli.plan:plan", "plan a task without carrying it out"),
    "ask": Command("embodied.cli.ask:ask", "a question about a video or a scene"),
    "record": Command("embodied.cli.record:record", "record expert demonstrations (LeRobot v3.0)"),
    "import": Command(
        "embodied.cli.import_:import_", "people's kitchen demonstrations, replayed (LeRobot v3.0)"
    ),
    "build-egocot": Command(
        "embodied.cli.build_egocot:build_egocot", "records to learn from, of rollouts or videos"
    ),
    "align-clip": Command(
        "embodied.cli.align_clip:align_clip", "a small CLIP of recorded episodes, to filter records"
    ),
    "train-policy": Command(
        "embodied.cli.train_policy:train_policy", "train a policy from demonstrations"
    ),
    "finetune": Command(
        "embodied.cli.finetune:finetune",
        "train the planner's own parts on episodes and records",
    ),
    "export": Command(
        "embodied.cli.export:export", "a planner for peft, transformers or the model hub"
    ),
    "evaluate": Command("embodied.cli.evaluate:evaluate", "success on fixed test layouts"),
    "evaluate-plans": Command(
        "embodied.cli.evaluate_plans:evaluate_plans",
        "instructions, plans, verdicts and answers, of episodes and records",
    ),
    "compare": Command("embodied.cli.compare:compare", "two evaluations, layout by layout"),
    "report": Command(
        "embodied.cli.report:report", "evaluations side by side: tables, curves, videos, as a page"
    ),
    "doctor": Command("embodied.cli.doctor:doctor", "check this machine and say how to mend it"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0 done, 1 the task failed, 2 bad input or a refused task, 130 on Ctrl-C.
        With EMBODIED_TRACEBACK set, errors keep their traceback.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: waiting
    os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that spin slow their neighbours down
    quiet_libraries()
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(argv)
    except KeyboardInterrupt:
        print("embodied: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (ValueError, OSError) as error:
        if os.environ.get("EMBODIED_TRACEBACK"):
            raise
        print(f"embodied: {_one_line(error)}", file=sys.stderr)
        return _BAD_INPUT


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return " ".join(f"{where}{error.strerror}".split())
    return " ".join(str(error).split()) or type(error).__name__


def _dispatch(argv: list[str]) -> int:
    match argv:
        case [] | ["-h" | "--help", *_]:
            print(_help())
            return 0 if argv else _BAD_INPUT
        case ["--version", *_]:
            print(f"embodied-planner {metadata.version('embodied-planner')}")
            return 0
        case [name, *rest]:
            name = name.replace("_", "-")
            if name not in COMMANDS:
                raise ValueError(_unknown(name))
            return _run(name, COMMANDS[name], rest)
    raise AssertionError(argv)


def _unknown(name: str) -> str:
    near = get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(COMMANDS)}"
    return f"unknown command '{name}'; {hint}"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: embodied COMMAND [OPTIONS]",
            "",
            "An agent that plans in words, acts in MuJoCo, watches what it did, corrects itself.",
            "",
            *lines,
            "",
            "`embodied COMMAND --help` lists a command's options.",
            "To begin: embodied run 'open the drawer'",
        ]
    )


def _run(name: str, command: Command, argv: list[str]) -> int:
    module, function_name = command.path.split(":")
    function: Callable[..., int] = getattr(importlib.import_module(module), function_name)
    options_type = get_type_hints(function).get("options")
    default = _to_resume(options_type, name, argv)
    options = _parse(options_type or _keywords_of(function), name, argv, default)
    if options is None:
        return 0
    return function(options) if options_type else function(**options)


def _to_resume(options_type: Any, name: str, argv: list[str]) -> Any:
    """What the flags replace when `--resume` names a run of a command that trains, else None."""
    if "resume" not in getattr(options_type, "__dataclass_fields__", ()):
        return None
    from embodied.cli.training import resumed_options

    return resumed_options(options_type, name, argv)


def _keywords_of(function: Callable[..., int]) -> Callable[..., dict[str, Any]]:
    """A function of the same signature that only hands its arguments back."""

    @functools.wraps(function)
    def collect(**keywords: Any) -> dict[str, Any]:
        return keywords

    return collect


def _parse(target: Any, name: str, argv: list[str], default: Any = None) -> Any:
    """What tyro makes of `argv`; None when it showed the help that was asked for.

    Args:
        default: what `argv` replaces; the defaults of `target` when None.

    Raises:
        ValueError: what is wrong with the arguments, in one line.
    """
    import tyro

    said = io.StringIO()
    prog = f"embodied {name}"
    config = (tyro.conf.FlagCreatePairsOff,)
    known = {} if default is None else {"default": default}
    try:
        with redirect_stderr(said):
            return tyro.cli(
                target, prog=prog, args=argv, use_underscores=True, config=config, **known
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        raise ValueError(f"{_plain(said.getvalue())} (see {prog} --help)") from None


def _plain(box: str) -> str:
    """The text of tyro's framed message without frame, colours and footer."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = [line.strip("│╭╮╰╯─ ") for line in text.splitlines()[1:]]
    words = " ".join(row for row in rows if row)
    return re.split(r"For full helptext|Argument helptext", words)[0].strip() or "bad options"


if __name__ == "__main__":  # as `accelerate launch -m embodied.cli.main` starts it
    sys.exit(main())
