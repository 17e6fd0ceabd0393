"""A picture of detections beside the ground truth: one row a test picture, one column an initialisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..data.catalog import DetectionDataset
from ..runtime.files import atomic_write_bytes

_CELL = 320  # longer side of a picture in the sheet, px
_GAP = 8
_TITLE = 28
# Colour-blind safe (Okabe and Ito), BGR; classes beyond the eighth start over.
_COLOURS = ((0, 159, 230), (233, 180, 86), (115, 158, 0), (66, 228, 240), (178, 114, 0), (0, 94, 213), (167, 121, 204), (120, 120, 120))


def draw_detection_sheet(
    path: str | Path,
    dataset: DetectionDataset,
    columns: Mapping[str, Sequence[dict]],
    *,
    image_ids: Sequence[int | str],
) -> Path:
    """Write a PNG whose first column is the ground truth; of the predictions it shows as many, the surest, as there are objects.

    A score threshold would show a detector with low scores as one that finds nothing.

    Args:
        path: The file to write.
        dataset: The test set.
        columns: Title -> predictions in COCO's result format, e.g. from ``evaluate.predictions.load_predictions``.
        image_ids: The pictures to show, one row each.

    Returns:
        ``path``.
    """
    names = dataset.class_names
    contiguous = {category: index for index, category in enumerate(dataset.category_ids)}
    records = {record["image_id"]: record for record in dataset.records}
    rows = []
    for image_id in image_ids:
        picture = cv2.imread(records[image_id]["file_name"])
        truth = [(a["bbox"], a["category_id"], None) for a in records[image_id]["annotations"]]
        cells = [_draw(picture, truth, names)]
        for predictions in columns.values():
            found = sorted((p for p in predictions if p["image_id"] == image_id), key=lambda p: -p["score"])[: len(truth)]
            boxes = [([x, y, x + w, y + h], contiguous[p["category_id"]], p["score"]) for p in found for x, y, w, h in [p["bbox"]]]
            cells.append(_draw(picture, boxes, names))
        rows.append(cells)
    sheet = _assemble(rows, ["ground truth", *(f"{title} (the surest)" for title in columns)])
    atomic_write_bytes(path, cv2.imencode(".png", sheet)[1].tobytes())
    return Path(path)


def _draw(picture: np.ndarray, boxes: Sequence[tuple[Sequence[float], int, float | None]], names: Sequence[str]) -> np.ndarray:
    """Return the picture, enlarged to the cell, with boxes XYXY and their class names and scores."""
    scale = _CELL / max(picture.shape[:2])
    cell = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    for box, class_index, score in sorted(boxes, key=lambda b: b[2] or 0):  # the surest last, on top
        colour = _COLOURS[class_index % len(_COLOURS)]
        x0, y0, x1, y1 = (round(float(v) * scale) for v in box)
        cv2.rectangle(cell, (x0, y0), (x1, y1), colour, 2)
        text = names[class_index].replace("_", " ") + (f" {score:.2f}" if score is not None else "")
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
        top = max(y0, height + 4)
        cv2.rectangle(cell, (x0, top - height - 4), (x0 + width + 2, top), colour, -1)
        cv2.putText(cell, text, (x0 + 1, top - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return cell


def _assemble(rows: list[list[np.ndarray]], titles: list[str]) -> np.ndarray:
    heights = [max(cell.shape[0] for cell in row) for row in rows]
    width = (_CELL + _GAP) * len(titles) + _GAP
    sheet = np.full((_TITLE + sum(heights) + _GAP * (len(rows) + 1), width, 3), 255, np.uint8)
    for column, title in enumerate(titles):
        cv2.putText(sheet, title, (_GAP + column * (_CELL + _GAP), 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    top = _TITLE
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = _GAP + column * (_CELL + _GAP)
            sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        top += height + _GAP
    return sheet
