"""Pre-training runs: find their folders and read their metrics.json.

The tables do not need them. The page and the plots show them, so that a row's number is next to
the loss, the kNN accuracy and the cosines of the run that made its weights.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..runtime.text import parse_yaml
from .curves import Points, read_series
from .records import (
    CONFIG_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    Problem,
    RunRecord,
    metric_rows,
    text_of,
)

#: What is drawn of a pre-training run.
COLUMNS = (
    "loss", "chance", "knn_top1", "cos_positive", "cos_negative", "contrast_acc1", "acc1",
    "feature_spread",
)  # fmt: skip
_LINES_READ = 20  # of metrics.json, to see what kind of run it is


@dataclass(frozen=True)
class PretrainingRun:
    """One pre-training run; "" and None mean that its config does not have it."""

    folder: str  # as the user would type it
    mechanism: str
    arch: str
    epochs: int | None
    iterations: int  # the last that was logged
    series: dict[str, Points]  # column of metrics.json -> points; accuracies on 0-100
    inits: tuple[str, ...]  # rows of the tables that started from its weights


def find_pretraining(
    paths: Iterable[str | os.PathLike[str]], records: Sequence[RunRecord] = ()
) -> tuple[list[PretrainingRun], list[Problem]]:
    """Return the pre-training runs below ``paths``, and those whose weights started ``records``, by
    folder, and a problem for each damaged metrics.json.
    """
    started: dict[Path, dict[str, None]] = {}
    for record in records:
        if record.weights.get("path"):
            started.setdefault(Path(record.weights["path"]).parent, {})[record.init] = None
    folders = {folder.resolve(): folder for folder in [*started, *_folders_with_metrics(paths)]}
    inits = {folder.resolve(): tuple(names) for folder, names in started.items()}
    found: dict[tuple[Any, ...], PretrainingRun] = {}
    problems: list[Problem] = []
    # Folders that only weights lead to come last: a kept record and its run are shown once.
    for resolved in sorted(folders, key=lambda r: (folders[r] in started, str(folders[r]))):
        run, faults = _read(folders[resolved], inits.get(resolved, ()))
        if run is None:
            continue
        last_loss = round(run.series["loss"][-1][1], 4)
        key = (run.mechanism, run.arch, run.iterations, last_loss)
        if key not in found:
            found[key] = run
            problems += faults
    return sorted(found.values(), key=lambda run: run.folder), problems


def _folders_with_metrics(paths: Iterable[str | os.PathLike[str]]) -> Iterable[Path]:
    for path in paths:
        for root, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            # A test of features has results and a metrics.json too.
            if METRICS_FILE in files and RESULTS_FILE not in files:
                yield Path(root)


def _read(folder: Path, inits: tuple[str, ...]) -> tuple[PretrainingRun | None, list[Problem]]:
    rows = itertools.islice(metric_rows(text_of(folder, METRICS_FILE)), _LINES_READ)
    # A detector logs total_loss, the kNN monitor no loss.
    if not any("loss" in row and row.keys() & {"contrast_acc1", "acc1"} for row in rows if row):
        return None, []
    series, problems = read_series(folder / METRICS_FILE, COLUMNS)
    if "loss" not in series:
        return None, problems
    try:
        config = parse_yaml(text_of(folder, CONFIG_FILE))
        mechanism, arch = str(config["MECHANISM"]), str(config["MODEL"]["ARCH"])
        epochs = config["SOLVER"]["EPOCHS"]
    except (LookupError, TypeError, yaml.YAMLError):
        mechanism, arch, epochs = "", "", None  # no config, or a damaged one
    last = int(series["loss"][-1][0])
    return PretrainingRun(str(folder), mechanism, arch, epochs, last, series, inits), problems
