"""The evaluator of semantic segmentation: IoU and accuracy from one confusion matrix of pixels.

Source:
    facebookresearch/detectron2@02b5c4e evaluation/sem_seg_evaluation.py SemSegEvaluator, whose
    numbers and names it gives: pixels whose label is ignored count nowhere, predictions on them
    included; classes without a labelled pixel are left out of the means of IoU and accuracy.
    Differences: such a class has no number of its own, where Detectron2 has NaN; no boundary IoU.
    cityscapesscripts' evalPixelLevelSemanticLabeling gives the same IoU, but counts a class without
    a labelled pixel as 0 where it is predicted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from torch import Tensor

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.masks import with_text
from ..data.annotations.semantic.labels import IGNORED, read_labels
from ..runtime.errors import InputError
from .matches import write_matches
from .metric_names import class_accuracy, class_metric
from .operating_point import unique_names
from .predictions import Metrics, PredictionWriter, unknown_class, warn_absent

TASK = "sem_seg"
METRIC = "semantic"  # in a file of matches


@dataclass(frozen=True)
class ImageConfusions:
    """The entries of the images' confusion matrices that are not 0, see ``matches``."""

    image: np.ndarray
    true: np.ndarray
    predicted: np.ndarray
    pixels: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of a file by name."""
        return {
            "image": self.image.astype(np.int32),
            "true": self.true.astype(np.uint16),
            "predicted": self.predicted.astype(np.uint16),
            "pixels": self.pixels.astype(np.int64),
        }

    def matrix(self, num_classes: int) -> np.ndarray:
        """Return the sum over the images, int64 (C, C): rows are the ground truth."""
        total = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(total, (self.true, self.predicted), self.pixels)
        return total


class SemanticEvaluator(PredictionWriter):
    """Computes IoU and accuracy over a test set, and writes the predicted classes as RLE masks.

    Each image's confusion matrix is gathered from the processes, and their sum scored.
    """

    predicted = "classes, each counted once in an image,"
    unseen = "their pixels count nowhere"

    def __init__(
        self, dataset: DetectionDataset, output_file: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(dataset, output_file)
        self._records = {record["image_id"]: record for record in dataset.records}

    def process(self, batch: list[dict], outputs: list[dict[str, Tensor]]) -> None:
        """Take the outputs of a model for a batch, whose ``image_id`` is used.

        An output has ``sem_seg`` (H, W), integers, contiguous classes at the original image's size.

        Raises:
            InputError: If a predicted class is not one of the data set's, the labels cannot be
                read, or a prediction has another size than they.
        """
        num_classes = len(self.dataset.category_ids)
        for item, output in zip(batch, outputs, strict=True):
            predicted = output["sem_seg"].detach().cpu().numpy().astype(np.int64)
            if not 0 <= predicted.min() <= predicted.max() < num_classes:
                raise unknown_class(
                    next(c for c in np.unique(predicted) if not 0 <= c < num_classes), num_classes
                )
            classes = np.flatnonzero(np.bincount(predicted.ravel()))
            masks = encode_classes(predicted, classes)
            found: dict[str, Any] = {"classes": classes, "masks": masks}
            record = self._records[item["image_id"]]
            if record.get("sem_seg_file_name"):
                labels = read_labels(record)
                if labels.shape != predicted.shape:
                    raise InputError(
                        f"{record['sem_seg_file_name']} is {_size(labels)}, the prediction for"
                        f" {record['file_name']} {_size(predicted)}: both must have the image's"
                        " size."
                    )
                counts = labels != IGNORED
                matrix = confusion_matrix(labels[counts], predicted[counts], num_classes)
                found["confusion"] = matrix
            self._found.append((item["image_id"], found))

    def results_of(self, image_id: int | str, output: dict[str, Any]) -> list[dict]:
        """Return an object for each class that was predicted on an image."""
        ids = self.dataset.category_ids
        return [
            {"image_id": image_id, "category_id": ids[c], "segmentation": mask}
            for c, mask in zip(output["classes"].tolist(), output["masks"], strict=True)
        ]

    def score(self, found: list[tuple[int | str, dict[str, Any]]], results: list[dict]) -> Metrics:
        """Return "sem_seg" with mIoU, fwIoU, mACC, pACC, ``IoU-<class>`` and ``ACC-<class>``."""
        matrices = {i: o["confusion"] for i, o in found if o.get("confusion", np.zeros(0)).any()}
        if not matrices:
            return super().score(found, results)
        image_ids = [i for i in self._records if i in matrices]
        joined, names = _joined([matrices[i] for i in image_ids]), unique_names(self.dataset)
        if path := self.matches_file():
            self.matches = write_matches(path, image_ids, METRIC, {TASK: joined})
        matrix = joined.matrix(len(names))
        self.confusion = {TASK: _by_name(matrix, names)}
        metrics = semantic_metrics(matrix, names)
        absent = [name for name in names if class_metric(name, TASK) not in metrics]
        warn_absent(self.dataset, absent, "they are left out of the means")
        return {TASK: metrics}


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the number of pixels, int64 (C, C), by labelled class (rows) and predicted class;
    both are classes int64 of one shape.
    """
    pairs = (num_classes * labels + predicted).ravel()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def semantic_metrics(matrix: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return mIoU, fwIoU, mACC, pACC, ``IoU-<class>``, ``ACC-<class>``, 0-100, of a confusion
    matrix (C, C) that is not 0; classes without a labelled pixel have none.
    """
    right, labelled = np.diagonal(matrix).astype(float), matrix.sum(axis=1).astype(float)
    there = np.flatnonzero(labelled)
    union = labelled + matrix.sum(axis=0) - right
    iou, accuracy = 100 * right[there] / union[there], 100 * right[there] / labelled[there]
    metrics = {
        "mIoU": iou.mean(),
        "fwIoU": (iou * labelled[there]).sum() / labelled.sum(),
        "mACC": accuracy.mean(),
        "pACC": 100 * right.sum() / labelled.sum(),
    }
    shown = [names[index] for index in there.tolist()]
    metrics |= {class_metric(n, TASK): value for n, value in zip(shown, iou, strict=True)}
    metrics |= {class_accuracy(n): value for n, value in zip(shown, accuracy, strict=True)}
    return {name: float(value) for name, value in metrics.items()}


def encode_classes(labels: np.ndarray, classes: np.ndarray) -> list[dict]:
    """Return the pixels of each class as a compressed RLE with text counts."""
    masks = (labels[:, :, None] == classes).astype(np.uint8)
    return [*map(with_text, mask_api.encode(np.asfortranarray(masks)))]


def _joined(matrices: Sequence[np.ndarray]) -> ImageConfusions:
    entries = [np.nonzero(matrix) for matrix in matrices]
    images = np.repeat(np.arange(len(matrices)), [len(rows) for rows, _ in entries])
    true, predicted = (np.concatenate([entry[axis] for entry in entries]) for axis in (0, 1))
    pixels = np.concatenate([m[e] for m, e in zip(matrices, entries, strict=True)])
    return ImageConfusions(images, true, predicted, pixels)


def _by_name(matrix: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return labelled class -> predicted class -> pixels, without zeros."""
    pairs: dict[str, dict[str, int]] = {}
    for true, predicted in np.argwhere(matrix).tolist():
        pairs.setdefault(names[true], {})[names[predicted]] = int(matrix[true, predicted])
    return pairs


def _size(labels: np.ndarray) -> str:
    return f"{labels.shape[1]} x {labels.shape[0]} px"
