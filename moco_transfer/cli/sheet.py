"""Predictions of each initialisation next to the ground truth."""

from __future__ import annotations

import argparse
import logging
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import InputError, MissingFileError

if TYPE_CHECKING:
    from ..data.annotations.catalog import DetectionDataset
    from ..report import RunRecord, Table

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Draw one sheet per table, past a table that cannot be drawn; returns 0."""
    from ..data.annotations.catalog import parse_dataset_flag
    from ..report import build_tables
    from ..report.html.page import SHEET_NAME, sheet_folder
    from ..report.html.plots import figure_name
    from .report import read_named_runs

    records, _ = read_named_runs(args.runs)
    for flag in args.dataset:
        parse_dataset_flag(flag)
    faults = []
    for table in build_tables(records):
        folder = Path(args.output) if args.output else sheet_folder(table)
        path = folder / f"{SHEET_NAME}_{figure_name(table)}.png"
        try:
            _draw(path, _test_set(table), _one_run_per_row(table), args.images)
        except InputError as error:
            faults.append(f"no sheet of {table.setting.task}: {error}")
    if faults:
        raise InputError("\n".join(faults))
    return 0


def _test_set(table: Table) -> DetectionDataset:
    """Return the table's test set: a registered one, or one that a run's command describes."""
    from ..data.annotations.catalog import dataset_names, get_dataset, parse_dataset_flag

    name = table.setting.test_set[0]
    for run in table.runs if name not in dataset_names() else ():
        try:
            words = shlex.split(run.command or "")
        except ValueError:  # an unbalanced quotation mark
            continue
        if flag := next((w for w in words if re.match(rf"{re.escape(name)}=\w+:", w)), ""):
            parse_dataset_flag(flag)
            break
    return get_dataset(name)


def _one_run_per_row(table: Table) -> dict[str, RunRecord]:
    rows = {row.init: {run.seed: run for run in row.runs} for row in table.rows if row.runs}
    common = set.intersection(*map(set, rows.values())) if rows else set()
    return {init: runs[min(common or runs)] for init, runs in rows.items()}


def _draw(
    path: Path, dataset: DetectionDataset, chosen: dict[str, RunRecord], images: list[str] | None
) -> None:
    from ..evaluate.detection_sheet import draw_detection_sheet, first_images
    from ..evaluate.predictions import load_predictions

    of_pixels = dataset.kind == "semantic"
    name, columns = f"predictions_{dataset.name}.json", {}
    for init, record in chosen.items():
        try:
            columns[init] = load_predictions(Path(record.folder) / name, of_pixels=of_pixels)
        except MissingFileError as error:
            logger.warning("row %s is left out of the sheet: %s", init, error)
    if not columns:
        raise InputError(f"No run has {name}; `train` writes it into its run folder.")
    by_text = {str(record["image_id"]): record["image_id"] for record in dataset.records}
    ids = [by_text.get(text, text) for text in images or ()] or first_images(dataset)
    draw_detection_sheet(path, dataset, columns, image_ids=ids)
    seeds = ", ".join(f"{init} seed {chosen[init].seed}" for init in columns)
    print(f"Wrote {path} and its .svg: {len(ids)} images of {dataset.name}; {seeds}.")
