"""Predictions on a test set: collected over processes, and on disk in COCO's result format.

The format is a json list with one object per detection: ``image_id``, ``category_id`` (the data
set's own), ``bbox`` [x, y, width, height] in px of the original image, ``score``, and
``segmentation`` (compressed RLE) and ``keypoints`` where there are some. Of semantic segmentation
it has one object per class in an image: ``image_id``, ``category_id``, ``segmentation``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from torch import Tensor

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.coco import load_json
from ..data.annotations.masks import with_text
from ..runtime.distributed import gather_object, is_main_process
from ..runtime.errors import InputError
from ..runtime.files import atomic_write_text
from .matches import TaskMatches, write_matches
from .operating_point import operating_point, unique_names

logger = logging.getLogger(__name__)

_LISTED = 80  # classes without ground truth that a warning names: all of COCO's, not all of LVIS's

Metrics = dict[str, dict[str, float]]


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """The collector would walk millions of small objects, none of them garbage, and double the
    time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class PredictionWriter:
    """Collects and writes the predictions on a test set: the base of the evaluators.

    Alone it serves test sets without annotations. Each process gets its share of the images.
    """

    #: Model outputs that are kept in addition to boxes, scores and classes.
    extras: tuple[str, ...] = ("masks", "keypoints")
    #: What a prediction is, and what follows for the metrics where an image was not evaluated.
    predicted = "detections"
    unseen = "objects in the others count as missed"

    def __init__(
        self, dataset: DetectionDataset, output_file: str | os.PathLike[str] | None = None
    ) -> None:
        self.dataset, self.output_file = dataset, output_file
        self.reset()

    def reset(self) -> None:
        """Forget all detections, and what was found of them."""
        self.tide: dict[str, dict[str, float]] = {}  # task -> points of AP50 by TIDE_ERRORS
        # Task -> see ``operating_point``; task -> class -> class predicted there -> count.
        self.operating_point: dict[str, dict[str, float]] = {}
        self.confusion: dict[str, dict[str, dict[str, int]]] = {}
        self.matches = ""  # name of the file of matches, if one was written
        self._found: list[tuple[int | str, dict[str, Any]]] = []

    def process(self, batch: list[dict], outputs: list[dict[str, Tensor]]) -> None:
        """Take the outputs of a model for a batch, whose ``image_id`` is used.

        An output has ``boxes`` (N, 4) XYXY px of the original image, ``scores`` (N,), ``classes``
        (N,)[, ``masks`` (N, H, W) bool, ``keypoints`` (N, K, 3)].

        Raises:
            InputError: If a class index is not one of the data set's.
        """
        for item, output in zip(batch, outputs, strict=True):
            found = _to_numpy(output, self.extras, len(self.dataset.category_ids))
            self._found.append((item["image_id"], found))

    def evaluate(self) -> Metrics:
        """Write the predictions; return the metrics by task, 0-100, on rank 0, ``{}`` elsewhere.

        Collective.
        """
        shares = gather_object(self._found)
        if not is_main_process():
            return {}
        return self.evaluate_found([image for share in shares for image in share])

    @without_garbage_collection()
    def evaluate_found(self, found: list[tuple[int | str, dict[str, Any]]]) -> Metrics:
        """Write and score the detections of all images; see :meth:`score` for ``found``, which also
        has ``masks`` (RLE) and ``keypoints`` (N, K, 3) for tasks that need them.
        """
        name, num_records = self.dataset.name, len(self.dataset.records)
        results = [r for image_id, output in found for r in self.results_of(image_id, output)]
        if self.output_file is not None:
            atomic_write_text(self.output_file, json.dumps(results))
        logger.info("%d %s on %d images of %s", len(results), self.predicted, len(found), name)
        if len(found) < num_records:
            logger.warning(
                f"Only {len(found)} of the {num_records} images of {name} were evaluated;"
                f" {self.unseen}."
            )
        if not results:
            logger.warning("The model predicted nothing on %s, so every AP is 0.", name)
        return self.score(found, results)

    def results_of(self, image_id: int | str, output: dict[str, Any]) -> list[dict]:
        """Return what was found on an image in COCO's result format."""
        return _as_results(image_id, output, self.dataset.category_ids)

    def matches_file(self) -> Path | None:
        """Return where the file of matches goes, None if nothing is written."""
        if self.output_file is None:
            return None
        name = re.sub(r"[^\w.+-]", "_", self.dataset.name)  # it may have a slash
        return Path(self.output_file).with_name(f"matches_{name}.npz")

    def take_matches(
        self, image_ids: Sequence[int | str], metric: str, by_task: Mapping[str, TaskMatches]
    ) -> None:
        """Find the operating points, and write a file of matches next to the predictions."""
        names = unique_names(self.dataset)
        self.operating_point = {task: operating_point(m, names) for task, m in by_task.items()}
        if path := self.matches_file():
            self.matches = write_matches(path, image_ids, metric, by_task)

    def score(self, found: list[tuple[int | str, dict[str, Any]]], results: list[dict]) -> Metrics:
        """Return the metrics by task of all detections, which ``results`` holds in COCO's format.

        ``found`` has each image's id and boxes (N, 4) XYXY float32, scores (N,), classes (N,).
        """
        name, file = self.dataset.name, self.output_file
        logger.warning(f"Data set {name!r} has no ground truth: {file} has the predictions, no AP.")
        return {}


def warn_absent(dataset: DetectionDataset, absent: list[str], consequence: str) -> None:
    """Log the classes that have no ground truth, if there are some, and what follows."""
    if absent:
        counts = f"{len(absent)} of its {len(dataset.class_names)} classes"
        listed = ", ".join(absent[:_LISTED]) + ", ..." * (len(absent) > _LISTED)
        logger.warning(
            f"{dataset.name} has no ground truth for {counts} ({listed}); {consequence}."
        )


def unknown_class(index: int, num_classes: int) -> InputError:
    """Return the error for a predicted class that a data set does not have."""
    return InputError(
        f"The model predicts class {index}, but the data set has {num_classes} classes (0 to"
        f" {num_classes - 1}); evaluate on the data set that the model was trained for."
    )


def to_coco_results(
    image_id: int | str, output: dict[str, Tensor], category_ids: tuple[int, ...]
) -> list[dict]:
    """Turn a model's output for one image, see ``PredictionWriter.process``, into COCO results."""
    found = _to_numpy(output, PredictionWriter.extras, len(category_ids))
    return _as_results(image_id, found, category_ids)


def _to_numpy(
    output: dict[str, Tensor], extras: tuple[str, ...], num_classes: int
) -> dict[str, Any]:
    """Return a model's output as arrays, with masks as RLE."""
    classes = output["classes"].detach().cpu().long().numpy()
    wrong = classes[(classes < 0) | (classes >= num_classes)]
    if len(wrong):
        raise unknown_class(wrong[0], num_classes)
    names = [n for n in ("boxes", "scores", "keypoints") if n in output]
    found: dict[str, Any] = {n: output[n].detach().float().cpu().numpy() for n in names}
    found |= {"classes": classes, "boxes": found["boxes"].reshape(-1, 4)}
    if "keypoints" not in extras:
        found.pop("keypoints", None)
    if "masks" in extras and "masks" in output:
        masks = output["masks"].detach().cpu().numpy().astype(np.uint8).transpose(1, 2, 0)
        rles = mask_api.encode(np.asfortranarray(masks)) if len(classes) else []
        found["masks"] = [*map(with_text, rles)]
    return found


def _as_results(
    image_id: int | str, found: dict[str, Any], category_ids: tuple[int, ...]
) -> list[dict]:
    corners = found["boxes"]
    # The difference in float32, as in Detectron2.
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    columns = boxes.tolist(), found["scores"].tolist(), found["classes"].tolist()
    results = [
        {"image_id": image_id, "category_id": category_ids[c], "bbox": box, "score": score}
        for box, score, c in zip(*columns, strict=True)
    ]
    if "masks" in found:
        for result, rle in zip(results, found["masks"], strict=True):
            result["segmentation"] = rle
    if "keypoints" in found:
        # Annotations hold pixel indices, the model continuous coordinates.
        keypoints = found["keypoints"] - np.array([0.5, 0.5, 0], np.float32)
        for result, points in zip(results, keypoints.reshape(len(results), -1), strict=True):
            result["keypoints"] = points.tolist()
    return results


def load_predictions(path: str | os.PathLike[str], *, of_pixels: bool = False) -> list[dict]:
    """Read COCO results; InputError if the file is no list of detections, or for ``of_pixels`` of
    classes in images, or does not exist.
    """
    results = load_json(Path(path))
    needed = {"image_id", "category_id", "segmentation" if of_pixels else "score"}
    if not isinstance(results, list) or not all(
        isinstance(r, dict) and needed <= set(r) and math.isfinite(r.get("score", 0))
        for r in results
    ):
        others = "segmentation" if of_pixels else "bbox and a finite score"
        raise InputError(
            f"{path} is not in COCO's result format: expected a list of objects with image_id,"
            f" category_id, {others}."
        )
    return results
