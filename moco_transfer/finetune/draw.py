"""Detections drawn on an image: masks as tints with a contour, boxes, and a label with class and
score for each.

Conventions:
    Images are RGB, uint8 (H, W, 3); boxes XYXY, px of that image.
"""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

# Colour-blind safe (Okabe and Ito), RGB; classes beyond the eighth get hues that are far from their
# neighbours'.
_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (150, 150, 150),
)
_GOLDEN = (
    0.618034  # steps of the golden ratio around the colour circle never come close to each other
)
_TINT = 0.4  # share of the colour in a mask
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_detections(
    image: np.ndarray, detections: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> np.ndarray:
    """Return a copy of the image with its detections; the surest lie on top.

    Args:
        image: RGB, uint8 (H, W, 3).
        detections: ``boxes`` (N, 4), ``scores`` (N,) 0-1, ``classes`` (N,) indices[, ``masks`` (N,
            H, W) bool].
        class_names: Name of each class index.
    """
    canvas = np.ascontiguousarray(image).copy()
    shorter = min(canvas.shape[:2])
    line = max(1, round(shorter / 300))
    order = np.argsort(detections["scores"], kind="stable")
    for i in order if "masks" in detections else ():
        _tint(canvas, detections["masks"][i], class_colour(int(detections["classes"][i])), line)
    for i in order:
        x0, y0, x1, y1 = (round(float(v)) for v in detections["boxes"][i])
        cv2.rectangle(
            canvas, (x0, y0), (x1 - 1, y1 - 1), class_colour(int(detections["classes"][i])), line
        )
    taken: list[tuple[int, int, int, int]] = []
    for i in order[::-1]:  # the surest choose their place first
        index = int(detections["classes"][i])
        text = f"{_ascii(class_names[index]) or f'class {index}'} {detections['scores'][i]:.2f}"
        _label(
            canvas,
            text,
            detections["boxes"][i],
            class_colour(index),
            scale=min(max(shorter / 900, 0.35), 2.0),
            taken=taken,
        )
    return canvas


def class_colour(index: int) -> tuple[int, int, int]:
    """Return the colour of a class, RGB 0-255; the same in every image."""
    if index < len(_COLOURS):
        return _COLOURS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN % 1.0, 0.65, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _tint(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], line: int) -> None:
    canvas[mask] = np.round((1 - _TINT) * canvas[mask] + _TINT * np.array(colour)).astype(np.uint8)
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    cv2.drawContours(canvas, contours, -1, colour, line, cv2.LINE_AA)


def _label(
    canvas: np.ndarray,
    text: str,
    box: np.ndarray,
    colour: tuple[int, int, int],
    *,
    scale: float,
    taken: list[tuple[int, int, int, int]],
) -> None:
    """Write a label inside the image, where no earlier one lies if there is such a place at the
    box.
    """
    height, width = canvas.shape[:2]
    thickness = max(1, round(scale))
    (text_width, text_height), below = cv2.getTextSize(text, _FONT, scale, thickness)
    label_width, label_height = text_width + 4, text_height + below + 2
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    places = [
        (x0, y0 - label_height),
        (x0, y0),
        (x0, y1 - label_height),
        (x0, y1),
        (x1 - label_width, y0 - label_height),
        (x1 - label_width, y1),
    ]
    inside = [
        (min(max(x, 0), max(width - label_width, 0)), min(max(y, 0), max(height - label_height, 0)))
        for x, y in places
    ]
    left, top = min(
        inside,
        key=lambda place: (
            _overlap((*place, label_width, label_height), taken),
            inside.index(place),
        ),
    )
    taken.append((left, top, label_width, label_height))
    cv2.rectangle(
        canvas, (left, top), (left + label_width - 1, top + label_height - 1), colour, cv2.FILLED
    )
    ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)
    cv2.putText(
        canvas, text, (left + 2, top + text_height + 1), _FONT, scale, ink, thickness, cv2.LINE_AA
    )


def _overlap(label: tuple[int, int, int, int], taken: Sequence[tuple[int, int, int, int]]) -> int:
    x, y, w, h = label
    return sum(
        max(0, min(x + w, a + c) - max(x, a)) * max(0, min(y + h, b + d) - max(y, b))
        for a, b, c, d in taken
    )


def _ascii(name: str) -> str:
    # OpenCV's line fonts know ASCII alone; the json file has the name as it is.
    return (
        unicodedata.normalize("NFKD", name)
        .encode("ascii", "ignore")
        .decode()
        .replace("_", " ")
        .strip()
    )
