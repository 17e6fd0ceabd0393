"""Every trial as one line of CSV, in full precision: what the means were made from."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from moco_transfer.evaluate.metric_names import TASKS

from .aggregate import HEADLINE_METRICS, Table
from .caveats import run_caveats
from .records import RunRecord

#: The columns before the metrics; metrics follow as ``bbox/AP``, ``bbox/AP50``, ...
TRIAL_COLUMNS = (
    "task", "test_set", "train_set", "config_hash", "engine", "norm", "init", "seed", "status", "caveats",
    "iterations", "wall_sec", "world_size", "weights_sha256", "git", "folder",
)  # fmt: skip


def render_csv(tables: Sequence[Table]) -> str:
    """Return all runs of all tables as CSV (RFC 4180: commas, CRLF, quotes doubled).

    Args:
        tables: From :func:`moco_transfer.report.build_tables`.

    Returns:
        A header and one line per run, in the order of the tables. ``status`` is ``averaged`` or
        ``conflict`` (two runs claim the seed; neither is averaged). A metric that a run does not
        have is an empty cell, one that it could not compute is ``nan``. Numbers read back as the
        same floats.
    """
    metrics = _metric_columns(tables)
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([*TRIAL_COLUMNS, *(f"{kind}/{metric}" for kind, metric in metrics)])
    for table in tables:
        for row in table.rows:
            for status, runs in (("averaged", row.runs), ("conflict", row.conflicts)):
                for run in runs:
                    values = [run.value(kind, metric) for kind, metric in metrics]
                    writer.writerow(
                        [
                            *_trial(run, status),
                            *("" if value is None else repr(value) for value in values),
                        ]
                    )
    return buffer.getvalue()


def _trial(run: RunRecord, status: str) -> list[object]:
    return [
        run.task, "+".join(run.test_set), "+".join(run.train_set), run.config_hash, run.engine, run.norm, run.init, run.seed,
        status, "; ".join(run_caveats(run)), run.iterations, "" if run.wall_sec is None else repr(run.wall_sec), run.world_size,
        run.weights.get("sha256") or "", run.git or "", run.folder,
    ]  # fmt: skip


def _metric_columns(tables: Sequence[Table]) -> list[tuple[str, str]]:
    runs = [run for table in tables for run in table.runs]
    found = dict.fromkeys(
        (kind, metric) for run in runs for kind, group in run.metrics.items() for metric in group
    )

    def place(column: tuple[str, str]) -> tuple:
        kind, metric = column
        kind_place = TASKS.index(kind) if kind in TASKS else len(TASKS)
        headline = (
            HEADLINE_METRICS.index(metric) if metric in HEADLINE_METRICS else len(HEADLINE_METRICS)
        )
        return kind_place, kind, headline

    # sorted() is stable: behind AP, AP50, AP75 the metrics keep the order in which the runs list
    # them.
    return sorted(found, key=place)
