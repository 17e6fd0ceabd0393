"""metrics.json: one JSON object per line, key ``iteration``, as Detectron2 names and writes it.

Look at it with ``jq -s 'map({iteration, loss})' metrics.json``.
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from .files import atomic_write_text
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            rows = read_metrics(self.path) if start_iteration else []
            kept = (json.dumps(row) for row in rows if row["iteration"] <= start_iteration)
            atomic_write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open during the run
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

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

    def close(self) -> None:
        """Close the file and the TensorBoard writer."""
        with contextlib.suppress(OSError):  # of a full disk: writing has said so
            self._file.close()
            if self._writer is not None:
                self._writer.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.json that have the key ``iteration``, without a cut-off line."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "iteration" in row:
            rows.append(row)
    return rows
