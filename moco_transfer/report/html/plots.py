"""Plots of a table and of pre-training: curves of AP or mIoU and of the loss, AP by class and by
object size, IoU by class.

Each plot is one panel: in the page, or in a file with a legend and a title. Rows differ in line
style, marker and brightness as well as in colour, so that they can be told apart in grey.
Figures are drawn without pyplot: nothing global changes and no display is needed. Inside the page
their colours come from its style sheet, light or dark.
"""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import PathPatch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D

from moco_transfer.evaluate.metric_names import TIDE_ERRORS, class_metric, headline_metric

from ..aggregate import FIRST_ROWS, Row, Setting, Table
from ..cells import kind_name
from ..curves import Curve, bin_means, loss_curve, metric_curve
from ..pretraining import PretrainingRun
from ..published import parse_own_yaml
from ..records import Problem
from ..seed_statistics import Summary

_TABLES = parse_own_yaml((resources.files(__package__) / "plots.yaml").read_text("utf-8"))


def _as_tuples(item: Any) -> Any:
    return tuple(map(_as_tuples, item)) if isinstance(item, list) else item


#: Colour, line style and marker of a row.
Style = tuple[str, Any, Any]
STYLES: tuple[Style, ...] = _as_tuples(_TABLES["styles"])
#: Of grid lines, of the stripes behind classes, and of remarks.
GRID, STRIPE, REMARK = "#e0e0e0", "#f4f4f4", "#555555"
#: Colour of a figure -> its replacement in the page.
_PAGE_COLOURS = {
    "#000000": "currentColor", "#ffffff": "none", GRID: "var(--grid)", STRIPE: "var(--stripe)",
    REMARK: "var(--muted)",
    **{color: f"var(--row-{index})" for index, (color, _, _) in enumerate(STYLES)},
}  # fmt: skip

_WIDTH = 4.2  # of a panel, inches
_LONGEST_NAME = 180  # bytes; file systems take 255, endings and prefixes included
SCALE = "(0-100)"
_SIZES = {"APl": "large", "APm": "medium", "APs": "small"}
_FREQUENCIES = {"APf": "frequent", "APc": "common", "APr": "rare"}
_MOST_CLASSES = 200  # LVIS's 1,203 would make a figure of six metres


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    name: str  # different from those of its table's other panels
    caption: str  # a clause without a full stop
    draw: Callable[[Axes], list[Problem]]  # returns what was wrong with the files it read
    height: float = 3.2  # inches
    has_grid: bool = True


def table_panels(table: Table) -> list[Panel]:
    """Return AP or mIoU over iterations, one panel per kind of result, the training loss, and AP by
    object size and class. Drawing curves reads metrics.json of the averaged runs.
    """
    over = "over iterations: mean over seeds, band of one std where n >= 2"
    panels = []
    for kind in table.kinds:
        label = f"{headline_metric(kind)} of {kind_name(kind)}"
        read = partial(metric_curve, kind=kind, metric=headline_metric(kind))
        draw = partial(_draw_curves, table, read, f"{label} {SCALE}")
        panels.append(Panel(f"{kind}_curve", f"{label} {over}", draw))
    draw = partial(_draw_curves, table, loss_curve, "training loss")
    panels.append(Panel("loss_curve", f"training loss {over}", draw))
    panels += [tide_panel(table, kind) for kind in table.kinds if _has_tide(table, kind)]
    return [*panels, *(panel for kind in table.kinds for panel in breakdown_panels(table, kind))]


def breakdown_panels(table: Table, kind: str = "bbox") -> list[Panel]:
    """Return AP by object size, by the frequency of classes and by class, or IoU by class, as far
    as the runs have them: one marker per row. Classes are ordered by the metric of the baseline row
    (of the first row without one).
    """
    found = {metric for row in table.rows for row_kind, metric in row.values if row_kind == kind}
    base = table.baseline or table.rows[0]
    means = {m: base.summary(kind, m).mean if (kind, m) in base.values else 0.0 for m in found}
    prefix = class_metric("", kind)
    of_classes = (metric for metric in found if metric.startswith(prefix))
    classes = sorted(of_classes, key=lambda metric: (means[metric], metric))
    classes = classes if len(classes) <= _MOST_CLASSES else []
    groups = {
        "object size": {metric: name for metric, name in _SIZES.items() if metric in found},
        "class frequency": {m: name for m, name in _FREQUENCIES.items() if m in found},
        "class": {metric: metric.removeprefix(prefix) for metric in classes},
    }
    panels = []
    for what, names in groups.items():
        of_kind = f"{prefix[:-1]} of {kind_name(kind)}"
        caption = f"{of_kind} by {what}: mean over seeds, bar of one std where n >= 2"
        each = max(0.26 if len(names) <= 10 else 0.2, 0.06 * len(table.rows))  # inches
        summary = partial(Row.summary, kind=kind)
        draw = partial(_draw_markers, table, summary, names, f"{of_kind} {SCALE}")
        name = f"{kind}_by_{what.split()[-1]}"
        panels += [Panel(name, caption, draw, max(2.2, 1.0 + each * len(names)))] if names else []
    return panels


def _has_tide(table: Table, kind: str) -> bool:
    return any(row.tide(kind, error).n for row in table.rows for error in TIDE_ERRORS)


def tide_panel(table: Table, kind: str) -> Panel:
    """Return the TIDE errors of each row: what AP50 would gain if one kind of error were repaired,
    mean and std over seeds.
    """
    name = kind_name(kind)
    caption = (
        f"errors in {name} by kind (TIDE): points of AP50 that repairing one kind alone would give,"
        " mean over seeds, bar of one std where n >= 2"
    )
    names = {error: error for error in reversed(TIDE_ERRORS)}
    label = f"AP50 of {name} to be gained (points)"
    draw = partial(_draw_markers, table, partial(Row.tide, kind=kind), names, label)
    return Panel(
        f"{kind}_tide", caption, draw, 1.0 + len(names) * max(0.36, 0.09 * len(table.rows))
    )


def pretraining_panels(run: PretrainingRun) -> list[Panel]:
    """Return the loss next to chance, the mean cosines, and accuracies: those that were logged."""
    panels = []
    for columns, label, caption in _TABLES["pretraining"]:
        if columns[0] in run.series:
            has_chance = columns == ["loss"] and "chance" in run.series
            caption += ", and chance, ln(K+1), dotted" if has_chance else ""
            name = columns[0].replace("cos_positive", "cosine")
            draw = partial(_draw_pretraining, run, columns, label)
            panels.append(Panel(f"{name}_curve", caption, draw))
    return panels


def draw_panel(panel: Panel, table: Table | None = None) -> tuple[Figure, list[Problem]]:
    """Draw a panel and return the problems met; ``table`` gives the figure a legend of its rows,
    and a title.
    """
    figure = Figure(figsize=(_WIDTH, panel.height), layout="constrained")
    axis = figure.subplots()
    problems = panel.draw(axis)
    is_curve = panel.name.endswith("_curve")
    if is_curve:
        axis.set_xlabel("iteration")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(5))  # keeps numbers of six digits apart
    if panel.has_grid:
        axis.grid(color=GRID, linewidth=0.6, axis="both" if is_curve else "x")
    axis.spines[["top", "right"]].set_visible(False)
    if table is not None:
        names = {row.init: f"{row.init} (n={len(row.runs)})" for row in table.rows}
        decorate(figure, table.setting, names, "mean ± std over n seeds")
    return figure, problems


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """Return a figure as a ``"png"`` (150 dpi) or ``"svg"`` file (text stays text); the same figure
    gives the same bytes.
    """
    buffer = io.BytesIO()
    # Otherwise the ids in an SVG are random and its date is that of the day.
    with matplotlib.rc_context({"svg.hashsalt": "moco-transfer", "svg.fonttype": "none"}):
        metadata = {"Date": None} if file_format == "svg" else None
        figure.savefig(buffer, format=file_format, dpi=150, metadata=metadata)
    return buffer.getvalue()


def inline_svg(figure: Figure, attributes: str, *, prefix: str = "") -> str:
    """Return a figure as one ``<svg>`` element with ``attributes``, scaling with its container.

    Colours of rows become ``var(--row-N)``, N being the place in ``STYLES``. ``prefix`` comes
    before every id, so that a page can hold several figures.
    """
    text = figure_bytes(figure, "svg").decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' * (m[1] in used), text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda match: _PAGE_COLOURS.get(match[0], match[0]), text)
    size = re.search(r'viewBox="[^"]+"', text)
    body = text[text.index("<svg") :].split(">", 1)[1].strip()
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {size[0] if size else ''} {attributes} {xlink}>{body}"


@cache
def swatch(style: Style) -> str:
    """Return a short line with its marker, as the figures draw a row: the legend's ``<svg>``."""
    color, line_style, marker = style
    figure = Figure(figsize=(34 / 72, 10 / 72))  # 34 x 10 pt
    figure.patch.set_visible(False)
    # A path, not a marker: markers need ids, and a swatch occurs often in a page.
    shape, point = MarkerStyle(marker), 1 / 72
    to_page = shape.get_transform() + Affine2D().scale(7 * point).translate(17 * point, 5 * point)
    to_page += figure.dpi_scale_trans
    line = Line2D([0, 1], [0.5, 0.5], color=color, linestyle=line_style, linewidth=1.7)
    figure.add_artist(line)
    figure.add_artist(PathPatch(shape.get_path(), facecolor=color, linewidth=0, transform=to_page))
    return inline_svg(figure, 'class="swatch" aria-hidden="true"')


def figure_name(table: Table) -> str:
    """Return a file name without ending that differs between the tables of a report."""
    return setting_name(table.setting)


def setting_name(setting: Setting) -> str:
    """Return the file name of a setting, without ending."""
    labels = f"labels-{setting.label_subset[:8]}" if setting.label_subset else ""
    parts = [setting.task, *setting.test_set, setting.config_hash[:8], setting.engine]
    parts += [setting.norm, setting.precision, labels]
    name = re.sub(r"[^\w.-]+", "-", "_".join(filter(None, parts)))
    encoded = name.encode("utf-8")
    if len(encoded) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[:_LONGEST_NAME].decode('utf-8', 'ignore')}_{digest}"


def plain_text(text: str) -> str:
    r"""Return a name that matplotlib draws as it is: two ``$`` would start a formula."""
    return text.replace("$", r"\$")


def row_styles(table: Table) -> dict[str, Style]:
    """Return the style of each row."""
    return styles_of([row.init for row in table.rows])


def styles_of(inits: Sequence[str]) -> dict[str, Style]:
    """Return the style of each initialisation; random and supervised look the same everywhere, and
    no two share line style and marker, which is all that grey leaves.
    """
    others = STYLES[len(FIRST_ROWS) :]
    styles = dict(zip(FIRST_ROWS, STYLES, strict=False))
    for index, name in enumerate(init for init in inits if init not in FIRST_ROWS):
        # From the second turn on, each line has the marker of another.
        turn, place = divmod(index, len(others))
        styles[name] = (*others[place][:2], others[(place + turn) % len(others)][2])
    return styles


def _plot(axis: Axes, x: Any, y: Any, style: Style, label: str | None = None) -> Line2D:
    color, line, marker = style
    every = max(1, len(x) // 8)  # markers separate lines in grey; 60 of them would overlap
    how = {"color": color, "linestyle": line, "marker": marker, "markevery": every}
    return axis.plot(x, y, **how, markersize=4.5, linewidth=1.7, label=label)[0]


def draw_curve(axis: Axes, curve: Curve, style: Style, *, has_bars: bool = False) -> None:
    """Draw the mean of a curve with a band of one std, and with ``has_bars`` bars at the points."""
    x = list(curve)
    mean = np.array([at.mean for at in curve.values()])
    std = np.array([at.std or 0.0 for at in curve.values()])
    _plot(axis, x, mean, style)
    axis.fill_between(x, mean - std, mean + std, color=style[0], alpha=0.2, linewidth=0)
    if has_bars or len(x) == 1:  # a band over one point has no width
        axis.errorbar(
            x, mean, yerr=std, color=style[0], linestyle="none", capsize=3, elinewidth=1.2
        )


def _draw_curves(
    table: Table, read: Callable[[Row], tuple[Curve, list[Problem]]], label: str, axis: Axes
) -> list[Problem]:
    problems, styles, longest = [], row_styles(table), 0
    for row in table.rows:
        curve, found = read(row)
        problems += found
        longest = max(longest, len(curve))
        if not curve:
            continue
        draw_curve(axis, curve, styles[row.init])
    axis.set_ylabel(label)
    if label.endswith(SCALE):
        axis.set_ylim(0, max(1.0, 1.08 * axis.dataLim.y1))
        if longest == 1:
            axis.set_title("evaluated once, at the end", fontsize=9, color=REMARK)
    return problems


def _draw_markers(
    table: Table, summary_of: Callable[..., Summary], names: dict[str, str], label: str, axis: Axes
) -> list[Problem]:
    styles = row_styles(table)
    step = min(0.2, 0.7 / max(1, len(table.rows) - 1))
    top = step * (len(table.rows) - 1) / 2
    for index in range(0, len(names), 2):
        axis.axhspan(index - 0.5, index + 0.5, color=STRIPE, linewidth=0, zorder=0)
    axis.set_ylim(-0.5, len(names) - 0.5)
    for place, row in enumerate(table.rows):
        color, _, marker = styles[row.init]
        summaries = [(index, summary_of(row, metric=name)) for index, name in enumerate(names)]
        shown = [(index + top - place * step, summary) for index, summary in summaries if summary.n]
        axis.errorbar(
            [summary.mean for _, summary in shown],
            [height for height, _ in shown],
            xerr=[summary.std or 0.0 for _, summary in shown],
            color=color, linestyle="none", marker=marker, markersize=4.5, elinewidth=1.2,
        )  # fmt: skip
    axis.set_yticks(range(len(names)), list(map(plain_text, names.values())))
    axis.set_xlabel(label)
    axis.set_xlim(0, max(1.0, 1.05 * axis.dataLim.x1))
    return []


def _draw_pretraining(
    run: PretrainingRun, columns: Sequence[str], label: str, axis: Axes
) -> list[Problem]:
    for column, style in zip(columns, (STYLES[2], STYLES[1]), strict=False):
        if points := run.series.get(column):
            x, y = zip(*bin_means(points, end=points[-1][0]), strict=True)
            _plot(axis, x, y, style, label=f"{column.removeprefix('cos_')}s")
    axis.set_ylabel(label)
    if label.endswith("(%)"):
        axis.set_ylim(0, max(1.0, 1.08 * axis.dataLim.y1))
    elif len(columns) > 1:
        axis.set_ylim(min(0.0, axis.dataLim.y0), 1.0)
        axis.legend(frameon=False, fontsize=9)
    elif "chance" in run.series:
        axis.axhline(run.series["chance"][-1][1], color=STYLES[0][0], linestyle=":", linewidth=1.7)
    return []


def decorate(figure: Figure, setting: Setting, names: dict[str, str], what: str) -> None:
    """Add the legend, ``names`` by initialisation, and the title; they make the figure higher, not
    its axes lower.
    """
    styles, inches = styles_of(list(names)), figure.get_figwidth()
    handles = [_plot(figure.axes[0], [], [], styles[init]) for init in names]
    labels = [plain_text(name) for name in names.values()]
    of_entry = 0.6 + 0.08 * max(map(len, labels))  # inches, at this font size
    columns = max(1, min(len(labels), int(inches / of_entry)))
    legend: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
    figure.legend(handles, labels, **legend, frameon=False, fontsize=9)
    tested = f"{setting.task} on {' + '.join(setting.test_set)}"
    how = f"{setting.engine}, {setting.norm}; {what}"
    # About 13 letters of this size fit into an inch.
    title = "\n".join(textwrap.fill(line, int(13 * inches)) for line in (tested, how))
    figure.suptitle(plain_text(title), fontsize=9)
    lines = -(-len(labels) // columns) + title.count("\n") + 1
    figure.set_figheight(figure.get_figheight() + 0.2 * lines)
