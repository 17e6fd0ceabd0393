"""Predictions in COCO's result format: a json list with one object a detection; written whole or
not at all.

Fields: ``image_id``, ``category_id`` (the data set's own), ``bbox`` [x, y, width, height] in px of
    the original image,
``score``, and ``segmentation`` (compressed RLE) where there are masks, ``keypoints`` where there
are some.
"""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.annotations.catalog import DetectionDataset
from ..runtime.distributed import gather_object, is_main_process
from ..runtime.errors import InputError, MissingFileError
from ..runtime.files import atomic_write_text

logger = logging.getLogger(__name__)


class PredictionWriter:
    """Writes the predictions on a test set whose annotations are not here, and computes nothing; an
    evaluator like the others.

    Args:
        dataset: The test set.
        output_file: Where the predictions go, in COCO's result format.
    """

    def __init__(self, dataset: DetectionDataset, output_file: str | os.PathLike[str]) -> None:
        self._dataset, self._output_file = dataset, output_file
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._results: list[dict] = []

    def process(self, batch: list[dict], outputs: list[dict[str, Tensor]]) -> None:
        """Take the detections of some images; see ``CocoEvaluator.process``."""
        for item, output in zip(batch, outputs, strict=True):
            self._results.extend(
                to_coco_results(item["image_id"], output, self._dataset.category_ids)
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Write the file and return no metrics. Collective: every process has to call it."""
        shares = gather_object(self._results)
        if is_main_process():
            results = [result for share in shares for result in share]
            save_predictions(self._output_file, results)
            logger.warning(
                "Data set %r has no ground truth: %d predictions are written to %s, and no AP is"
                " computed.",
                self._dataset.name,
                len(results),
                self._output_file,
            )
        return {}


def to_coco_results(
    image_id: int | str, output: dict[str, Tensor], category_ids: tuple[int, ...]
) -> list[dict]:
    """Turn a model's output for one image into COCO results.

    Args:
        image_id: The image.
        output: ``boxes`` (N, 4) XYXY px, ``scores`` (N,), ``classes`` (N,) contiguous[, ``masks``
            (N, H, W) bool, ``keypoints`` (N, K, 3)], on any device.
        category_ids: The data set's category id of each contiguous class.

    Returns:
        One dict a detection, plain Python numbers.

    Raises:
        InputError: If a class index is not one of the data set's.
    """
    boxes, scores, classes = to_arrays(output)
    check_class_range(classes, len(category_ids))
    boxes[:, 2:] -= boxes[:, :2]  # in float32, as Detectron2 does it
    results = [
        {"image_id": image_id, "category_id": category_ids[c], "bbox": box, "score": score}
        for box, score, c in zip(boxes.tolist(), scores.tolist(), classes.tolist(), strict=True)
    ]
    if "masks" in output:
        for result, rle in zip(results, _encode_masks(output["masks"]), strict=True):
            result["segmentation"] = rle
    if "keypoints" in output:
        keypoints = output["keypoints"].detach().float().cpu().numpy().copy()
        keypoints[:, :, :2] -= (
            0.5  # annotations hold pixel indices, the model continuous coordinates
        )
        for result, points in zip(
            results, keypoints.reshape(len(keypoints), -1).tolist(), strict=True
        ):
            result["keypoints"] = points
    return results


def to_arrays(output: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return fresh arrays of an output's boxes (N, 4) float32, scores (N,) and classes (N,) int64."""
    boxes = output["boxes"].detach().float().cpu().numpy().reshape(-1, 4).copy()
    scores = output["scores"].detach().cpu()
    scores = (scores if scores.dtype.itemsize >= 4 else scores.float()).numpy()
    return boxes, scores, output["classes"].detach().cpu().long().numpy()


def check_class_range(classes: np.ndarray, num_classes: int) -> None:
    """Refuse class indices that the data set does not have.

    Raises:
        InputError: If an index lies outside 0 .. num_classes - 1.
    """
    if len(classes) and (classes.min() < 0 or classes.max() >= num_classes):
        wrong = classes.max() if classes.max() >= num_classes else classes.min()
        raise InputError(
            f"The model predicts class {wrong}, but the data set has {num_classes} classes (0 to"
            f" {num_classes - 1}); evaluate on the data set that the model was trained for."
        )


def _encode_masks(masks: Tensor) -> list[dict]:
    from pycocotools import mask as mask_api

    if len(masks) == 0:
        return []
    rles = mask_api.encode(
        np.asfortranarray(masks.detach().cpu().numpy().astype(np.uint8).transpose(1, 2, 0))
    )
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in rles]


def save_predictions(path: str | os.PathLike[str], results: list[dict]) -> None:
    """Write COCO results to a json file; it is complete or untouched.

    Raises:
        InputError: If the folder cannot be written to.
    """
    atomic_write_text(path, json.dumps(results))


def load_predictions(path: str | os.PathLike[str]) -> list[dict]:
    """Read COCO results.

    Raises:
        MissingFileError: If the file does not exist.
        InputError: If it is not a list of detections.
    """
    try:
        results = json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path} does not exist; expected predictions in COCO's result format."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not json ({error}); it may be cut off, so evaluate again."
        ) from error
    needed = {"image_id", "category_id", "score"}
    if not isinstance(results, list) or not all(
        isinstance(r, dict) and needed <= set(r) for r in results
    ):
        raise InputError(
            f"{path} is not in COCO's result format: expected a list of objects with image_id,"
            " category_id, bbox and score."
        )
    for result in results:
        if not math.isfinite(result["score"]):
            raise InputError(
                f"{path}: image {result['image_id']} has a detection with score {result['score']},"
                " expected a finite number."
            )
    return results
