"""All trackers of a run as one. A tracker that fails, hangs or is killed never disturbs the run."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean
from .writers import EXTRAS, WRITERS, RunFacts, Writer, numbers

logger = logging.getLogger(__name__)

DEFAULT = ("tensorboard",)
STARTS_WITHIN = 30.0  # s that a run waits for a tracker to start
ENDS_WITHIN = 60.0  # s that it waits for a tracker to take what is left


def check_loggers(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of LOGGERS.

    Raises:
        InputError: If one is unknown, or needs a package that is not installed.
    """
    for name in names:
        if name not in WRITERS:
            known = ", ".join(WRITERS)
            hint = did_you_mean(str(name), WRITERS)
            raise InputError(f"LOGGERS has {name!r}, expected some of {known}.{hint}")
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise InputError(
                f"LOGGERS has {name!r}, but the package {name} is not installed. Install it (pip"
                f" install 'moco-transfer[{name}]'), or leave it out."
            )
    return tuple(dict.fromkeys(names))


def written_by(names: Iterable[str]) -> str:
    """Return the files and folders of trackers in OUTPUT_DIR, each behind a comma."""
    places = {"tensorboard": "tensorboard/", "csv": "metrics.csv", "wandb": "wandb/"}
    return "".join(f", {places[name]}" for name in names if name in places)


class Trackers:
    """Hands rows and files to the trackers of LOGGERS, each on a thread of its own."""

    def __init__(self, names: Iterable[str], run: RunFacts) -> None:
        self._workers = [_Worker(name, run) for name in names]

    def log(self, iteration: int, values: dict[str, Any]) -> None:
        """Take a row of metrics.json; what is no number is left out."""
        row = numbers(values)
        self._do(lambda writer: writer.log(iteration, row))

    def save(self, files: Iterable[Path]) -> None:
        """Take those of the files that exist."""
        for file in filter(Path.is_file, files):
            self._do(lambda writer, file=file: writer.save(file))  # type: ignore[misc]

    def close(self, *, finished: bool) -> None:
        """End all records, for which it waits a limited time."""
        self._do(lambda writer: writer.close(finished=finished))
        for worker in self._workers:
            worker.end()

    def _do(self, call: Callable[[Writer], None]) -> None:
        for worker in self._workers:
            worker.calls.put(call)


class _Worker:
    def __init__(self, name: str, run: RunFacts) -> None:
        self.calls: queue.SimpleQueue[Callable[[Writer], None] | None] = queue.SimpleQueue()
        self._name, self._started = name, threading.Event()
        # A daemon: a process may end while a tracker still waits for its server.
        self._thread = threading.Thread(target=self._work, args=(run,), daemon=True, name=name)
        self._thread.start()
        # Data workers are forked after this: none while the thread imports a library.
        self._started.wait(STARTS_WITHIN)

    def _work(self, run: RunFacts) -> None:
        try:
            try:
                writer = WRITERS[self._name](run)
            finally:
                self._started.set()
            while (call := self.calls.get()) is not None:
                call(writer)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0][:300]
            text = f"{type(error).__name__}: {reason}"
            logger.warning(
                "LOGGERS: %s failed (%s); the run continues without it.", self._name, text
            )
            with contextlib.suppress(Exception):
                while self.calls.get() is not None:  # so that rows do not pile up
                    pass

    def end(self) -> None:
        self.calls.put(None)
        self._thread.join(ENDS_WITHIN)
        if self._thread.is_alive():
            text = "LOGGERS: %s has not taken everything within %.0f s, and is left behind."
            logger.warning(text, self._name, ENDS_WITHIN)
