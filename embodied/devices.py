"""Where networks compute: on a GPU where there is one, else on the CPU.

A planner and its policies are moved once, when they are loaded. What they are given comes to them,
and what they say leaves them, in the functions whose other side is NumPy or words: `Planner.see`,
`embed_texts` and `visual_tokens`, `GrammarDecoder`, `Controller`. Training asks
`embodied.processes` instead, as each process of a launcher has a device of its own.
"""

from __future__ import annotations

import torch


def pick(name: str = "auto") -> torch.device:
    """The device called `name`: cpu, cuda, cuda:N, or auto for the first GPU, the CPU without one.

    Raises:
        ValueError: there is no such device here.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [f"cuda:{i}" for i in range(n_gpus)]
    match name:
        case "auto":
            wanted = gpus[0] if gpus else "cpu"
        case "cuda":
            wanted = "cuda:0"
        case _:
            wanted = name
    if wanted not in ("cpu", *gpus):
        hint = "" if gpus else "; torch sees no GPU: check its driver and CUDA_VISIBLE_DEVICES"
        raise ValueError(
            f"there is no device '{name}' here; --device takes {', '.join(['auto', 'cpu', *gpus])}"
            + hint
        )
    return torch.device(wanted)
