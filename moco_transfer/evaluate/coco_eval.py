"""The evaluator of data sets in COCO's format, and of others by COCO's rules, with pycocotools.

Source:
    facebookresearch/detectron2@02b5c4e evaluation/coco_evaluation.py COCOEvaluator, and
    data/datasets/coco.py convert_to_coco_dict for other formats (VOC's difficult objects count as
    ordinary ones). Differences: the six recalls are reported too; no predictions give AP 0, not
    NaN; what cannot be computed (no ground truth of that size or class) is left out and logged.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.coco import load_json
from .metric_names import BBOX_METRICS, KEYPOINT_METRICS, RECALL_METRICS, class_metric
from .predictions import Metrics, PredictionWriter, warn_absent

logger = logging.getLogger(__name__)

_KEYPOINT_NUMBERS = (*KEYPOINT_METRICS, "AR", "AR50", "AR75", "ARm", "ARl")
_PREDICTED_IN = {"segm": "masks", "keypoints": "keypoints"}


class CocoEvaluator(PredictionWriter):
    """Computes COCO's AP over a test set, for some of ``metric_names.TASKS``."""

    def __init__(
        self,
        dataset: DetectionDataset,
        tasks: tuple[str, ...] = ("bbox",),
        *,
        output_file: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(dataset, output_file)
        self.tasks = tuple(tasks)
        self.extras = tuple(_PREDICTED_IN[task] for task in tasks if task in _PREDICTED_IN)

    def score(self, found: list[tuple[int | str, dict[str, Any]]], results: list[dict]) -> Metrics:
        """Return COCO's numbers by name and ``AP-<class>``, for each task."""
        return evaluate_results(results, self.dataset, self.tasks)


def evaluate_results(
    results: list[dict], dataset: DetectionDataset, tasks: tuple[str, ...] = ("bbox",)
) -> Metrics:
    """Return COCO's numbers by name and ``AP-<class>``, 0-100, for each of ``tasks``."""
    truth = _coco_truth(dataset)
    return {task: _evaluate_task(truth, results, task, dataset) for task in tasks}


def _coco_truth(dataset: DetectionDataset) -> dict[str, Any]:
    """Return a data set's ground truth as the content of a COCO json file.

    ``iscrowd`` and ``area``, which some tools leave out, are added, and ids start at 1: pycocotools
    takes an object with id 0 as never found.
    """
    truth = load_json(Path(dataset.json_file)) if dataset.json_file else _from_records(dataset)
    truth.setdefault("info", {})
    annotations = truth["annotations"]
    for annotation in annotations:
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    if not all(annotation.get("id") for annotation in annotations):
        logger.warning("%s: an annotation has id 0 or none; all are renumbered.", dataset.name)
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    return truth


def _from_records(dataset: DetectionDataset) -> dict[str, Any]:
    images = [
        {key: record[key] for key in ("height", "width", "file_name")} | {"id": record["image_id"]}
        for record in dataset.records
    ]
    objects = [(record["image_id"], a) for record in dataset.records for a in record["annotations"]]
    annotations = []
    for number, (image_id, annotation) in enumerate(objects, start=1):
        x0, y0, x1, y1 = annotation["bbox"]
        category = dataset.category_ids[annotation["category_id"]]
        entry = {"id": number, "image_id": image_id, "category_id": category}
        entry |= {"area": (x1 - x0) * (y1 - y0), "iscrowd": annotation.get("iscrowd", 0)}
        entry["bbox"] = [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)]
        annotations.append(entry)
    ids_and_names = zip(dataset.category_ids, dataset.class_names, strict=True)
    categories = [{"id": i, "name": name} for i, name in ids_and_names]
    return {"images": images, "annotations": annotations, "categories": categories}


def _evaluate_task(
    truth: dict[str, Any], results: list[dict], task: str, dataset: DetectionDataset
) -> dict[str, float]:
    # With a bbox, the sizes of masks (small, medium, large) would be those of the boxes.
    dropped = {"bbox"} if task == "segm" else set()
    # pycocotools adds keys to results and annotations, and other tasks read them as well.
    results = [{k: v for k, v in result.items() if k not in dropped} for result in results]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        api = _index(truth | {"annotations": [dict(a) for a in truth["annotations"]]})
        # loadRes fails on an empty list.
        found = api.loadRes(results) if results else _index(truth | {"annotations": []})
        scored = COCOeval(api, found, task)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    table = [line for line in printed.getvalue().splitlines() if line.startswith(" Average")]
    logger.info("\n".join(table))
    names = _KEYPOINT_NUMBERS if task == "keypoints" else (*BBOX_METRICS, *RECALL_METRICS)
    numbers = zip(names, scored.stats, strict=True)
    metrics = {name: 100 * float(value) for name, value in numbers if value >= 0}
    absent = [name for name in names if name not in metrics]
    if absent:
        logger.warning("%s: no ground truth of the size of %s.", dataset.name, ", ".join(absent))
    if task != "keypoints":
        metrics |= _class_metrics(scored.eval["precision"], dataset)
    return metrics


def _index(content: dict[str, Any]) -> COCO:
    api = COCO()
    api.dataset = content
    api.createIndex()
    return api


def _class_metrics(precision: np.ndarray, dataset: DetectionDataset) -> dict[str, float]:
    """Return each class's AP from precision (IoU, recall, class, area, detections), -1 for none."""
    counts, names = Counter(dataset.class_names), dataset.class_names
    metrics, absent = {}, []
    for index, (name, category_id) in enumerate(zip(names, dataset.category_ids, strict=True)):
        values = precision[:, :, index, 0, -1]  # all areas, 100 detections
        values = values[values > -1]
        if values.size:
            unique = name if counts[name] == 1 else f"{name} (id {category_id})"
            metrics[class_metric(unique)] = 100 * float(np.mean(values))
        else:
            absent.append(name)
    warn_absent(dataset, absent, "they are left out of the mean")
    return metrics
