"""How far each run of a matrix is: from its folder, and from what the benchmark that is running
notes in ``progress.json``.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..report import Problem, RunRecord, read_run
from ..report.aggregate import headline
from ..report.html.progress import RunProgress
from ..report.records import last_iteration, text_of
from ..runtime.checkpoint import LAST
from ..runtime.files import atomic_write_text
from ..runtime.health.hangs import hang
from ..runtime.text import parse_json
from .matrix import Cell, Matrix

COMPLETE, INTERRUPTED, MISSING = "complete", "interrupted", "missing"
LOCK = ".lock"  # of the output folder: held by a benchmark and the runs that it started
_PROGRESS = "progress.json"


@dataclass(frozen=True)
class CellState:
    """How far a run is."""

    name: str  # complete, interrupted (it can be resumed) or missing
    iteration: int = 0  # finished, as far as they are logged
    record: RunRecord | None = None  # of a complete run
    wall_sec: float | None = None  # of a complete run that was not resumed: its whole duration


def state_of(cell: Cell) -> CellState:
    """Return how far a run is; with an unreadable results.json it is evaluated again."""
    results = cell.folder / "results.json"
    found = read_run(results) if results.exists() else []
    if found and not isinstance(found, Problem):
        was_resumed = "resumed from " in text_of(cell.folder, "log.txt")
        wall_sec = None if was_resumed else found[0].wall_sec
        return CellState(COMPLETE, found[0].iterations, found[0], wall_sec)
    if (cell.folder / LAST).exists() or results.exists():
        return CellState(INTERRUPTED, last_iteration(cell.folder))
    return CellState(MISSING)


class ProgressNotes:
    """Notes in the output folder which runs are in progress and which have failed, for those that
    watch; ``iterations`` are those of a whole run, by its folder.
    """

    def __init__(self, output: Path, iterations: Mapping[Path, int]) -> None:
        self._file = output / _PROGRESS
        self._iterations = {str(f.relative_to(output)): n for f, n in iterations.items()}

    def write(self, running: Sequence[Cell], failed: Mapping[Path, str]) -> None:
        """Replace what is noted: the runs in progress, and why others failed, by their folders."""
        output = self._file.parent
        notes = {
            "iterations": self._iterations,
            "running": [str(cell.folder.relative_to(output)) for cell in running],
            "failed": {str(folder.relative_to(output)): why for folder, why in failed.items()},
        }
        atomic_write_text(self._file, json.dumps(notes, indent=1) + "\n")


def progress_of(matrix: Matrix) -> tuple[list[RunProgress], bool]:
    """Return how far each run is, and whether a benchmark is running. A run that the notes of an
    ended benchmark call running was interrupted.
    """
    is_running = is_locked(matrix.output)
    notes = _read_notes(matrix.output)
    running = set(notes["running"]) if is_running else set()
    found = []
    for cell in matrix.cells():
        folder, state = str(cell.folder.relative_to(matrix.output)), state_of(cell)
        name, text, iteration = state.name, "", state.iteration
        if state.record is not None:
            text = headline(state.record)
        elif folder in running:
            name, iteration, text = "running", last_iteration(cell.folder), hang(cell.folder)
        elif folder in notes["failed"]:
            name, text = "failed", notes["failed"][folder]
        total = notes["iterations"].get(folder, 0)
        task, init = cell.task_name, cell.init.name
        found.append(
            RunProgress(task, init, cell.seed, name, str(cell.folder), iteration, total, text)
        )
    return found, is_running


def _read_notes(output: Path) -> dict[str, Any]:
    notes: dict[str, Any] = {"iterations": {}, "running": [], "failed": {}}
    try:
        found = parse_json((output / _PROGRESS).read_text(encoding="utf-8"))
        return notes | {key: found[key] for key in notes if type(found[key]) is type(notes[key])}
    except (OSError, ValueError, LookupError, TypeError):  # an older benchmark's, or a damaged file
        return notes


def is_locked(output: Path) -> bool:
    """Return whether a benchmark, or a run that it started, holds the output folder."""
    try:
        with open(output / LOCK, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file yet
        pass
    return False
