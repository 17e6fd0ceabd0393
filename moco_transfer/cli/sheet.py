"""Draw the detections of each initialisation beside the ground truth: one row a test image, one
column a row of the transfer table.

Takes fine-tuned runs as `report` does, and writes one sheet per table, as PNG and SVG, into the
folder in which its runs lie; there `report --format html` finds it. Of each row it takes one run:
that of the lowest seed that all rows have. Images are the first of the test set that have an
object, not the best ones; of the predictions as many, the surest, are drawn as there are objects.
"""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.annotations.catalog import DetectionDataset
    from ..report import RunRecord, Table

logger = logging.getLogger(__name__)

EPILOG = """examples:
  all runs below out/voc, whose test set lies below $DETECTRON2_DATASETS:
    moco-transfer sheet out/voc

  a test set of your own (where a run has recorded its command, --dataset is taken from there):
    moco-transfer sheet out/cells --dataset cells_test=voc:BCCD:test:RBC,WBC,Platelets

  other images, another seed:
    moco-transfer sheet out/voc --images 000012 000034 --seed 2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``sheet``."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="run folders, or folders that hold run folders at any depth",
    )
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=...",
        help="data set of your own, as for `train`; may be repeated",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=4,
        metavar="N",
        help="show the first N images that have an object (default 4)",
    )
    parser.add_argument(
        "--images", nargs="+", metavar="ID", help="show these images of the test set instead"
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="show the runs of this seed (default: the lowest that all rows have)",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for the sheets (default: that in which the runs lie)",
    )


def run(args: argparse.Namespace) -> int:
    """Draw one sheet per table.

    Returns:
        0; runs without predictions are named and left out.

    Raises:
        InputError: If no run can be read; or, after the sheets of the other tables are drawn, one
            sentence for each table whose data set is not found or whose runs have no predictions.
        MissingFileError: If a named path does not exist.
    """
    from ..data.annotations.catalog import parse_dataset_flag
    from ..report import build_tables
    from ..report.html.page import SHEET_NAME, sheet_folder
    from ..report.html.plots import figure_name
    from ..runtime.errors import InputError
    from .report import read_named_runs

    if args.images < 1:
        raise InputError(f"--images must be at least 1, got {args.images}.")
    records, _ = read_named_runs(args.runs)
    for flag in args.dataset:
        parse_dataset_flag(flag)
    faults = []
    for table in build_tables(records):
        folder = Path(args.output) if args.output else sheet_folder(table)
        try:
            _draw(
                folder / f"{SHEET_NAME}_{figure_name(table)}.png",
                _test_set(table),
                _one_run_per_row(table, args.seed),
                args,
            )
        except InputError as error:
            faults.append(f"no sheet of {table.setting.task}: {error}")
    if faults:
        raise InputError("\n".join(faults))
    return 0


def _test_set(table: Table) -> DetectionDataset:
    """Return the table's test set: one that is registered, or one that a run's recorded command
    describes.
    """
    from ..data.annotations.catalog import dataset_names, get_dataset, parse_dataset_flag

    name = table.setting.test_set[0]
    if name not in dataset_names():
        for run in table.runs:
            words = _words(run.command or "")
            flags = [
                word
                for before, word in zip(words, words[1:], strict=False)
                if before == "--dataset" and word.startswith(f"{name}=")
            ]
            if flags:
                parse_dataset_flag(flags[0])
                break
    return get_dataset(name)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quotation mark without its fellow: damaged, or no shell's words
        return command.split()


def _one_run_per_row(table: Table, seed: int | None) -> dict[str, RunRecord]:
    from ..runtime.errors import InputError

    rows = {row.init: {run.seed: run for run in row.runs} for row in table.rows if row.runs}
    common = set.intersection(*map(set, rows.values())) if rows else set()
    if seed is None and common:
        seed = min(common)
    if seed is not None:
        rows = {init: {seed: runs[seed]} for init, runs in rows.items() if seed in runs}
    if not rows:
        raise InputError(
            f"{table.setting.task}: no run with seed {seed} is in the table; it has seeds"
            f" {sorted({run.seed for run in table.runs})}."
        )
    return {init: runs[min(runs)] for init, runs in rows.items()}


def _draw(
    path: Path, dataset: DetectionDataset, chosen: dict[str, RunRecord], args: argparse.Namespace
) -> None:
    from ..evaluate.detection_sheet import draw_detection_sheet, first_images
    from ..evaluate.predictions import load_predictions
    from ..runtime.errors import InputError, MissingFileError

    columns = {}
    for init, record in chosen.items():
        try:
            columns[init] = load_predictions(
                Path(record.folder) / f"predictions_{dataset.name}.json"
            )
        except MissingFileError as error:
            logger.warning("row %s is left out of the sheet: %s", init, error)
    if not columns:
        raise InputError(
            f"No run has predictions_{dataset.name}.json; a sheet needs the predictions that"
            " `train` writes into its run folder."
        )
    by_text = {str(record["image_id"]): record["image_id"] for record in dataset.records}
    ids = (
        [by_text.get(text, text) for text in args.images]
        if args.images
        else first_images(dataset, args.images)
    )
    draw_detection_sheet(path, dataset, columns, image_ids=ids)
    seeds = ", ".join(f"{init} seed {chosen[init].seed}" for init in columns)
    print(
        f"Wrote {path} and {path.with_suffix('.svg').name}: {len(ids)} images of {dataset.name};"
        f" {seeds}."
    )
