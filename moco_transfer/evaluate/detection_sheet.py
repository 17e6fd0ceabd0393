"""The predictions of several runs next to the ground truth, as PNG and SVG."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_api

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.semantic.labels import IGNORED, read_labels
from ..data.batches.transforms import read_and_check
from ..data.drawing import draw_detections, draw_labels, fit, save_grid
from ..runtime.errors import InputError


def first_images(dataset: DetectionDataset, count: int = 4) -> list[int | str]:
    """Return the ids of the first ``count`` images that have an object or a label image."""
    shown = (r["image_id"] for r in dataset.records if r.get("annotations", True))
    return list(itertools.islice(shown, count))


def draw_detection_sheet(
    path: str | Path,
    dataset: DetectionDataset,
    columns: Mapping[str, Sequence[dict]],
    *,
    image_ids: Sequence[int | str],
) -> Path:
    """Write a PNG whose first column is the ground truth, and an SVG next to it; return the PNG.

    ``columns`` maps titles to predictions in COCO's result format; each image is a row. It shows as
    many predictions as there are objects, those with the highest scores: a score threshold would
    hide all boxes of a detector with low scores. Semantic segmentation is shown as tinted images.

    Raises:
        InputError: If an image is not in the set or unreadable, or a prediction's category is not.
    """
    class_of = {category: index for index, category in enumerate(dataset.category_ids)}
    records = {record["image_id"]: record for record in dataset.records}
    unknown = [image_id for image_id in image_ids if image_id not in records]
    if unknown or not image_ids:
        which = repr(unknown[0]) if unknown else "with objects"
        total = f"it has {len(records)}"
        raise InputError(f"Data set {dataset.name!r} has no image {which} to show; {total}.")
    by_image: dict[str, dict] = {title: {} for title in columns}
    for title, predictions in columns.items():
        for found in predictions:
            if found["image_id"] in image_ids:
                by_image[title].setdefault(found["image_id"], []).append(found)
                if found["category_id"] not in class_of:
                    raise InputError(
                        f"{title}: a prediction has category {found['category_id']}, which data set"
                        f" {dataset.name!r} does not have. Were they made on another set?"
                    )
    draw, how = _draw_objects, "highest scores"
    if dataset.kind == "semantic":
        draw, how = _draw_label_images, "prediction"
    rows = [
        draw(dataset, records[i], [of.get(i, []) for of in by_image.values()]) for i in image_ids
    ]
    save_grid(path, rows, ("ground truth", *(f"{title} ({how})" for title in columns)))
    return Path(path)


def _draw_objects(
    dataset: DetectionDataset, record: dict, predictions: Sequence[Sequence[dict]]
) -> list[np.ndarray]:
    """Return an image with the ground truth, and with the predictions of each column."""
    class_of = {category: index for index, category in enumerate(dataset.category_ids)}
    image, scale = fit(read_and_check(record, "RGB"))
    truth = record["annotations"]
    boxes, classes = [a["bbox"] for a in truth], [a["category_id"] for a in truth]
    cells: list[dict[str, Any]] = [
        {"boxes": boxes, "classes": classes, **_keypoints(dataset, truth)}
    ]
    for of_column in predictions:
        best = sorted(of_column, key=lambda p: -p["score"])[: len(truth)]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (p["bbox"] for p in best)]
        classes = [class_of[p["category_id"]] for p in best]
        scores = [p["score"] for p in best]
        found = {"boxes": boxes, "classes": classes, "scores": scores}
        cells.append(found | _keypoints(dataset, best, pixels=0.5))
    for cell in cells:
        cell["boxes"] = scale * np.array(cell["boxes"])
        if "keypoints" in cell:
            cell["keypoints"][..., :2] *= scale
    names, skeleton = dataset.class_names, dataset.skeleton
    return [draw_detections(image, cell, names, skeleton) for cell in cells]


def _draw_label_images(
    dataset: DetectionDataset, record: dict, predictions: Sequence[Sequence[dict]]
) -> list[np.ndarray]:
    """As :func:`_draw_objects`, tinted by class: a prediction has a mask for each class."""
    class_of = {category: index for index, category in enumerate(dataset.category_ids)}
    image, _ = fit(read_and_check(record, "RGB"))
    cells = [read_labels(record)]
    for of_column in predictions:
        labels = np.full(cells[0].shape, IGNORED, np.int64)
        for found in of_column:
            labels[mask_api.decode(found["segmentation"]) > 0] = class_of[found["category_id"]]
        cells.append(labels)
    size = image.shape[1::-1]
    small = [cv2.resize(c.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for c in cells]
    return [draw_labels(image, labels, dataset.class_names) for labels in small]


def _keypoints(dataset: DetectionDataset, objects: Sequence[dict], pixels: float = 0.0) -> dict:
    """Return keypoints (N, K, 3) to draw, if objects of this set have some; ``pixels`` is added to
    make pixel indices continuous coordinates.
    """
    if not dataset.keypoint_names or not any("keypoints" in found for found in objects):
        return {}
    nothing = [0.0] * 3 * len(dataset.keypoint_names)
    points = [np.reshape(found.get("keypoints") or nothing, (-1, 3)) for found in objects]
    return {"keypoints": np.array(points, dtype=np.float64) + [pixels, pixels, 0.0]}
