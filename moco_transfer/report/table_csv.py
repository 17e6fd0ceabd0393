"""Every trial as one line of CSV, in full precision: what the means were made from."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from moco_transfer.evaluate.metric_names import TASKS

from .aggregate import Table, task_metrics
from .cells import run_caveats

_COLUMNS = (
    "task", "test_set", "train_set", "config_hash", "engine", "norm", "precision",
    "label_fraction", "label_shots", "labelled_images", "init", "seed", "status", "caveats",
    "iterations", "wall_sec", "world_size", "weights_sha256", "git", "folder",
)  # fmt: skip


def render_csv(tables: Sequence[Table]) -> str:
    """Return all runs of all tables as CSV (RFC 4180), one line per run in the order of the tables.

    ``status`` is ``averaged`` or ``conflict`` (two runs claim the seed; neither is averaged). The
    metrics follow as ``bbox/AP``, ..., the TIDE errors as ``bbox/tide/missed``, ... and the rates
    at a score as ``bbox/operating_point/precision``, ...: empty where a run lacks one, ``nan``
    where it is undefined. Numbers read back as the same floats.
    """
    metrics, others = _metric_columns(tables), _other_columns(tables)
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    names = [f"{kind}/{metric}" for kind, metric in metrics]
    names += [f"{kind}/{group}/{name}" for group, kind, name in others]
    writer.writerow([*_COLUMNS, *names])
    conflicts = {id(run) for table in tables for row in table.rows for run in row.conflicts}
    for run in (run for table in tables for run in table.runs):
        derived = {
            "test_set": "+".join(run.test_set),
            "train_set": "+".join(run.train_set),
            "status": "conflict" if id(run) in conflicts else "averaged",
            "caveats": "; ".join(run_caveats(run)),
            "weights_sha256": run.weights.get("sha256"),
        }
        facts = [derived[c] if c in derived else getattr(run, c) for c in _COLUMNS]
        facts += [run.value(kind, metric) for kind, metric in metrics]
        facts += [getattr(run, group).get(kind, {}).get(name) for group, kind, name in others]
        writer.writerow(facts)
    return buffer.getvalue()


def _other_columns(tables: Sequence[Table]) -> list[tuple[str, str, str]]:
    """Return (field of a run, kind, name) of the numbers that are no metrics."""
    runs = [run for table in tables for run in table.runs]
    found = (
        (group, kind, name)
        for group in ("tide", "operating_point")
        for run in runs
        for kind, numbers in getattr(run, group).items()
        for name in numbers
    )
    return list(dict.fromkeys(found))


def _metric_columns(tables: Sequence[Table]) -> list[tuple[str, str]]:
    groups = [run.metrics for table in tables for run in table.runs]
    found = {(kind, metric): None for group in groups for kind in group for metric in group[kind]}

    def place(column: tuple[str, str]) -> tuple[int, str, int]:
        kind, metric = column
        return [*TASKS, kind].index(kind), kind, [*task_metrics(kind), metric].index(metric)

    return sorted(found, key=place)  # stable: other metrics keep the order of the runs
