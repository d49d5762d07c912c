"""A LeRobot policy as an `Actor` of our loop; it runs in a process with lerobot's own Python."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any

import lerobot_wire as wire
import numpy as np

from embodied.agent.rollout import Decision
from embodied.types import Observation, Plan, Vocabulary

_SERVER = Path(__file__).with_name("lerobot_server.py")


class ServerEnded(SystemExit):
    """The server is gone, so that no further episode can be tried."""


class LeRobotActor:
    """Sends what is seen to the server, and does what it answers.

    Args:
        command: starts the server; see `server_command`.
        name: for captions.
    """

    def __init__(self, command: list[str], name: str = "LeRobot") -> None:
        self._name = name
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        self.n_parameters = int(self._answer()["ready"])

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def begin(self, observation: Observation, instruction: str, vocabulary: Vocabulary) -> Plan:
        self._first, self._instruction = True, instruction
        some = vocabulary.narrowed(vocabulary.tasks[:1])  # any plan will do, and it is ignored
        return Plan(instruction, "Thought: none.", some.subgoals, some.tasks)

    def act(self, observation: Observation) -> Decision:
        """The server's action. Raises ServerEnded."""
        images = {f"images.{name}": image for name, image in observation.images.items()}
        first, self._first = np.array(self._first), False
        assert self._process.stdin is not None
        try:
            wire.send(self._process.stdin, {"first": first, "state": observation.state, **images})
        except BrokenPipeError:
            self._ended()
        return Decision(np.asarray(self._answer()["action"], np.float32))

    def report(self) -> dict[str, Any]:
        return {}

    def caption(self) -> list[str]:
        return [self._instruction, f"({self._name})"]

    def _answer(self) -> wire.Arrays:
        assert self._process.stdout is not None
        answer = wire.receive(self._process.stdout)
        return self._ended() if answer is None else answer

    def _ended(self) -> Any:
        raise ServerEnded(f"the server ended with status {self._process.wait()}; see stderr above")

    def close(self) -> None:
        """Let the server end by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has already ended
            self._process.stdin.close()
        self._process.wait(timeout=60)


def server_command(python: Path, checkpoint: Path) -> list[str]:
    """How the server is started with the `python` of lerobot's virtual environment."""
    return [str(python), str(_SERVER), str(checkpoint)]
