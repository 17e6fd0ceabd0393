"""Make the transfer table from run folders: mean and std over seeds, and the difference to the supervised row.

A run folder holds the results.json that `train` wrote. Runs are grouped by task, test set, config hash, engine and norm
(one table each) and by initialisation (one row each): runs that differ in any of these are never averaged. A file that
cannot be used, two runs that claim the same seed of the same row, a seed that one row lacks and a metric that is not a
number are named below the table; the rest of the table is made all the same.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

EPILOG = """examples:
  the table of all runs below out/, as Markdown on the terminal:
    moco-transfer report out

  the same for a paper, and every single trial for a spreadsheet:
    moco-transfer report out --format latex --output table.tex
    moco-transfer report out --format csv --output trials.csv

  learning curves with the spread over seeds, AP by class and by size, beside the table:
    moco-transfer report out --plots out/plots

  one page with tables, plots, pictures and every run's config, for a browser; it needs no network:
    moco-transfer report out --format html --output report.html

  the table written between <!-- results:begin --> and <!-- results:end --> of a README:
    moco-transfer report out --into README.md
"""

_FORMAT_HELP = (
    "markdown or latex: mean, std and differences; csv: every trial in full precision; html: one page with tables, plots, "
    "pictures and configs (default: %(default)s)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report` to its parser."""
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders (with a results.json), or folders that hold run folders at any depth")
    parser.add_argument("--format", choices=("markdown", "latex", "csv", "html"), default="markdown", help=_FORMAT_HELP)
    parser.add_argument("--output", metavar="FILE", help="write the table to FILE instead of the terminal")
    parser.add_argument("--plots", metavar="FOLDER", help="also draw learning curves and AP by class and size: PNG and SVG")
    markers = "<!-- results:begin --> and <!-- results:end -->"
    parser.add_argument("--into", metavar="FILE", help=f"replace what stands between the markers {markers} in FILE")


def run(args: argparse.Namespace) -> int:
    """Read the runs, make the table, and print or write it.

    Returns:
        0; problems with single runs are named in the table, not in the status.

    Raises:
        InputError: If no readable run is found, or a file cannot be written or has no markers.
        MissingFileError: If a named path does not exist.
    """
    from moco_transfer.report import build_tables, read_runs
    from moco_transfer.runtime.errors import InputError, MissingFileError

    if args.into and args.format != "markdown":
        raise InputError(f"--into writes Markdown between markers, got --format {args.format}; use --output FILE for it.")
    for path in args.runs:
        if not Path(path).exists():
            raise MissingFileError(f"{path} does not exist; expected a run folder or a folder that holds run folders.")
    records, problems = read_runs(args.runs)
    if not records:
        raise InputError(_nothing_found(args.runs, problems))
    tables = build_tables(records)
    text = _page(args.runs, records, tables, problems) if args.format == "html" else _render(args.format, tables, problems)
    if args.into:
        _write_into(Path(args.into), text)
    if args.output:
        _write(Path(args.output), text)
    if not args.into and not args.output:
        sys.stdout.write(text)
    if args.plots:
        _write_plots(Path(args.plots), tables)
    return 0


def _render(table_format: str, tables: list, problems: list) -> str:
    from moco_transfer.report import render_csv, render_latex, render_markdown

    if table_format != "csv":
        return (render_markdown if table_format == "markdown" else render_latex)(tables, problems)
    # CSV has no place for sentences.
    for problem in [*problems, *(problem for table in tables for problem in table.problems)]:
        logger.warning("%s", problem)
    return render_csv(tables)


def _page(paths: list[str], records: list, tables: list, problems: list) -> str:
    from moco_transfer.report.page import render_page
    from moco_transfer.report.pretraining import find_pretraining

    pretraining, faults = find_pretraining(paths, records)
    return render_page(tables, [*problems, *faults], pretraining=pretraining, folders=[path for path in paths if Path(path).is_dir()])


def _nothing_found(paths: list[str], problems: list) -> str:
    found = " ".join(str(problem) for problem in problems[:5])
    return f"No readable run in {', '.join(paths)}: expected at least one results.json written by `train`. {found}".strip()


def _write(file: Path, text: str) -> None:
    from moco_transfer.runtime.files import atomic_write_text

    atomic_write_text(file, text)


def _write_plots(folder: Path, tables: list) -> None:
    from moco_transfer.report.plots import breakdown, figure_bytes, figure_name, learning_curves
    from moco_transfer.runtime.files import atomic_write_bytes

    for table in tables:
        curves, problems = learning_curves(table)
        figures = {"curves": curves} | {f"{kind}_by_class_and_size": breakdown(table, kind) for kind in table.kinds}
        for problem in problems:
            logger.warning("%s", problem)
        for name, figure in figures.items():
            for ending in ("png", "svg") if figure is not None else ():
                file = folder / f"{figure_name(table)}_{name}.{ending}"
                atomic_write_bytes(file, figure_bytes(figure, ending))
                logger.info("Wrote %s", file)


def _write_into(file: Path, text: str) -> None:
    from moco_transfer.report import insert_between_markers
    from moco_transfer.runtime.errors import InputError, MissingFileError

    try:
        before = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingFileError(f"{file} does not exist; --into needs a file that holds the two markers.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text ({error}); --into needs a Markdown file.") from error
    try:
        after = insert_between_markers(before, text)
    except ValueError as error:
        raise InputError(f"{file}: {error}; put both markers on lines of their own where the table shall stand.") from error
    _write(file, after)
