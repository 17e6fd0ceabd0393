"""The evaluator of data sets in VOC's layout.

Source:
    facebookresearch/detectron2@02b5c4e evaluation/pascal_voc_evaluation.py
    PascalVOCDetectionEvaluator, whose numbers it gives where each class has an object. Detections
    pass through text there, which rounds scores to 3 digits and coordinates to 1, and so they are
    rounded here. The AP of each class is added. Difference: classes without an object that counts
    are left out of the mean, as by COCO's rules; there they are 0, or NaN by the area metric if
    there are detections.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..data.annotations.catalog import DetectionDataset
from .coco_eval import CocoScores, evaluate_results
from .metric_names import class_metric
from .predictions import Metrics, PredictionWriter, warn_absent
from .voc_ap import IOU_THRESHOLDS, VocDetections, VocGroundTruth, voc_eval


class VocEvaluator(PredictionWriter):
    """Computes VOC's AP over a test set: the 11-point AP of year 2007, else the area.

    With ``coco_style`` the same detections are also scored by COCO's rules (100 an image, 101
    points, exclusive edges, difficult boxes as ordinary ones, unrounded), as "bbox_coco".
    """

    extras = ()

    def __init__(
        self,
        dataset: DetectionDataset,
        output_file: str | os.PathLike[str] | None = None,
        *,
        coco_style: bool = False,
    ) -> None:
        super().__init__(dataset, output_file)
        self.coco_style = coco_style
        self.truth = ground_truth(dataset.records)

    def score(self, found: list[tuple[int | str, dict[str, Any]]], results: list[dict]) -> Metrics:
        """Return "bbox" with AP over IoU 0.50 to 0.95, AP50, AP75 and ``AP-<class>``."""
        names = self.dataset.class_names
        there = np.isin(range(len(names)), self.truth.classes[~self.truth.difficult])
        absent = [name for name, has_objects in zip(names, there, strict=True) if not has_objects]
        warn_absent(self.dataset, absent, "they are left out of the mean")
        detections, of_2007 = _detections(found, self.dataset.records), self.dataset.year == 2007
        aps, matches = voc_eval(
            detections, self.truth, num_classes=len(names), use_11_points=of_2007
        )
        scores = CocoScores(results, self.dataset, found=found, ignore_difficult=True)
        self.tide = {"bbox": tide} if (tide := scores.tide("bbox")) else {}
        self.confusion = {"bbox": pairs} if (pairs := scores.confusion("bbox")) else {}
        image_ids = [record["image_id"] for record in self.dataset.records]
        metric = "voc_11" if of_2007 else "voc_area"
        self.take_matches(image_ids, metric, {"bbox": matches})
        aps = 100 * aps  # before the means, as in Detectron2: after them the last digits differ
        of_iou = aps.compress(there, axis=1).mean(axis=1)
        of_class = aps.mean(axis=0).tolist()
        metrics = {"AP": float(np.mean(of_iou))}
        metrics |= {f"AP{t}": float(of_iou[IOU_THRESHOLDS.index(t / 100)]) for t in (50, 75)}
        found_in = zip(names, of_class, there, strict=True)
        metrics |= {class_metric(name): ap for name, ap, has_objects in found_in if has_objects}
        if not self.coco_style:
            return {"bbox": metrics}
        by_coco = evaluate_results(results, self.dataset, found=found)
        return {"bbox": metrics, "bbox_coco": by_coco["bbox"]}


def ground_truth(records: list[dict]) -> VocGroundTruth:
    """Return the boxes of records as VOC's: pixels from 1, inclusive; images numbered in order."""
    objects = [(i, a) for i, record in enumerate(records) for a in record["annotations"]]
    corners = [a["bbox"] for _, a in objects]
    return VocGroundTruth(
        np.array([(x0 + 1, y0 + 1, x1, y1) for x0, y0, x1, y1 in corners], float).reshape(-1, 4),
        np.array([a["category_id"] for _, a in objects], np.int64),
        np.array([index for index, _ in objects], np.int64),
        np.array([bool(a.get("difficult", 0)) for _, a in objects], bool),
    )


def _detections(
    found: list[tuple[int | str, dict[str, Any]]], records: list[dict]
) -> VocDetections:
    """Join the outputs of all images, in VOC's pixels from 1."""
    index_of = {record["image_id"]: index for index, record in enumerate(records)}
    nothing = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "classes": np.zeros(0, np.int64)}
    outputs = [nothing, *(output for _, output in found)]
    boxes, scores, classes = (np.concatenate([o[name] for o in outputs]) for name in nothing)
    boxes = boxes.astype(np.float32) + np.array([1, 1, 0, 0], np.float32)
    images = [np.full(len(output["scores"]), index_of[image_id]) for image_id, output in found]
    return VocDetections(
        round_as_text(boxes, 1),
        round_as_text(scores.astype(np.float32), 3),
        classes,
        np.concatenate([np.zeros(0, np.int64), *images]),
    )


def round_as_text(values: np.ndarray, digits: int) -> np.ndarray:
    """Return ``float(f"{value:.<digits>f}")`` for each float32 value; digits 1 to 3.

    A float32 has 24 bits and 10^digits at most 10: their product is exact in float64.
    """
    scale = 10.0**digits
    return np.rint(values.astype(np.float64) * scale) / scale
