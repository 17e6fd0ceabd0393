"""Pictures of a table: learning curves of AP and loss, AP by class and by object size, each with the spread over seeds.

Figures are drawn without pyplot, so nothing global changes and no display is needed. Rows differ in line style, marker
and brightness as well as in colour: the pictures can be read in grey.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from moco_transfer.evaluate.metric_names import class_metric, is_class_metric

from .aggregate import FIRST_ROWS, Row, Table
from .caveats import kind_name
from .curves import Curve, loss_curve, metric_curve
from .records import Problem

#: (colour, line style, marker) of random, of supervised, and of the others in turn; neighbours differ in brightness.
STYLES = (
    ("#9e9e9e", ":", "s"),
    ("#b85c00", "--", "^"),
    ("#0b3c8c", "-", "o"),
    ("#2a9d5c", "-.", "D"),
    ("#7b1fa2", (0, (5, 1)), "v"),
    ("#56a8e0", (0, (3, 1, 1, 1)), "P"),
    ("#5c2e00", (0, (1, 1)), "X"),
)

_LINE = {"markersize": 4.5, "linewidth": 1.7}


def learning_curves(table: Table) -> tuple[Figure, list[Problem]]:
    """Draw AP and training loss over iterations: mean over seeds, and a band of one std where n >= 2.

    Args:
        table: Its averaged runs' folders are read again, for metrics.json.

    Returns:
        A figure with one panel per kind of result and one for the loss, and a problem for each run without a curve.
    """
    kinds = table.kinds
    figure = Figure(figsize=(4.2 * (len(kinds) + 1), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(kinds) + 1)
    problems: list[Problem] = []
    for axis, kind in zip(axes, kinds, strict=False):
        problems += _draw(axis, table, lambda row, kind=kind: metric_curve(row, kind, "AP"))
        axis.set_ylabel(f"AP of {kind_name(kind)} (0-100)")
        axis.set_ylim(0, max(1.0, 1.08 * axis.dataLim.y1))
    problems += _draw(axes[-1], table, loss_curve)
    axes[-1].set_ylabel("training loss")
    for axis in axes:
        axis.set_xlabel("iteration")
        axis.set_xlim(left=0)
        axis.grid(color="#e0e0e0", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    _decorate(figure, table, axes[0])
    return figure, list(dict.fromkeys(problems))


def breakdown(table: Table, kind: str = "bbox") -> Figure | None:
    """Draw AP by object size and by class: one line per size or class, one marker per row, a bar of one std where n >= 2.

    Args:
        table: Where the values come from.
        kind: ``"bbox"``, ``"segm"``, ...

    Returns:
        A figure, or None when the runs have neither. Classes are ordered by the mean of the baseline row (of the first
        row without one); sizes are COCO's: small below 32^2 px, large from 96^2 px.
    """
    sizes = {"APs": "small", "APm": "medium", "APl": "large"}
    found = {metric for row in table.rows for row_kind, metric in row.values if row_kind == kind}
    base = table.baseline or table.rows[0]
    classes = sorted(filter(is_class_metric, found), key=lambda metric: (_or_zero(base.summary(kind, metric).mean), metric))
    groups = [[metric for metric in reversed(sizes) if metric in found], classes]
    groups = [group for group in groups if group]
    if not groups:
        return None
    height = max(2.6, 1.4 + 0.26 * max(map(len, groups)))
    figure = Figure(figsize=(4.2 * len(groups) + 0.6, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for axis, group in zip(axes, groups, strict=True):
        _draw_markers(axis, table, kind, group)
        axis.set_yticks(range(len(group)), [sizes.get(metric) or metric.removeprefix(class_metric("")) for metric in group])
        axis.set_xlabel(f"AP of {kind_name(kind)} (0-100)")
        axis.set_xlim(0, max(1.0, 1.05 * axis.dataLim.x1))
        axis.grid(color="#e0e0e0", linewidth=0.6, axis="x")
        axis.spines[["top", "right"]].set_visible(False)
    _decorate(figure, table, axes[0])
    return figure


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """Return a figure as the bytes of a file; the same figure gives the same bytes.

    Args:
        figure: Any figure.
        file_format: ``"png"`` (150 dots per inch) or ``"svg"`` (text stays text).
    """
    buffer = io.BytesIO()
    # Without these two, the ids in an SVG are random and its date is that of the day.
    with matplotlib.rc_context({"svg.hashsalt": "moco-transfer", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=file_format, dpi=150, metadata={"Date": None} if file_format == "svg" else None)
    return buffer.getvalue()


def figure_name(table: Table) -> str:
    """Return a file name without ending that tells the tables of one report apart."""
    setting = table.setting
    parts = [setting.task, *setting.test_set, setting.config_hash[:8], setting.engine, setting.norm]
    name = "_".join(filter(None, parts))
    return re.sub(r"[^\w.-]+", "-", name)


def row_styles(table: Table) -> dict[str, tuple]:
    """Return colour, line style and marker per row; random and supervised look the same in every table."""
    others = STYLES[len(FIRST_ROWS) :]
    names = [row.init for row in table.rows if row.init not in FIRST_ROWS]
    styles = {name: others[index % len(others)] for index, name in enumerate(names)}
    return styles | dict(zip(FIRST_ROWS, STYLES, strict=False))


def _draw(axis: Axes, table: Table, read: Callable[[Row], tuple[Curve, list[Problem]]]) -> list[Problem]:
    problems, styles, longest = [], row_styles(table), 0
    for row in table.rows:
        curve, found = read(row)
        problems += found
        color, line_style, marker = styles[row.init]
        if not curve.iterations:
            continue
        longest = max(longest, len(curve.iterations))
        every = max(1, len(curve.iterations) // 8)  # markers tell lines apart in grey; one on each of 60 points would be a blot
        axis.plot(curve.iterations, curve.mean, color=color, linestyle=line_style, marker=marker, markevery=every, **_LINE)
        low = [mean - std for mean, std in zip(curve.mean, curve.std, strict=True)]
        high = [mean + std for mean, std in zip(curve.mean, curve.std, strict=True)]
        axis.fill_between(curve.iterations, low, high, color=color, alpha=0.2, linewidth=0)
        if len(curve.iterations) == 1:  # a band over one point has no width
            axis.errorbar(curve.iterations, curve.mean, yerr=curve.std, color=color, capsize=3, linewidth=1.2)
    if longest == 1:
        axis.set_title("evaluated once, at the end", fontsize=9, color="#555555")
    return problems


def _draw_markers(axis: Axes, table: Table, kind: str, metrics: Sequence[str]) -> None:
    styles = row_styles(table)
    step = min(0.2, 0.7 / max(1, len(table.rows) - 1))
    top = step * (len(table.rows) - 1) / 2
    for index in range(0, len(metrics), 2):
        axis.axhspan(index - 0.5, index + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
    axis.set_ylim(-0.5, len(metrics) - 0.5)
    for place, row in enumerate(table.rows):
        color, _, marker = styles[row.init]
        summaries = [(index, row.summary(kind, metric)) for index, metric in enumerate(metrics)]
        shown = [(index + top - place * step, summary) for index, summary in summaries if summary.n]
        axis.errorbar(
            [summary.mean for _, summary in shown],
            [height for height, _ in shown],
            xerr=[summary.std or 0.0 for _, summary in shown],
            color=color, linestyle="none", marker=marker, markersize=4.5, elinewidth=1.2,
        )  # fmt: skip


def _or_zero(value: float) -> float:
    return value if value == value else 0.0  # NaN, where the baseline lacks the class, has no place in an order


def _decorate(figure: Figure, table: Table, axis: Axes) -> None:
    handles = [
        axis.plot([], [], color=color, linestyle=line_style, marker=marker, **_LINE)[0]
        for color, line_style, marker in (row_styles(table)[row.init] for row in table.rows)
    ]
    labels = [f"{row.init} (n={len(row.runs)})" for row in table.rows]
    inches = 0.7 + 0.1 * max(map(len, labels))  # what an entry takes at the default size of letters
    columns = max(1, min(len(labels), int(figure.get_figwidth() / inches)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    setting = table.setting
    lines = [f"{setting.task} on {' + '.join(setting.test_set)}", f"{setting.engine}, {setting.norm}; mean ± std over n seeds"]
    width = int(12 * figure.get_figwidth())  # about 12 letters of this size fit into an inch
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in lines), fontsize=10)
