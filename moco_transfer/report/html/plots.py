"""Images of a table: learning curves of AP and loss, AP by class and by object size, each with
the spread over seeds.

Each image is made of panels, which the page shows one by one and a file shows side by side.
Figures are drawn without pyplot, so nothing global changes and no display is needed. Rows differ in
line style, marker and brightness as well as in
colour: the images can be read in grey.

Names come from files and may hold anything: every one that is drawn goes through
    :func:`plain_text`.
"""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moco_transfer.evaluate.metric_names import class_metric, is_class_metric

from ..aggregate import FIRST_ROWS, Row, Table
from ..caveats import kind_name
from ..curves import Curve, loss_curve, metric_curve
from ..records import Problem

#: (colour, line style, marker) of random, of supervised, and of the others in turn; neighbours
# differ in brightness.
STYLES = (
    ("#9e9e9e", ":", "s"),
    ("#b85c00", "--", "^"),
    ("#0b3c8c", "-", "o"),
    ("#2a9d5c", "-.", "D"),
    ("#7b1fa2", (0, (5, 1)), "v"),
    ("#56a8e0", (0, (3, 1, 1, 1)), "P"),
    ("#5c2e00", (0, (1, 1)), "X"),
    ("#d1495b", (0, (7, 2, 2, 2)), "<"),
    ("#00798c", (0, (2, 2)), ">"),
    ("#e0a800", (0, (9, 2)), "*"),
    ("#6d597a", (0, (5, 1, 1, 1, 1, 1)), "p"),
    ("#1b4332", (0, (3, 3)), "d"),
    ("#f28ab2", (0, (7, 1, 3, 1)), "h"),
    ("#34618e", (0, (1, 3)), (4, 1, 0)),
)
#: Of grid lines and of the stripes behind classes.
GRID, STRIPE = "#e0e0e0", "#f4f4f4"

#: Size of markers and width of lines, pt.
LINE = {"markersize": 4.5, "linewidth": 1.7}
_PANEL_INCHES = 4.2
_LONGEST_NAME = 180  # bytes; file systems take 255, endings and prefixes included
_SIZES = {"APs": "small", "APm": "medium", "APl": "large"}


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        name: Tells it from the other panels of its table; fit for a file name.
        caption: What it shows, as a clause without a full stop.
        inches: Width and height when it is drawn alone.
        draw: Draws into the axes and returns what was wrong with the files it read.
    """

    name: str
    caption: str
    inches: tuple[float, float]
    draw: Callable[[Axes], list[Problem]]


def curve_panels(table: Table) -> list[Panel]:
    """Return AP over iterations, one panel per kind of result, and the training loss.

    The folders of the table's averaged runs are read again, for metrics.json, when a panel is
    drawn.
    """
    spread = "mean over seeds, band of one std where n >= 2"
    size = (_PANEL_INCHES, 3.2)
    panels = []
    for kind in table.kinds:

        def draw_metric(axis: Axes, kind: str = kind) -> list[Problem]:
            problems = _draw_curves(
                axis,
                table,
                lambda row: metric_curve(row, kind, "AP"),
                title_if_single="evaluated once, at the end",
            )
            axis.set_ylabel(f"AP of {kind_name(kind)} (0-100)")
            axis.set_ylim(0, max(1.0, 1.08 * axis.dataLim.y1))
            return problems

        panels.append(
            Panel(
                f"{kind}_curve",
                f"AP of {kind_name(kind)} over iterations: {spread}",
                size,
                draw_metric,
            )
        )

    def draw_loss(axis: Axes) -> list[Problem]:
        problems = _draw_curves(axis, table, loss_curve)
        axis.set_ylabel("training loss")
        return problems

    return [
        *panels,
        Panel("loss_curve", f"training loss over iterations: {spread}", size, draw_loss),
    ]


def breakdown_panels(table: Table, kind: str = "bbox") -> list[Panel]:
    """Return AP by object size and AP by class: one line per size or class, one marker per row, a
    bar of one std where n >= 2.

    Args:
        table: Where the values come from.
        kind: ``"bbox"``, ``"segm"``, ...

    Returns:
        The panels that the runs have values for. Classes are ordered by the mean of the baseline
        row (of the first row without one); sizes are COCO's: small below 32^2 px, large from 96^2
        px.
    """
    found = {metric for row in table.rows for row_kind, metric in row.values if row_kind == kind}
    base = table.baseline or table.rows[0]
    classes = sorted(
        filter(is_class_metric, found),
        key=lambda metric: (_or_zero(base.summary(kind, metric).mean), metric),
    )
    groups = {"size": [metric for metric in reversed(_SIZES) if metric in found], "class": classes}
    panels = []
    for what, metrics in groups.items():

        def draw(axis: Axes, metrics: Sequence[str] = metrics) -> list[Problem]:
            _draw_markers(axis, table, kind, metrics)
            names = [
                _SIZES.get(metric) or plain_text(metric.removeprefix(class_metric("")))
                for metric in metrics
            ]
            axis.set_yticks(range(len(metrics)), names)
            axis.set_xlabel(f"AP of {kind_name(kind)} (0-100)")
            axis.set_xlim(0, max(1.0, 1.05 * axis.dataLim.x1))
            return []

        caption = (
            f"AP of {kind_name(kind)} by {'object size' if what == 'size' else 'class'}: mean over"
            " seeds, bar of one std where n >= 2"
        )
        each = max(
            0.26 if len(metrics) <= 10 else 0.2, 0.06 * len(table.rows)
        )  # inches; markers of many rows lie one below the other
        height = max(2.2, 1.0 + each * len(metrics))
        panels += (
            [Panel(f"{kind}_by_{what}", caption, (_PANEL_INCHES, height), draw)] if metrics else []
        )
    return panels


def learning_curves(table: Table) -> tuple[Figure, list[Problem]]:
    """Draw :func:`curve_panels` side by side, and return the figure and a problem for each run
    without a curve.
    """
    figure, problems = side_by_side(curve_panels(table), height=3.6)
    _decorate(figure, table)
    return figure, problems


def breakdown(table: Table, kind: str = "bbox") -> Figure | None:
    """Draw :func:`breakdown_panels` side by side, or return None when the runs have neither sizes
    nor classes.
    """
    panels = breakdown_panels(table, kind)
    if not panels:
        return None
    figure, _ = side_by_side(
        panels, height=max(2.6, 0.4 + max(panel.inches[1] for panel in panels)), width=0.6
    )
    _decorate(figure, table)
    return figure


def draw_panel(panel: Panel) -> tuple[Figure, list[Problem]]:
    """Draw one panel alone, without legend and title: the page has its own."""
    figure = Figure(figsize=panel.inches, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    problems = panel.draw(axis)
    _tidy(axis, panel)
    return figure, problems


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """Return a figure as the bytes of a file; the same figure gives the same bytes.

    Args:
        figure: Any figure.
        file_format: ``"png"`` (150 dots per inch) or ``"svg"`` (text stays text).
    """
    buffer = io.BytesIO()
    # Without these two, the ids in an SVG are random and its date is that of the day.
    with matplotlib.rc_context({"svg.hashsalt": "moco-transfer", "svg.fonttype": "none"}):
        figure.savefig(
            buffer,
            format=file_format,
            dpi=150,
            metadata={"Date": None} if file_format == "svg" else None,
        )
    return buffer.getvalue()


def figure_name(table: Table) -> str:
    """Return a file name without ending that tells the tables of one report apart."""
    setting = table.setting
    parts = [setting.task, *setting.test_set, setting.config_hash[:8], setting.engine, setting.norm]
    parts += [f"labels-{setting.label_subset[:8]}"] if setting.label_subset else []
    name = re.sub(r"[^\w.-]+", "-", "_".join(filter(None, parts)))
    if len(name.encode("utf-8")) <= _LONGEST_NAME:
        return name
    return f"{name.encode('utf-8')[:_LONGEST_NAME].decode('utf-8', 'ignore')}_{hashlib.sha256(name.encode('utf-8')).hexdigest()[:8]}"


def plain_text(text: str) -> str:
    r"""Return a name as matplotlib draws it letter by letter: two ``$`` would start a formula, and
    a wrong formula ends the drawing.
    """
    return text.replace("$", r"\$")


def row_styles(table: Table) -> dict[str, tuple]:
    """Return colour, line style and marker per row; random and supervised look the same in every
    table.

    No two rows share line style and marker, which is all that grey leaves.
    """
    others = STYLES[len(FIRST_ROWS) :]
    names = [row.init for row in table.rows if row.init not in FIRST_ROWS]
    styles = {}
    for index, name in enumerate(names):
        # From the second turn on, each line has the marker of another.
        turn, place = divmod(index, len(others))
        styles[name] = (*others[place][:2], others[(place + turn) % len(others)][2])
    return styles | dict(zip(FIRST_ROWS, STYLES, strict=False))


def side_by_side(
    panels: Sequence[Panel], *, height: float, width: float = 0.0
) -> tuple[Figure, list[Problem]]:
    """Draw panels in one row, ``height`` inches high and ``width`` wider than they need, and return
    the problems met.
    """
    figure = Figure(figsize=(_PANEL_INCHES * len(panels) + width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    problems: list[Problem] = []
    for axis, panel in zip(axes, panels, strict=True):
        problems += panel.draw(axis)
        _tidy(axis, panel)
    return figure, list(dict.fromkeys(problems))


def _tidy(axis: Axes, panel: Panel) -> None:
    is_curve = panel.name.endswith("_curve")
    if is_curve:
        axis.set_xlabel("iteration")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(
            MaxNLocator(5)
        )  # numbers of six digits must not run into one another
    axis.grid(color=GRID, linewidth=0.6, axis="both" if is_curve else "x")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_curves(
    axis: Axes,
    table: Table,
    read: Callable[[Row], tuple[Curve, list[Problem]]],
    *,
    title_if_single: str = "",
) -> list[Problem]:
    problems, styles, longest = [], row_styles(table), 0
    for row in table.rows:
        curve, found = read(row)
        problems += found
        color, line_style, marker = styles[row.init]
        if not curve.iterations:
            continue
        longest = max(longest, len(curve.iterations))
        every = max(
            1, len(curve.iterations) // 8
        )  # markers tell lines apart in grey; one on each of 60 points would be a blot
        axis.plot(
            curve.iterations,
            curve.mean,
            color=color,
            linestyle=line_style,
            marker=marker,
            markevery=every,
            **LINE,
        )
        low = [mean - std for mean, std in zip(curve.mean, curve.std, strict=True)]
        high = [mean + std for mean, std in zip(curve.mean, curve.std, strict=True)]
        axis.fill_between(curve.iterations, low, high, color=color, alpha=0.2, linewidth=0)
        if len(curve.iterations) == 1:  # a band over one point has no width
            axis.errorbar(
                curve.iterations, curve.mean, yerr=curve.std, color=color, capsize=3, linewidth=1.2
            )
    if longest == 1 and title_if_single:
        axis.set_title(title_if_single, fontsize=9, color="#555555")
    return problems


def _draw_markers(axis: Axes, table: Table, kind: str, metrics: Sequence[str]) -> None:
    styles = row_styles(table)
    step = min(0.2, 0.7 / max(1, len(table.rows) - 1))
    top = step * (len(table.rows) - 1) / 2
    for index in range(0, len(metrics), 2):
        axis.axhspan(index - 0.5, index + 0.5, color=STRIPE, linewidth=0, zorder=0)
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
    return (
        value if value == value else 0.0
    )  # NaN, where the baseline lacks the class, has no place in an order


def _decorate(figure: Figure, table: Table) -> None:
    handles = [
        figure.axes[0].plot([], [], color=color, linestyle=line_style, marker=marker, **LINE)[0]
        for color, line_style, marker in (row_styles(table)[row.init] for row in table.rows)
    ]
    labels = [plain_text(f"{row.init} (n={len(row.runs)})") for row in table.rows]
    inches = 0.7 + 0.1 * max(map(len, labels))  # what an entry takes at the default size of letters
    columns = max(1, min(len(labels), int(figure.get_figwidth() / inches)))
    lines_of_legend = -(-len(labels) // columns)
    figure.set_figheight(
        figure.get_figheight() + 0.23 * max(0, lines_of_legend - 2)
    )  # not at the cost of the axes
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    setting = table.setting
    lines = [
        f"{setting.task} on {' + '.join(setting.test_set)}",
        f"{setting.engine}, {setting.norm}; mean ± std over n seeds",
    ]
    width = int(12 * figure.get_figwidth())  # about 12 letters of this size fit into an inch
    figure.suptitle(
        plain_text("\n".join(textwrap.fill(line, width) for line in lines)), fontsize=10
    )
