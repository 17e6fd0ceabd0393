"""How far each run of a matrix is, read from its folder alone."""

from __future__ import annotations

from dataclasses import dataclass

from ..report import Problem, RunRecord, read_run
from ..report.records import last_iteration, text_of
from ..runtime.checkpoint import LAST
from .matrix import Cell

COMPLETE, INTERRUPTED, MISSING = "complete", "interrupted", "missing"


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
