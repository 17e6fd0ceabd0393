"""Images in rows with boxes: known pixels, and an SVG that says the same.

Seen red under: boxes not scaled with their image; dashes ignored; PNG and SVG of different sizes;
    text not escaped; a row
lower than its highest image.
"""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from moco_transfer.data.image_grid import CELL, GAP, LINES, Cell, ImageGrid, Mark, save_grid

GREY = np.full((40, 80, 3), 100, np.uint8)  # twice as wide as high: drawn 160 x 320
TALL = np.full((80, 40, 3), 50, np.uint8)
TOP, SCALE = 28, CELL / 80


def _rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _save(tmp_path, grid):
    png, svg = save_grid(grid, tmp_path / "grid.png")
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    return np.asarray(Image.open(png)), root


@pytest.fixture
def drawn(tmp_path):
    """A grid of one row: a wide image with a solid and a dashed box, and a tall one with a frame."""
    marks = (Mark((10, 10, 30, 20), 0, "0.9"), Mark((40, 5, 70, 35), 1))
    row = (Cell(GREY, marks, caption="a <b> & c"), Cell(TALL, frame=2))
    return _save(tmp_path, ImageGrid(("one", "two"), (row,), ((0, "solid"), (1, "dashed"))))


def test_save_grid__boxes_where_they_belong(drawn):
    pixels, _ = drawn
    left, top = GAP + round(10 * SCALE), TOP + round(10 * SCALE)
    assert tuple(pixels[top + 10, left]) == _rgb(LINES[0][0])  # the left edge of the first box
    assert tuple(pixels[top + 10, left + 6]) == (100, 100, 100)  # inside it
    assert tuple(pixels[TOP + 4, GAP + 4]) == (100, 100, 100)
    edge = pixels[TOP + 25 : TOP + 135, GAP + round(40 * SCALE)]  # of the dashed box
    colours = {tuple(pixel) for pixel in edge.tolist()}
    assert colours == {_rgb(LINES[1][0]), (255, 255, 255)}
    assert pixels.shape[1] == 2 * (CELL + GAP) + GAP
    assert tuple(pixels[TOP + CELL - 8, GAP + CELL + GAP + 80]) == (
        50,
        50,
        50,
    )  # the tall image sets the height of its row
    assert tuple(pixels[TOP + 200, GAP + 5]) == (255, 255, 255)


def test_save_grid__svg_says_the_same(drawn):
    pixels, root = drawn
    name = "{http://www.w3.org/2000/svg}"
    assert (int(root.get("width")), int(root.get("height"))) == (pixels.shape[1], pixels.shape[0])
    texts = [text.text for text in root.iter(f"{name}text")]
    assert (
        texts[:2] == ["one", "two"] and "a <b> & c" in texts and texts[-2:] == ["solid", "dashed"]
    )
    boxes = [
        rect
        for rect in root.iter(f"{name}rect")
        if rect.get("stroke") in (LINES[0][0], LINES[1][0])
    ]
    first, second, *_ = boxes
    assert [float(first.get(key)) for key in ("x", "y", "width", "height")] == [
        GAP + 40,
        TOP + 40,
        80,
        40,
    ]
    assert (first.get("stroke-dasharray"), second.get("stroke-dasharray")) == (None, "7 4")
    images = [image.get("href").split(",") for image in root.iter(f"{name}image")]
    assert [head for head, _ in images] == ["data:image/jpeg;base64"] * 2
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for _, data in images]
    assert sizes == [(320, 160), (160, 320)]


def test_save_grid__the_same_grid_gives_the_same_bytes(tmp_path):
    grid = ImageGrid((), ((Cell(GREY),),), cell=40)
    first = [file.read_bytes() for file in save_grid(grid, tmp_path / "a.png")]
    assert first == [file.read_bytes() for file in save_grid(grid, tmp_path / "b.png")]
    assert np.asarray(Image.open(tmp_path / "a.png")).shape == (GAP + 20 + 2 * GAP, 40 + 2 * GAP, 3)


def test_save_grid__shortens_a_long_caption(tmp_path):
    _, root = _save(tmp_path, ImageGrid((), ((Cell(GREY, caption="x" * 500),),), cell=100))
    (text,) = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert text.endswith("x…") and len(text) < 30
