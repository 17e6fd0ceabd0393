"""Processes under Detectron2: torchrun's group told to it, and its own launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from moco_transfer.runtime.errors import InputError

_joined = False


def join_local_group() -> None:
    """Tell Detectron2 which processes share this host, where it did not start them itself. Collective; a no-op in one process.

    Without it ``comm.get_local_rank`` and what builds on it fail under torchrun.
    """
    global _joined
    if _joined or not dist.is_initialized() or "LOCAL_WORLD_SIZE" not in os.environ:
        return
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    _joined = True


def launch(work: Callable[[Any], int], args: Any, *, num_processes: int, num_machines: int = 1, machine_rank: int = 0, dist_url: str = "auto") -> int:
    """Start processes with Detectron2's launcher and wait for them.

    Args:
        work: A function of a module, called with ``args`` in each process; returns the exit status.
        args: Can be pickled.
        num_processes: Processes on this machine (``--num-gpus``); without GPUs they compute on the CPU.
        num_machines: Machines in all.
        machine_rank: Which of them this is.
        dist_url: Where they meet, e.g. ``tcp://192.168.1.5:29500``; ``auto`` is a free port of this machine.

    Returns:
        The exit status: that of the first process that failed, else 0.

    Raises:
        InputError: If the numbers do not go together.
    """
    if num_processes < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise InputError(
            f"--num-gpus {num_processes} (at least 1), --num-machines {num_machines} (at least 1) and --machine-rank {machine_rank} "
            f"(0 to {num_machines - 1}) do not go together."
        )
    if num_machines > 1 and dist_url == "auto":
        raise InputError(f"--num-machines {num_machines} needs --dist-url, the same on all, e.g. tcp://HOST-OF-RANK-0:29500.")
    if torch.cuda.is_available() and num_processes > torch.cuda.device_count():
        raise InputError(f"--num-gpus {num_processes}, but this machine has {torch.cuda.device_count()}.")
    try:
        detectron2_launch(_in_process, num_processes, num_machines, machine_rank, dist_url, args=(work, args))
    except ProcessExitedException as error:
        return error.exit_code if error.exit_code > 0 else 128 - error.exit_code
    except ProcessRaisedException as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _in_process(work: Callable[[Any], int], args: Any) -> None:
    global _joined
    if dist.is_initialized():  # in one process the launcher makes no group
        _joined = True
        os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"] = str(comm.get_local_rank()), str(comm.get_local_size())
    status = work(args)
    if status:
        sys.exit(status)
