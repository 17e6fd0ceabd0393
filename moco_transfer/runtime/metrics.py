"""metrics.json: one JSON object per line, key ``iteration``, as Detectron2 names and writes it.

Look at it with ``jq -s 'map({iteration, loss})' metrics.json``.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from .files import atomic_write_text

logger = logging.getLogger(__name__)


class MetricsFile:
    """Appends measurements of a run; a resumed run first drops what lies beyond its checkpoint.

    Args:
        path: The file, usually ``OUTPUT_DIR/metrics.json``.
        start_iteration: Iterations finished when the run starts. Lines with a larger number are
            removed, because the run is about to compute them again.
        tensorboard: Also write TensorBoard event files beside it.
    """

    def __init__(
        self, path: str | Path, *, start_iteration: int = 0, tensorboard: bool = False
    ) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._truncate(start_iteration)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - stays open as long as the run
        self._writer = self._tensorboard(start_iteration) if tensorboard else None

    def write(self, iteration: int, values: dict[str, Any]) -> None:
        """Append one line.

        Args:
            iteration: Iterations finished.
            values: Numbers by name. A number that is not finite becomes null: JSON has no NaN.
        """
        row = {"iteration": iteration} | {k: _plain(v) for k, v in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Close the file and the TensorBoard writer."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def _truncate(self, start_iteration: int) -> None:
        rows = read_metrics(self.path)
        kept = (
            [row for row in rows if row["iteration"] <= start_iteration]
            if start_iteration > 0
            else []
        )
        if len(kept) < len(rows):
            logger.info(
                "%s: %d lines after iteration %d belong to work that is done again; dropped.",
                self.path.name,
                len(rows) - len(kept),
                start_iteration,
            )
        atomic_write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def _tensorboard(self, start_iteration: int) -> Any:
        # Imported here: TensorBoard takes a second to import, and kNN or convert never need it.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=start_iteration + 1)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.json in order; a last line that was cut off by a kill is left
    out.

    Args:
        path: The file.

    Returns:
        One dictionary per whole line that has the key ``iteration``.
    """
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "iteration" in row:
            rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
