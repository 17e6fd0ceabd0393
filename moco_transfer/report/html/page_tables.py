"""The cells of the page's tables: what each shows and what it is sorted by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..aggregate import HEADLINE_METRICS, Difference, Row, Table
from ..caveats import kind_name, pretrain_text, row_mark, run_caveats
from ..number_text import NOTHING, difference_text, p_text, summary_text
from ..published_text import published_cells
from ..records import RunRecord
from .plots import row_styles


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What it shows.
        key: What its column is sorted by: a number, or text; None stands last in either direction.
        style: CSS classes, "" for none.
        link: Anchor in the page, "" for none.
        row_style: Style of a row's line and marker, which stands before its name, or None.
    """

    text: str
    key: float | str | None = None
    style: str = ""
    link: str = ""
    row_style: tuple | None = None


@dataclass(frozen=True)
class Grid:
    """One table of the page.

    Attributes:
        caption: What it holds.
        header: Names of the columns.
        rows: Cells, in the order of the header.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def transfer_grid(table: Table, kind: str) -> Grid:
    """Return the transfer table of one kind of result; columns that say nothing in any row are left
    out.
    """
    rows = [_transfer_cells(table, row, kind) for row in table.rows]
    always = {"init", "n", *HEADLINE_METRICS}
    if table.baseline and len(table.rows) > 1:
        always |= {f"Δ {metric}" for metric in HEADLINE_METRICS}
    header = tuple(
        name
        for name in rows[0]
        if name in always or any(cells[name].text not in ("", NOTHING) for cells in rows)
    )
    return Grid(
        f"Transfer, {kind_name(kind)}",
        header,
        tuple(tuple(cells[name] for name in header) for cells in rows),
    )


def trials_grid(table: Table, anchors: dict[int, str]) -> Grid:
    """Return every run of a table with its own numbers.

    Args:
        table: The table.
        anchors: ``id(run)`` to the anchor of the run's details.
    """
    kinds = table.kinds
    names = [(kind, metric) for kind in kinds for metric in HEADLINE_METRICS]
    columns = [
        metric if len(kinds) == 1 else f"{metric} {kind_name(kind)}" for kind, metric in names
    ]
    header = ["init", "seed", *columns, "iterations", "hours", "status"]
    styles = row_styles(table)
    rows = []
    for row in table.rows:
        for run in row.all_runs:
            marks = run_caveats(run)
            status = ("conflict" if run in row.conflicts else "averaged") + (
                f"; {'; '.join(marks)}" if marks else ""
            )
            cells = [
                Cell(run.init, run.init, "name", row_style=styles[row.init]),
                Cell(str(run.seed), run.seed, link=anchors[id(run)]),
            ]
            cells += [_value_cell(run, kind, metric) for kind, metric in names]
            hours = (
                Cell(NOTHING)
                if run.wall_sec is None
                else Cell(f"{run.wall_sec / 3600:.2f}", run.wall_sec)
            )
            rows.append(
                (
                    *cells,
                    Cell(str(run.iterations), run.iterations),
                    hours,
                    Cell(status, status, "text"),
                )
            )
    return Grid("Every run", tuple(header), tuple(rows))


def _transfer_cells(table: Table, row: Row, kind: str) -> dict[str, Cell]:
    differences = {metric: table.difference(row, kind, metric) for metric in HEADLINE_METRICS}
    test = differences["AP"].test if differences["AP"] else None
    n = len(row.runs)
    return {
        "init": Cell(
            row.init + row_mark(row), row.init, "name", row_style=row_styles(table)[row.init]
        ),
        **{metric: _mean_cell(row, kind, metric) for metric in HEADLINE_METRICS},
        **{
            f"Δ {metric}": _difference_cell(difference)
            for metric, difference in differences.items()
        },
        "p (AP)": Cell(p_text(test), test.p if test and test.p == test.p else None),
        **_published(table, row, kind),
        "n": Cell(str(n), n),
        # Last: on a narrow screen the numbers stand beside the name.
        "pre-train": Cell(pretrain_text(row) or NOTHING, pretrain_text(row) or None, "text"),
    }


def _mean_cell(row: Row, kind: str, metric: str) -> Cell:
    summary = row.summary(kind, metric)
    return Cell(summary_text(summary, row_n=len(row.runs)), summary.mean if summary.n else None)


def _difference_cell(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(NOTHING)
    text = difference_text(difference)
    if not difference.exceeds_spread:
        return Cell(text, difference.value)
    # Colour alone would be lost in grey and on many readers.
    return Cell(
        f"{text} {'▲' if difference.value > 0 else '▼'}",
        difference.value,
        "better" if difference.value > 0 else "worse",
    )


def _published(table: Table, row: Row, kind: str) -> dict[str, Cell]:
    values, distances = published_cells(table, row, kind, metrics=HEADLINE_METRICS)
    names = " / ".join(HEADLINE_METRICS)
    return {
        f"published: {names}": Cell(values, _first(values)),
        "distance: published std": Cell(distances, _first(distances)),
    }


def _value_cell(run: RunRecord, kind: str, metric: str) -> Cell:
    value = run.value(kind, metric)
    if value is None or value != value:
        return Cell(NOTHING if value is None else "NaN")
    return Cell(f"{value:.1f}", value)


def _first(texts: str) -> float | None:
    parts: Sequence[str] = texts.split(" / ")
    try:
        return float(parts[0])
    except ValueError:
        return None
