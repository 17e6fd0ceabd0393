"""SIGTERM and Ctrl-C as a flag: the run saves first. Schedulers send SIGTERM before a job ends."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.queues
import multiprocessing.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from .distributed import get_world_size, is_main_process
from .machine import NO_OPEN_FILE, NO_SHARED_MEMORY


class StopRequest:
    """Notices SIGTERM and SIGINT between ``__enter__`` and ``__exit__``; loops ask between
    iterations. A second Ctrl-C is a KeyboardInterrupt, unless the loop ``waits`` for programs that
    are saving.

    ``signum`` is the first that this process received, or 0. Data workers need
    :func:`sigterm_held` and :func:`prepare_worker`.
    """

    def __init__(self, *, waits: bool = False) -> None:
        self.signum, self._waits, self._since = 0, waits, 0.0
        self._before: dict[int, Any] = {}
        self._asked: tuple[Any, torch.Tensor] | None = None  # flags that are on their way

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # not the main thread, as in some notebooks
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._notice)
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        asked, self._asked = self._asked, None
        if asked is not None and exc[0] is None:
            asked[0].wait()  # or the group would end before it

    def _notice(self, signum: int, frame: object) -> None:
        is_ctrl_c = signum == signal.SIGINT and not self._waits
        if self.signum:
            # Sooner it is the same one, which torchrun forwards.
            if is_ctrl_c and time.monotonic() > self._since + 1:
                raise KeyboardInterrupt
            return
        self.signum, self._since = signum, time.monotonic()
        if is_ctrl_c and is_main_process():  # no print, which may be what is interrupted
            os.write(2, b"\nSaves after this iteration and stops. Ctrl-C again: at once.\n")

    @property
    def requested(self) -> bool:
        """Whether this process received a signal."""
        return self.signum > 0

    @property
    def name(self) -> str:
        """The signal's name; of SIGTERM where only another process received one."""
        return signal.Signals(self.signum or signal.SIGTERM).name

    def agreed(self, *, now: bool = False) -> bool:
        """Return whether any process had received a signal at the call before this one, or with
        ``now`` at this one. Collective.

        In a loop the flags travel while it works, so that neither a GPU nor the network is waited
        for; ``now`` waits for all processes.
        """
        if get_world_size() == 1:
            return self.requested
        flag = torch.tensor([float(self.requested)])
        asking = torch.distributed.all_reduce(flag, async_op=True), flag
        answer, self._asked = (asking, None) if now else (self._asked, asking)
        if answer is None:
            return False
        answer[0].wait()
        return bool(answer[1].item() > 0)


@contextlib.contextmanager
def sigterm_held() -> Iterator[None]:
    """Hold SIGTERM and Ctrl-C back while data workers start, which inherit this until they ignore
    them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker(worker: int) -> None:
    """Prepare a data worker, for ``worker_init_fn``.

    It ignores SIGTERM, which schedulers and torchrun send to all processes of a job, and SIGINT,
    which notebooks do: the training process needs its workers until it has saved. And it ends when
    it cannot hand over a batch.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(_end_worker)
    sys.excepthook = _without_the_main_process


def _without_the_main_process(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    # Of a worker's own threads. One that hands over a batch when the main process ends says so at
    # length, after the sentence of the main process.
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _end_worker(error: Exception, _batch: Any) -> None:
    # The queue's own thread moves batches into shared memory. By default it prints the error and
    # drops the batch, for which the training process would wait for ever.
    print(f"data worker: {error}", file=sys.stderr, flush=True)
    time.sleep(1)  # the training process may still be taking earlier batches from this one
    no_file = isinstance(error, OSError) or "Too many open files" in str(error)
    os._exit(NO_OPEN_FILE if no_file else NO_SHARED_MEMORY)


@atexit.register
def _kill_workers() -> None:
    # multiprocessing sends its workers SIGTERM at exit and waits for them, here forever. Its exit
    # function runs after this one: the import above registered it first.
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a killed worker
    for worker in workers:
        worker.kill()
