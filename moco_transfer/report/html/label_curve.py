"""The figure of label efficiency: AP or mIoU over the number of labelled images."""

from __future__ import annotations

from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from moco_transfer.evaluate.metric_names import headline_metric

from ..cells import kind_name
from ..comparisons.label_efficiency import LabelCurve
from ..records import Problem
from .plots import GRID, SCALE, Panel, draw_curve, styles_of

_CLOSEST = 0.12  # of the axis, as a part: nearer labels of ticks would overlap


def label_panels(curve: LabelCurve) -> list[Panel]:
    """Return one panel for each kind of result."""
    return [_panel(curve, kind) for kind in curve.kinds]


def _panel(curve: LabelCurve, kind: str) -> Panel:
    label = f"{headline_metric(kind)} of {kind_name(kind)}"
    caption = (
        f"{label} over the number of labelled images (logarithmic): mean over seeds, band and bar"
        " of one std where n >= 2"
    )
    return Panel(f"{kind}_labels", caption, partial(_draw, curve, kind, label), has_grid=False)


def _draw(curve: LabelCurve, kind: str, label: str, axis: Axes) -> list[Problem]:
    styles = styles_of(curve.inits)
    axis.set_xscale("log")
    for init in curve.inits:
        points = curve.points(init, kind, headline_metric(kind))
        if points:
            draw_curve(axis, points, styles[init], has_bars=True)
    ticks = {amount.images: amount.label for amount in curve.amounts if amount.images}
    span = max(ticks) / min(ticks) if len(ticks) > 1 else 1.0
    shown: list[float] = []
    for images in sorted(ticks, reverse=True):  # the largest amount always has its label
        if not shown or shown[-1] / images >= span**_CLOSEST:
            shown.append(images)
    axis.set_xticks(shown, [f"{images:.0f}\n{ticks[images]}" for images in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("labelled images")
    axis.set_ylabel(f"{label} {SCALE}")
    axis.set_ylim(0, max(1.0, 1.08 * axis.dataLim.y1))
    axis.grid(color=GRID, linewidth=0.6)
    return []
