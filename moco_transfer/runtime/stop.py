"""SIGTERM as a flag: schedulers send it before they end a job, and the run saves first."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.util
import signal
from collections.abc import Iterator
from typing import Any

import torch

from .distributed import get_world_size


class StopRequest:
    """Notices ``signals`` between ``__enter__`` and ``__exit__``; loops ask between iterations.

    ``signum`` is the first that this process received, or 0. Data workers need
    :func:`sigterm_held` and :func:`ignore_sigterm`.
    """

    def __init__(self, *signals: int) -> None:
        self.signum = 0
        self._signals = signals or (signal.SIGTERM,)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # not the main thread, as in some notebooks
            for signum in self._signals:
                self._before[signum] = signal.signal(signum, self._notice)
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _notice(self, signum: int, frame: object) -> None:
        self.signum = self.signum or signum

    @property
    def requested(self) -> bool:
        """Whether this process received a signal."""
        return self.signum > 0

    def agreed(self) -> bool:
        """Return whether any process received SIGTERM. Collective; no GPU is waited for."""
        if get_world_size() == 1:
            return self.requested
        flag = torch.tensor([float(self.requested)])
        torch.distributed.all_reduce(flag)
        return bool(flag.item() > 0)


@contextlib.contextmanager
def sigterm_held() -> Iterator[None]:
    """Hold SIGTERM back while data workers start, which inherit this until they ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_sigterm(worker: int) -> None:
    """Let a data worker ignore SIGTERM, for ``worker_init_fn``: schedulers and torchrun send it to
    all processes of a job, and the training process needs its workers until it has saved.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@atexit.register
def _kill_workers() -> None:
    # multiprocessing sends its workers SIGTERM at exit and waits for them, here forever. Its exit
    # function runs after this one: the import above registered it first.
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a killed worker
    for worker in workers:
        worker.kill()
