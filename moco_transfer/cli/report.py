"""From run folders to the transfer table."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..report import (
    Problem,
    RunRecord,
    Table,
    build_tables,
    fill_sections,
    read_runs,
    render_csv,
    render_latex,
    render_markdown,
)
from ..report.comparisons.across_tasks import build_comparisons
from ..report.facts import comparison_facts, table_facts
from ..report.keep import keep_records
from ..report.pretraining import PretrainingRun, find_pretraining
from ..runtime.errors import InputError, MissingFileError
from ..runtime.files import atomic_write_bytes, atomic_write_text

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Print or write the table; returns 0: it names problems with single runs itself. With
    --watch the status of :func:`watch.watch`.
    """
    if args.watch:
        return _watch(args)
    if bool(args.runs) == bool(args.readme):
        raise InputError("Give either run folders, or --readme FILE, whose sections name them.")
    if args.json and args.readme:
        raise InputError("--json and --readme exclude each other: the text goes into the file.")
    if args.readme:
        _fill_sections(args.readme, args.baseline)
        return 0
    args.format = args.format or "markdown"
    if args.summary and args.format == "html":
        raise InputError("--summary is for a text; the page has the summary by itself.")
    records, problems = read_named_runs(args.runs)
    tables = _tables(records, args.baseline)
    pretraining: list[PretrainingRun] = []
    if args.format == "html" or args.plots or args.keep:
        pretraining, faults = find_pretraining(args.runs, records)
        problems += faults
    text = _render(args, tables, problems, pretraining)
    if args.json:
        args.facts = table_facts(tables, problems)
        if args.summary:
            args.facts["comparisons"] = comparison_facts(build_comparisons(tables))
    if args.output:
        atomic_write_text(args.output, text)
    if args.plots:
        _write_plots(args.plots, tables, pretraining)
    if args.keep:
        kept = keep_records(records, pretraining, args.keep)
        print(f"Kept {len(kept)} runs in {args.keep}, without weights and absolute paths.")
    if not args.output and not args.keep:
        sys.stdout.write(text)
    return 0


def _watch(args: argparse.Namespace) -> int:
    """Write the page of a matrix while it runs."""
    others = ("summary", "plots", "keep", "readme", "json")
    if len(args.runs) != 1 or args.format not in (None, "html") or any(map(vars(args).get, others)):
        expected = "give the one folder of a benchmark, and at most --output and --baseline"
        raise InputError(f"--watch writes the page of a matrix: {expected}.")
    from ..benchmark.watch import matrix_of, watch
    from ..report.html.page import render_page

    matrix = matrix_of(Path(args.runs[0]))
    file = Path(args.output or matrix.output / "report.html")

    def page(left: set[Path], progress: str, reload_sec: int) -> str:
        records, problems = read_runs(args.runs)
        pretraining, faults = find_pretraining(args.runs, records)
        # That a run has no results yet is in the progress.
        problems = [item for item in (*problems, *faults) if Path(item.path) not in left]
        baseline = args.baseline or matrix.baseline
        has_row = any(run.init == baseline for run in records)
        return render_page(
            _tables(records, baseline if has_row else ""),
            problems,
            pretraining=pretraining,
            folders=args.runs,
            progress=progress,
            reload_sec=reload_sec,
        )

    return watch(matrix, file, page)


def _tables(records: list[RunRecord], baseline: str) -> list[Table]:
    """Build the tables, with intervals over test images where runs have files of matches."""
    names = sorted({run.init for run in records})
    if baseline and baseline not in names:
        rows = ", ".join(names)
        raise InputError(f"--baseline {baseline}: no run is of that row. Rows are {rows}.")
    tables = build_tables(records, baseline=baseline)
    if not any(run.matches for run in records):
        return tables
    from tqdm import tqdm

    from ..report.bootstrap import with_intervals  # numpy takes 0.1 s

    def show(results: Iterator[Any], total: int) -> Iterable[Any]:
        # Not runtime.progress, which imports torch.
        period = 0.1 if sys.stderr.isatty() else 10
        text = "AP or mIoU on samples of the test images, kept for the next report"
        return tqdm(results, text, total, leave=False, mininterval=period, delay=5, unit="run")

    return with_intervals(tables, show=show)


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
    if args.summary:
        return _summary(tables, problems, args.format)
    if args.format == "csv":  # it has no place for sentences
        for problem in (*problems, *(problem for table in tables for problem in table.problems)):
            logger.warning("%s", problem)
        return render_csv(tables)
    return (render_markdown if args.format == "markdown" else render_latex)(tables, problems)


def _summary(tables: list[Table], problems: list[Problem], style: str) -> str:
    from ..report.comparisons.summary import render_summary

    comparisons = build_comparisons(tables)
    if style == "csv":
        of_tasks = [problem for comparison in comparisons for problem in comparison.problems]
        for problem in (*problems, *of_tasks):
            logger.warning("%s", problem)
    return render_summary(comparisons, style, problems)


def _write_plots(folder: Path, tables: list[Table], pretraining: list[PretrainingRun]) -> None:
    from ..report.comparisons.label_efficiency import build_label_curves
    from ..report.html import confusions, label_curve, plots

    drawn = [
        (f"{plots.figure_name(table)}_{panel.name}", *plots.draw_panel(panel, table))
        for table in tables
        for panel in (*plots.table_panels(table), *confusions.confusion_panels(table))
    ]
    drawn += [
        (f"pretraining_{number}_{Path(item.folder).name}_{panel.name}", *plots.draw_panel(panel))
        for number, item in enumerate(pretraining, start=1)
        for panel in plots.pretraining_panels(item)
    ]
    for curve in build_label_curves(tables):
        for panel in label_curve.label_panels(curve):
            figure, found = plots.draw_panel(panel)
            names = {init: init for init in curve.inits}
            plots.decorate(figure, curve.setting, names, "mean ± std over seeds")
            drawn.append((f"{plots.setting_name(curve.setting)}_{panel.name}", figure, found))
    for problem in dict.fromkeys(problem for *_, problems in drawn for problem in problems):
        logger.warning("%s", problem)
    for name, figure, _ in drawn:
        for ending in ("png", "svg"):
            file = folder / f"{name}.{ending}"
            atomic_write_bytes(file, plots.figure_bytes(figure, ending))
            logger.info("Wrote %s", file)


def _fill_sections(readme: Path, baseline: str) -> None:
    def text_of(words: Sequence[str]) -> str:
        given = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
        if unknown := given.keys() - {"--summary", "--baseline"}:
            known = "--summary and --baseline=NAME"
            raise InputError(f"a section has the option {min(unknown)}; known are {known}.")
        paths = [str(readme.parent / word) for word in words if not word.startswith("--")]
        records, problems = read_named_runs(paths)
        tables = _tables(records, given.get("--baseline", baseline))
        if "--summary" in given:
            text = _summary(tables, problems, "markdown")
        else:
            text = render_markdown(tables, problems)
        # Paths in warnings are the README's own, wherever the command runs.
        return text.replace(f"{readme.parent}/", "")

    if not readme.is_file():
        raise MissingFileError(f"--readme {readme} does not exist.")
    try:
        text = fill_sections(readme.read_text(encoding="utf-8"), text_of)
    except InputError as error:
        raise InputError(f"{readme}: {error}") from error
    atomic_write_text(readme, text)
