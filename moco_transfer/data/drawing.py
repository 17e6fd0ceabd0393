"""Objects drawn on an image, and images in rows and columns.

Conventions:
    Images are RGB, uint8 (H, W, 3); boxes are XYXY in px of their image.
"""

from __future__ import annotations

import colorsys
import io
import itertools
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..runtime.files import atomic_write_bytes

CELL, GAP = 400, 8  # px: longer side of an image in a grid, space between images
_TITLE = 28  # px
# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (150, 150, 150),
)  # fmt: skip
_GOLDEN = 0.618034  # steps of the golden ratio keep the hues of neighbouring classes apart
_TINT = 0.4  # share of the colour in a mask
_KEYPOINT_SCORE = 0.05  # keypoints with a lower one are not drawn, as in Detectron2's drawings
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def class_colour(index: int) -> tuple[int, int, int]:
    """Return the colour of a class, RGB 0-255; the same in every image."""
    if index < len(_COLOURS):
        return _COLOURS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1.0, 0.65, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: np.ndarray,
    objects: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    skeleton: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """Return a copy of an image with a tint, a box, keypoints and a label for each object.

    ``objects`` holds ``boxes`` (N, 4), ``classes`` (N,) indices[, ``scores`` (N,) in 0-1, ``masks``
    bool (N, H, W), ``keypoints`` (N, K, 3): x, y and score or visibility]. The object with the
    highest score lies on top, else the first. ``skeleton`` are the pairs of keypoints with a line.
    """
    canvas = np.ascontiguousarray(image).copy()
    line = max(1, round(min(canvas.shape[:2]) / 300))
    corners = np.rint(np.asarray(objects["boxes"], dtype=np.float64).reshape(-1, 4)).astype(int)
    classes = [int(index) for index in objects["classes"]]
    colours = [class_colour(index) for index in classes]
    scores = objects.get("scores", np.arange(len(classes))[::-1])
    order = np.argsort(scores, kind="stable")
    for i in order if "masks" in objects else ():
        mask = objects["masks"][i]
        _tint(canvas, mask, colours[i])
        pixels, how = mask.astype(np.uint8), (cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        contours, _ = cv2.findContours(pixels, *how)
        cv2.drawContours(canvas, contours, -1, colours[i], line, cv2.LINE_AA)
    for i in order:
        x0, y0, x1, y1 = corners[i].tolist()
        cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), colours[i], line)
        if "keypoints" in objects:
            _draw_keypoints(canvas, objects["keypoints"][i], colours[i], line, skeleton)
    taken: list[tuple[int, int, int, int]] = []
    for i in order[::-1]:  # the highest score chooses its place first
        text = _ascii(class_names[classes[i]]) or f"class {classes[i]}"
        text = f"{text} {scores[i]:.2f}" if "scores" in objects else text
        _draw_label(canvas, text, corners[i].tolist(), colours[i], taken)
    return canvas


def draw_labels(image: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return a copy of an image with each pixel tinted in the colour of its class in ``labels``,
    integers (H, W), and the class's name inside its largest region. ``background`` has no tint;
    pixels of no class, such as ignored ones, are dark.
    """
    canvas = np.array(image)
    is_class = labels < len(class_names)
    canvas[~is_class] //= 3
    found = np.unique(labels[is_class]).tolist()
    taken: list[tuple[int, int, int, int]] = []
    for index in found:
        if class_names[index] != "background":
            _tint(canvas, labels == index, class_colour(index))
    for index in found:
        inside = np.pad((labels == index).astype(np.uint8), 1)  # the edge is no part of a region
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        text = _ascii(class_names[index]) or f"class {index}"
        _draw_label(canvas, text, [int(x), int(y), int(x), int(y)], class_colour(index), taken)
    return canvas


def _tint(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    tinted = (1 - _TINT) * canvas[mask] + _TINT * np.array(colour)
    canvas[mask] = np.round(tinted).astype(np.uint8)


def _draw_keypoints(
    canvas: np.ndarray,
    keypoints: np.ndarray,
    colour: tuple[int, int, int],
    line: int,
    skeleton: Sequence[tuple[int, int]],
) -> None:
    """Draw lines in the object's colour and, on top of them, a white point for each keypoint."""
    shown = {
        k: (int(x), int(y)) for k, (x, y, score) in enumerate(keypoints) if score >= _KEYPOINT_SCORE
    }
    for a, b in skeleton:
        if a in shown and b in shown:
            cv2.line(canvas, shown[a], shown[b], colour, line + 1, cv2.LINE_AA)
    for point in shown.values():
        cv2.circle(canvas, point, line + 1, colour, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(canvas, point, line, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)


def _ascii(name: str) -> str:
    """Return a name in ASCII letters, which OpenCV's fonts have; perhaps empty."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore")
    return letters.decode().replace("_", " ").strip()


def _draw_label(
    canvas: np.ndarray, text: str, box: list[int], colour: tuple[int, int, int], taken: list
) -> None:
    """Write a label inside the image, at the corner of the box where it covers others least."""
    height, width = canvas.shape[:2]
    scale = min(max(min(height, width) / 900, 0.35), 2.0)
    thickness = max(1, round(scale))
    (text_width, text_height), below = cv2.getTextSize(text, _FONT, scale, thickness)
    w, h = text_width + 4, text_height + below + 2
    x0, y0, x1, y1 = box

    def covered(place: tuple[int, int]) -> int:
        x, y = place
        return sum(
            max(0, min(x + w, a + c) - max(x, a)) * max(0, min(y + h, b + d) - max(y, b))
            for a, b, c, d in taken
        )

    corners = ((x0, y0 - h), (x0, y0), (x0, y1 - h), (x0, y1), (x1 - w, y0 - h), (x1 - w, y1))
    most_x, most_y = max(width - w, 0), max(height - h, 0)
    places = [(min(max(x, 0), most_x), min(max(y, 0), most_y)) for x, y in corners]
    left, top = min(places, key=covered)
    taken.append((left, top, w, h))
    cv2.rectangle(canvas, (left, top), (left + w - 1, top + h - 1), colour, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)
    at = (left + 2, top + text_height + 1)
    cv2.putText(canvas, text, at, _FONT, scale, ink, thickness, cv2.LINE_AA)


def fit(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return an image scaled so that its longer side has ``CELL`` px, and the scale."""
    scale = CELL / max(image.shape[:2])
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), scale


def save_grid(
    path: str | os.PathLike[str], rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]
) -> None:
    """Write images, with sides of at most ``CELL`` px, as PNG and, next to it, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    lefts = range(GAP, GAP + len(titles) * (CELL + GAP), CELL + GAP)
    bottoms = list(itertools.accumulate(max(map(len, row)) + GAP for row in rows))
    width, height = lefts[-1] + CELL + GAP, _TITLE + bottoms[-1]
    figure = Figure((width / 72, height / 72), dpi=72)  # 1 px is 1 pt
    for left, title in zip(lefts, titles, strict=True):
        at = left / width, 1 - 20 / height
        figure.text(*at, title[: CELL // 9], fontsize=14, parse_math=False)
    for top, row in zip([0, *bottoms], rows, strict=False):
        for left, image in zip(lefts, row, strict=True):
            figure.figimage(image, left, bottoms[-1] - top - len(image), origin="upper")
    png, svg = Path(path).with_suffix(".png"), Path(path).with_suffix(".svg")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "grid"}):
        for file, metadata in ((png, None), (svg, {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=file.suffix[1:], dpi=72, metadata=metadata)
            atomic_write_bytes(file, buffer.getvalue())
