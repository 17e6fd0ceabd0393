"""The page: tables, plots, images and every run's config, versions and command in one HTML file
that needs no network.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..aggregate import Table
from ..cells import NOTHING
from ..comparisons.across_tasks import Comparison, build_comparisons
from ..comparisons.label_efficiency import LabelCurve, build_label_curves, label_rows
from ..comparisons.summary import caption, standing_rows, summary_sentences, task_rows
from ..pretraining import PretrainingRun
from ..records import CONFIG_FILE, Problem, text_of
from ..table_csv import render_csv
from ..table_latex import render_latex
from ..templating import render
from .confusions import confusion_panels
from .label_curve import label_panels
from .plots import (
    STYLES,
    Panel,
    Style,
    draw_panel,
    figure_name,
    inline_svg,
    pretraining_panels,
    row_styles,
    styles_of,
    swatch,
    table_panels,
)

#: What `sheet` writes, of pixels too, before the table's name and .png.
SHEET_NAME = "detections"
_TALL_INCHES = 8.0  # a higher panel is folded away


def render_page(
    tables: Sequence[Table],
    problems: Sequence[Problem] = (),
    *,
    pretraining: Sequence[PretrainingRun] = (),
    folders: Sequence[str | Path] = (),
    title: str = "Transfer results",
    progress: str = "",
    reload_sec: int = 0,
) -> str:
    """Return the page as one HTML text; the same runs give the same text.

    The folders of the tables' runs are read again, for curves and configs. ``folders`` are other
    places where sheets of detections may lie. ``progress`` is HTML about runs that are not complete
    yet; with ``reload_sec`` the page reloads itself so often.
    """
    return render(
        "page.html",
        title=title,
        sections=[_section(table, number, folders) for number, table in enumerate(tables, start=1)],
        curves=[
            _label_curve(curve, number)
            for number, curve in enumerate(build_label_curves(tables), start=1)
        ],
        summaries=[_summary(comparison) for comparison in build_comparisons(tables)],
        pretraining=[_pretraining(run, number) for number, run in enumerate(pretraining, start=1)],
        tables=tables,
        problems=problems,
        latex=render_latex(tables, problems),
        csv_uri=_data_uri("text/csv;charset=utf-8", render_csv(tables).encode("utf-8")),
        num_runs=sum(len(table.runs) for table in tables),
        row_colours=[color for color, _, _ in STYLES],
        nothing=NOTHING,
        progress=Markup(progress),  # noqa: S704 - our own template, which escapes
        reload_sec=reload_sec,
    )


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _section(table: Table, number: int, folders: Sequence[str | Path]) -> dict[str, Any]:
    """Return what the page shows of one table."""
    anchor = f"table-{number}"
    plots, unread = _plots([*table_panels(table), *confusion_panels(table)], anchor)
    configs = (text_of(run.folder, CONFIG_FILE) for run in table.runs)
    return {
        "anchor": anchor,
        "table": table,
        "problems": [*table.problems, *unread],
        "swatches": _swatches(row_styles(table)),
        "plots": plots,
        "sheet": _sheet(table, folders),
        "config": next(filter(None, configs), ""),
        "anchors": {run.folder: f"{anchor}-run-{i}" for i, run in enumerate(table.runs, start=1)},
    }


def _swatches(styles: dict[str, Style]) -> dict[str, Markup]:
    return {init: Markup(swatch(s)) for init, s in styles.items()}  # noqa: S704 - our own SVG


def _summary(comparison: Comparison) -> dict[str, Any]:
    """Return what the page shows of the initialisations over several tasks."""
    return {
        "title": caption(comparison),
        "standings": standing_rows(comparison),
        "tasks": task_rows(comparison),
        "sentences": summary_sentences(comparison),
        "problems": comparison.problems,
        "swatches": _swatches(styles_of(comparison.inits)),
    }


def _label_curve(curve: LabelCurve, number: int) -> dict[str, Any]:
    """Return what the page shows of one task on several amounts of labels."""
    anchor = f"labels-{number}"
    return {
        "anchor": anchor,
        "curve": curve,
        "rows": {kind: label_rows(curve, kind) for kind in curve.kinds},
        "plots": _plots(label_panels(curve), anchor)[0],
        "swatches": _swatches(styles_of(curve.inits)),
    }


def _pretraining(run: PretrainingRun, number: int) -> dict[str, Any]:
    """Return what the page shows of one pre-training run."""
    anchor = f"pretraining-{number}"
    return {"anchor": anchor, "run": run, "plots": _plots(pretraining_panels(run), anchor)[0]}


def _plots(panels: Sequence[Panel], anchor: str) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the plots, without empty ones, and each problem with a file once."""
    plots: list[dict[str, Any]] = []
    problems: dict[Problem, None] = {}
    for panel in panels:
        figure, found = draw_panel(panel)
        problems |= dict.fromkeys(found)
        if figure.axes[0].has_data():
            start = panel.caption.split()[0]  # mIoU stays as it is
            caption = (start.capitalize() if start.islower() else start) + panel.caption[
                len(start) :
            ]
            attributes = Markup('role="img" aria-label="{}"').format(caption)
            drawn = inline_svg(figure, attributes, prefix=f"{anchor}-{panel.name}-")
            svg = Markup(drawn)  # noqa: S704 - Matplotlib escapes what a file says
            plots.append({"caption": caption, "svg": svg, "is_tall": panel.height > _TALL_INCHES})
    return plots, list(problems)


def sheet_folder(table: Table) -> Path:
    """Return the folder of a table's sheet of detections: the one above all its runs."""
    return Path(os.path.commonpath([Path(run.folder).parent for run in table.runs]))


def _sheet(table: Table, folders: Sequence[str | Path]) -> str | None:
    """Return the image that `sheet` has drawn of a table as a URI."""
    places = [*map(Path, folders), sheet_folder(table)]
    places += [Path(run.folder).parent for run in table.runs]
    files = (place / f"{SHEET_NAME}_{figure_name(table)}.png" for place in places)
    file = next(filter(Path.is_file, files), None)
    return _data_uri("image/png", file.read_bytes()) if file else None
