"""Run a function in two gloo processes, which are started once, and return what each found."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_PAIR: list[ProcessPoolExecutor] = []


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
            plain containers, and leaves no module changed.
        folder: Where results are handed over.
        args: Passed on.

    Returns:
        What rank 0 and rank 1 returned.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    if not _PAIR:
        spawn = multiprocessing.get_context("spawn")
        _PAIR[:] = [ProcessPoolExecutor(1, spawn) for _ in range(2)]
    jobs = [
        executor.submit(_body, rank, function, port, str(folder), args)
        for rank, executor in enumerate(_PAIR)
    ]
    failed = [job for job in wait(jobs, return_when=FIRST_EXCEPTION).done if job.exception()]
    if failed:  # the other waits for it in a collective
        for executor in _PAIR:
            for process in executor._processes.values():
                process.kill()
        _PAIR.clear()
        failed[0].result()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
