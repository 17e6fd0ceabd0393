"""Processes under Detectron2: torchrun's group told to it, and its own launcher."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from moco_transfer.runtime.errors import InputError

DIVERGED = 1  # exit status of a training whose loss is not finite, as the command line's
TOLD_TO_STOP = 128 + signal.SIGTERM  # exit status, as a shell reports it

_joined = False


def join_local_group() -> None:
    """Tell Detectron2 which processes share this host, where it did not start them itself.
    Collective; a no-op in one process.

    Without it ``comm.get_local_rank`` and what builds on it fail under torchrun.
    """
    global _joined
    if _joined or not dist.is_initialized() or "LOCAL_WORLD_SIZE" not in os.environ:
        return
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    _joined = True


def launch(
    work: Callable[[Any], int],
    args: Any,
    *,
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    use_gpus: bool = True,
) -> int:
    """Start processes with Detectron2's launcher and wait for them; a SIGTERM is passed on to them,
    so that a run saves before it ends.

    Args:
        work: A function of a module, called with ``args`` in each process; returns the exit status.
            What it raises is said once.
        args: Can be pickled.
        num_processes: Processes on this machine (``--num-gpus``); without GPUs they compute on the
            CPU.
        num_machines: Machines in all.
        machine_rank: Which of them this is.
        dist_url: Where they meet, e.g. ``tcp://192.168.1.5:29500``; ``auto`` is a free port of this
            machine.
        use_gpus: False hides this machine's GPUs from the processes: the launcher takes NCCL
            wherever it sees one, and NCCL has no CPU tensors.

    Returns:
        The exit status: that of the first process that failed, 143 where they were told to stop and
            have saved, else 0.

    Raises:
        InputError: If the numbers do not go together.
    """
    if num_processes < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise InputError(
            f"--num-gpus {num_processes} (at least 1), --num-machines {num_machines} (at least 1)"
            f" and --machine-rank {machine_rank} (0 to {num_machines - 1}) do not go together."
        )
    if num_machines > 1 and dist_url == "auto":
        raise InputError(
            f"--num-machines {num_machines} needs --dist-url, the same on all, e.g."
            " tcp://HOST-OF-RANK-0:29500."
        )
    if dist_url != "auto" and "://" not in dist_url:
        raise InputError(
            f"--dist-url {dist_url!r} is not understood: expected e.g. tcp://HOST-OF-RANK-0:29500."
        )
    if use_gpus and torch.cuda.is_available() and num_processes > torch.cuda.device_count():
        raise InputError(
            f"--num-gpus {num_processes}, but this machine has {torch.cuda.device_count()}."
        )
    spawn = torch.multiprocessing.get_context("spawn")
    # Set by a process that was told to stop. An exit status would not do: the launcher kills all
    # others when the first ends with one, and the main process may still be writing the checkpoint.
    stopped = spawn.Value("b", False)
    # Set by the first process that says what is wrong; the others have the same to say.
    said = spawn.Value("b", False)
    try:
        with contextlib.nullcontext() if use_gpus else _hidden_gpus(), _forwarded_sigterm():
            detectron2_launch(
                _in_process,
                num_processes,
                num_machines,
                machine_rank,
                dist_url,
                args=(work, args, stopped, said),
            )
    except ProcessExitedException as error:
        return error.exit_code if error.exit_code > 0 else 128 - error.exit_code
    except ProcessRaisedException as error:
        print(error, file=sys.stderr)
        return 1
    return TOLD_TO_STOP if stopped.value else 0


@contextlib.contextmanager
def _hidden_gpus() -> Iterator[None]:
    """Let processes that are started inside the block see no CUDA device."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    os.environ[name] = ""
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _forwarded_sigterm() -> Iterator[None]:
    """Pass SIGTERM (a scheduler's warning) on to the processes started inside the block and go on
    waiting for them.

    Otherwise this process would die of it at once, and take them with it before they could save.
    """

    def forward(signum: int, frame: object) -> None:
        children = multiprocessing.active_children()
        if not children:  # none has been started yet
            raise SystemExit(TOLD_TO_STOP)
        for child in children:
            child.terminate()

    try:
        before = signal.signal(signal.SIGTERM, forward)
    except ValueError:  # not in the main thread: signals cannot be caught there
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_process(work: Callable[[Any], int], args: Any, stopped: Any, said: Any) -> None:
    global _joined
    if dist.is_initialized():  # in one process the launcher makes no group
        _joined = True
        os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"] = (
            str(comm.get_local_rank()),
            str(comm.get_local_size()),
        )
    try:
        status = work(args)
    except (
        InputError,
        FloatingPointError,
    ) as error:  # does not reach the command line's own handler, which is in the launcher's process
        with said.get_lock():
            is_first, said.value = not said.value, True
        if is_first:
            print(f"train: {error}", file=sys.stderr, flush=True)
        status = 2 if isinstance(error, InputError) else DIVERGED
    if status == TOLD_TO_STOP:
        stopped.value = True
    elif status:
        sys.exit(status)
