"""Slim copies of run folders, small enough for a repository: what tables, curves and page need.

A copy holds results.json, config.yaml, the drawn columns of metrics.json, and AP on samples of the
test images instead of the matches. Absolute paths are cut down to their last name, because records
are kept to be published. Relative paths and metrics stay as they are.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from moco_transfer.evaluate.metric_names import headline_metric
from moco_transfer.runtime.files import atomic_write_text

from .pretraining import COLUMNS, PretrainingRun
from .records import (
    CONFIG_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    Problem,
    RunRecord,
    metric_rows,
    text_of,
)

# A path from the root on: two names at least, not the inside of a URL or of a relative path.
_ABSOLUTE = re.compile(r"(?<![\w./~-])(?:/[^\s/:,;'\"=\[\](){}]+)+/([^\s/:,;'\"=\[\](){}]*)")


def keep_records(
    records: Sequence[RunRecord], pretraining: Sequence[PretrainingRun], folder: str | Path
) -> list[Path]:
    """Copy what a report needs of some runs to ``folder/TASK/INIT_seedN`` and
    ``folder/pretrain/NAME``, with a number behind a name that is taken; return the new folders.
    """
    taken: set[Path] = set()
    runs: dict[str, list[RunRecord]] = {}  # a run on several test sets has several records
    for run in records:
        runs.setdefault(run.folder, []).append(run)
    for source, (run, *others) in runs.items():
        target = _free(Path(folder) / _name(run.task) / f"{_name(run.init)}_seed{run.seed}", taken)
        _keep_texts(source, target, _is_drawn)
        for of_test_set in (run, *others):
            _keep_samples(of_test_set, target)
    for item in pretraining:
        name = _name("_".join(item.inits) or Path(item.folder).name)
        target = _free(Path(folder) / "pretrain" / name, taken)
        _keep_texts(item.folder, target, lambda key: key in COLUMNS)
    return sorted(taken)


def _is_drawn(key: str) -> bool:
    kind, _, metric = key.rpartition("/")
    return key == "total_loss" or bool(kind) and metric == headline_metric(kind.split("/")[-1])


def _keep_samples(run: RunRecord, target: Path) -> None:
    from .bootstrap import kept_file, kept_text, sampled_aps  # numpy takes 0.1 s

    sampled = sampled_aps(run) if run.matches else {}
    if sampled and not isinstance(sampled, Problem):
        atomic_write_text(kept_file(run, target), kept_text(sampled))


def without_places(text: str) -> str:
    """Return a text whose absolute paths are cut down to their last name."""
    return _ABSOLUTE.sub(lambda match: match[1], text)


def _keep_texts(source: str, target: Path, wanted: Callable[[str], bool]) -> None:
    for name in (RESULTS_FILE, CONFIG_FILE):
        if text := text_of(source, name):
            atomic_write_text(target / name, without_places(text))
    lines = []
    for row in filter(None, metric_rows(text_of(source, METRICS_FILE))):
        kept = {
            key: round(value, 5) if isinstance(value, float) else value
            for key, value in row.items()
            if key == "iteration" or wanted(key)
        }
        lines += [json.dumps(kept) + "\n"] if len(kept) > 1 else []
    if lines:
        atomic_write_text(target / METRICS_FILE, "".join(lines))


def _free(path: Path, taken: set[Path]) -> Path:
    numbers = itertools.count(2)
    free = path
    while free in taken:
        free = path.with_name(f"{path.name}_{next(numbers)}")
    taken.add(free)
    return free


def _name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip(".") or "run"
