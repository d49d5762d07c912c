"""A trained LeRobot policy behind a pipe: observations in on stdin, an action out on stdout.

Run by the Python of lerobot's own virtual environment:

    python scripts/lerobot_server.py CHECKPOINT

It first says that it is ready, with how many parameters the policy has. Then every frame (see
lerobot_wire.py) is one control step: "state" (S,), "images.<camera>" (H, W, 3) uint8, and "first",
whether an episode begins; the answer is "action" (A,).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any, Protocol

import lerobot_wire as wire
import numpy as np

IMAGES = "images."


class Acting(Protocol):
    """What the server needs of a policy."""

    def reset(self) -> None: ...
    def act(self, state: np.ndarray, images: wire.Arrays) -> np.ndarray: ...


class LeRobotPolicy:
    """A checkpoint of lerobot_train.py with the processors that were saved beside it."""

    def __init__(self, folder: Path) -> None:
        import torch
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        config = PreTrainedConfig.from_pretrained(folder)
        self._policy: Any = get_policy_class(config.type).from_pretrained(folder, config=config)
        self._policy.eval()
        self._before, self._after = make_pre_post_processors(config, pretrained_path=str(folder))
        self._px = next(iter(config.image_features.values())).shape[-1]
        self.n_parameters = sum(p.numel() for p in self._policy.parameters())
        torch.manual_seed(0)  # a diffusion policy draws its actions

    def reset(self) -> None:
        self._policy.reset()

    def act(self, state: np.ndarray, images: wire.Arrays) -> np.ndarray:
        import torch
        from lerobot_train import shrink

        batch = {"observation.state": torch.from_numpy(state)}
        for name, image in images.items():
            picture = torch.from_numpy(image).permute(2, 0, 1)[None] / 255  # (1, 3, H, W)
            batch[f"observation.images.{name}"] = shrink(picture, self._px)[0] / 255
        with torch.inference_mode():
            action = self._after(self._policy.select_action(self._before(batch)))
        return action[0].float().numpy()


def serve(policy: Acting, source: IO[bytes], sink: IO[bytes]) -> int:
    """Answer until the source ends. Returns how many actions were given.

    Raises:
        WireError: what came is no frame, or a frame lacks something.
    """
    n_actions = 0
    while (asked := wire.receive(source)) is not None:
        if missing := {"first", "state"} - asked.keys():
            raise wire.WireError(f"an observation lacks {sorted(missing)}, it has {sorted(asked)}")
        if asked["first"]:
            policy.reset()
        images = {k.removeprefix(IMAGES): v for k, v in asked.items() if k.startswith(IMAGES)}
        wire.send(sink, {"action": policy.act(asked["state"], images)})
        n_actions += 1
    return n_actions


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: lerobot_server.py CHECKPOINT")
    sink = os.fdopen(os.dup(1), "wb")
    os.environ["HF_HUB_OFFLINE"] = "1"  # a checkpoint is a folder
    os.dup2(2, 1)  # whatever else is printed must not get between the frames
    policy = LeRobotPolicy(Path(sys.argv[1]))
    wire.send(sink, {"ready": np.array(policy.n_parameters)})
    serve(policy, sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
