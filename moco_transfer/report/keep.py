"""Slim copies of run folders, small enough for a repository: what the tables, the curves and the
page are made from.

A copy holds results.json, config.yaml and the columns of metrics.json that are drawn, but no
weights, predictions or logs. Absolute paths are cut down to their last name: records are kept to be
    published, and where a machine had its disks is nobody's
business. Relative paths and numbers stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moco_transfer.runtime.files import atomic_write_text

from .pretraining import COLUMNS, PretrainingRun
from .records import CONFIG_FILE, METRICS_FILE, RESULTS_FILE, RunRecord, text_of

# A path from the root on: two names at least, not the inside of a URL or of a relative path.
_ABSOLUTE = re.compile(r"(?<![\w./~-])(?:/[^\s/:,;'\"=\[\](){}]+)+/([^\s/:,;'\"=\[\](){}]*)")


def keep_records(
    records: Sequence[RunRecord], pretraining: Sequence[PretrainingRun], folder: str | Path
) -> list[Path]:
    """Copy what a report needs of some runs.

    Args:
        records: Fine-tuning runs; each becomes ``folder/TASK/INIT_seedN``, with a number behind it
            where two claim that name.
        pretraining: Pre-training runs; each becomes ``folder/pretrain/NAME``.
        folder: A new folder, or one whose records are written again.

    Returns:
        The new folders.
    """
    taken: set[Path] = set()
    for source in dict.fromkeys(run.folder for run in records):
        run = next(run for run in records if run.folder == source)
        target = _free(Path(folder) / _name(run.task) / f"{_name(run.init)}_seed{run.seed}", taken)
        data = json.loads((Path(source) / RESULTS_FILE).read_text(encoding="utf-8"))
        atomic_write_text(target / RESULTS_FILE, json.dumps(_published(data), indent=1) + "\n")
        _keep_texts(
            Path(source),
            target,
            lambda name: name in ("iteration", "total_loss") or name.endswith("/AP"),
        )
    for item in pretraining:
        target = _free(
            Path(folder) / "pretrain" / _name("_".join(item.inits) or Path(item.folder).name), taken
        )
        _keep_texts(Path(item.folder), target, lambda name: name in ("iteration", *COLUMNS))
    return sorted(taken)


def without_places(text: str) -> str:
    """Return a text whose absolute paths are cut down to their last name."""
    return _ABSOLUTE.sub(lambda match: match[1], text)


def _published(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _published(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_published(item) for item in value]
    return without_places(value) if isinstance(value, str) else value


def _keep_texts(source: Path, target: Path, wanted: Callable[[str], bool]) -> None:
    config = text_of(source, CONFIG_FILE)
    if config:
        atomic_write_text(target / CONFIG_FILE, without_places(config))
    lines = []
    for line in text_of(source, METRICS_FILE).splitlines():
        try:
            row = json.loads(line)
            kept = {
                name: round(value, 5) if isinstance(value, float) else value
                for name, value in row.items()
                if wanted(name)
            }
        except (ValueError, AttributeError):
            continue  # a line that a kill cut off
        if len(kept) > 1:
            lines.append(json.dumps(kept) + "\n")
    if lines:
        atomic_write_text(target / METRICS_FILE, "".join(lines))


def _free(path: Path, taken: set[Path]) -> Path:
    number, free = 2, path
    while free in taken:
        number, free = number + 1, path.with_name(f"{path.name}_{number}")
    taken.add(free)
    return free


def _name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip(".") or "run"
