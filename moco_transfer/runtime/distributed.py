"""Processes: start-up under torchrun and the few collectives that the steps need.

Everything here also works in one process without a process group, where it does nothing: world size
    1 is a first-class
set-up, and ``torch.distributed`` is never initialised there. ``torchrun`` is the only launcher; it
sets RANK, LOCAL_RANK, WORLD_SIZE and the address.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError

logger = logging.getLogger(__name__)

_TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_joined_group = False


def start_processes(device: str = "auto") -> torch.device:
    """Join the process group that torchrun describes, and return this process's device.

    A no-op, but for the choice of the device, in a process that torchrun did not start.

    Args:
        device: ``auto`` (CUDA when there is one, else the CPU), ``cpu``, ``cuda`` or ``mps``.

    Returns:
        The device to compute on: ``cuda:LOCAL_RANK`` on GPUs.

    Raises:
        InputError: If the device is not to be had, or only some of torchrun's variables are set.
    """
    present = [name for name in _TORCHRUN_VARIABLES if name in os.environ]
    if "WORLD_SIZE" in present and len(present) < len(_TORCHRUN_VARIABLES):
        missing = sorted(set(_TORCHRUN_VARIABLES) - set(present))
        raise InputError(
            f"The environment sets {', '.join(sorted(present))} but not {', '.join(missing)}: start"
            " several processes with torchrun, or unset WORLD_SIZE to run in one process."
        )
    chosen = _choose_device(device)
    if len(present) == len(_TORCHRUN_VARIABLES) and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        global _joined_group
        _joined_group = True
    return chosen


def stop_processes() -> None:
    """Leave the process group; a no-op in one process."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def joined_group() -> bool:
    """Return whether :func:`start_processes` joined a process group, also after it was left: such a
    process ends by :func:`exit_process`.
    """
    return _joined_group


def exit_process(status: int) -> NoReturn:
    """End a process that belonged to a process group: what ``sys.exit`` does, less the
    interpreter's teardown.

    gloo's threads were seen to outlive ``destroy_process_group`` after training with
    DistributedDataParallel, and one that drops its last tensor while the interpreter is torn down
        aborts: "terminate called without an active exception", status -6, and torchrun calls a
            complete
    run a failed one (pytorch/pytorch#179291). Functions registered with atexit are called and the
    streams flushed first; threads are not waited for.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "TRAIN.DEVICE is 'cuda' but this PyTorch sees no CUDA device. Use 'cpu' or 'auto', or"
            " look at `moco-transfer doctor`."
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError(
            "TRAIN.DEVICE is 'mps' but this PyTorch has no Metal device. Use 'cpu' or 'auto'."
        )
    if device not in ("cpu", "cuda", "mps"):
        raise InputError(f"Unknown device {device!r}: expected 'auto', 'cpu', 'cuda' or 'mps'.")
    if device != "cuda":
        return torch.device(device)
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"Process {local_rank} of this host has no GPU of its own: {torch.cuda.device_count()}"
            f" visible. Start torchrun with --nproc_per_node {torch.cuda.device_count()}."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """Return this process's number among all, 0 in one process."""
    return dist.get_rank() if _initialized() else 0


def get_world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if _initialized() else 1


def is_main_process() -> bool:
    """Return whether this process writes files and prints (rank 0)."""
    return get_rank() == 0


def barrier() -> None:
    """Wait for all processes. Collective."""
    if get_world_size() > 1:
        dist.barrier()


@functools.cache
def _gloo_group(processes: Any) -> Any:
    return dist.new_group(backend="gloo")


def cpu_group() -> Any:
    """Return a group of all processes for tensors on the CPU: None, the processes' own, unless that
    is NCCL's. Collective when first called.

    For what the host must know in each iteration: read back from a GPU, it would have to wait for
        all that the GPU has to do.
    """
    if get_world_size() == 1 or dist.get_backend() == "gloo":
        return None
    return _gloo_group(
        dist.group.WORLD
    )  # by group: another one is there after a restart in the same process


def gather_object(obj: Any) -> list[Any]:
    """Return every process's object, in order of rank, on rank 0 and an empty list elsewhere.
    Collective.

    Objects travel pickled and over the CPU; meant for predictions and reports, not for tensors in a
    step.
    """
    if get_world_size() == 1:
        return [obj]
    gathered: list[Any] | None = [None] * get_world_size() if is_main_process() else None
    dist.gather_object(obj, gathered, dst=0)
    return gathered or []


def all_gather_object(obj: Any) -> list[Any]:
    """Return every process's object, in order of rank, on every process.

    Collective; see :func:`gather_object`.
    """
    if get_world_size() == 1:
        return [obj]
    gathered: list[Any] = [None] * get_world_size()
    dist.all_gather_object(gathered, obj)
    return gathered


def broadcast_object(obj: Any) -> Any:
    """Return rank 0's object on every process. Collective."""
    if get_world_size() == 1:
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes below one another, in order of rank. Collective, without
    gradient.

    Args:
        rows: (N, ...) of any dtype; N must be the same on every process.

    Returns:
        (W * N, ...) on the same device; ``rows`` itself in one process.
    """
    if get_world_size() == 1:
        return rows
    rows = rows.contiguous()
    gathered = [torch.empty_like(rows) for _ in range(get_world_size())]
    dist.all_gather(gathered, rows)
    return torch.cat(gathered)


def average_tensors(tensors: Iterable[Tensor]) -> None:
    """Replace each floating-point tensor by its mean over all processes, in place. Collective.

    Integer tensors (such as ``num_batches_tracked``) are equal everywhere by construction and are
    left alone.
    """
    if get_world_size() == 1:
        return
    floating = [t for t in tensors if t.is_floating_point()]
    if not floating:
        return
    # One message for all: a ResNet-50 has 106 small buffers.
    flat = torch.cat([t.detach().reshape(-1).to(torch.float64) for t in floating])
    dist.all_reduce(flat)
    flat /= get_world_size()
    offset = 0
    for tensor in floating:
        tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()


def average_bn_statistics(module: torch.nn.Module) -> None:
    """Replace each running mean and variance by its mean over all processes, in place. Collective.

    Each process has its own during an epoch, because training does not read them; whoever saves or
    evaluates must.
    """
    average_tensors(
        b for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var"))
    )


def mean_over_processes(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return each value's mean over all processes; the keys must agree. Collective."""
    if get_world_size() == 1:
        return values
    names = sorted(values)
    # float32: MPS has no float64, and these are numbers for a log line.
    packed = torch.tensor([values[name] for name in names], dtype=torch.float32, device=device)
    dist.all_reduce(packed)
    return dict(zip(names, (packed / get_world_size()).tolist(), strict=True))


def max_over_processes(value: float) -> float:
    """Return the largest of all processes' values. Collective; no GPU is waited for."""
    if get_world_size() == 1:
        return value
    packed = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(packed, op=dist.ReduceOp.MAX, group=cpu_group())
    return float(packed)


def broadcast_module_state(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor with rank 0's, in place. Collective."""
    if get_world_size() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor.detach() if tensor.requires_grad else tensor, src=0)
