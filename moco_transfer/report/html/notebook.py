"""What the cell of a notebook shows of runs: tables, and curves as SVG images, which neither take
styles from the notebook nor give any to it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..aggregate import Table
from ..cells import Cell, kind_name, transfer_rows
from ..pretraining import PretrainingRun
from ..records import Problem
from ..sentences import legend_sentences, setting_sentence
from ..templating import render
from .plots import Panel, draw_panel, figure_bytes, pretraining_panels, table_panels


def facts_html(
    title: str, facts: Mapping[str, object], pretraining: Sequence[PretrainingRun] = ()
) -> str:
    """Return a table of names and values, and the curves of pre-training runs below it."""
    panels = ((panel, None) for run in pretraining for panel in pretraining_panels(run))
    grid = {
        "title": title,
        "header": (),
        "rows": [map(Cell, map(str, fact)) for fact in facts.items()],
    }
    return _html(grids=[grid], panels=panels)


def tables_html(
    tables: Sequence[Table], problems: Sequence[Problem] = (), *, lines: Sequence[str] = ()
) -> str:
    """Return the transfer tables with their warnings, and their curves."""
    grids = []
    for table in tables:
        for kind in table.kinds:
            rows = transfer_rows(table, kind)
            title = f"{table.setting.task}, {kind_name(kind)}"
            grids.append(
                {"title": title, "header": list(rows[0]), "rows": [row.values() for row in rows]}
            )
    panels = [
        (panel, table)
        for table in tables
        for panel in table_panels(table)
        if panel.name.endswith("_curve")
    ]
    return _html(
        lines=[*lines, *map(setting_sentence, tables)],
        grids=grids,
        notes=[line for t in tables for line in legend_sentences(t, emphasis="bold")],
        problems=[*problems, *(problem for table in tables for problem in table.problems)],
        panels=panels,
    )


def _html(*, panels: Iterable[tuple[Panel, Table | None]], **context: Any) -> str:
    plots = []
    for panel, table in panels:
        figure, _ = draw_panel(panel, table)
        if figure.axes[0].has_data():
            svg = base64.b64encode(figure_bytes(figure, "svg")).decode("ascii")
            plots.append({"caption": panel.caption, "svg": svg})
    empty: dict[str, Any] = {"lines": (), "notes": (), "problems": ()}
    return render("notebook.html", **empty | context, plots=plots)
