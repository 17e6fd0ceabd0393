"""Runs what is missing of a matrix, goes on past a run that fails, and can be stopped at any time."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .launch import CONSOLE
from .matrix import Cell
from .state import COMPLETE, last_iteration, state_of

_POLL_SEC = 0.5
_TOLD_TO_STOP = 143  # 128 + SIGTERM: the run has saved, somebody else ended it


@dataclass(frozen=True)
class Failure:
    """A run that did not end with a results.json.

    Attributes:
        cell: The run.
        status: Its exit status.
        last_words: The last line that it printed.
    """

    cell: Cell
    status: int
    last_words: str

    def __str__(self) -> str:
        """Return the failure as one line, with the place of the whole story."""
        return f"{self.cell.folder}: exit status {self.status}: {self.last_words} (all of it: {self.cell.folder / CONSOLE})"


class Stopped(Exception):
    """SIGTERM came; every run was told to save."""


def run_cells(
    cells: Sequence[tuple[Cell, int]],
    launcher: Any,
    command: Callable[[Cell], list[str]],
    *,
    on_finished: Callable[[Cell], None],
) -> list[Failure]:
    """Run cells, as many at a time as the launcher takes.

    Args:
        cells: Those that are not complete, each with its number of iterations, in their order.
        launcher: See :mod:`moco_transfer.benchmark.launch`.
        command: The command of a cell.
        on_finished: Called after each cell that has its results.

    Returns:
        The runs that failed; the others ran all the same.

    Raises:
        Stopped: On SIGTERM, after the runs have saved; KeyboardInterrupt likewise.
    """
    waiting, failures = list(cells), []
    running: dict[int, tuple[Cell, Any]] = {}
    total = sum(iterations for _, iterations in cells)
    ended = 0
    with _sigterm_raises(), tqdm(total=total, unit="it", desc=f"0/{len(cells)} runs", disable=None) as bar:
        bar.update(sum(state_of(cell).iteration for cell, _ in cells))
        try:
            while waiting or running:
                while waiting and len(running) < launcher.lanes:
                    cell, _ = waiting.pop(0)
                    lane = next(lane for lane in range(len(running) + 1) if lane not in running)
                    running[lane] = (cell, launcher.start(command(cell), cell.folder, lane))
                time.sleep(_POLL_SEC)
                for lane, (cell, job) in list(running.items()):
                    status = job.poll()
                    if status is None:
                        continue
                    del running[lane]
                    ended += 1
                    bar.set_description(f"{ended}/{len(cells)} runs")
                    if status == 0 and state_of(cell).name == COMPLETE:
                        on_finished(cell)
                    else:
                        failures.append(Failure(cell, status, _last_words(cell.folder / CONSOLE)))
                        tqdm.write(f"FAILED {failures[-1]}")
                bar.n = sum(min(iterations, last_iteration(cell.folder)) for cell, iterations in cells)
                bar.refresh()
        finally:
            for _, job in running.values():
                job.stop()
    return failures


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(signum: int, frame: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_words(console: Path) -> str:
    try:
        lines = console.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it printed nothing"
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
