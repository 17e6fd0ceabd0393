"""metrics.json: one JSON object per line, key ``iteration``, as Detectron2 names and writes it.

Look at it with ``jq -s 'map({iteration, loss})' metrics.json``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import atomic_write_text, make_folder, regular
from .machine import writing
from .text import parse_json
from .trackers.record import Trackers
from .trackers.writers import RunFacts


class MetricsFile:
    """Appends measurements of a run, and hands them to the trackers of LOGGERS.

    Lines after ``start_iteration``, the iterations finished, are removed: the run computes them
    again. ``settings`` (the config by full key) are for the trackers.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        start_iteration: int = 0,
        loggers: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        make_folder(self.path.parent)
        rows = read_metrics(self.path) if start_iteration and self.path.exists() else []
        rows = [row for row in rows if row["iteration"] <= start_iteration]
        if self.path.exists():
            atomic_write_text(self.path, "".join(f"{json.dumps(row)}\n" for row in rows))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open during the run
        self._known = {(row["iteration"], *row) for row in rows}
        self._finished = False
        facts = RunFacts(self.path.parent, dict(settings or {}), rows, start_iteration)
        self._trackers = Trackers(loggers, facts)

    def write(self, iteration: int, values: dict[str, Any]) -> None:
        """Append one line; a number that is not finite becomes null: JSON has no NaN. What a
        resumed run measures again at the iteration that it starts from is there already.
        """
        if (iteration, "iteration", *values) in self._known:
            return
        row = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with writing(self.path):
            self._file.write(json.dumps({"iteration": iteration} | row) + "\n")
            self._file.flush()
        self._trackers.log(iteration, values)

    def finish(self, files: Iterable[Path]) -> None:
        """Hand files of a run that is complete to the trackers, those that exist."""
        self._trackers.save([*files, self.path])
        self._finished = True

    def sync(self) -> None:
        """Make the lines last through a power cut: before a checkpoint that follows them."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and the trackers."""
        with contextlib.suppress(OSError, InputError):  # of a full disk: writing has said so
            self.sync()
        with contextlib.suppress(OSError):
            self._file.close()
        self._trackers.close(finished=self._finished)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.json that have the key ``iteration``, a whole number, without
    lines that are cut off or damaged.
    """
    rows = []
    for line in Path(regular(path)).read_bytes().splitlines():
        try:
            row = parse_json(line)
        except ValueError:  # no JSON, no UTF-8, 5,000 digits
            continue
        if isinstance(row, dict) and isinstance(row.get("iteration"), int):
            rows.append(row)
    return rows
