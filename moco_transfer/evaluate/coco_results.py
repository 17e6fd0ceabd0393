"""Detections of any program in COCO's result format, checked against the data set they are of.

Boxes (N, 4) are XYXY here and [x, y, width, height] in the file, px of the original image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.coco import load_json
from ..data.annotations.faults import Fault, short
from ..data.annotations.masks import read_mask
from ..runtime.errors import InputError
from .metric_names import AP_TASKS

_KEYS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # of a detection

Found = list[tuple[int | str, dict[str, Any]]]


def read_coco_results(
    path: str | os.PathLike[str], dataset: DetectionDataset, tasks: Sequence[str] = ()
) -> tuple[tuple[str, ...], Found]:
    """Return what the detections of a file can be evaluated for, of ``AP_TASKS``, and the
    detections of each image of the data set, as :meth:`PredictionWriter.evaluate_found` takes them.

    A detection without a box gets that of its mask. ``tasks`` chooses some; none means all.

    Raises:
        InputError: If the file is in another format, its detections lack a score, an image or
            category is not the data set's, a mask is no RLE of the image's size, or a task was
            asked for that some detections have nothing for.
    """
    results = load_json(Path(path))
    fault = next(_form_faults(results), None) or next(_id_faults(results, dataset), None)
    if fault is not None:
        raise InputError(f"{path}: {fault}")
    wanted = tuple(tasks) or _common_tasks(results)
    keys = [_KEYS[task] for task in wanted if task != "bbox" or "segm" not in wanted]
    for key in keys:
        lacking = sum(key not in result for result in results)
        if lacking:
            raise InputError(
                f"{path}: {lacking} of {len(results)} detections have no {key!r}; give it for all"
                " of them, or choose other --kinds."
            )
    try:
        return wanted, _by_image(results, dataset, keys)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _form_faults(results: Any) -> Iterator[str]:
    if isinstance(results, dict) and "annotations" in results:
        yield (
            "is an annotation file (it has 'annotations'), expected detections: a JSON list of"
            " objects with image_id, category_id, score and bbox or segmentation."
        )
    needed = ("image_id", "category_id", "score")
    if not isinstance(results, list) or not all(isinstance(r, dict) for r in results):
        yield f"is no JSON list of objects with {', '.join(needed)} and bbox or segmentation."
        return
    for key in needed:
        without = [number for number, result in enumerate(results) if key not in result]
        if without:
            yield (
                f"{len(without)} of {len(results)} detections have no {key!r}, the first is number"
                f" {without[0]}; COCO's result format has it in each."
            )
    for number, result in enumerate(results):
        if not _is_number(result["score"]):
            yield f"detection {number} has the score {result['score']!r}, expected a finite number."
        if result.get("bbox") is None and "segmentation" not in result:
            yield f"detection {number} has neither 'bbox' nor 'segmentation'."


def _id_faults(results: Sequence[dict], dataset: DetectionDataset) -> Iterator[str]:
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    known = {
        "image_id": [record["image_id"] for record in dataset.records],
        "category_id": list(names),
    }
    for key, ids in known.items():
        legal = {(type(i), i) for i in ids}  # True is no 1, and "1" no 1
        wrong = [
            r[key] for r in results if not _is_id(r[key]) or (type(r[key]), r[key]) not in legal
        ]
        if wrong:
            shown = ", ".join(map(repr, ids[:5])) + ", ..." * (len(ids) > 5)
            yield (
                f"{len(wrong)} of {len(results)} detections have a {key} that data set"
                f" {dataset.name!r} does not have, such as {wrong[0]!r}; it has {shown}. Name the"
                " data set that they were made on, or map them to its ids."
            )


def _common_tasks(results: Sequence[dict]) -> tuple[str, ...]:
    return tuple(
        task
        for task in AP_TASKS
        if task == "bbox" or results and all(_KEYS[task] in r for r in results)
    )


def _box(result: dict) -> list[float]:
    box = result.get("bbox")
    if box is None:
        return mask_api.toBbox(result["segmentation"]).tolist()
    if not _are_numbers(box, 4) or min(box[2:]) < 0:
        raise Fault(f"its bbox is {short(box)}, expected [x, y, width, height] in px")
    return box


def _mask(result: dict, record: dict) -> dict:
    mask = result["segmentation"]
    if not isinstance(mask, dict):
        kind = f"a {type(mask).__name__}, expected an RLE with 'counts' and 'size'"
        raise Fault(f"its segmentation is {kind}; pycocotools.mask.encode makes it")
    return read_mask(mask, record)


def _points(result: dict, count: int) -> list[float]:
    points = result["keypoints"]
    if not _are_numbers(points, 3 * count):
        raise Fault(f"its keypoints are {short(points)}, expected x, y, score of {count} points")
    return points


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(_is_number, values))


def _by_image(results: Sequence[dict], dataset: DetectionDataset, keys: Sequence[str]) -> Found:
    """Return the detections of each image as arrays; float64 gives back the file's numbers."""
    class_of = {category: index for index, category in enumerate(dataset.category_ids)}
    records = {record["image_id"]: record for record in dataset.records}
    of_image: dict[int | str, dict[str, list]] = {
        i: {key: [] for key in ("boxes", "scores", "classes", "masks", "keypoints")}
        for i in records
    }
    num_points = len(dataset.keypoint_names) or 17
    for number, result in enumerate(results):
        mine = of_image[result["image_id"]]
        try:
            if "segmentation" in keys or result.get("bbox") is None:
                result = result | {"segmentation": _mask(result, records[result["image_id"]])}
                mine["masks"].append(result["segmentation"])
            if "keypoints" in keys:
                mine["keypoints"].append(_points(result, num_points))
            mine["boxes"].append(_box(result))
        except Fault as fault:
            raise InputError(f"detection {number}: {fault}.") from fault
        mine["scores"].append(result["score"])
        mine["classes"].append(class_of[result["category_id"]])
    return [(image_id, _arrays(mine, keys)) for image_id, mine in of_image.items()]


def _arrays(mine: dict[str, list], keys: Sequence[str]) -> dict[str, Any]:
    corners = np.array(mine["boxes"], float).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    found: dict[str, Any] = {
        "boxes": corners,
        "scores": np.array(mine["scores"], float),
        "classes": np.array(mine["classes"], np.int64),
    }
    if "segmentation" in keys:
        found["masks"] = mine["masks"]
    if "keypoints" in keys:
        points = np.array(mine["keypoints"], float).reshape(len(corners), -1, 3)
        found["keypoints"] = points + np.array([0.5, 0.5, 0])  # the file holds pixel indices
    return found
