"""The evaluator by COCO's and LVIS's rules: boxes, masks and keypoints, with hotcoco.

pycocotools, whose numbers hotcoco gives, takes its place where it cannot be imported; LVIS and the
TIDE errors need hotcoco. The ground truth are the records that were read, whatever their format.

Source:
    facebookresearch/detectron2@02b5c4e evaluation/coco_evaluation.py COCOEvaluator, and
    data/datasets/coco.py convert_to_coco_dict (boxes rounded to 0.001 px, VOC's difficult objects
    are ordinary ones). Differences: the six recalls are reported too; no predictions give AP 0, not
    NaN; what cannot be computed (no ground truth of that size or class) is left out and logged.
    lvis-dataset/lvis-api results.py and lvis.py: what LVIS counts, see ``_counted_by_lvis``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import logging
import os
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from ..data.annotations.catalog import DetectionDataset
from .matches import TaskMatches, matches_of_coco
from .metric_names import (
    BBOX_METRICS,
    KEYPOINT_METRICS,
    LVIS_METRICS,
    NO_CLASS,
    RECALL_METRICS,
    TIDE_ERRORS,
    class_metric,
)
from .operating_point import IOU, SCORE, unique_names
from .predictions import Metrics, PredictionWriter, warn_absent, without_garbage_collection

logger = logging.getLogger(__name__)

_KEYPOINT_NUMBERS = (*KEYPOINT_METRICS, "AR", "AR50", "AR75", "ARm", "ARl")
_COCO_NUMBERS = (*BBOX_METRICS, *RECALL_METRICS)
_LVIS_NUMBERS = (*LVIS_METRICS, "AR300", *RECALL_METRICS[3:])
_PREDICTED_IN = {"segm": "masks", "keypoints": "keypoints"}
# With a bbox, the sizes of masks (small, medium, large) would be those of the boxes.
_RESULT_KEYS = {"bbox": ["bbox"], "segm": ["segmentation"], "keypoints": ["bbox", "keypoints"]}
_IMAGE_KEYS = (
    *("height", "width", "file_name"),
    *("neg_category_ids", "not_exhaustive_category_ids"),  # of LVIS
)
_DETECTIONS_OF_LVIS = 300  # an image, over all classes
_TIDE_NAMES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")  # hotcoco's, in TIDE_ERRORS' order


class CocoEvaluator(PredictionWriter):
    """Computes AP over a test set by COCO's rules, for some of ``metric_names.AP_TASKS``.

    Args:
        dataset: The test set.
        tasks: What is evaluated.
        output_file: Where the predictions go; the matches go next to it.
        oks_sigmas: Standard deviation of each keypoint; empty for COCO's 17.
        lvis_style: LVIS's federated AP of 300 detections an image.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        tasks: tuple[str, ...] = ("bbox",),
        *,
        output_file: str | os.PathLike[str] | None = None,
        oks_sigmas: tuple[float, ...] = (),
        lvis_style: bool = False,
    ) -> None:
        super().__init__(dataset, output_file)
        self.tasks, self.oks_sigmas, self.lvis_style = tuple(tasks), oks_sigmas, lvis_style
        self.extras = tuple(_PREDICTED_IN[task] for task in tasks if task in _PREDICTED_IN)

    @without_garbage_collection()
    def score(self, found: list[tuple[int | str, dict[str, Any]]], results: list[dict]) -> Metrics:
        """Return COCO's numbers by name and ``AP-<class>``, for each task."""
        scores = CocoScores(
            results,
            self.dataset,
            found=found,
            oks_sigmas=self.oks_sigmas,
            lvis_style=self.lvis_style,
        )
        self.tide = {task: tide for task in self.tasks if (tide := scores.tide(task))}
        self.confusion = {task: pairs for task in self.tasks if (pairs := scores.confusion(task))}
        matches = {task: scores.matches(task) for task in self.tasks}
        self.take_matches(scores.image_ids, "coco", matches)
        return {task: scores.metrics(task) for task in self.tasks}


@without_garbage_collection()
def evaluate_results(
    results: list[dict],
    dataset: DetectionDataset,
    tasks: tuple[str, ...] = ("bbox",),
    *,
    found: list[tuple[int | str, dict[str, Any]]] | None = None,
) -> Metrics:
    """Return COCO's numbers by name and ``AP-<class>``, 0-100, for each of ``tasks``; see
    ``CocoScores``.
    """
    scores = CocoScores(results, dataset, found=found)
    return {task: scores.metrics(task) for task in tasks}


def has_hotcoco() -> bool:
    """Whether hotcoco can be imported, which scores LVIS and finds TIDE errors."""
    try:
        importlib.import_module("hotcoco")
    except ImportError:
        return False
    return True


def _library() -> tuple[Any, Any]:
    """Return the classes COCO and COCOeval."""
    if has_hotcoco():
        import hotcoco

        return hotcoco.COCO, hotcoco.COCOeval
    from pycocotools import coco, cocoeval

    return coco.COCO, cocoeval.COCOeval


class CocoScores:
    """What COCO's rules say of results on a data set; see ``CocoEvaluator`` for the arguments.

    ``found`` has the same detections as arrays, see ``PredictionWriter.score``: boxes are then
    loaded faster. ``ignore_difficult`` takes VOC's difficult objects for crowd regions.
    """

    def __init__(
        self,
        results: list[dict],
        dataset: DetectionDataset,
        *,
        found: list[tuple[int | str, dict[str, Any]]] | None = None,
        oks_sigmas: tuple[float, ...] = (),
        lvis_style: bool = False,
        ignore_difficult: bool = False,
    ) -> None:
        self._results, self._found, self._dataset = results, found, dataset
        self._oks_sigmas, self._lvis_style = oks_sigmas, lvis_style
        self._ignore_difficult = ignore_difficult
        self.image_ids = sorted(record["image_id"] for record in dataset.records)
        # Ids may be texts, which the libraries do not take; equal scores keep the order of images.
        self._number = {image_id: n for n, image_id in enumerate(self.image_ids, start=1)}
        self._loaded: dict[str, tuple[Any, Any]] = {}
        self._of_all_sizes: dict[str, Any] = {}

    def metrics(self, task: str) -> dict[str, float]:
        """Return the numbers of a task by name, 0-100."""
        scored = self._evaluate(task)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            scored.accumulate()
            if hasattr(scored, "summary_lines"):
                print("\n".join(scored.summary_lines()))
            else:
                scored.summarize()
        table = [line for line in printed.getvalue().splitlines() if " = " in line]
        logger.info("\n".join(table))
        names: tuple[str, ...] = _LVIS_NUMBERS if self._lvis_style else _COCO_NUMBERS
        if task == "keypoints":
            names = _KEYPOINT_NUMBERS
        numbers = zip(names, scored.stats, strict=True)
        metrics = {name: 100 * float(value) for name, value in numbers if value >= 0}
        if absent := ", ".join(name for name in names if name not in metrics):
            logger.warning("%s: no ground truth of the size of %s.", self._dataset.name, absent)
        if task != "keypoints":
            metrics |= _class_metrics(scored.eval["precision"], self._dataset)
        return metrics

    def tide(self, task: str) -> dict[str, float]:
        """Return how many points of AP50, 0-100, repairing each of ``TIDE_ERRORS`` would give;
        nothing without hotcoco.

        Source: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors.
        """
        scored = self._evaluate_all_sizes(task)
        if not hasattr(scored, "tide_errors"):
            return {}
        gains = scored.tide_errors(pos_thr=0.5, bg_thr=0.1)["delta_ap"]
        return {ours: 100 * gains[n] for ours, n in zip(TIDE_ERRORS, _TIDE_NAMES, strict=True)}

    def confusion(self, task: str) -> dict[str, dict[str, int]]:
        """Return class of an object -> class of the detection on it -> count, ``NO_CLASS`` for
        none, of detections above ``operating_point.SCORE``; without crowds and what is on them.

        Nothing without hotcoco, for keypoints, and for LVIS, whose images name some classes only.
        """
        if not has_hotcoco() or self._lvis_style or task == "keypoints":
            return {}
        content, results = self._truth(task), self._results_of(task)
        results = _chosen(results, np.flatnonzero(_columns(results)[1] >= SCORE).tolist())
        on_crowds = _on_crowds(content, results, task)
        results = _chosen(results, [n for n in range(len(results)) if n not in on_crowds])
        scored = _library()[1](*_load(content, results), task)
        found = scored.confusion_matrix(iou_thr=IOU, min_score=SCORE)
        name_of = dict(zip(self._dataset.category_ids, unique_names(self._dataset), strict=True))
        names = [*(name_of[i] for i in found["cat_ids"]), NO_CLASS]
        pairs: dict[str, dict[str, int]] = {}
        for true, predicted in np.argwhere(found["matrix"]):
            count = int(found["matrix"][true, predicted])
            pairs.setdefault(names[true], {})[names[predicted]] = count
        return pairs

    def matches(self, task: str) -> TaskMatches:
        """Return which detections are true positives."""
        return matches_of_coco(self._evaluate_all_sizes(task), self._dataset.category_ids)

    def _evaluate_all_sizes(self, task: str) -> Any:
        if task not in self._of_all_sizes:
            self._of_all_sizes[task] = self._evaluate(task, all_sizes=True)
        return self._of_all_sizes[task]

    def _evaluate(self, task: str, *, all_sizes: bool = False) -> Any:
        """Match detections and objects of all sizes together, or of each size as well."""
        if task not in self._loaded:
            self._loaded[task] = _load(self._truth(task), self._results_of(task))
        lvis = {"lvis_style": True} if self._lvis_style else {}
        scored = _library()[1](*self._loaded[task], task, **lvis)
        if task == "keypoints" and self._oks_sigmas:
            scored.params.kpt_oks_sigmas = np.array(self._oks_sigmas)
        if all_sizes:
            scored.params.areaRng, scored.params.areaRngLbl = [[0, 1e10]], ["all"]
        with contextlib.redirect_stdout(io.StringIO()):
            scored.evaluate()
        return scored

    def _results_of(self, task: str) -> list[dict] | np.ndarray:
        """Return the results with our numbers of images, and what a task needs of them."""
        number, found = self._number, self._found
        if task != "bbox" or not found or self._lvis_style:
            keys = ("score", "category_id", *_RESULT_KEYS[task])
            results = [
                {"image_id": number[result["image_id"]]} | {key: result[key] for key in keys}
                for result in self._results
            ]
            return _counted_by_lvis(results, task) if self._lvis_style else results
        boxes, scores, classes = (
            np.concatenate([output[key] for _, output in found])
            for key in ("boxes", "scores", "classes")
        )
        images = np.repeat([number[i] for i, _ in found], [len(o["scores"]) for _, o in found])
        category_ids = np.array(self._dataset.category_ids)[classes]
        sizes = boxes[:, 2:] - boxes[:, :2]  # in float32, as in the predictions file
        return np.column_stack([images, boxes[:, :2], sizes, scores, category_ids]).astype(float)

    def _truth(self, task: str) -> dict[str, Any]:
        """Return the records as the content of a COCO json file, with what a task needs.

        Ids of annotations start at 1: pycocotools takes an object with id 0 as never found.
        """
        records, ids = self._dataset.records, self._dataset.category_ids
        names = self._dataset.class_names
        images = [
            {"id": self._number[record["image_id"]]}
            | {key: record[key] for key in _IMAGE_KEYS if key in record}
            for record in records
        ]
        objects = [
            (record, a)
            for record in records
            for a in record["annotations"]
            # Nothing could match a mask without a polygon of 3 points.
            if task != "segm" or a.get("segmentation")
            # LVIS knows no object without area.
            if not self._lvis_style or a.get("area", 1) > 0
        ]
        boxes = np.array([a["bbox"] for _, a in objects], float).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        annotations = [
            {
                "id": number,
                "image_id": self._number[record["image_id"]],
                "category_id": ids[a["category_id"]],
                "bbox": box,
                "area": a.get("area", box[2] * box[3]),
                "iscrowd": a.get("iscrowd", 0),
            }
            for number, ((record, a), box) in enumerate(
                zip(objects, boxes.round(3).tolist(), strict=True), start=1
            )
        ]
        for entry, (_, a) in zip(annotations, objects, strict=True):
            if self._ignore_difficult and a.get("difficult", 0):
                entry["iscrowd"] = 1
            if task == "segm":
                entry["segmentation"] = a["segmentation"]
            if task == "keypoints":
                entry |= self._keypoints(a)
        categories: list[dict] = [{"id": i, "name": n} for i, n in zip(ids, names, strict=True)]
        if self._lvis_style:
            for category, frequency in zip(categories, self._dataset.frequencies, strict=True):
                category["frequency"] = frequency
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def _keypoints(self, annotation: dict) -> dict[str, Any]:
        num_points = len(self._dataset.keypoint_names) or len(self._oks_sigmas) or 17
        points = annotation.get("keypoints") or [0.5, 0.5, 0] * num_points
        # Files hold pixel indices, records continuous coordinates.
        indices = [v if i % 3 == 2 else v - 0.5 for i, v in enumerate(points)]
        return {"keypoints": indices, "num_keypoints": sum(v > 0 for v in points[2::3])}


def _counted_by_lvis(results: list[dict], task: str) -> list[dict]:
    """Return the best 300 detections of each image, those without area left out afterwards."""
    best = sorted(results, key=lambda result: (result["image_id"], -result["score"]))
    by_image = itertools.groupby(best, key=lambda result: result["image_id"])
    kept = [r for _, image in by_image for r in itertools.islice(image, _DETECTIONS_OF_LVIS)]
    if task == "segm":
        return [result for result in kept if mask_api.area(result["segmentation"]) > 0]
    return [result for result in kept if result["bbox"][2] * result["bbox"][3] > 0]


def _load(content: dict[str, Any], results: list[dict] | np.ndarray) -> tuple[Any, Any]:
    """Return ground truth and detections as COCO objects."""
    api = _library()[0]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _indexed(api(), content)
        # pycocotools' loadRes fails on an empty list.
        nothing = _indexed(api(), content | {"annotations": []})
        return truth, truth.loadRes(results) if len(results) else nothing


def _columns(results: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, scores, and areas of boxes (1 where there is none) of D results."""
    if not isinstance(results, np.ndarray):
        empty = [0, 0, 1, 1]
        rows = [[r["image_id"], *r.get("bbox", empty), r["score"]] for r in results]
        results = np.array(rows, float).reshape(-1, 6)
    return results[:, 0], results[:, 5], results[:, 3] * results[:, 4]


def _chosen(results: Any, places: list[int]) -> Any:
    return results[places] if isinstance(results, np.ndarray) else [results[n] for n in places]


def _on_crowds(content: dict[str, Any], results: Any, task: str) -> set[int]:
    """Return the places of results that COCO's rules ignore: on a crowd, or of negative area."""
    numbers, _, areas = _columns(results)
    images = {a["image_id"] for a in content["annotations"] if a["iscrowd"]}
    images |= set(map(int, numbers[areas < 0]))
    if not images or not len(results):
        return set()
    scored = _library()[1](*_load(content, results), task)
    scored.params.imgIds, scored.params.iouThrs = sorted(images), np.array([IOU])
    scored.params.areaRng, scored.params.areaRngLbl = [[0, 1e10]], ["all"]
    with contextlib.redirect_stdout(io.StringIO()):
        scored.evaluate()
    return {
        number - 1  # loadRes counts from 1
        for entry in scored.evalImgs
        if entry is not None
        for number, ignored in zip(entry["dtIds"], entry["dtIgnore"][0], strict=True)
        if ignored
    }


def _indexed(api: Any, content: dict[str, Any]) -> Any:
    api.dataset = content
    api.createIndex()
    return api


def _class_metrics(precision: np.ndarray, dataset: DetectionDataset) -> dict[str, float]:
    """Return each class's AP from precision (IoU, recall, class, area, detections), -1 for none."""
    metrics, absent = {}, []
    for index, name in enumerate(unique_names(dataset)):
        values = precision[:, :, index, 0, -1]  # all areas, most detections
        values = values[values > -1]
        if values.size:
            metrics[class_metric(name)] = 100 * float(np.mean(values))
        else:
            absent.append(name)
    warn_absent(dataset, absent, "they are left out of the mean")
    return metrics
