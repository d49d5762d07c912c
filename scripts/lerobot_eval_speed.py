"""How long `lerobot-eval` takes for episodes of its own Meta-World environment.

Run by the Python of lerobot's own virtual environment:

    python scripts/lerobot_eval_speed.py measure --output O --task drawer-open-v3 --n_episodes N
    python scripts/lerobot_eval_speed.py make --output O --camera corner2 --px 224

`measure` runs lerobot's program as it is installed, one environment at a time, with an ACT policy
whose weights are random, so that every episode lasts to the horizon; the last line of stdout is a
JSON object. Videos for people are left out, unless --videos: the program draws ten. `make` saves
such a policy for lerobot_server.py, in the folder O.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.factory import IMAGENET_STATS
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot_train import ACTION, IMAGES, STATE, config_of

_EVAL_PX = 480  # what lerobot's Meta-World draws


def save_random(folder: Path, image_key: str, px: int) -> int:
    """An ACT policy of lerobot_train.py's size with random weights. Returns its parameters."""
    torch.manual_seed(0)
    config: Any = config_of("act", px)
    config.input_features = {
        image_key: PolicyFeature(FeatureType.VISUAL, (3, px, px)),
        STATE: PolicyFeature(FeatureType.STATE, (4,)),
    }
    config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, (4,))}
    unit = {"mean": torch.zeros(4), "std": torch.ones(4)}
    pictures = {name: torch.tensor(value) for name, value in IMAGENET_STATS.items()}
    stats = {STATE: unit, ACTION: unit, image_key: pictures}
    policy = ACTPolicy(config)
    for part in (policy, *make_pre_post_processors(config, dataset_stats=stats)):
        part.save_pretrained(folder)
    return sum(p.numel() for p in policy.parameters())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run `lerobot-eval`; its own figures, and the processor's seconds of its episodes."""
    from lerobot.scripts import lerobot_eval

    policy = options.output / "policy"
    n_parameters = save_random(policy, "observation.image", _EVAL_PX)
    spent: dict[str, Any] = {}
    own = lerobot_eval.eval_policy_all

    def watched(**settings: Any) -> Any:
        if not options.videos:
            settings["max_episodes_rendered"] = 0
        spent["horizon"] = _horizon(settings["envs"])
        cpu_s, started = _cpu_s(), time.perf_counter()
        info = own(**settings)
        spent["wall_s"], spent["cpu_s"] = time.perf_counter() - started, _cpu_s() - cpu_s
        return info

    lerobot_eval.eval_policy_all = watched
    sys.argv = [
        "lerobot-eval",
        f"--policy.path={policy}",
        "--policy.device=cpu",
        "--env.type=metaworld",
        f"--env.task={options.task}",
        f"--eval.n_episodes={options.n_episodes}",
        "--eval.batch_size=1",
        f"--output_dir={options.output / 'eval'}",
        "--seed=0",
    ]
    lerobot_eval.main()
    info = json.loads((options.output / "eval" / "eval_info.json").read_text(encoding="utf-8"))
    overall = info["overall"]
    told = {key: overall[key] for key in ("n_episodes", "pc_success", "eval_s", "eval_ep_s")}
    return {**told, **spent, "n_parameters": n_parameters, "image_px": _EVAL_PX}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _horizon(envs: Any) -> int:
    (of_group,) = envs.values()
    (env,) = of_group.values()
    return int(env.call("_max_episode_steps")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("measure", "make"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--task", default="drawer-open-v3")
    parser.add_argument("--n_episodes", type=int, default=4)
    parser.add_argument("--videos", action="store_true")
    parser.add_argument("--camera", default="corner2")
    parser.add_argument("--px", type=int, default=224)
    options = parser.parse_args()
    if options.what == "make":
        told: Any = {
            "n_parameters": save_random(options.output, IMAGES + options.camera, options.px)
        }
    else:
        told = measure(options)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
