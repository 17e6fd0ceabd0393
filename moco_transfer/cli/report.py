"""Make the transfer table from run folders: mean and std over seeds, and the difference to the
supervised row.

A run folder holds the results.json that `train` wrote. Runs are grouped by task, test set, config
hash, engine, norm and label subset (one table each) and by initialisation (one row each): runs that
differ in any of these are never averaged. A file that cannot be used, two runs that claim the same
seed of the same row, a seed that one row lacks and a metric that is not a number are named below
the table; the rest of the table is made all the same.

The page (--format html) and the plots also show the pre-training runs that lie below RUNS or made
the weights; the page shows the images that `sheet` and `neighbours` have written.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

EPILOG = """examples:
  the table of all runs below out/, as Markdown on the terminal:
    moco-transfer report out

  the same for a paper, and every single trial for a spreadsheet:
    moco-transfer report out --format latex --output table.tex
    moco-transfer report out --format csv --output trials.csv

  one page with tables, plots, images and every run's config, for a browser; it needs no network:
    moco-transfer report out --format html --output report.html

  learning curves with the spread over seeds, AP by class and by size, pre-training curves, beside the table:
    moco-transfer report out --plots out/plots

  differences to a row of another name:
    moco-transfer report out --baseline sup_bn

  slim records of the runs for a repository, and the sections of a README between <!-- results:begin docs/results/voc --> and
  <!-- results:end --> made from the records that each names (RUNS fill a section that names nothing):
    moco-transfer report out/voc --keep docs/results/voc
    moco-transfer report --readme README.md
"""

_FORMAT_HELP = (
    "markdown or latex: mean, std and differences; csv: every trial in full precision; html: one"
    " page with tables, plots, images and configs (default: %(default)s)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report` to its parser."""
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUNS",
        help="run folders (with a results.json), or folders that hold run folders at any depth",
    )
    parser.add_argument(
        "--format",
        choices=("markdown", "latex", "csv", "html"),
        default="markdown",
        help=_FORMAT_HELP,
    )
    help_baseline = "row that differences refer to (default: supervised, else random)"
    parser.add_argument("--baseline", default="", metavar="NAME", help=help_baseline)
    parser.add_argument(
        "--output", metavar="FILE", help="write the table to FILE instead of the terminal"
    )
    parser.add_argument(
        "--plots", metavar="FOLDER", help="also draw curves and AP by class and size: PNG and SVG"
    )
    parser.add_argument(
        "--keep",
        metavar="FOLDER",
        help="also write slim records into FOLDER: no weights, no absolute paths",
    )
    markers = "<!-- results:begin --> and <!-- results:end -->"
    parser.add_argument(
        "--readme",
        "--into",
        dest="readme",
        metavar="FILE",
        help=f"replace what stands between the markers {markers} in FILE",
    )


def run(args: argparse.Namespace) -> int:
    """Read the runs, make the table, and print or write it.

    Returns:
        0; problems with single runs are named in the table, not in the status.

    Raises:
        InputError: If no readable run is found, no row is called as the baseline, or a file cannot
            be written or has no markers.
        MissingFileError: If a named path does not exist.
    """
    from moco_transfer.report import build_tables
    from moco_transfer.runtime.errors import InputError

    if args.readme and args.format != "markdown":
        raise InputError(
            f"--readme writes Markdown between markers, got --format {args.format}; use --output"
            " FILE for it."
        )
    if not args.runs:
        if not args.readme or args.output or args.plots or args.keep:
            raise InputError(
                "No runs are named: give run folders, or --readme FILE alone, whose sections name"
                " their records."
            )
        _fill_named_sections(Path(args.readme), args.baseline)
        return 0
    records, problems = read_named_runs(args.runs)
    names = sorted({run.init for run in records})
    if args.baseline and args.baseline not in names:
        raise InputError(
            f"--baseline {args.baseline}: no run is of that row. Rows are {', '.join(names)}."
        )
    tables = build_tables(records, baseline=args.baseline)
    # Only the page, the plots and the records show pre-training runs.
    is_whole = args.format == "html" or args.plots or args.keep
    pretraining, faults = _find_pretraining(args.runs, records) if is_whole else ([], [])
    text = _render(args, tables, [*problems, *faults], pretraining)
    if args.readme:
        _fill_section(Path(args.readme), args.runs, text)
    if args.output:
        _write(Path(args.output), text)
    if args.plots:
        _write_plots(Path(args.plots), tables, pretraining)
    if args.keep:
        _keep(Path(args.keep), records, pretraining)
    if not args.readme and not args.output and not args.keep:
        sys.stdout.write(text)
    return 0


def read_named_runs(paths: Sequence[str]) -> tuple[list, list]:
    """Read the runs that the command line names.

    Raises:
        InputError: If no readable run is found.
        MissingFileError: If a named path does not exist.
    """
    from moco_transfer.report import read_runs
    from moco_transfer.runtime.errors import InputError, MissingFileError

    for path in paths:
        if not Path(path).exists():
            raise MissingFileError(
                f"{path} does not exist; expected a run folder or a folder that holds run folders."
            )
    records, problems = read_runs(paths)
    if not records:
        raise InputError(_nothing_found(paths, problems))
    return records, problems


def _find_pretraining(paths: Sequence[str], records: list) -> tuple[list, list]:
    from moco_transfer.report.pretraining import find_pretraining

    return find_pretraining(paths, records)


def _render(args: argparse.Namespace, tables: list, problems: list, pretraining: list) -> str:
    from moco_transfer.report import render_csv, render_latex, render_markdown

    if args.format == "html":
        from moco_transfer.report.html.page import render_page

        return render_page(
            tables,
            problems,
            pretraining=pretraining,
            folders=[path for path in args.runs if Path(path).is_dir()],
        )
    if args.format != "csv":
        return (render_markdown if args.format == "markdown" else render_latex)(tables, problems)
    # CSV has no place for sentences.
    for problem in [*problems, *(problem for table in tables for problem in table.problems)]:
        logger.warning("%s", problem)
    return render_csv(tables)


def _nothing_found(paths: Sequence[str], problems: list) -> str:
    found = " ".join(str(problem) for problem in problems[:5])
    return (
        f"No readable run in {', '.join(paths)}: expected at least one results.json written by"
        f" `train`. {found}".strip()
    )


def _write(file: Path, text: str) -> None:
    from moco_transfer.runtime.files import atomic_write_text

    atomic_write_text(file, text)


def _write_plots(folder: Path, tables: list, pretraining: list) -> None:
    from moco_transfer.report.html.plots import breakdown, figure_name, learning_curves
    from moco_transfer.report.pretraining import pretraining_curves

    for table in tables:
        curves, problems = learning_curves(table)
        for problem in problems:
            logger.warning("%s", problem)
        figures = {"curves": curves} | {
            f"{kind}_by_class_and_size": breakdown(table, kind) for kind in table.kinds
        }
        for name, figure in figures.items():
            _write_figure(folder / f"{figure_name(table)}_{name}", figure)
    for number, item in enumerate(pretraining, start=1):
        _write_figure(
            folder / f"pretraining_{number}_{Path(item.folder).name}", pretraining_curves(item)
        )


def _write_figure(stem: Path, figure: Figure | None) -> None:
    from moco_transfer.report.html.plots import figure_bytes
    from moco_transfer.runtime.files import atomic_write_bytes

    for ending in ("png", "svg") if figure is not None else ():
        file = stem.with_name(f"{stem.name}.{ending}")
        atomic_write_bytes(file, figure_bytes(figure, ending))
        logger.info("Wrote %s", file)


def _keep(folder: Path, records: list, pretraining: list) -> None:
    from moco_transfer.report.keep import keep_records

    kept = keep_records(records, pretraining, folder)
    size = sum(file.stat().st_size for target in kept for file in target.iterdir())
    print(
        f"Kept {len(kept)} runs in {folder} ({size / 1e3:.0f} kB), without weights and absolute"
        " paths."
    )


def _fill_section(readme: Path, runs: Sequence[str], text: str) -> None:
    """Fill the section that names these runs, else the one that names nothing."""
    from moco_transfer.report import marked_paths

    wanted = {Path(path).resolve() for path in runs}
    sections = marked_paths(_read_text(readme))
    paths = next(
        (
            paths
            for paths in sections
            if paths and {(readme.parent / path).resolve() for path in paths} == wanted
        ),
        (),
    )
    _insert(readme, {paths: text})


def _fill_named_sections(readme: Path, baseline: str) -> None:
    from moco_transfer.report import build_tables, marked_paths, render_markdown
    from moco_transfer.runtime.errors import InputError

    named = [paths for paths in marked_paths(_read_text(readme)) if paths]
    if not named:
        raise InputError(
            f"{readme} has no section that names its records; write <!-- results:begin FOLDER -->"
            " and <!-- results:end -->."
        )
    contents = {}
    for paths in named:
        records, problems = read_named_runs([str(readme.parent / path) for path in paths])
        # Paths in warnings are the README's own, wherever the command runs.
        contents[paths] = render_markdown(
            build_tables(records, baseline=baseline), problems
        ).replace(f"{readme.parent}/", "")
    _insert(readme, contents)


def _insert(readme: Path, contents: dict[tuple[str, ...], str]) -> None:
    from moco_transfer.report import insert_between_markers
    from moco_transfer.runtime.errors import InputError

    text = _read_text(readme)
    try:
        for paths, content in contents.items():
            text = insert_between_markers(text, content, paths)
    except ValueError as error:
        raise InputError(
            f"{readme}: {error}; put both markers on lines of their own where the table shall"
            " stand."
        ) from error
    _write(readme, text)


def _read_text(file: Path) -> str:
    from moco_transfer.runtime.errors import InputError, MissingFileError

    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{file} does not exist; --readme needs a file that holds the two markers."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} cannot be read as text ({error}); --readme needs a Markdown file."
        ) from error
