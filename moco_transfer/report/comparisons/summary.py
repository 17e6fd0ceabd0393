"""The summary over tasks as Markdown, LaTeX and CSV; the page renders the same cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from ..cells import NOTHING, Cell, kind_name, signed_text, summary_text
from ..records import Problem
from ..table_latex import escape_latex
from ..table_markdown import markdown_grid
from ..templating import render
from .across_tasks import CONFIDENCE, Comparison, PairedDifference, Standing, smallest_p

_NONE = (
    "No summary over tasks: it takes two tasks or more, on the same amount of labels, engine and"
    " precision, with two rows or more."
)
_SOURCE = "Demsar, JMLR 7 (2006)"


def render_summary(
    comparisons: Sequence[Comparison], style: str, problems: Sequence[Problem] = ()
) -> str:
    """Return the comparisons as ``markdown``, ``latex`` or ``csv``."""
    if style == "csv":
        return _csv(comparisons)
    return render(
        {"markdown": "summary.md", "latex": "summary.tex"}[style],
        comparisons=comparisons,
        problems=problems,
        nothing=_NONE,
        caption=caption,
        standing_rows=standing_rows,
        task_rows=task_rows,
        sentences=summary_sentences,
        grid=markdown_grid,
        tex=_tex,
    )


def caption(comparison: Comparison) -> str:
    """Return what a comparison is of, e.g. ``4 tasks, masks (all labels, torchvision, fp32)``."""
    kind = f", {kind_name(comparison.kind)}" if comparison.kind else ""
    return f"{len(comparison.tasks)} tasks{kind} ({comparison.title})"


def standing_rows(comparison: Comparison) -> list[dict[str, Cell]]:
    """Return one row of cells for each initialisation, by the names of their columns."""
    rows = [_standing_cells(standing, comparison) for standing in comparison.standings]
    filled = {name for row in rows for name, cell in row.items() if cell.text != NOTHING}
    return [{name: cell for name, cell in row.items() if name in filled} for row in rows]


def _standing_cells(one: Standing, comparison: Comparison) -> dict[str, Cell]:
    cells = {
        "init": Cell(one.init, one.init, "name"),
        "mean rank": _cell(one.mean_rank, "{:.2f}"),
        "best in": Cell(f"{one.num_best} of {len(comparison.ranked)}", one.num_best),
    }
    if not comparison.base:
        return cells | {"tasks": Cell(str(one.num_tasks), one.num_tasks)}
    counts = f"{one.wins} / {one.ties} / {one.losses}"
    is_base, clear = one.init == comparison.base, f"{one.clear_wins} / {one.clear_losses}"
    low_high = one.interval
    is_clear = low_high is not None and (low_high[0] > 0 or low_high[1] < 0)
    style = ("better" if (one.difference or 0) > 0 else "worse") if is_clear else ""
    return cells | {
        "wins / ties / losses": Cell(NOTHING) if is_base else Cell(counts, one.wins),
        "clear wins / losses": Cell(NOTHING) if is_base else Cell(clear, one.clear_wins),
        "mean Δ": Cell(NOTHING)
        if one.difference is None
        else Cell(signed_text(one.difference), one.difference, style),
        "95% CI": Cell(_interval(low_high), low_high[0] if low_high else None),
        "p (sign)": _cell(one.p_sign, "{:.3g}"),
        "p (Wilcoxon)": _cell(one.p_wilcoxon, "{:.3g}"),
        "tasks": Cell(str(one.num_tasks), one.num_tasks),
    }


def _cell(value: float | None, form: str) -> Cell:
    return Cell(NOTHING) if value is None else Cell(form.format(value), value)


def _interval(interval: tuple[float, float] | None) -> str:
    return NOTHING if interval is None else " to ".join(map(signed_text, interval))


def task_rows(comparison: Comparison) -> list[dict[str, Cell]]:
    """Return one row of cells for each task: mean and std of each initialisation and, for all but
    the base, the difference to it with its interval over seeds.
    """
    rows = []
    for task in comparison.tasks:
        metric = task.metric if comparison.kind else f"{kind_name(task.kind)} {task.metric}"
        cells = {"task": Cell(task.name, task.name, "text"), "metric": Cell(metric, metric, "text")}
        for init in comparison.inits:
            summary = task.means.get(init)
            gap = task.difference(init, comparison.base)
            mean = summary_text(summary, row_n=summary.n) if summary else NOTHING
            cells[init] = Cell(mean, summary.mean if summary else None)
            if init != comparison.base and comparison.base:
                cells[f"Δ {init}"] = _gap_cell(gap)
        rows.append(cells)
    return rows


def _gap_cell(gap: PairedDifference | None) -> Cell:
    if gap is None:
        return Cell(NOTHING)
    interval = f" ({_interval(gap.interval)})" if gap.interval else ""
    style = ("better" if gap.value > 0 else "worse") if gap.is_clear else ""
    return Cell(signed_text(gap.value) + interval, gap.value, style)


def summary_sentences(comparison: Comparison) -> list[str]:
    """Return what the columns mean, how little so many tasks can show, and what is missing."""
    base, ranked, confidence = comparison.base, len(comparison.ranked), f"{100 * CONFIDENCE:.0f}%"
    lines = [
        "A task counts once, with its mean over seeds. Mean rank and best: over the"
        f" {ranked} tasks that every row has, rank 1 is the best; ties share a rank."
    ]
    if found := comparison.friedman:
        lines.append(
            f"Friedman's test that all rows are equal, as Iman and Davenport: F {found.f:.2f},"
            f" p {found.p:.2g} ({_SOURCE})."
        )
    if base:
        lines += [
            f"Wins, losses and Δ (points) are against {base}. A win or loss is clear where the"
            f" {confidence} t interval of the paired differences over seeds leaves out 0; the"
            " second table shows it in brackets.",
            f"{confidence} CI: Student's interval of Δ over tasks. It speaks of other tasks like"
            " these, and takes their differences as normal.",
            f"p: exact two-sided sign test, and Wilcoxon's signed-rank test with Holm's correction"
            f" for the number of rows ({_SOURCE}). With {len(comparison.tasks)} tasks no p can be"
            f" below {smallest_p(len(comparison.tasks)):.3g}.",
        ]
    if len({(task.kind, task.metric) for task in comparison.tasks}) > 1:
        lines.append("Tasks have different metrics: their differences are of different kinds.")
    sets = [task.table.setting.test_set for task in comparison.tasks]
    if len(set(sets)) < len(sets):
        lines.append("Some tasks share a test set: they are not independent, as the tests assume.")
    return lines


def _csv(comparisons: Sequence[Comparison]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    names = list(Standing.__dataclass_fields__)
    writer.writerow(["comparison", "base", *names[:-3], "low", "high", *names[-2:]])
    for comparison in comparisons:
        for one in comparison.standings:
            values = [getattr(one, name) for name in names]
            low_high = one.interval or (None, None)
            row = [caption(comparison), comparison.base, *values[:-3], *low_high, *values[-2:]]
            writer.writerow(row)
    return buffer.getvalue()


def _tex(cell: Cell | str) -> str:
    text = escape_latex(cell.text if isinstance(cell, Cell) else cell)
    return rf"\textbf{{{text}}}" if isinstance(cell, Cell) and cell.style in _BOLD else text


_BOLD = ("better", "worse")
