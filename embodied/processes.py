"""The processes that train together, as `accelerate launch` started them; or one alone.

DDP: each has the whole model, and gradients are averaged. FSDP, when accelerate's configuration
says so: each keeps a part of every weight, of its gradient and of its moments, and a layer is
gathered when it is its turn (torch's `fully_shard`). Both work with gloo on CPUs and nccl on GPUs.
scripts/accelerate has the configurations.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

_PATIENCE = timedelta(hours=24)  # while the first process computes vision features


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Args:
        index: from 0, which is the main one: it alone writes files and talks.
        count: of all.
        device: of this one.
        sharded: whether each keeps a part of the weights only (FSDP).
    """

    index: int
    count: int
    device: torch.device
    sharded: bool

    @classmethod
    def here(cls) -> Processes:
        """As the launcher's environment variables say; the first call connects the processes.

        Raises:
            ValueError: they ask for what is not supported.
        """
        from accelerate import PartialState

        cpu = _is_set("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
        is_new = not dist.is_initialized()
        state = PartialState(cpu=cpu, timeout=_PATIENCE)
        several = state.num_processes > 1
        if several and is_new:
            atexit.register(state.destroy_process_group)
        sharded = several and _is_set("ACCELERATE_USE_FSDP")
        if sharded and _is_set("FSDP_CPU_RAM_EFFICIENT_LOADING"):
            raise ValueError(
                "with FSDP every process reads the weights by itself: set"
                " fsdp_cpu_ram_efficient_loading to false, as in scripts/accelerate/fsdp.yaml"
            )
        return cls(state.process_index, state.num_processes, state.device, sharded)

    def loading_device(self, quantised: bool = False) -> torch.device:
        """Where a model to be trained is put: with FSDP, which moves it part by part, the CPU.

        Quantised weights are not sharded, and FSDP leaves them where they are.
        """
        return torch.device("cpu") if self.sharded and not quantised else self.device

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def main_first(self) -> AbstractContextManager[None]:
        """A block that the main process goes through before the others."""
        from accelerate import PartialState

        return PartialState().main_process_first()

    def wait(self) -> None:
        """For all the others to come here."""
        if self.count > 1:
            dist.barrier()

    def sums(self, values: list[float]) -> list[float]:
        """Each value summed over all processes."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in their order."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


class _Loss(nn.Module):
    """`module.loss` as a `forward`, which is what DDP and FSDP hook into."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module

    def forward(self, *inputs: Any) -> tuple[Tensor, dict[str, float]]:
        return self.module.loss(*inputs)


def distribute(module: nn.Module, processes: Processes) -> nn.Module:
    """What computes `module.loss` when it is called, on this process's device.

    Backward through it leaves the average over the processes in the gradients. When sharded,
    the parameters of `module` are replaced: ask for them afterwards.
    """
    if processes.sharded:
        return _shard(_Loss(module), processes)
    loss = _Loss(module.to(processes.device))
    if processes.count == 1:
        return loss
    return DistributedDataParallel(loss, forward_sync_buffers=False, find_unused_parameters=True)


def _shard(loss: nn.Module, processes: Processes) -> nn.Module:
    """Each layer of a transformer is gathered by itself, and the rest together."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    whole = {p for p in loss.parameters() if not p.is_floating_point()}  # quantised
    assert all(p.device == processes.device for p in whole), "FSDP does not move what it ignores"
    names = {n for m in loss.modules() for n in getattr(m, "_no_split_modules", None) or ()}
    for layer in [m for m in loss.modules() if type(m).__name__ in names]:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    fully_shard(loss, mesh=mesh, ignored_params=whole)
    return loss


@contextmanager
def synchronised(loss: nn.Module, last: bool) -> Iterator[None]:
    """A block of forward and backward; the processes exchange gradients in the last of a step."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(loss, FSDPModule):
        loss.set_requires_gradient_sync(last)
    if isinstance(loss, DistributedDataParallel) and not last:
        with loss.no_sync():
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on the CPU; every process has to ask."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, on the device of `pattern` and sharded as that is."""
    tensor = tensor.to(pattern.device)
    if not isinstance(pattern, DTensor):
        return tensor
    mesh, placements = pattern.device_mesh, pattern.placements
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def unshard(module: nn.Module, processes: Processes) -> None:
    """Give the main process all of the weights, on the CPU; the others' are of no more use."""
    done: dict[int, nn.Parameter] = {}  # a weight that is used in two places stays one
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in done:
                full = whole(parameter.detach())
                done[id(parameter)] = nn.Parameter(full, parameter.requires_grad)
            if processes.is_main:
                owner.register_parameter(name, done[id(parameter)])
