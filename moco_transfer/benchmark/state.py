"""How far each run of a matrix is, read from its folder alone: nothing about a run is kept anywhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..report import Problem, read_run
from ..runtime.checkpoint import LAST
from .matrix import Cell

COMPLETE, INTERRUPTED, MISSING = "complete", "interrupted", "missing"


@dataclass(frozen=True)
class CellState:
    """Where a run stands.

    Attributes:
        name: ``complete``, ``interrupted`` (it goes on) or ``missing``.
        iteration: Iterations finished, as far as they are logged.
        wall_sec: Duration of a complete run in seconds, None otherwise.
    """

    name: str
    iteration: int = 0
    wall_sec: float | None = None


def state_of(cell: Cell) -> CellState:
    """Return where a run stands; a results.json that cannot be read counts as none, so that its run is evaluated again."""
    results = cell.folder / "results.json"
    found = read_run(results) if results.exists() else None
    if found and not isinstance(found, Problem):
        return CellState(COMPLETE, found[0].iterations, found[0].wall_sec)
    if (cell.folder / LAST).exists() or results.exists():
        return CellState(INTERRUPTED, last_iteration(cell.folder))
    return CellState(MISSING)


def last_iteration(folder: Path) -> int:
    """Return the last iteration in metrics.json, 0 where there is none."""
    try:
        with open(folder / "metrics.json", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return int(json.loads(lines[-1])["iteration"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def difference_from_record(cell: Cell, *, config_hash: str, engine: str, weights_sha256: str | None) -> str | None:
    """Return in what a complete run is not the matrix's run, as a sentence, or None.

    Args:
        cell: A complete run.
        config_hash: Of the config as it would be run now.
        engine: That would run it now.
        weights_sha256: Of its weights' file now; None for random weights.
    """
    record = read_run(cell.folder / "results.json")[0]
    pairs = {
        "task": (record.task, cell.task_name),
        "init": (record.init, cell.init.name),
        "seed": (record.seed, cell.seed),
        "engine": (record.engine, engine),
        "config hash": (record.config_hash, config_hash),
        "sha256 of the weights": (record.weights.get("sha256"), weights_sha256),
    }
    different = [f"{name} {then!r}, now {now!r}" for name, (then, now) in pairs.items() if then != now]
    if not different:
        return None
    return f"{cell.folder} holds another run ({'; '.join(different)}). Choose another --output, or move that folder away to run it again."
