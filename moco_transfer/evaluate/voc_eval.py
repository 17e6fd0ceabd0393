"""The evaluator of data sets in VOC's layout: collect detections, gather them over processes,
report AP on 0-100.

Source:
    detectron2/evaluation/pascal_voc_evaluation.py PascalVOCDetectionEvaluator, whose numbers it
    gives: detections pass through text there, which rounds scores to 3 digits and coordinates to 1,
        and so they are rounded here.
    Added: AP of each class; sentences for a test set without ground truth, an image that is not in
        it, and no predictions.
"""

from __future__ import annotations

import logging
import os

import numpy as np
from torch import Tensor

from ..data.annotations.catalog import DetectionDataset
from ..runtime.distributed import gather_object, is_main_process
from ..runtime.errors import InputError
from .coco_eval import evaluate_results
from .metric_names import class_metric
from .predictions import check_class_range, save_predictions, to_arrays, to_coco_results
from .voc_ap import IOU_THRESHOLDS, VocDetections, VocGroundTruth, voc_eval

logger = logging.getLogger(__name__)


class VocEvaluator:
    """Computes VOC's AP over a test set; on several processes each passes in its share of the
    images.

    Args:
        dataset: The test set. Its ``year`` decides the metric: 2007 is the 11-point AP, anything
            else the area.
        output_file: Where to write the predictions in COCO's result format, or None.
        coco_style: Whether to score the same detections by COCO's rules too (100 an image, 101
            points, exclusive edges, difficult boxes as ordinary ones, unrounded), as a second kind
            of metrics.

    Raises:
        InputError: If the data set has no box to be found.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        output_file: str | os.PathLike[str] | None = None,
        *,
        coco_style: bool = False,
    ) -> None:
        self._dataset, self._output_file, self._coco_style = dataset, output_file, coco_style
        self._use_11_points = dataset.year == 2007
        self._truth = ground_truth(dataset.records)
        self._image_index = {
            record["image_id"]: index for index, record in enumerate(dataset.records)
        }
        if len(self._truth.boxes) == 0 or self._truth.difficult.all():
            raise InputError(
                f"Data set {dataset.name!r} has no ground truth: its {len(dataset.records)}"
                " images hold no box that is not difficult, so no AP can be computed; test on a"
                " split with annotations."
            )
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._images: list = []
        self._outputs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._results: list[dict] = []

    def process(self, batch: list[dict], outputs: list[dict[str, Tensor]]) -> None:
        """Take the detections of some images.

        Args:
            batch: What went into the model; ``image_id`` is used.
            outputs: What came out: ``boxes`` (N, 4) XYXY px of the original image, ``scores``
                (N,), ``classes`` (N,).

        Raises:
            InputError: If a class index or an image is not one of the data set's.
        """
        for item, output in zip(batch, outputs, strict=True):
            image_id = item["image_id"]
            if image_id not in self._image_index:
                raise InputError(
                    f"There are detections for image {image_id!r}, which is not in data set"
                    f" {self._dataset.name!r}; evaluate with the data set that the predictions were"
                    " made on."
                )
            arrays = to_arrays(output)
            check_class_range(arrays[2], len(self._dataset.class_names))
            self._images.append(image_id)
            self._outputs.append(arrays)
            if self._output_file is not None or self._coco_style:
                self._results.extend(to_coco_results(image_id, output, self._dataset.category_ids))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return the metrics. Collective: every process has to call it.

        Returns:
            On rank 0 ``{"bbox": {"AP", "AP50", "AP75", "AP-<class>", ...}}``, 0-100, ``AP`` over
            IoU 0.50 to 0.95, and with ``coco_style`` "bbox_coco" with COCO's numbers; elsewhere
            ``{}``.
        """
        shares = gather_object((self._images, self._outputs, self._results))
        if not is_main_process():
            return {}
        images = [image for share in shares for image in share[0]]
        outputs = [output for share in shares for output in share[1]]
        results = [result for share in shares for result in share[2]]
        if self._output_file is not None:
            save_predictions(self._output_file, results)
        detections = self._detections(images, outputs)
        self._say_what_is_odd(len(set(images)), detections)
        names = self._dataset.class_names
        aps = 100 * voc_eval(
            detections, self._truth, num_classes=len(names), use_11_points=self._use_11_points
        )
        at = dict(zip(IOU_THRESHOLDS, aps.mean(axis=1), strict=True))
        metrics = {
            "AP": float(np.mean(list(at.values()))),
            "AP50": float(at[0.5]),
            "AP75": float(at[0.75]),
        }
        metrics.update(
            {
                class_metric(name): float(ap)
                for name, ap in zip(names, aps.mean(axis=0), strict=True)
            }
        )
        if not self._coco_style:
            return {"bbox": metrics}
        return {
            "bbox": metrics,
            "bbox_coco": evaluate_results(results, self._dataset, backend="auto")["bbox"],
        }

    def _detections(self, images: list, outputs: list[tuple]) -> VocDetections:
        """Join the outputs of all images; move boxes to VOC's pixels from 1 and round as
        Detectron2's text does.
        """
        boxes = (
            np.concatenate([output[0] for output in outputs])
            if outputs
            else np.zeros((0, 4), np.float32)
        )
        scores = (
            np.concatenate([output[1] for output in outputs])
            if outputs
            else np.zeros(0, np.float32)
        )
        classes = (
            np.concatenate([output[2] for output in outputs]) if outputs else np.zeros(0, np.int64)
        )
        boxes[:, :2] += np.float32(1)
        counts = [len(output[1]) for output in outputs]
        index = (
            np.repeat([self._image_index[image] for image in images], counts)
            if outputs
            else np.zeros(0, np.int64)
        )
        return VocDetections(round_as_text(boxes, 1), round_as_text(scores, 3), classes, index)

    def _say_what_is_odd(self, num_images: int, detections: VocDetections) -> None:
        name, num_records = self._dataset.name, len(self._dataset.records)
        points = "VOC 2007's 11 points" if self._use_11_points else "the area under the curve"
        logger.info(
            "Evaluating %d detections on %d images of %s: VOC AP by %s.",
            len(detections.scores),
            num_images,
            name,
            points,
        )
        if num_images < num_records:
            logger.warning(
                "Only %d of the %d images of %s were evaluated; objects in the others count as"
                " missed.",
                num_images,
                num_records,
                name,
            )
        if len(detections.scores) == 0:
            logger.warning(
                "The model predicted nothing on %s, so every AP is 0; train longer or lower the"
                " score threshold.",
                name,
            )
        there = set(self._truth.classes[~self._truth.difficult].tolist())
        absent = [
            class_name for i, class_name in enumerate(self._dataset.class_names) if i not in there
        ]
        if absent:
            logger.warning(
                "%s has no ground truth for %d of its %d classes (%s); each counts as AP 0 in the"
                " mean, as Detectron2 counts it.",
                name,
                len(absent),
                len(self._dataset.class_names),
                ", ".join(absent),
            )


def ground_truth(records: list[dict]) -> VocGroundTruth:
    """Return the boxes of records as VOC's: pixels from 1, inclusive; images are numbered in the
    order of the records.
    """
    boxes, classes, images, difficult = [], [], [], []
    for index, record in enumerate(records):
        for annotation in record["annotations"]:
            x0, y0, x1, y1 = annotation["bbox"]
            boxes.append((x0 + 1, y0 + 1, x1, y1))
            classes.append(annotation["category_id"])
            images.append(index)
            difficult.append(bool(annotation.get("difficult", 0)))
    return VocGroundTruth(
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(classes, dtype=np.int64),
        np.array(images, dtype=np.int64),
        np.array(difficult, dtype=bool),
    )


def round_as_text(values: np.ndarray, digits: int) -> np.ndarray:
    """Return the float64 that ``float(f"{value:.<digits>f}")`` gives for each value.

    A float32 has 24 bits and 10^digits at most 10, so their product is exact in float64's 53:
    rounding it, ties to even, is rounding the value itself, and dividing a whole number gives the
    nearest double to the decimal text. Wider values have to go through the text.

    Args:
        values: Any shape; float32 for speed.
        digits: 1 to 3.
    """
    if values.dtype == np.float32:
        scale = 10.0**digits
        return np.rint(values.astype(np.float64) * scale) / scale
    return np.array([float(f"{value:.{digits}f}") for value in values.ravel().tolist()]).reshape(
        values.shape
    )
