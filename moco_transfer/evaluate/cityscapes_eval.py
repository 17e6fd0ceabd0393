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
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.cityscapes import label_of, read_masks
from .coco_eval import CocoEvaluator, CocoScores
from .matches import TaskMatches
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
        self._overlaps = overlaps_of(results, self.dataset) if self.extras else {}
        metrics = super().score(found, results)
        if self.extras:
            metrics["segm"] = mask_metrics(self._overlaps, self.dataset)
            scores = CocoScores(results, self.dataset)
            self.tide |= {"segm": tide} if (tide := scores.tide("segm")) else {}
            self.confusion |= {"segm": pairs} if (pairs := scores.confusion("segm")) else {}
        return metrics

    def take_matches(
        self, image_ids: Sequence[int | str], metric: str, by_task: Mapping[str, TaskMatches]
    ) -> None:
        """Take the matches of masks too, see ``PredictionWriter``."""
        overlaps = [self._overlaps[image_id] for image_id in image_ids] if self.extras else []
        masks = {"segm": mask_matches(overlaps, self.dataset)} if overlaps else {}
        super().take_matches(image_ids, metric, {**by_task, **masks})


@dataclass(frozen=True)
class Overlaps:
    """The D detections of an image, its R objects and groups of evaluated classes, and the pixels
    that they have in common, whatever their classes.
    """

    labels: np.ndarray  # (D,)
    scores: np.ndarray  # (D,)
    sizes: np.ndarray  # (D,) px
    in_void: np.ndarray  # (D,) px
    ids: np.ndarray  # (R,) those of groups are below 1000
    object_sizes: np.ndarray  # (R,) px
    shared: np.ndarray  # (D, R) px


def overlaps_of(results: list[dict], dataset: DetectionDataset) -> dict[int | str, Overlaps]:
    """Return by image id how masks in COCO's result format overlap the objects of the PNG."""
    of_image: dict[int | str, list[dict]] = {record["image_id"]: [] for record in dataset.records}
    for result in results:
        of_image[result["image_id"]].append(result)
    files = {record["image_id"]: record["instance_file"] for record in dataset.records}
    evaluated = set(dataset.category_ids)
    return {i: _overlaps(files[i], found, evaluated) for i, found in of_image.items()}


def _overlaps(instance_file: str, results: list[dict], evaluated: set[int]) -> Overlaps:
    from cityscapesscripts.helpers.labels import labels

    void = {label.id for label in labels if label.ignoreInEval}
    _, masks = read_masks(instance_file, lambda one: one in void or label_of(one) in evaluated)
    ids, found = np.array([*masks], np.int64), [result["segmentation"] for result in results]
    sizes, object_sizes = (_areas(rles) for rles in (found, list(masks.values())))
    shared = np.zeros((len(found), len(ids)), np.int64)
    if shared.size:
        # Of crowd regions pycocotools gives the share of the detection that lies in them.
        shares = mask_api.iou(found, list(masks.values()), [1] * len(ids))
        shared = np.rint(shares * sizes[:, None]).astype(np.int64)
    is_void = np.isin(ids, list(void))
    return Overlaps(
        labels=np.array([result["category_id"] for result in results], np.int64),
        scores=np.array([result["score"] for result in results], np.float64),
        sizes=sizes,
        in_void=shared[:, is_void].sum(axis=1),
        ids=ids[~is_void],
        object_sizes=object_sizes[~is_void],
        shared=shared[:, ~is_void],
    )


def _areas(masks: list[dict]) -> np.ndarray:
    return mask_api.area(masks).astype(np.int64) if masks else np.zeros(0, np.int64)


def _settings(dataset: DetectionDataset) -> tuple[Any, Any]:
    """Return the script as a module, and a copy of its settings, which are global, for the classes
    of a data set.
    """
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as script

    args = copy.copy(script.args)
    script.setInstanceLabels(args)
    args.instLabels = [name for name in args.instLabels if name in dataset.class_names]
    return script, args


def mask_metrics(
    overlaps: Mapping[int | str, Overlaps], dataset: DetectionDataset
) -> dict[str, float]:
    """Return AP, AP50 and ``AP-<class>`` of masks, 0-100."""
    script, args = _settings(dataset)
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    matches = {image_id: _as_script(image, names) for image_id, image in overlaps.items()}
    precisions = np.zeros((1, len(args.instLabels), len(args.overlaps)))
    one = copy.copy(args)
    for c, o in np.ndindex(precisions.shape[1:]):
        one.instLabels, one.overlaps = [args.instLabels[c]], [args.overlaps[o]]
        # It fails where all detections are ignored, in void or groups: none is right, AP is 0.
        with contextlib.suppress(IndexError):
            precisions[0, c, o] = script.evaluateMatches(matches, one)[0, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a mean of no class
        averages = script.computeAverages(precisions, args)
    values = {"AP": averages["allAp"], "AP50": averages["allAp50%"]}
    values |= {class_metric(name): of_class["ap"] for name, of_class in averages["classes"].items()}
    metrics = {name: 100 * float(value) for name, value in values.items() if not np.isnan(value)}
    absent = [name for name in dataset.class_names if class_metric(name) not in metrics]
    consequence = "they are left out of the mean of masks, where objects below 100 px do not count"
    warn_absent(dataset, absent, consequence)
    return metrics


def _as_script(image: Overlaps, names: Mapping[int, str]) -> dict[str, dict[str, list[dict]]]:
    """Return an image's objects and detections by class, each with those of its class that it
    overlaps: what the script's ``assignGt2Preds`` returns. ``names`` are those of the labels.
    """
    truth: dict[str, list[dict]] = {name: [] for name in names.values()}
    predicted: dict[str, list[dict]] = {name: [] for name in names.values()}
    detections: list[dict[str, Any]] = []
    columns = image.labels, image.scores, image.sizes, image.in_void
    for label, score, size, in_void in zip(*(column.tolist() for column in columns), strict=True):
        facts = {"confidence": score, "pixelCount": size, "voidIntersection": in_void}
        detections.append(facts | {"matchedGt": []})
        if size:
            predicted[names[label]].append(detections[-1])
    objects = zip(image.ids.tolist(), image.object_sizes.tolist(), image.shared.T, strict=True)
    for one, size, shared in objects:
        facts, found = {"instID": one, "pixelCount": size, **_NO_DISTANCE}, []
        for index in np.flatnonzero((shared > 0) & (image.labels == label_of(one))):
            common = {"intersection": int(shared[index])}
            found.append(detections[index] | common)
            detections[index]["matchedGt"].append(facts | common)
        truth[names[label_of(one)]].append(facts | {"matchedPred": found})
    return {"groundTruth": truth, "prediction": predicted}


def mask_matches(images: Sequence[Overlaps], dataset: DetectionDataset) -> TaskMatches:
    """Return which detections of all images are true positives by the script's rules."""
    _, args = _settings(dataset)
    smallest, thresholds = args.minRegionSizes[0], args.overlaps
    class_of = {label: index for index, label in enumerate(dataset.category_ids)}
    hits, ignored, truth = [], [], []
    for number, image in enumerate(images):
        found = _hits(image, smallest, thresholds)
        hits.append(found[0])
        ignored.append(found[1])
        counts = (image.ids >= 1000) & (image.object_sizes >= smallest)
        labels, objects = np.unique(image.ids[counts] // 1000, return_counts=True)
        pairs = zip(labels.tolist(), objects.tolist(), strict=True)
        truth += [(number, class_of[label], count) for label, count in pairs]
    numbers = np.repeat(np.arange(len(images)), [len(image.scores) for image in images])
    labels, scores = (np.concatenate([getattr(i, f) for i in images]) for f in ("labels", "scores"))
    classes = np.array([class_of[label] for label in labels.tolist()], np.int64)
    order = np.lexsort((-scores, classes))  # stable: equal scores stay in the order of images
    return TaskMatches(
        image=numbers[order],
        classes=classes[order],
        score=scores[order],
        hit=np.concatenate(hits, axis=1)[:, order],
        ignored=np.concatenate(ignored, axis=1)[:, order],
        truth=np.array(truth, np.int64).reshape(-1, 3),
        metric="cityscapes",
    )


def _hits(image: Overlaps, smallest: int, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which detections are true positives and which are ignored, (T, D) each.

    Of several that hit an object the one with the highest score counts. Ignored is what lies in
    void, groups and objects that are too small, by more than the threshold, or hits one of them.
    """
    hit = np.zeros((len(thresholds), len(image.scores)), bool)
    ignored = np.repeat(image.sizes[None] == 0, len(thresholds), axis=0)
    shared = np.where(image.labels[:, None] == _labels_of(image.ids), image.shared, 0)
    iou = shared / np.maximum(image.object_sizes + image.sizes[:, None] - shared, 1)
    is_group, is_small = image.ids < 1000, image.object_sizes < smallest
    uncounted = image.in_void + shared @ (1 * is_group + is_small)  # small groups twice, as there
    fraction = uncounted / np.maximum(image.sizes, 1)
    for t, threshold in enumerate(thresholds):
        over = iou > threshold
        right = over & ~(is_group | is_small)
        for column in right.T[right.any(axis=0)]:
            hit[t, np.argmax(np.where(column, image.scores, -np.inf))] = True
        hits_one, hits_counted = over.any(axis=1), right.any(axis=1)
        ignored[t] |= np.where(hits_one, ~hits_counted, fraction > threshold)
    return hit, ignored


def _labels_of(ids: np.ndarray) -> np.ndarray:
    return np.where(ids >= 1000, ids // 1000, ids)
