"""Runs what is missing of a matrix, goes on past a run that fails, and can be stopped at any time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .launch import CONSOLE, SAVES_WITHIN_SEC
from .matrix import Cell
from .state import COMPLETE, last_iteration, state_of

_POLL_SEC = 0.5


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
        return (
            f"{self.cell.folder}: exit status {self.status}: {self.last_words} (all of it:"
            f" {self.cell.folder / CONSOLE})"
        )


class Stopped(Exception):
    """SIGTERM or Ctrl-C came, and the runs were told to save and end, where they do not go on
    alone.

    Attributes:
        signum: Of the signal.
        num_running: Runs that were going on, or waited in a queue.
        num_killed: Those of them that did not end in time.
    """

    def __init__(self, signum: int, *, num_running: int, num_killed: int) -> None:
        super().__init__(signum)
        self.signum, self.num_running, self.num_killed = signum, num_running, num_killed


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
        Stopped: On SIGTERM or Ctrl-C, after the runs have saved. Further signals change nothing
            until then.
    """
    waiting, failures = list(cells), []
    running: dict[int, tuple[Cell, Any]] = {}
    total = sum(iterations for _, iterations in cells)
    ended = 0
    with (
        _StopSignals() as stop,
        tqdm(total=total, unit="it", desc=f"0/{len(cells)} runs", disable=None) as bar,
    ):
        bar.update(sum(state_of(cell).iteration for cell, _ in cells))
        try:
            while (waiting or running) and not stop.signum:
                while waiting and len(running) < launcher.lanes and not stop.signum:
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
                    elif (
                        not stop.signum
                    ):  # a signal to all processes of the terminal or the job reaches runs as well
                        failures.append(Failure(cell, status, _last_words(cell.folder / CONSOLE)))
                        tqdm.write(f"FAILED {failures[-1]}")
                bar.n = sum(
                    min(iterations, last_iteration(cell.folder)) for cell, iterations in cells
                )
                bar.refresh()
        finally:
            jobs = [job for _, job in running.values()]
            num_killed = _stop(jobs)
        if stop.signum:
            raise Stopped(stop.signum, num_running=len(jobs), num_killed=num_killed)
    return failures


def _stop(jobs: Sequence[Any]) -> int:
    """Tell all jobs to save and end, wait for them together, and return how many did not end in
    time.
    """
    for job in jobs:
        job.ask_to_stop()
    until = time.monotonic() + SAVES_WITHIN_SEC
    return sum(not job.wait_until_stopped(until) for job in jobs)


class _StopSignals:
    """Notes SIGTERM and Ctrl-C instead of raising: an exception between the start of a run and its
    entry in the list would lose it.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        self._before = {
            signum: signal.signal(signum, self._note) for signum in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: object) -> None:
        again = bool(self.signum)
        self.signum = self.signum or signum
        text = "still waiting for runs to save and end" if again else "stopping: runs save and end"
        os.write(2, f"\n{text} (up to {SAVES_WITHIN_SEC} s) ...\n".encode())


def _last_words(console: Path) -> str:
    try:
        lines = console.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it printed nothing"
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
