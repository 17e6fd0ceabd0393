"""Processes: start-up under torchrun and the few collectives that the steps need.

Every function works without a process group, as for world size 1.
"""

from __future__ import annotations

import atexit
import datetime
import logging
import os
import sys
import time
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .errors import InputError

logger = logging.getLogger(__name__)

_TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = 20.0  # s until a process says for whom it waits, and between two such lines
LONGEST_WAIT = 600.0  # s until it gives up
# Of a collective, s. NCCL's default of 10 minutes is less than process 0 may need alone, to score a
# large test set, while the others wait for it.
TIMEOUT_VARIABLE, TIMEOUT = "MOCO_TRANSFER_TIMEOUT", 4 * 3600
_joined_group = False


def start_processes(device: str = "auto") -> torch.device:
    """Join the process group that torchrun describes, if any, and return this process's device.

    Args:
        device: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``mps``;
            ``cuda`` becomes ``cuda:LOCAL_RANK``.

    Raises:
        InputError: If the device is absent, only some of torchrun's variables are set or make no
            sense, the port is in use, or a process does not come.
    """
    missing = [name for name in _TORCHRUN_VARIABLES if not os.environ.get(name)]
    set_alone = next((name for name in ("WORLD_SIZE", "RANK") if name not in missing), None)
    if missing and set_alone:
        hint = " (LOCAL_RANK is 0 where each machine has one process)" * ("LOCAL_RANK" in missing)
        raise InputError(
            f"{set_alone} is set, but not {', '.join(missing)}: use torchrun, set them{hint}, or"
            f" unset {set_alone}."
        )
    chosen = _choose_device(device)
    if not missing and not dist.is_initialized():
        # gloo as well: what the host must know in each iteration would wait for the GPU in NCCL.
        os.environ.setdefault(TIMEOUT_VARIABLE, str(TIMEOUT))
        timeout = datetime.timedelta(seconds=_whole_number(TIMEOUT_VARIABLE, least=1))
        how: dict[str, Any] = {"backend": "gloo", "timeout": timeout}
        if chosen.type == "cuda":  # device_id: NCCL joins now, and a fault of it is seen now
            how |= {"backend": "cpu:gloo,cuda:nccl", "device_id": chosen}
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # torchrun has them together
            how |= {"rank": _whole_number("RANK")}
            how |= {"world_size": _whole_number("WORLD_SIZE", least=1)}
            how |= {"store": meet(how["rank"], how["world_size"])}
        dist.init_process_group(**how)
        global _joined_group
        _joined_group = True
    return chosen


def _whole_number(name: str, *, least: int = 0) -> int:
    """Return the number in a variable of the environment; InputError if there is none."""
    text = os.environ[name]
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise InputError(f"{name} is {text!r}, expected a whole number from {least} on.")
    return int(text)


def meet(rank: int, world_size: int) -> dist.Store:
    """Return the store of a group without torchrun, as soon as all its processes are there. torch
    itself would wait half an hour for them without a word.
    """
    host, port = os.environ["MASTER_ADDR"], _whole_number("MASTER_PORT")
    if rank >= world_size or port >= 1 << 16:
        raise InputError(
            f"RANK {rank}, WORLD_SIZE {world_size}, MASTER_PORT {port}: expected a rank below"
            " WORLD_SIZE and a port below 65536."
        )
    where, wait = f"{host}:{port}", datetime.timedelta(seconds=PATIENCE)
    patience = _Patience(where, world_size)
    while True:
        try:
            store = dist.TCPStore(
                *(host, port, world_size, rank == 0, wait), wait_for_workers=False
            )
            break
        except dist.DistError as error:
            if "EADDRINUSE" in str(error):
                raise InputError(
                    f"MASTER_PORT {port} of this machine is in use, by another program or a run"
                    " that has not ended. Give all processes another MASTER_PORT."
                ) from error
            if rank == 0:
                raise InputError(
                    f"Process 0 cannot wait for the others at {where} ({_first_line(error)})."
                    " MASTER_ADDR is the name or address of its machine."
                ) from error
            patience.waits_for([0])
    if store.add(f"here/{rank}", 1) > 1:
        raise InputError(f"Two processes with RANK {rank} came to {where}. Number them from 0 on.")
    try:
        while missing := [r for r in range(world_size) if not store.check([f"here/{r}"])]:
            patience.waits_for(missing)
            time.sleep(0.05)
    except dist.DistError as error:
        raise InputError(f"Process 0 at {where} has ended: its message says why.") from error
    return dist.PrefixStore("group", store)


class _Patience:
    """Says from time to time which processes are missing, and gives up in the end."""

    def __init__(self, where: str, world_size: int) -> None:
        self._where, self._world_size = where, world_size
        self._since, self._said = time.monotonic(), 0

    def waits_for(self, missing: list[int]) -> None:
        """Note that these ranks are still missing; InputError after :data:`LONGEST_WAIT`."""
        waited = time.monotonic() - self._since
        ranks = ", ".join(map(str, missing[:8])) + ", …" * (len(missing) > 8)
        facts = f"{len(missing)} of {self._world_size} processes at {self._where} (RANK {ranks})"
        remedy = "Start them with the same MASTER_ADDR and MASTER_PORT, or unset WORLD_SIZE."
        if waited > LONGEST_WAIT:
            raise InputError(f"Waited {waited:.0f} s in vain for {facts}. {remedy}")
        if waited > PATIENCE * (self._said + 1):
            self._said += 1
            logger.warning("waiting for %s since %.0f s. %s", facts, waited, remedy)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120]


def stop_processes() -> None:
    """Leave the process group; a no-op in one process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def joined_group() -> bool:
    """Return whether this process ever joined a group: it then ends by :func:`exit_process`."""
    return _joined_group


def exit_process(status: int) -> NoReturn:
    """End a process that belonged to a group, without interpreter teardown.

    gloo's threads can abort during teardown with status -6 (pytorch/pytorch#179291), so that
    torchrun reports a complete run as failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda", "mps"):
        raise InputError(f"Unknown device {device!r}: expected 'auto', 'cpu', 'cuda' or 'mps'.")
    if device != "cpu" and not getattr(torch, device).is_available():
        raise InputError(f"The device is '{device}', but PyTorch finds none. Use 'cpu' or 'auto'.")
    if device != "cuda":
        return torch.device(device)
    local_rank, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local_rank >= count:
        raise InputError(
            f"Process {local_rank} of this machine has no GPU of its own: {count} are visible."
            f" Start at most {count} processes, or show all GPUs to each (Slurm: --gpu-bind=none)."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def in_parallel(module: torch.nn.Module, device: torch.device) -> DistributedDataParallel:
    """Return the module, on its device, with gradients averaged over the processes. Buffers are not
    broadcast. Collective.
    """
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(
        module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def sync_backend(device: torch.device) -> str:
    """Return what carries a device's tensors between processes."""
    return "nccl" if device.type == "cuda" else "gloo"


def get_rank() -> int:
    """Return this process's rank, 0 in one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Return whether this process writes files and prints (rank 0)."""
    return get_rank() == 0


def barrier() -> None:
    """Wait for all processes. Collective."""
    if get_world_size() > 1:
        dist.barrier()


def gather_object(obj: Any) -> list[Any]:
    """Return every process's object by rank on rank 0, an empty list elsewhere. Collective."""
    if get_world_size() == 1:
        return [obj]
    gathered: list[Any] | None = [None] * get_world_size() if is_main_process() else None
    dist.gather_object(obj, gathered, dst=0)
    return gathered or []


def all_gather_object(obj: Any) -> list[Any]:
    """Return every process's object by rank on every process. Collective."""
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
    """Return the rows (N, ...) of all processes by rank: (W * N, ...). Collective, no gradient."""
    if get_world_size() == 1:
        return rows
    rows = rows.contiguous()
    gathered = [torch.empty_like(rows) for _ in range(get_world_size())]
    dist.all_gather(gathered, rows)
    return torch.cat(gathered)


def average_bn_statistics(module: torch.nn.Module) -> None:
    """Replace each running mean and variance by its mean over the processes. Collective.

    Training does not read them, so each process has its own; whoever saves or evaluates needs one.
    """
    if get_world_size() == 1:
        return
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            total = buffer.to(torch.float64)
            dist.all_reduce(total)
            buffer.copy_(total / get_world_size())


def mean_over_processes(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return each value's mean over all processes; the keys must agree. Collective."""
    if get_world_size() == 1:
        return values
    names = sorted(values)
    # float32: MPS has no float64, and these are numbers for a log line.
    packed = torch.tensor([values[name] for name in names], dtype=torch.float32, device=device)
    dist.all_reduce(packed)
    return dict(zip(names, (packed / get_world_size()).tolist(), strict=True))


def broadcast_module_state(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor with rank 0's, in place. Collective."""
    if get_world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)
