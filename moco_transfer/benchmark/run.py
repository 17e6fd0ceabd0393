"""Runs what is missing of a matrix, continues past a run that fails, and can be stopped at any
time.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from ..data.annotations.label_subset import write_label_subset
from ..report.records import last_iteration
from ..runtime.progress import progress
from ..runtime.stop import StopRequest
from .cell_states import COMPLETE, ProgressNotes, state_of
from .launch import CONSOLE, SAVES_WITHIN_SEC, LaunchSettings, output_lock
from .matrix import Cell, Matrix
from .plan import BenchmarkPlan

T = TypeVar("T")

_POLL_SEC = 0.5


@dataclass(frozen=True)
class Failure:
    """A run that ended without a results.json: its exit status and the last line it printed."""

    cell: Cell
    status: int
    last_words: str

    @property
    def why(self) -> str:
        """How it ended, and where all of its output is."""
        status = f"exit status {self.status}: {self.last_words}"
        return f"{status} (all output: {self.cell.folder / CONSOLE})"

    def __str__(self) -> str:
        """Return the failure as one line."""
        return f"{self.cell.folder}: {self.why}"


@dataclass(eq=False)
class Stopped(Exception):
    """SIGTERM or Ctrl-C came, and the runs (also those in a queue) were told to save and end;
    ``num_killed`` did not end in time.
    """

    signum: int
    num_running: int
    num_killed: int
    outlives: bool = False  # whether the runs go on without the benchmark, as Slurm's jobs

    def advice(self, output: Path) -> str:
        """Return what became of the runs, and how to continue."""
        again = f"moco-transfer benchmark --output {output}"
        if self.outlives:
            jobs = f"{self.num_running} job(s) stay in Slurm's queue or run on there"
            end = f"end them with scancel, by the numbers in {output / 'slurm' / 'jobs.json'}"
            return f"Stopped watching. {jobs}; {end}. Watch them again with: {again}"
        killed = f"{self.num_killed} run(s) did not end in time and were killed"
        state = killed if self.num_killed else "every run has saved"
        return f"Stopped; {state}. Continue from the last checkpoints with: {again}"


def train_command(matrix: Matrix, settings: LaunchSettings, cell: Cell) -> list[str]:
    """Return the command of a run."""
    processes = settings.num_processes()
    several = ["--num-gpus", str(processes)] if processes > 1 else []
    train = [sys.executable, "-m", "moco_transfer", "train", *several]
    return [*train, *matrix.arguments(cell)]


def run_benchmark(
    plan: BenchmarkPlan,
    settings: LaunchSettings,
    *,
    num_gpus: int,
    on_end: Callable[[list[Failure]], T],
    on_finished: Callable[[Cell], None] = lambda cell: None,
) -> T:
    """Run what is missing of a plan, and return what ``on_end`` returns, which is called with the
    runs that failed while no other benchmark can take the folder.

    Raises:
        Stopped: As :func:`run_cells`.
    """
    matrix = plan.matrix
    with output_lock(matrix.output) as lock:
        states = ((p.cell, p.iterations, state_of(p.cell).name) for p in plan.cells)
        todo = [(cell, iterations) for cell, iterations, state in states if state != COMPLETE]
        launcher = settings.make(matrix.output, num_gpus=num_gpus, lock=lock)
        matrix.save()
        for file, subset in plan.new_subsets.items():
            write_label_subset(file, subset)
        settings.save(matrix.output)
        notes = ProgressNotes(matrix.output, {p.cell.folder: p.iterations for p in plan.cells})

        def note(running: Sequence[Cell], failures: Sequence[Failure]) -> None:
            notes.write(running, {failure.cell.folder: failure.why for failure in failures})

        note([], [])
        command = partial(train_command, matrix, settings)
        return on_end(run_cells(todo, launcher, command, on_finished=on_finished, on_change=note))


def run_cells(
    cells: Sequence[tuple[Cell, int]],
    launcher: Any,
    command: Callable[[Cell], list[str]],
    *,
    on_finished: Callable[[Cell], None],
    on_change: Callable[[Sequence[Cell], Sequence[Failure]], None] = lambda running, failures: None,
) -> list[Failure]:
    """Run incomplete cells, each with its number of iterations, and return the runs that failed.

    ``launcher`` (see :mod:`.launch`) starts the ``command`` of each; ``on_finished`` is called
    after each that has its results, ``on_change`` with the runs in progress and the failures
    whenever one of them has changed.

    Raises:
        Stopped: On SIGTERM or Ctrl-C, after the runs have saved; further signals change nothing.
    """
    waiting = list(cells)
    failures: list[Failure] = []
    running: dict[int, tuple[Cell, Any]] = {}
    total = sum(iterations for _, iterations in cells)
    # A flag: an exception between the start of a run and its entry in the list would lose it.
    stop = StopRequest(waits=True)
    with stop, progress(total=total) as bar:
        bar.update(sum(last_iteration(cell.folder) for cell, _ in cells))
        try:
            while (waiting or running) and not stop.signum:
                while waiting and len(running) < launcher.lanes and not stop.signum:
                    cell, _ = waiting.pop(0)
                    lane = next(lane for lane in range(len(running) + 1) if lane not in running)
                    running[lane] = (cell, launcher.start(command(cell), cell.folder, lane))
                    on_change([cell for cell, _ in running.values()], failures)
                time.sleep(_POLL_SEC)
                for lane, (cell, job) in list(running.items()):
                    status = job.poll()
                    if status is None:
                        continue
                    del running[lane]
                    if status == 0 and state_of(cell).name == COMPLETE:
                        on_finished(cell)
                    elif not stop.signum:  # a signal to the whole group reaches the runs as well
                        failures.append(Failure(cell, status, _last_words(cell.folder)))
                        tqdm.write(f"FAILED {failures[-1]}")
                    on_change([cell for cell, _ in running.values()], failures)
                ended = len(cells) - len(waiting) - len(running)
                bar.set_description(f"{ended}/{len(cells)} runs", refresh=False)
                done = (min(total, last_iteration(cell.folder)) for cell, total in cells)
                bar.update(sum(done) - bar.n)
        finally:
            if stop.signum:
                tqdm.write(f"stopping: runs save and end (up to {SAVES_WITHIN_SEC} s)", sys.stderr)
            jobs = [job for _, job in running.values()]
            num_killed = 0 if launcher.outlives_benchmark else _stop(jobs)
        if stop.signum:
            outlives = launcher.outlives_benchmark
            raise Stopped(stop.signum, len(jobs), num_killed, outlives)
    return failures


def _stop(jobs: Sequence[subprocess.Popen[bytes]]) -> int:
    """Tell runs to save and end, kill those that do not in time, and return how many."""
    for job in jobs:
        job.terminate()
    until, num_killed = time.monotonic() + SAVES_WITHIN_SEC, 0
    for job in jobs:
        try:
            job.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()
            num_killed += 1
    return num_killed


def _last_words(folder: Path) -> str:
    try:
        lines = (folder / CONSOLE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
