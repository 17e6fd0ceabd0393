"""How far each run of a matrix is, read from its folder alone: nothing about a run is kept anywhere
else.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ..report import Problem, read_run
from ..runtime.checkpoint import LAST
from .matrix import Cell

LOG = "log.txt"
_RESUMED = "resumed from "  # of the line that a run logs when it goes on
COMPLETE, INTERRUPTED, MISSING = "complete", "interrupted", "missing"


@dataclass(frozen=True)
class CellState:
    """Where a run stands.

    Attributes:
        name: ``complete``, ``interrupted`` (it goes on) or ``missing``.
        iteration: Iterations finished, as far as they are logged.
        wall_sec: Duration of a run in seconds; None where it is not complete, or went on after an
            interruption and recorded only its last part.
    """

    name: str
    iteration: int = 0
    wall_sec: float | None = None


def state_of(cell: Cell) -> CellState:
    """Return where a run stands; a results.json that cannot be read counts as none, so that its run
    is evaluated again.
    """
    results = cell.folder / "results.json"
    found = read_run(results) if results.exists() else None
    if found and not isinstance(found, Problem):
        return CellState(
            COMPLETE, found[0].iterations, None if _was_resumed(cell.folder) else found[0].wall_sec
        )
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


def _was_resumed(folder: Path) -> bool:
    try:
        return _RESUMED in (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def difference_from_record(
    cell: Cell,
    *,
    config_hash: str,
    engine: str,
    weights_sha256: str | None,
    label_subset_sha256: str | None,
) -> str | None:
    """Return in what a complete run is not the matrix's run, as a sentence, or None.

    Args:
        cell: A complete run.
        config_hash: Of the config as it would be run now.
        engine: That would run it now.
        weights_sha256: Of its weights' file now; None for random weights.
        label_subset_sha256: Of the list of images whose labels are used; None for all.
    """
    record = read_run(cell.folder / "results.json")[0]
    pairs = {
        "task": (record.task, cell.task_name),
        "init": (record.init, cell.init.name),
        "seed": (record.seed, cell.seed),
        "engine": (record.engine, engine),
        "config hash": (record.config_hash, config_hash),
        "sha256 of the weights": (record.weights.get("sha256"), weights_sha256),
        "sha256 of the label subset": (record.label_subset or None, label_subset_sha256),
    }
    return _difference(cell, pairs)


def difference_from_checkpoint(
    cell: Cell,
    *,
    config_hash: str,
    engine: str,
    weights_sha256: str | None,
    label_subset_sha256: str | None,
) -> str | None:
    """Return in what an interrupted run is not the matrix's run, as far as its checkpoint says, or
    None.

    A checkpoint that cannot be read says nothing here: its run fails by itself and is named, and
        the others run.

    Args:
        cell: An interrupted run.
        config_hash: As of :func:`difference_from_record`, and so are the others.
        engine: Likewise.
        weights_sha256: Likewise.
        label_subset_sha256: Likewise.
    """
    header = _checkpoint_header(cell.folder)
    now = {
        "engine": engine,
        "config_hash": config_hash,
        "weights_sha256": weights_sha256,
        "label_subset_sha256": label_subset_sha256,
        "init": cell.init.name,
        "seed": cell.seed,
    }
    names = {
        "config_hash": "config hash",
        "weights_sha256": "sha256 of the weights",
        "label_subset_sha256": "sha256 of the label subset",
    }
    # Checkpoints of earlier versions say less.
    return _difference(
        cell,
        {names.get(key, key): (header[key], value) for key, value in now.items() if key in header},
    )


def _checkpoint_header(folder: Path) -> dict:
    try:
        file = folder / (folder / LAST).read_text(encoding="utf-8").strip()
        # Mapped, not read: a detector's checkpoint is hundreds of megabytes, what it says of itself
        # is a few lines.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ):
        return {}
    return state if isinstance(state, dict) else {}


def _difference(cell: Cell, pairs: dict[str, tuple[object, object]]) -> str | None:
    different = [
        f"{name} {then!r}, now {now!r}" for name, (then, now) in pairs.items() if then != now
    ]
    if not different:
        return None
    return (
        f"{cell.folder} holds another run ({'; '.join(different)}). Choose another --output, or"
        " move that folder away to run it again."
    )
