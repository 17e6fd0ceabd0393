"""OUTPUT_DIR of a run: refuses to mix two runs, and records what the run is before it starts."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from .checkpoint import LAST
from .distributed import barrier, broadcast_object, cpu_group, get_world_size, is_main_process
from .environment import environment_report
from .errors import InputError
from .files import atomic_write_text

logger = logging.getLogger(__name__)

T = TypeVar("T")


def open_run_folder(
    output_dir: str | Path, *, resume: bool, config_text: str | None, environment: bool = True
) -> Path:
    """Make OUTPUT_DIR and write ``config.yaml`` and ``env.txt`` into it. Collective.

    Args:
        output_dir: The run's folder.
        resume: Whether a run that is already there is to be continued.
        config_text: The full, merged config as YAML. None where it is not yet sure that the run can
            go on: what a refused run would have been must not stand in the folder of another.
                :func:`record_settings` then writes both files.
        environment: Also write env.txt.

    Returns:
        The folder.

    Raises:
        InputError: If the folder holds a run and ``resume`` is not set: its results would be lost
            or mixed.
    """
    folder = Path(output_dir)
    # Decided on one process and told to all: the first to write would otherwise look like an old
    # run to the others.
    state = _state(folder) if is_main_process() else None
    state = broadcast_object(state)
    if state and not resume:
        raise InputError(
            f"OUTPUT_DIR {folder} already holds a run ({state}). Continue it with --resume, or"
            " choose another OUTPUT_DIR."
        )
    if config_text is not None:
        record_settings(folder, config_text, environment=environment)
    return folder


def record_settings(folder: Path, config_text: str, *, environment: bool = True) -> None:
    """Write ``config.yaml`` and ``env.txt`` into a run's folder; arguments as of
    :func:`open_run_folder`. Collective.
    """
    if is_main_process():
        atomic_write_text(folder / "config.yaml", config_text)
        if environment:
            atomic_write_text(folder / "env.txt", environment_report())
    barrier()


def _state(folder: Path) -> str:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"OUTPUT_DIR {folder} is a file, expected a folder.")
    present = [name for name in (LAST, "metrics.json", "results.json") if (folder / name).exists()]
    return ", ".join(present)


class Stopped(Exception):
    """A piece of work was ended because the run was told to stop; raised on all processes alike."""


class _Interrupted(BaseException):
    """Raised by SIGTERM in the middle of a wait; no Exception, so that nothing on its way takes it
    for an error of its own.
    """


class StopRequest:
    """Notices SIGTERM (a scheduler's warning) so that a run can save before it ends.

    Use as ``with StopRequest() as stop: …``, fetch with :meth:`next_of` what may have to be waited
    for, and ask :meth:`agreed` before every piece of work that all processes do together.
    """

    def __init__(self) -> None:
        self._seen = False
        self._before: Any = None
        self._waiting = False
        self._over = False
        self._pid = os.getpid()

    def __enter__(self) -> StopRequest:
        def notice(signum: int, frame: object) -> None:
            self._seen = True
            # A data worker forked during a wait inherits this handler until it has its own.
            if self._waiting and os.getpid() == self._pid:
                raise _Interrupted

        try:
            self._before = signal.signal(signal.SIGTERM, notice)
        except (
            ValueError
        ):  # not in the main thread (a notebook's worker): signals cannot be caught there
            self._before = None
        threading.Thread(target=self._insist, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over = True
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _insist(self) -> None:
        # Python drops an exception that is raised in a callback, such as those around a fork, and
        # the wait would go on.
        while not self._over:
            if self._seen and self._waiting:
                os.kill(self._pid, signal.SIGTERM)
            time.sleep(1)

    def next_of(self, iterator: Iterator[T]) -> T | None:
        """Return an iterator's next item, or None when this process was told to stop, also while it
        waited for the item.

        After None the iterator may be unusable. Other processes need not have been told: ask
            :meth:`agreed` next.

        Args:
            iterator: One whose items can be had again, such as a loader's batches.
        """
        try:
            try:
                self._waiting = (
                    True  # before the flag is looked at: the signal may come between the two
                )
                return None if self._seen else next(iterator)
            finally:
                self._waiting = False
        except _Interrupted:
            self._waiting = False  # the signal may have come in ``finally``
            return None
        except RuntimeError:
            if self._seen:  # data workers that the same signal ended
                return None
            raise

    def until_told(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items, and end before the last where :meth:`next_of` does."""
        iterator = iter(items)
        while True:
            try:
                item = self.next_of(iterator)
            except StopIteration:
                return
            if item is None:
                return
            yield item

    def agreed(self, device: torch.device | None = None) -> bool:
        """Return whether any process was told to stop. Collective: all must leave at the same
        iteration.

        Args:
            device: Where the processes compute. Not needed: they agree over the CPU, so that no
                host waits for its GPU.
        """
        if get_world_size() == 1:
            return self._seen
        flag = torch.tensor([float(self._seen)])
        torch.distributed.all_reduce(flag, group=cpu_group())
        return bool(flag.item() > 0)
