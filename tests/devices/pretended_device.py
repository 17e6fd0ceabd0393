"""A device with a GPU's rules and the CPU's numbers, so that code for a GPU can fail without one.

Tensors on ``pretended:0`` wrap tensors of the CPU. An operator whose tensors are of both devices is
rejected, as is ``numpy()`` of a tensor that is not on the CPU. What the host would wait for
on a GPU is counted in :attr:`PretendedDevice.waits`: numbers that are read back, shapes that depend
on numbers, and copies between the devices that are not ``non_blocking``.

Under autocast the operators of :data:`_REDUCED` take the lower type, as on a GPU. Collectives run
on the wrapped tensors, over gloo.

It cannot show what asks for ``device.type == "cuda"`` (streams, pinned memory), which operators
autocast keeps in float32, and rounding by other kernels.

torch makes the threads of its backward passes once, for the devices that are known then: a process
has this device from its first import on, or never. The interface, of torch 2.11, is experimental.
"""

from __future__ import annotations

import collections
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"

# Operators that wait for a number of their result or of its shape.
_READS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "bincount", "nms"),
}
_LOOK_UPS = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
_COPIES = {"_to_copy", "copy_"}
_REDUCED = ("conv2d", "conv_transpose2d.input", "linear", "matmul", "mm", "addmm", "bmm")

_waits: collections.Counter[str] = collections.Counter()


class _Module:
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Do nothing: the CPU's generator draws."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


class DeviceTensor(torch.Tensor):
    """A tensor on the pretended device; ``inner`` has its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __init__(self, inner: torch.Tensor) -> None:
        super().__init__()

    def __repr__(self) -> str:
        return f"{NAME}:{self.inner!r}"

    def tolist(self) -> list:
        _waits["tolist"] += 1
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"numpy() of a tensor on {NAME}:0: use cpu() first")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)  # in files as one of the CPU, which reads it

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


# torch.tensor(..., device=...) asks for memory and a copy outside of all modes.
@torch.library.impl("aten::empty_strided", "privateuseone")
def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return DeviceTensor(torch.empty_strided(size, stride, dtype=dtype))


@torch.library.impl("aten::empty.memory_format", "privateuseone")
def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    layout = memory_format or torch.contiguous_format
    return DeviceTensor(torch.empty(size, dtype=dtype, memory_format=layout))


@torch.library.impl("aten::_copy_from", "privateuseone")
def _copy_from(source, target, non_blocking=False):
    _waits["copy"] += not non_blocking
    _inner_of(target).copy_(_inner_of(source))
    return target


def _autocast(name: str) -> None:
    """Let an operator compute in autocast's type, as a GPU's autocast does."""
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def reduced(*args, **kwargs):
        dtype = torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            args, kwargs = tree_map_only(
                torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs)
            )
            return operator(*args, **kwargs)

    torch.library.impl(f"aten::{name}", "AutocastPrivateUse1")(reduced)


for _name in _REDUCED:
    _autocast(_name)
_others = torch.library.Library("_", "IMPL")
_others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


def _inner_of(value: Any) -> Any:
    return value.inner if isinstance(value, DeviceTensor) else value


def _is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _check_devices(func: Any, name: str, args: tuple, tensors: list[torch.Tensor]) -> None:
    """Raise as a GPU does where tensors of both devices meet; numbers () of the CPU may."""
    if name in _COPIES or func.namespace == "c10d":
        return
    if name in _LOOK_UPS:  # a tensor of a GPU may be looked up by indices of the CPU
        if not isinstance(args[0], DeviceTensor):
            raise RuntimeError(f"{func}: indices on {NAME}:0 for a tensor on the CPU")
        tensors = [t for t in args[2:3] if isinstance(t, torch.Tensor)]
    for tensor in tensors:
        if not isinstance(tensor, DeviceTensor) and tensor.dim() > 0:
            what = f"{tuple(tensor.shape)} {tensor.dtype}"
            raise RuntimeError(f"{func}: a tensor on the CPU, {what}, meets one on {NAME}:0")


def _note_wait(name: str, args: tuple, kwargs: dict, here: bool, to_here: bool) -> None:
    indices = args[1] if name in _LOOK_UPS else ()
    if name in _READS or any(t is not None and t.dtype == torch.bool for t in indices):
        _waits[name] += 1
    elif here and any(t is not None and not isinstance(t, DeviceTensor) for t in indices):
        _waits["copy"] += 1
    elif name == "_to_copy" and here != to_here:
        _waits["copy"] += not kwargs.get("non_blocking", False)
    elif name == "copy_" and isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor):
        _waits["copy"] += not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))


def _compute(func: Any, args: tuple, kwargs: dict) -> Any:
    """Compute on the wrapped tensors, and wrap what is new."""
    name, device = func.overloadpacket.__name__, kwargs.get("device")
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    here = any(isinstance(t, DeviceTensor) for t in tensors)
    to_here = here if device is None else _is_here(device)
    if here:
        _check_devices(func, name, args, tensors)
    _note_wait(name, args, kwargs, here, to_here)
    inner_args, inner_kwargs = tree_map_only(DeviceTensor, _inner_of, (args, kwargs))
    if _is_here(device):
        inner_kwargs |= {"device": torch.device("cpu")}
    found = func(*inner_args, **inner_kwargs)
    if name == "_to_copy" and here != to_here and found is inner_args[0]:
        found = found.clone()
    given = {id(t.inner): t for t in tensors if isinstance(t, DeviceTensor)}

    def wrapped(value: torch.Tensor) -> torch.Tensor:
        if not to_here or isinstance(value, DeviceTensor):
            return value
        return given[id(value)] if id(value) in given else DeviceTensor(value)

    return tree_map_only(torch.Tensor, wrapped, found)


class PretendedDevice(TorchDispatchMode):
    """Within it ``torch.device("pretended")`` can be used."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = _waits  # since the last clear(): operator -> how often

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        here = any(isinstance(leaf, DeviceTensor) for leaf in tree_leaves((args, kwargs)))
        if not here and not _is_here(kwargs.get("device")):
            return func(*args, **kwargs)
        composite = torch._C.DispatchKey.CompositeImplicitAutograd
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite):
            with self:  # in inference mode these come whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        return _compute(func, args, kwargs)
