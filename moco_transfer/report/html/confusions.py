"""A figure of which class is taken for which, one of each row of a table."""

from __future__ import annotations

from functools import partial

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from moco_transfer.evaluate.metric_names import NO_CLASS

from ..aggregate import Row, Table
from ..cells import kind_name
from ..records import Problem
from .plots import STYLES, Panel, plain_text

_MOST_CELLS = 21  # in a row; more would be too small to read
_LONGEST = 14  # letters of a class
_DARKEST = 0.55  # so that the number in a cell can be read


def confusion_panels(table: Table) -> list[Panel]:
    """Return a panel for each row that has confusions, of boxes, or else of masks or pixels."""
    for kind in table.kinds:
        rows = [row for row in table.rows if row.confusion(kind)]
        if rows:
            return [_panel(table, row, kind) for row in rows]
    return []


def _panel(table: Table, row: Row, kind: str) -> Panel:
    found = row.confusion(kind)
    of_pixels = kind == "sem_seg"
    most = _MOST_CELLS if of_pixels else _MOST_CELLS - 1
    counts = {name: sum(found[name].values()) for name in found if name != NO_CLASS}
    seen = {*counts, *(name for of_class in found.values() for name in of_class)} - {NO_CLASS}
    shown = sorted(seen, key=lambda name: (-counts.get(name, 0), name))[:most]
    which = f", the {most} most frequent classes" if len(seen) > most else ""
    caption = (
        f"confusions of {row.init}: what is detected in place of each object, % of its row"
        f" ({kind_name(kind)} of score and IoU from 0.5 on, mean over seeds{which}); {NO_CLASS}:"
        " missed, or where no object is"
    )
    if of_pixels:
        caption = (
            f"confusions of {row.init}: what the pixels of each class are taken for, % of its"
            f" row (mean over seeds{which})"
        )
    names = shown if of_pixels else [*shown, NO_CLASS]
    axes = ("predicted", "labelled") if of_pixels else ("detected", "object")
    name = f"{kind}_confusion_{table.rows.index(row) + 1}"
    height = 1.4 + 0.26 * len(names)
    return Panel(
        name, caption, partial(_draw, row.init, found, names, axes), height, has_grid=False
    )


def _draw(
    title: str,
    found: dict[str, dict[str, float]],
    names: list[str],
    labels: tuple[str, str],
    axis: Axes,
) -> list[Problem]:
    for y, true in enumerate(names):
        total = sum(found.get(true, {}).values())
        for x, predicted in enumerate(names):
            share = found.get(true, {}).get(predicted, 0.0) / total if total else 0.0
            color = STYLES[2 if true == predicted else 1][0]  # right: blue, wrong: orange
            cell = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, linewidth=0)
            cell.set_alpha(_DARKEST * share)
            axis.add_patch(cell)
            if share >= 0.005:
                axis.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=7)
    short = [n if len(n) <= _LONGEST else f"{n[: _LONGEST - 1]}…" for n in map(plain_text, names)]
    axis.set_xticks(range(len(names)), short, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), short, fontsize=8)
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_title(plain_text(title), fontsize=9)
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    return []
