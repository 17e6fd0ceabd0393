"""Figures inside the page: SVG whose colours come from the page's style sheet, light and dark."""

from __future__ import annotations

import functools
import re

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import PathPatch
from matplotlib.transforms import Affine2D

from .plots import GRID, REMARK, STRIPE, STYLES, Style, figure_bytes

#: Colour of a figure -> its replacement in the page.
_COLOURS = {
    "#000000": "currentColor", "#ffffff": "none", GRID: "var(--grid)", STRIPE: "var(--stripe)",
    REMARK: "var(--muted)",
    **{color: f"var(--row-{index})" for index, (color, _, _) in enumerate(STYLES)},
}  # fmt: skip


def inline_svg(figure: Figure, attributes: str, *, prefix: str = "") -> str:
    """Return a figure as one ``<svg>`` element that scales with its container.

    Args:
        figure: What to draw. Colours of rows become ``var(--row-N)``, N being the place in
            ``STYLES``; grid, stripes and text follow the page.
        attributes: Of the element, e.g. ``role="img"``.
        prefix: Put before every id, so that a page can hold several figures.
    """
    text = figure_bytes(figure, "svg").decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' * (m[1] in used), text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda match: _COLOURS.get(match[0], match[0]), text)
    size = re.search(r'viewBox="[^"]+"', text)
    body = text[text.index("<svg") :].split(">", 1)[1].strip()
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {size[0] if size else ''} {attributes} {xlink}>{body}"


@functools.cache
def swatch(style: Style) -> str:
    """Return a short line with its marker, as the figures draw a row: the legend's ``<svg>``."""
    color, line_style, marker = style
    figure = Figure(figsize=(34 / 72, 10 / 72))  # 34 x 10 pt
    figure.patch.set_visible(False)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, 34), ylim=(0, 10))
    axis.set_axis_off()
    axis.add_line(Line2D([0, 34], [5, 5], color=color, linestyle=line_style, linewidth=1.7))
    # A path, not a marker: markers need ids, and a swatch occurs often in a page.
    shape = MarkerStyle(marker)
    to_page = shape.get_transform() + Affine2D().scale(7).translate(17, 5)
    path = shape.get_path().transformed(to_page)
    axis.add_patch(PathPatch(path, facecolor=color, linewidth=0))
    for artist in (*axis.lines, *axis.patches):
        artist.set_clip_on(False)
    return inline_svg(figure, 'class="swatch" aria-hidden="true"')
