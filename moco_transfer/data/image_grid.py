"""Images in rows and columns with boxes, frames and captions: the same drawing as PNG and as SVG.

A grid is laid out once, as a list of shapes, which two small functions draw. Lines differ in dashes
as well as in colour, so that both can be read in grey. In the SVG, images are JPEG data inside
the file and text stays text.

Conventions:
    Images are uint8 (H, W, 3), RGB. Boxes are XYXY in px of their image. All lengths of the
    layout are px.
"""

from __future__ import annotations

import base64
import functools
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runtime.files import atomic_write_bytes, atomic_write_text

#: (colour, dashes in px) of lines; colours by Okabe and Ito, told apart by the colour-blind; more
# than eight start over.
LINES = (
    ("#e69f00", ()),
    ("#56b4e9", (7, 4)),
    ("#009e73", (2, 3)),
    ("#f0e442", (10, 3, 2, 3)),
    ("#0072b2", (4, 2)),
    ("#d55e00", (12, 4)),
    ("#cc79a7", (2, 6)),
    ("#787878", (6, 2, 2, 2)),
)

CELL, GAP = 320, 8
_TITLE, _CAPTION, _KEY = 28, 20, 26
_LINE_WIDTH, _HALO = 2, 1
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Mark:
    """A box on an image:

    XYXY px, number of its line in :data:`LINES` (counted round), and a few letters, "" for none.
    """

    box: tuple[float, float, float, float]
    line: int
    text: str = ""


@dataclass(frozen=True)
class Cell:
    """One image: uint8 (H, W, 3) RGB, its boxes, a caption below it ("" for none), the line that
    frames it (None for none).
    """

    image: np.ndarray
    marks: tuple[Mark, ...] = ()
    caption: str = ""
    frame: int | None = None


@dataclass(frozen=True)
class ImageGrid:
    """The whole.

    Attributes:
        titles: One above each column; may be shorter than the rows.
        rows: Their cells.
        key: (number of a line, what it means), shown below the rows.
        cell: Longer side of an image in the grid, px.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    key: tuple[tuple[int, str], ...] = ()
    cell: int = CELL


@dataclass(frozen=True)
class _Image:
    x: int
    y: int
    pixels: np.ndarray


@dataclass(frozen=True)
class _Box:
    x0: float
    y0: float
    x1: float
    y1: float
    line: int


@dataclass(frozen=True)
class _Text:
    x: float
    y: float  # base line
    text: str
    size: int
    fill: str | None = None  # colour of the ground behind the letters, None for none


_Shape = _Image | _Box | _Text


def save_grid(grid: ImageGrid, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write a grid as ``path`` with the ending .png and, beside it, .svg; return both."""
    png, svg = Path(path).with_suffix(".png"), Path(path).with_suffix(".svg")
    shapes, size = _lay_out(grid)
    buffer = io.BytesIO()
    _draw_png(shapes, size).save(buffer, format="PNG", optimize=True)
    atomic_write_bytes(png, buffer.getvalue())
    atomic_write_text(svg, _draw_svg(shapes, size))
    return png, svg


def _lay_out(grid: ImageGrid) -> tuple[list[_Shape], tuple[int, int]]:
    """Return all shapes in the order in which they are drawn, and the width and height of the
    whole.
    """
    cell_size = grid.cell
    columns = max(len(grid.titles), *(len(row) for row in grid.rows))
    shapes: list[_Shape] = [
        _Text(GAP + i * (cell_size + GAP), 20, title, 15) for i, title in enumerate(grid.titles)
    ]
    top = _TITLE if grid.titles else GAP
    for row in grid.rows:
        images = [_scaled(cell.image, cell_size) for cell in row]
        height = max(pixels.shape[0] for pixels in images)
        captioned = any(cell.caption for cell in row)
        for column, (cell, pixels) in enumerate(zip(row, images, strict=True)):
            shapes += _cell_shapes(cell, pixels, GAP + column * (cell_size + GAP), top)
        top += height + (_CAPTION if captioned else 0) + GAP
    if grid.key:
        left = GAP
        for line, meaning in grid.key:
            shapes += [
                _Box(left, top + 2, left + 26, top + 16, line),
                _Text(left + 34, top + 14, meaning, 13),
            ]
            left += 34 + round(_font(13).getlength(meaning)) + 24
        top += _KEY
    return shapes, (columns * (cell_size + GAP) + GAP, top + GAP)


def _cell_shapes(cell: Cell, pixels: np.ndarray, left: int, top: int) -> list[_Shape]:
    shapes: list[_Shape] = [_Image(left, top, pixels)]
    scale = pixels.shape[0] / cell.image.shape[0]
    for mark in cell.marks:
        x0, y0, x1, y1 = (round(float(v) * scale) for v in mark.box)
        shapes.append(_Box(left + x0, top + y0, left + x1, top + y1, mark.line))
        if mark.text:
            shapes.append(
                _Text(
                    left + x0,
                    top + max(y0 - 2, 11),
                    mark.text,
                    10,
                    fill=LINES[mark.line % len(LINES)][0],
                )
            )
    height, width = pixels.shape[:2]
    if cell.frame is not None:
        shapes.append(_Box(left + 1, top + 1, left + width - 2, top + height - 2, cell.frame))
    if cell.caption:
        shapes.append(_Text(left, top + height + 15, _shortened(cell.caption, width), 12))
    return shapes


def _scaled(image: np.ndarray, cell_size: int) -> np.ndarray:
    scale = cell_size / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _shortened(text: str, width: int) -> str:
    font = _font(12)
    while text and font.getlength(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib comes with the letters, so that an image looks the same on every machine.
    import matplotlib

    return ImageFont.truetype(
        os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size
    )


def _draw_png(shapes: Sequence[_Shape], size: tuple[int, int]) -> Image.Image:
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for shape in shapes:
        if isinstance(shape, _Image):
            sheet.paste(Image.fromarray(shape.pixels), (shape.x, shape.y))
        elif isinstance(shape, _Box):
            colour, dashes = LINES[shape.line % len(LINES)]
            _draw_box(draw, shape, "white", (), _LINE_WIDTH + 2 * _HALO)
            _draw_box(draw, shape, colour, dashes, _LINE_WIDTH)
        else:
            font = _font(shape.size)
            if shape.fill:
                box = draw.textbbox((shape.x + 2, shape.y), shape.text, font=font, anchor="ls")
                draw.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=shape.fill)
            draw.text(
                (shape.x + (2 if shape.fill else 0), shape.y),
                shape.text,
                font=font,
                fill="black",
                anchor="ls",
            )
    return sheet


def _draw_box(
    draw: ImageDraw.ImageDraw, box: _Box, colour: str, dashes: Sequence[int], width: int
) -> None:
    corners = [(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)]
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = abs(x1 - x0) + abs(y1 - y0)
        for start, end in _dash_ends(length, dashes):
            ax, bx = (x0 + (x1 - x0) * part / max(length, 1) for part in (start, end))
            ay, by = (y0 + (y1 - y0) * part / max(length, 1) for part in (start, end))
            half = width / 2
            left, top, right, bottom = min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)
            if y0 == y1:
                draw.rectangle((left, top - half, right, bottom + half - 1), fill=colour)
            else:
                draw.rectangle((left - half, top, right + half - 1, bottom), fill=colour)


def _dash_ends(length: float, dashes: Sequence[int]) -> list[tuple[float, float]]:
    """Return where the strokes of a line of ``length`` px begin and end."""
    if not dashes:
        return [(0.0, length)]
    ends, place, number = [], 0.0, 0
    while place < length:
        step = dashes[number % len(dashes)]
        if number % 2 == 0:
            ends.append((place, min(place + step, length)))
        place, number = place + step, number + 1
    return ends


def _draw_svg(shapes: Sequence[_Shape], size: tuple[int, int]) -> str:
    width, height = size
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" font-family="DejaVu Sans, Verdana, sans-serif">'
        ),
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for shape in shapes:
        if isinstance(shape, _Image):
            buffer = io.BytesIO()
            Image.fromarray(shape.pixels).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
            data = base64.b64encode(buffer.getvalue()).decode("ascii")
            rows, columns = shape.pixels.shape[:2]
            parts.append(
                f'<image x="{shape.x}" y="{shape.y}" width="{columns}" height="{rows}"'
                f' href="data:image/jpeg;base64,{data}"/>'
            )
        elif isinstance(shape, _Box):
            colour, dashes = LINES[shape.line % len(LINES)]
            where = (
                f'x="{shape.x0:g}" y="{shape.y0:g}" width="{shape.x1 - shape.x0:g}"'
                f' height="{shape.y1 - shape.y0:g}" fill="none"'
            )
            parts.append(
                f'<rect {where} stroke="#ffffff" stroke-width="{_LINE_WIDTH + 2 * _HALO}"/>'
            )
            dash = f' stroke-dasharray="{" ".join(map(str, dashes))}"' if dashes else ""
            parts.append(f'<rect {where} stroke="{colour}" stroke-width="{_LINE_WIDTH}"{dash}/>')
        else:
            shift = 2 if shape.fill else 0
            if shape.fill:
                length, height = round(_font(shape.size).getlength(shape.text)) + 4, shape.size + 2
                parts.append(
                    f'<rect x="{shape.x:g}" y="{shape.y - shape.size + 1:g}" width="{length}"'
                    f' height="{height}" fill="{shape.fill}"/>'
                )
            parts.append(
                f'<text x="{shape.x + shift:g}" y="{shape.y:g}"'
                f' font-size="{shape.size}">{escape(shape.text)}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"
