"""Make the transfer table from run folders: mean and std over seeds, and the difference to the
supervised row.

A run folder holds the results.json that `train` wrote. Runs are grouped by task, test set, config
hash, engine, norm and label subset (one table each) and by initialisation (one row each); runs that
differ in any of these are never averaged. Below its table are named: unusable files, two runs with
the same seed in a row, seeds that a row lacks, and metrics that are not a number.

The page (--format html) and the plots also show the pre-training runs that lie below RUNS or made
the weights; the page shows the images that `sheet` has written.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..report import (
    Problem,
    RunRecord,
    Table,
    build_tables,
    insert_between_markers,
    marked_paths,
    read_runs,
    render_csv,
    render_latex,
    render_markdown,
)
from ..report.keep import keep_records
from ..report.pretraining import PretrainingRun, find_pretraining
from ..runtime.errors import InputError, MissingFileError
from ..runtime.files import atomic_write_bytes, atomic_write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

EPILOG = """examples:
  the table of all runs below out/ on the terminal, for a paper, and every trial for a spreadsheet:
    moco-transfer report out
    moco-transfer report out --format latex --output table.tex
    moco-transfer report out --format csv --output trials.csv
  one page with tables, plots, images and every run's config, for a browser; it needs no network:
    moco-transfer report out --format html --output report.html
  slim records of the runs for a repository, and the sections of a README between
  <!-- results:begin docs/results/voc --> and <!-- results:end --> made from the named records
  (RUNS fill a section that names nothing):
    moco-transfer report out/voc --keep docs/results/voc
    moco-transfer report --readme README.md
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``report``."""
    add = parser.add_argument
    runs = "run folders (with a results.json), or folders that hold run folders at any depth"
    add("runs", nargs="*", metavar="RUNS", help=runs)
    formats = (
        "markdown or latex: mean, std and differences; csv: every trial in full precision; html:"
        " one page with tables, plots, images and configs (default: %(default)s)"
    )
    choices = ("markdown", "latex", "csv", "html")
    add("--format", choices=choices, default="markdown", help=formats)
    baseline = "row that differences refer to (default: supervised, else random)"
    add("--baseline", default="", metavar="NAME", help=baseline)
    add("--output", metavar="FILE", help="write the table to FILE instead of the terminal")
    plots = "also draw curves and AP by class and size: PNG and SVG"
    add("--plots", metavar="FOLDER", help=plots)
    keep = "also write slim records into FOLDER: no weights, no absolute paths"
    add("--keep", metavar="FOLDER", help=keep)
    readme = "replace the text between <!-- results:begin --> and <!-- results:end --> in FILE"
    add("--readme", "--into", dest="readme", type=Path, metavar="FILE", help=readme)


def run(args: argparse.Namespace) -> int:
    """Print or write the table; returns 0: it names problems with single runs itself."""
    if args.readme and args.format != "markdown":
        raise InputError(f"--readme needs Markdown, got --format {args.format}; use --output FILE.")
    if not args.runs and (not args.readme or args.output or args.plots or args.keep):
        raise InputError("No runs are named: give run folders, or --readme FILE alone.")
    if args.readme and not args.readme.is_file():
        raise MissingFileError(f"--readme {args.readme} does not exist.")
    if not args.runs:
        _fill_named_sections(args.readme, args.baseline)
        return 0
    records, problems = read_named_runs(args.runs)
    names = sorted({run.init for run in records})
    if args.baseline and args.baseline not in names:
        rows = ", ".join(names)
        raise InputError(f"--baseline {args.baseline}: no run is of that row. Rows are {rows}.")
    tables = build_tables(records, baseline=args.baseline)
    pretraining: list[PretrainingRun] = []
    if args.format == "html" or args.plots or args.keep:
        pretraining, faults = find_pretraining(args.runs, records)
        problems += faults
    text = _render(args, tables, problems, pretraining)
    if args.readme:  # the section that names these runs, else the one that names nothing
        wanted = {Path(path).resolve() for path in args.runs}
        for section in marked_paths(args.readme.read_text(encoding="utf-8")):
            if {(args.readme.parent / path).resolve() for path in section} == wanted:
                break
        else:
            section = ()
        _insert(args.readme, {section: text})
    if args.output:
        atomic_write_text(Path(args.output), text)
    if args.plots:
        _write_plots(Path(args.plots), tables, pretraining)
    if args.keep:
        kept = keep_records(records, pretraining, args.keep)
        size = sum(file.stat().st_size for target in kept for file in target.iterdir()) / 1e3
        what = "without weights and absolute paths"
        print(f"Kept {len(kept)} runs in {args.keep} ({size:.0f} kB), {what}.")
    if not args.readme and not args.output and not args.keep:
        sys.stdout.write(text)
    return 0


def read_named_runs(paths: Sequence[str]) -> tuple[list[RunRecord], list[Problem]]:
    """Read the runs that the command line names.

    Raises:
        InputError: If no readable run is found.
        MissingFileError: If a named path does not exist.
    """
    for path in paths:
        if not Path(path).exists():
            expected = "expected a run folder or a folder that holds run folders"
            raise MissingFileError(f"{path} does not exist; {expected}.")
    records, problems = read_runs(paths)
    if not records:
        where = f"No readable run in {', '.join(paths)}"
        found = " ".join(str(problem) for problem in problems[:5])
        raise InputError(f"{where}: expected a results.json written by `train`. {found}".strip())
    return records, problems


def _render(
    args: argparse.Namespace,
    tables: list[Table],
    problems: list[Problem],
    pretraining: list[PretrainingRun],
) -> str:
    if args.format == "html":
        from ..report.html.page import render_page

        folders = [path for path in args.runs if Path(path).is_dir()]
        return render_page(tables, problems, pretraining=pretraining, folders=folders)
    if args.format == "csv":  # it has no place for sentences
        _log([*problems, *(problem for table in tables for problem in table.problems)])
        return render_csv(tables)
    return (render_markdown if args.format == "markdown" else render_latex)(tables, problems)


def _log(problems: Iterable[Problem]) -> None:
    for problem in problems:
        logger.warning("%s", problem)


def _write_plots(folder: Path, tables: list[Table], pretraining: list[PretrainingRun]) -> None:
    from ..report.html import plots

    figures: dict[str, Figure] = {}
    for table in tables:
        name = plots.figure_name(table)
        figures[f"{name}_curves"], problems = plots.learning_curves(table)
        _log(problems)
        for kind in table.kinds:
            if figure := plots.breakdown(table, kind):
                figures[f"{name}_{kind}_by_class_and_size"] = figure
    for number, item in enumerate(pretraining, start=1):
        name = f"pretraining_{number}_{Path(item.folder).name}"
        figures[name] = plots.pretraining_curves(item)
    for name, figure in figures.items():
        for ending in ("png", "svg"):
            file = folder / f"{name}.{ending}"
            atomic_write_bytes(file, plots.figure_bytes(figure, ending))
            logger.info("Wrote %s", file)


def _fill_named_sections(readme: Path, baseline: str) -> None:
    contents = {}
    for paths in filter(None, marked_paths(readme.read_text(encoding="utf-8"))):
        records, problems = read_named_runs([str(readme.parent / path) for path in paths])
        text = render_markdown(build_tables(records, baseline=baseline), problems)
        # Paths in warnings are the README's own, wherever the command runs.
        contents[paths] = text.replace(f"{readme.parent}/", "")
    if not contents:
        what = "write <!-- results:begin FOLDER --> and <!-- results:end -->"
        raise InputError(f"{readme} has no section that names its records; {what}.")
    _insert(readme, contents)


def _insert(readme: Path, contents: dict[tuple[str, ...], str]) -> None:
    text = readme.read_text(encoding="utf-8")
    try:
        for paths, content in contents.items():
            text = insert_between_markers(text, content, paths)
    except ValueError as error:
        raise InputError(f"{readme}: {error}; put each marker on a line of its own.") from error
    atomic_write_text(readme, text)
