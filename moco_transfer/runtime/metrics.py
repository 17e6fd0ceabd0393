"""metrics.json: one JSON object per line, key ``iteration``, as Detectron2 names and writes it.

Look at it with ``jq -s 'map({iteration, loss})' metrics.json``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import atomic_write_text, make_folder
from .machine import writing


class MetricsFile:
    """Appends measurements of a run, with ``tensorboard`` also as event files next to it.

    Lines after ``start_iteration``, the iterations finished, are removed: the run computes them
    again.
    """

    def __init__(
        self, path: str | Path, *, start_iteration: int = 0, tensorboard: bool = False
    ) -> None:
        self.path = Path(path)
        make_folder(self.path.parent)
        if self.path.exists():
            rows = read_metrics(self.path) if start_iteration else []
            kept = (json.dumps(row) for row in rows if row["iteration"] <= start_iteration)
            atomic_write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open during the run
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            threading.excepthook = _without_full_disks
            folder = str(self.path.parent / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=start_iteration + 1)

    def write(self, iteration: int, values: dict[str, Any]) -> None:
        """Append one line; a number that is not finite becomes null: JSON has no NaN."""
        row = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with writing(self.path):
            self._file.write(json.dumps({"iteration": iteration} | row) + "\n")
            self._file.flush()
        if self._writer is not None:
            with writing(self.path.parent / "tensorboard"):
                for name, value in values.items():
                    if isinstance(value, (int, float)):
                        self._writer.add_scalar(name, value, iteration)

    def sync(self) -> None:
        """Make the lines last through a power cut: before a checkpoint that follows them."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and the TensorBoard writer."""
        with contextlib.suppress(OSError, InputError):  # of a full disk: writing has said so
            self.sync()
        with contextlib.suppress(OSError):
            self._file.close()
            if self._writer is not None:
                self._writer.close()


def _without_full_disks(args: threading.ExceptHookArgs) -> None:
    """Leave out the traceback of TensorBoard's thread: the next write raises its error again."""
    of_tensorboard = type(args.thread).__module__.startswith("tensorboard.")
    if not (of_tensorboard and isinstance(args.exc_value, OSError)):
        threading.__excepthook__(args)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.json that have the key ``iteration``, a whole number, without
    lines that are cut off or damaged.
    """
    rows = []
    for line in Path(path).read_bytes().splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: no JSON, no UTF-8, 5,000 digits
            continue
        if isinstance(row, dict) and isinstance(row.get("iteration"), int):
            rows.append(row)
    return rows
