"""The evaluator of Cityscapes: masks by cityscapesscripts' own evaluation, boxes by COCO's rules.

Source:
    cityscapesscripts 2.3.0 evaluation/evalInstanceLevelSemanticLabeling.py, whose functions compute
    AP and its averages. The overlaps that they are computed from come from run-length masks here.
    The script counts the same pixels in a PNG of each detection: that part of it fails with NumPy
    2.4, and writes files into the current folder and, as a cache of the ground truth, into its own.
"""

from __future__ import annotations

import contextlib
import copy
import os
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.cityscapes import label_of, read_masks
from .coco_eval import CocoEvaluator, CocoScores
from .metric_names import class_metric
from .predictions import Metrics, warn_absent

_NO_DISTANCE = {"medDist": -1, "distConf": 0.0}  # the script's, for data without disparities


class CityscapesEvaluator(CocoEvaluator):
    """Computes Cityscapes' AP and AP50 of masks, and COCO's numbers of boxes; the TIDE errors of
    both are by COCO's rules.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        tasks: tuple[str, ...] = ("bbox",),
        *,
        output_file: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(dataset, ("bbox",), output_file=output_file)
        self.extras = ("masks",) if "segm" in tasks else ()

    def score(self, found: list[tuple[int | str, dict[str, Any]]], results: list[dict]) -> Metrics:
        """Return COCO's numbers of boxes and, with masks, "segm" with AP, AP50, ``AP-<class>``."""
        metrics = super().score(found, results)
        if self.extras:
            metrics["segm"] = mask_metrics(results, self.dataset)
            tide = CocoScores(results, self.dataset).tide("segm")
            self.tide |= {"segm": tide} if tide else {}
        return metrics


def mask_metrics(results: list[dict], dataset: DetectionDataset) -> dict[str, float]:
    """Return AP, AP50 and ``AP-<class>``, 0-100, of masks in COCO's result format."""
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as script

    args = copy.copy(script.args)  # the script's are global
    script.setInstanceLabels(args)
    of_image: dict[str, list[dict]] = {record["image_id"]: [] for record in dataset.records}
    for result in results:
        of_image[result["image_id"]].append(result)
    files = {record["image_id"]: record["instance_file"] for record in dataset.records}
    matches = {image_id: _match(files[image_id], found) for image_id, found in of_image.items()}
    averages = script.computeAverages(_precisions(matches, args), args)
    values = {"AP": averages["allAp"], "AP50": averages["allAp50%"]}
    values |= {class_metric(name): of_class["ap"] for name, of_class in averages["classes"].items()}
    metrics = {name: 100 * float(value) for name, value in values.items() if not np.isnan(value)}
    absent = [name for name in dataset.class_names if class_metric(name) not in metrics]
    consequence = "they are left out of the mean of masks, where objects below 100 px do not count"
    warn_absent(dataset, absent, consequence)
    return metrics


def _precisions(matches: dict[str, dict], args: Any) -> np.ndarray:
    """Return what the script's ``evaluateMatches`` returns, AP (1, classes, overlaps), 0-1; NaN
    for classes without objects.
    """
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as script

    precisions = np.zeros((1, len(args.instLabels), len(args.overlaps)))
    one = copy.copy(args)
    for c, o in np.ndindex(precisions.shape[1:]):
        one.instLabels, one.overlaps = [args.instLabels[c]], [args.overlaps[o]]
        # It fails where all detections are ignored, in void or groups: none is right, AP is 0.
        with contextlib.suppress(IndexError):
            precisions[0, c, o] = script.evaluateMatches(matches, one)[0, 0, 0]
    return precisions


def _match(instance_file: str, results: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """Return an image's objects and detections by class, each with those of its class that it
    overlaps: what the script's ``assignGt2Preds`` returns.
    """
    from cityscapesscripts.helpers.labels import id2label

    void = {one for one, label in id2label.items() if label.ignoreInEval}
    names = {
        one: label.name
        for one, label in id2label.items()
        if label.hasInstances and not label.ignoreInEval
    }
    _, masks = read_masks(instance_file, lambda one: one in void or label_of(one) in names)
    overlaps, areas = _overlaps([r["segmentation"] for r in results], list(masks.values()))
    is_void = np.array([one in void for one in masks], bool)
    truth: dict[str, list[dict]] = {name: [] for name in names.values()}
    predicted: dict[str, list[dict]] = {name: [] for name in names.values()}
    detections = []
    for result, area, row in zip(results, areas, overlaps, strict=True):
        counts = {"pixelCount": area, "voidIntersection": int(row[is_void].sum())}
        detections.append({"confidence": result["score"], **counts, "matchedGt": []})
        if area:
            predicted[names[result["category_id"]]].append(detections[-1])
    for (one, mask), column in zip(masks.items(), overlaps.T, strict=True):
        if one not in void:
            facts = {"instID": one, "pixelCount": int(mask_api.area(mask)), **_NO_DISTANCE}
            found = []
            for index in np.flatnonzero(column):
                if results[index]["category_id"] == label_of(one):
                    shared = {"intersection": int(column[index])}
                    found.append(detections[index] | shared)
                    detections[index]["matchedGt"].append(facts | shared)
            truth[names[label_of(one)]].append(facts | {"matchedPred": found})
    return {"groundTruth": truth, "prediction": predicted}


def _overlaps(found: list[dict], truth: list[dict]) -> tuple[np.ndarray, list[int]]:
    """Return how many pixels detections and regions share (D, R), and of each detection (D,)."""
    areas = mask_api.area(found).astype(np.int64) if found else np.zeros(0, np.int64)
    if not found or not truth:
        return np.zeros((len(found), len(truth)), np.int64), areas.tolist()
    # Of crowd regions pycocotools gives the share of the detection that lies in them.
    shares = mask_api.iou(found, truth, [1] * len(truth))
    return np.rint(shares * areas[:, None]).astype(np.int64), areas.tolist()
