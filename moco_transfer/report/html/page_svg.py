"""Figures inside the page:

SVG that takes its colours from the page's style sheet, so that it follows light and dark.
"""

from __future__ import annotations

import html
import re

from matplotlib.colors import to_hex

from .plots import GRID, STRIPE, STYLES

#: Colour of a figure -> what stands for it in the page.
_COLOURS = {
    "#000000": "currentColor",
    "#ffffff": "none",
    to_hex(GRID): "var(--grid)",
    to_hex(STRIPE): "var(--stripe)",
    "#555555": "var(--muted)",
    **{color: f"var(--row-{index})" for index, (color, _, _) in enumerate(STYLES)},
}
# Dashes and markers of STYLES, for the legend: lengths in pt, paths in a box of 8 by 8.
_DASHES = {"-": "none", "--": "6 3", ":": "1.7 2.8", "-.": "8 3 1.7 3"}
_MARKERS = {
    "s": "M1 1H7V7H1Z",
    "^": "M4 0.6 7.4 7H0.6Z",
    "v": "M4 7.4 7.4 1H0.6Z",
    "o": "M4 0.8a3.2 3.2 0 1 0 .01 0Z",
    "D": "M4 0 8 4 4 8 0 4Z",
    "P": "M3 0H5V3H8V5H5V8H3V5H0V3H3Z",
    "<": "M0.6 4 7 0.6V7.4Z",
    ">": "M7.4 4 1 0.6V7.4Z",
    "*": "M4 0 5 3H8L5.6 4.8 6.5 7.8 4 6 1.5 7.8 2.4 4.8 0 3H3Z",
    "p": "M4 0.4 7.6 3.1 6.2 7.4H1.8L0.4 3.1Z",
    "d": "M4 0 6.4 4 4 8 1.6 4Z",
    "h": "M4 0.4 7.2 2.2V5.8L4 7.6 0.8 5.8V2.2Z",
    (4, 1, 0): "M4 0 4.8 3.2 8 4 4.8 4.8 4 8 3.2 4.8 0 4 3.2 3.2Z",
    "X": "M1.4 0 4 2.6 6.6 0 8 1.4 5.4 4 8 6.6 6.6 8 4 5.4 1.4 8 0 6.6 2.6 4 0 1.4Z",
}


def inline_svg(svg: bytes, *, prefix: str, label: str) -> str:
    """Turn the bytes of an SVG file that matplotlib wrote into an element for an HTML page.

    Args:
        svg: From :func:`moco_transfer.report.plots.figure_bytes`.
        prefix: Put before every id, so that several figures can stand in one page.
        label: What a screen reader says instead of the image.

    Returns:
        One ``<svg>`` element that scales with its container. Colours of rows are ``var(--row-N)``,
        N being the place in ``STYLES``; grid, stripes and text follow the page.
    """
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id|xlink:href|href)="(#?)([^"]+)"', rf'\1="\g<2>{prefix}\3"', text)
    text = text.replace("url(#", f"url(#{prefix}")
    text = re.sub(r"#[0-9a-f]{6}\b", lambda match: _COLOURS.get(match[0], match[0]), text)
    text = re.sub(
        r"font(-family)?: ?[^;\"]*'[^\"]*?(?=[;\"])", _without_family, text
    )  # the page's letters
    head, rest = text.split(">", 1)
    view = re.search(r'viewBox="[^"]+"', head)[0]
    return (
        f'<svg {view} role="img" aria-label="{html.escape(label)}"'
        f' xmlns:xlink="http://www.w3.org/1999/xlink">{rest.strip()}'
    )


def swatch(style: tuple) -> str:
    """Return a short line with its marker, as the figures draw a row: the legend's ``<svg>``."""
    color, line_style, marker = style
    index = next(place for place, known in enumerate(STYLES) if known[0] == color)
    dash = (
        _DASHES[line_style]
        if isinstance(line_style, str)
        else " ".join(f"{1.7 * length:g}" for length in line_style[1])
    )
    return (
        '<svg class="swatch" viewBox="0 0 34 10" aria-hidden="true"><path d="M0 5H34"'
        f' stroke="var(--row-{index})" stroke-width="1.7" stroke-dasharray="{dash}"/><path'
        f' d="{_MARKERS[marker]}" transform="translate(13 1)" fill="var(--row-{index})"/></svg>'
    )


def _without_family(match: re.Match) -> str:
    size = re.search(r"[\d.]+px", match[0])
    return f"font-size: {size[0]}" if size else ""
