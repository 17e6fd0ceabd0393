"""Every trial as one line of CSV, in full precision: what the means were made from."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from moco_transfer.evaluate.metric_names import TASKS

from .aggregate import HEADLINE_METRICS, Table
from .cells import run_caveats


def render_csv(tables: Sequence[Table]) -> str:
    """Return all runs of all tables as CSV (RFC 4180), one line per run in the order of the tables.

    ``status`` is ``averaged`` or ``conflict`` (two runs claim the seed; neither is averaged). The
    metrics follow as ``bbox/AP``, ...: empty where a run lacks one, ``nan`` where it is undefined.
    Numbers read back as the same floats.
    """
    metrics = _metric_columns(tables)
    rows = [row for table in tables for row in table.rows]
    lines = []
    for run, status in (
        (run, "conflict" if run in row.conflicts else "averaged")
        for row in rows
        for run in row.all_runs
    ):
        line: dict[str, object] = {
            "task": run.task,
            "test_set": "+".join(run.test_set),
            "train_set": "+".join(run.train_set),
            "config_hash": run.config_hash,
            "engine": run.engine,
            "norm": run.norm,
            "init": run.init,
            "seed": run.seed,
            "status": status,
            "caveats": "; ".join(run_caveats(run)),
            "iterations": run.iterations,
            "wall_sec": run.wall_sec,
            "world_size": run.world_size,
            "weights_sha256": run.weights.get("sha256"),
            "git": run.git,
            "folder": run.folder,
        }
        lines.append(
            line | {f"{kind}/{metric}": run.value(kind, metric) for kind, metric in metrics}
        )
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, lines[0] if lines else ())
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _metric_columns(tables: Sequence[Table]) -> list[tuple[str, str]]:
    groups = [run.metrics for table in tables for run in table.runs]
    found = {(kind, metric): None for group in groups for kind in group for metric in group[kind]}

    def place(column: tuple[str, str]) -> tuple[int, str, int]:
        kind, metric = column
        task = TASKS.index(kind) if kind in TASKS else len(TASKS)
        first = HEADLINE_METRICS.index(metric) if metric in HEADLINE_METRICS else 3
        return task, kind, first

    return sorted(found, key=place)  # stable: other metrics keep the order of the runs
