"""Run a function in two gloo processes and return what each found."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _body(rank: int, function: Callable[..., Any], port: int, folder: str, args: tuple) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(function(rank, *args), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run_in_two_processes(function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Call ``function(rank, *args)`` in two processes with a gloo group.

    Args:
        function: At the top of a module, so that a new process can import it; returns tensors in
            plain containers.
        folder: Where results are handed over.
        args: Passed on.

    Returns:
        What rank 0 and rank 1 returned.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_body, args=(function, port, str(folder), args), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
