"""A GPU that is not there: tensors that say they are on `GPU`, keep to its rules, and do compute.

torch's fake tensors know the same rules but no values, so nothing that decides by what it has
computed, as decoding and judging do, can run on them. Here every operation is carried out on the
CPU, after a look at where its tensors say they are. As on a real GPU, tensors of two places do not
mix (numbers may come from anywhere), nothing but a copy leads from one place to the other, and
NumPy sees the CPU's alone.

    with PretendGpu():
        planner.to(GPU)
        planner.plan(…)
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
_FILL = torch.ops.aten.copy_.default


class _There(Tensor):
    """What a GPU would hold; `inner` is where it truly is."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> _There:
        there = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
            requires_grad=False,
        )
        there.inner = inner
        return there  # type: ignore[no-any-return]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"there: {self.inner}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch.inference_mode(False):  # in which a subclass has no views
            return _computed(func, args, dict(kwargs or {}))


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if func is not _FILL:
        _check(func, given)
    goes_to = torch.device(kwargs.get("device") or GPU)
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    out = func(*_here(args), **_here(kwargs))
    if goes_to.type == "cpu":
        return out
    return return_and_correct_aliasing(func, args, kwargs, _there(out))


def _check(func: Any, given: list[Tensor]) -> None:
    strangers = [t for t in given if not isinstance(t, _There) and t.ndim > 0]
    if strangers:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found {GPU} and"
            f" {strangers[0].device}"
        )


def _here(values: Any) -> Any:
    return tree_map(lambda value: value.inner if isinstance(value, _There) else value, values)


def _there(values: Any) -> Any:
    return tree_map(lambda value: _There(value) if isinstance(value, Tensor) else value, values)


class PretendGpu(TorchFunctionMode):
    """Within, `GPU` can be asked for."""

    def __enter__(self) -> Self:
        torch._C._ensureCUDADeviceGuardSet()  # else torch asks the driver at every operation
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # as with a real one
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            return _moved(*args, **kwargs)
        if func is torch.Tensor.tolist:
            return _here(args[0]).tolist()
        if func is torch.where:  # a number would be sent to the driver
            args = tuple(torch.tensor(a) if isinstance(a, float) else a for a in args)
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self._attention(func, args, kwargs)
        if torch.device(kwargs.get("device") or "cpu").type == "cpu":
            return func(*args, **kwargs)
        del kwargs["device"]  # torch would look for the driver
        made = func(*args, **kwargs)
        return made if isinstance(made, _There) else _There(made)

    @staticmethod
    def _attention(func: Any, args: Any, kwargs: Any) -> Any:
        """Its own choice of a kernel would ask the GPU; without gradients."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(isinstance(tensor, _There) for tensor in given):
            return func(*args, **kwargs)
        _check(func, given)
        assert not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))
        return _there(func(*_here(args), **_here(kwargs)))


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`tensor.to(…)`, without a look for the driver."""
    if args and isinstance(args[0], Tensor):  # to where, and to what type, another tensor is
        args = (args[0].device, args[0].dtype, *args[1:])
    kwargs.pop("copy", None)
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
    tensor = tensor if dtype is None else tensor.to(dtype)
    if device is None or device.type == tensor.device.type:
        return tensor
    return tensor.to(device) if device.type == "cpu" else _There(tensor.detach())
