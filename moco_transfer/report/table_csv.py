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
    metrics follow as ``bbox/AP``, ... and the TIDE errors as ``bbox/tide/missed``, ...: empty where
    a run lacks one, ``nan`` where it is undefined. Numbers read back as the same floats.
    """
    metrics, errors = _metric_columns(tables), _tide_columns(tables)
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    names = [f"{kind}/{metric}" for kind, metric in metrics]
    names += [f"{kind}/tide/{error}" for kind, error in errors]
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
        writer.writerow([*facts, *(run.tide.get(kind, {}).get(error) for kind, error in errors)])
    return buffer.getvalue()


def _tide_columns(tables: Sequence[Table]) -> list[tuple[str, str]]:
    groups = [run.tide for table in tables for run in table.runs]
    return list(dict.fromkeys((kind, e) for group in groups for kind in group for e in group[kind]))


def _metric_columns(tables: Sequence[Table]) -> list[tuple[str, str]]:
    groups = [run.metrics for table in tables for run in table.runs]
    found = {(kind, metric): None for group in groups for kind in group for metric in group[kind]}

    def place(column: tuple[str, str]) -> tuple[int, str, int]:
        kind, metric = column
        return [*TASKS, kind].index(kind), kind, [*task_metrics(kind), metric].index(metric)

    return sorted(found, key=place)  # stable: other metrics keep the order of the runs
