"""The evaluator of data sets in COCO's format, and of others COCO-style: pycocotools' twelve
numbers and each class's AP.

pycocotools decides what the numbers are; faster-coco-eval, where installed and asked for, computes
the same ones faster.

Source:
    detectron2/evaluation/coco_evaluation.py COCOEvaluator. Differences: the six recalls are
    reported too; no predictions give AP 0, not NaN; what cannot be computed (no ground truth of
    that size or class) is left out and said in the log.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
from collections import Counter

import numpy as np
from torch import Tensor

from ..data.annotations.catalog import DetectionDataset
from ..runtime.distributed import gather_object, is_main_process
from ..runtime.errors import InputError
from .coco_truth import coco_truth, number_images
from .metric_names import BBOX_METRICS, KEYPOINT_METRICS, RECALL_METRICS, TASKS, class_metric
from .predictions import save_predictions, to_coco_results

logger = logging.getLogger(__name__)

_KEYPOINT_NUMBERS = (*KEYPOINT_METRICS, "AR", "AR50", "AR75", "ARm", "ARl")
_PREDICTED_IN = {"segm": "masks", "keypoints": "keypoints"}


class CocoEvaluator:
    """Computes COCO's AP over a test set; on several processes each passes in its share of the
    images.

    Args:
        dataset: The test set, in COCO's or VOC's format.
        tasks: Some of ``bbox``, ``segm``, ``keypoints``; masks need a data set with segmentations.
        output_file: Where to write the predictions in COCO's result format, or None.
        backend: ``pycocotools``, ``faster-coco-eval``, or ``auto`` for the faster one where it is
            installed.

    Raises:
        InputError: If the data set has no ground truth for a task, or the backend is not installed.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        tasks: tuple[str, ...] = ("bbox",),
        *,
        output_file: str | os.PathLike[str] | None = None,
        backend: str = "auto",
    ) -> None:
        self._dataset, self._tasks, self._output_file = dataset, tuple(tasks), output_file
        self._backend = choose_backend(backend)
        _check_tasks(dataset, self._tasks)
        self._image_ids = {record["image_id"] for record in dataset.records}
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._results: list[dict] = []
        self._num_images = 0

    def process(self, batch: list[dict], outputs: list[dict[str, Tensor]]) -> None:
        """Take the detections of some images.

        Args:
            batch: What went into the model; ``image_id`` is used.
            outputs: What came out: ``boxes`` (N, 4) XYXY px of the original image, ``scores``
                (N,), ``classes`` (N,); for segm ``masks`` (N, H, W) bool, for keypoints
                ``keypoints`` (N, K, 3).

        Raises:
            InputError: If a class index or an image is not one of the data set's, or a task's
                output is missing.
        """
        for item, output in zip(batch, outputs, strict=True):
            if item["image_id"] not in self._image_ids:
                raise InputError(
                    f"There are detections for image {item['image_id']!r}, which is not in data set"
                    f" {self._dataset.name!r}; evaluate with the data set that the predictions were"
                    " made on."
                )
            for task in self._tasks:
                if _PREDICTED_IN.get(task, "boxes") not in output:
                    raise InputError(
                        f"Task {task!r} is to be evaluated, but the model gives no"
                        f" {_PREDICTED_IN[task]!r}; switch its head on or leave the task out."
                    )
            wanted = {
                "boxes",
                "scores",
                "classes",
                *(_PREDICTED_IN.get(task) for task in self._tasks),
            }
            output = {key: value for key, value in output.items() if key in wanted}
            self._results.extend(
                to_coco_results(item["image_id"], output, self._dataset.category_ids)
            )
            self._num_images += 1

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return the metrics. Collective: every process has to call it.

        Returns:
            On rank 0 for each task COCO's numbers by name and ``AP-<class>``, 0-100; elsewhere
            ``{}``.
        """
        shares = gather_object((self._results, self._num_images))
        if not is_main_process():
            return {}
        results = [result for share in shares for result in share[0]]
        num_images, num_records = sum(share[1] for share in shares), len(self._dataset.records)
        if self._output_file is not None:
            save_predictions(self._output_file, results)
        logger.info(
            "Evaluating %d detections on %d images of %s with %s.",
            len(results),
            num_images,
            self._dataset.name,
            self._backend,
        )
        if num_images < num_records:
            logger.warning(
                "Only %d of the %d images of %s were evaluated; objects in the others count as"
                " missed.",
                num_images,
                num_records,
                self._dataset.name,
            )
        if not results:
            logger.warning(
                "The model predicted nothing on %s, so every AP is 0; train longer or lower the"
                " score threshold.",
                self._dataset.name,
            )
        return evaluate_results(results, self._dataset, self._tasks, backend=self._backend)


def evaluate_results(
    results: list[dict],
    dataset: DetectionDataset,
    tasks: tuple[str, ...] = ("bbox",),
    *,
    backend: str = "pycocotools",
) -> dict[str, dict[str, float]]:
    """Score COCO results, such as a file of them, against a data set.

    Args:
        results: Detections in COCO's result format; left as they are.
        dataset: The test set.
        tasks: Some of ``bbox``, ``segm``, ``keypoints``.
        backend: ``pycocotools`` or ``faster-coco-eval``.

    Returns:
        For each task COCO's numbers by name and ``AP-<class>``, 0-100.

    Raises:
        InputError: If there is no ground truth, or results are for images or classes that the
            data set does not have.
    """
    _check_ids(results, dataset)
    truth = coco_truth(dataset)
    results = number_images(truth, results)
    return {
        task: _evaluate_task(truth, results, task, dataset, choose_backend(backend))
        for task in tasks
    }


def choose_backend(backend: str) -> str:
    """Return the backend to use; ``auto`` is faster-coco-eval where it is installed.

    Raises:
        InputError: If the backend is unknown or not installed.
    """
    is_installed = importlib.util.find_spec("faster_coco_eval") is not None
    if backend == "auto":
        return "faster-coco-eval" if is_installed else "pycocotools"
    if backend not in ("pycocotools", "faster-coco-eval"):
        raise InputError(
            f"The COCO backend is {backend!r}, expected auto, pycocotools or faster-coco-eval."
        )
    if backend == "faster-coco-eval" and not is_installed:
        raise InputError(
            "The COCO backend faster-coco-eval is not installed; pip install faster-coco-eval, or"
            " use pycocotools."
        )
    return backend


def _check_tasks(dataset: DetectionDataset, tasks: tuple[str, ...]) -> None:
    field = {"segm": "segmentation", "keypoints": "keypoints"}
    for task in tasks:
        if task not in TASKS:
            raise InputError(
                f"Task {task!r} cannot be evaluated; expected some of {', '.join(TASKS)}."
            )
        annotations = [
            a
            for record in dataset.records
            for a in record["annotations"]
            if not a.get("iscrowd", 0)
        ]
        if not dataset.has_ground_truth or not annotations:
            raise InputError(
                f"Data set {dataset.name!r} has no ground truth: none of its {len(dataset.records)}"
                " images holds an object, so no AP can be computed; test on a split with"
                " annotations."
            )
        without = sum(field[task] not in a for a in annotations) if task in field else 0
        if without and (task == "segm" or without == len(annotations)):
            raise InputError(
                f"Data set {dataset.name!r}: {without} of {len(annotations)} objects have no"
                f" {field[task]}, which task {task!r} needs; annotate them, or evaluate bbox only."
            )


def _check_ids(results: list[dict], dataset: DetectionDataset) -> None:
    known_images, known_categories = (
        {record["image_id"] for record in dataset.records},
        set(dataset.category_ids),
    )
    for what, key, known in (
        ("image", "image_id", known_images),
        ("category", "category_id", known_categories),
    ):
        strange = sorted({result[key] for result in results} - known, key=str)
        if strange:
            raise InputError(
                f"{len(strange)} {what} ids of the predictions are not in data set"
                f" {dataset.name!r}, the first is {strange[0]!r}; evaluate with the data set that"
                " the predictions were made on."
            )


def _evaluate_task(
    truth: dict, results: list[dict], task: str, dataset: DetectionDataset, backend: str
) -> dict[str, float]:
    results = [
        dict(result) for result in results
    ]  # pycocotools adds keys to them; their values it leaves alone
    if task == "segm":
        for result in results:
            result.pop("bbox", None)  # else small, medium, large would go by the area of the box
    with _to_log():
        scored = _score(truth, results, task, backend)
    names = _KEYPOINT_NUMBERS if task == "keypoints" else (*BBOX_METRICS, *RECALL_METRICS)
    metrics = {
        name: 100 * float(value)
        for name, value in zip(names, scored.stats, strict=False)
        if value >= 0
    }  # faster-coco-eval adds AR50, AR75
    absent = [name for name in names if name not in metrics]
    if absent:
        logger.warning(
            "%s cannot be computed on %s: it has no ground truth of that size.",
            ", ".join(absent),
            dataset.name,
        )
    if task != "keypoints":
        metrics.update(_class_metrics(scored.eval["precision"], dataset))
    return metrics


def _score(truth: dict, results: list[dict], task: str, backend: str):
    if backend == "faster-coco-eval":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    coco_truth_api = _index(COCO(), truth)
    # loadRes trips over an empty list.
    found = (
        coco_truth_api.loadRes(results) if results else _index(COCO(), {**truth, "annotations": []})
    )
    scored = COCOeval(coco_truth_api, found, task)
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return scored


def _index(api, content: dict):
    # COCOeval adds keys to annotations, and the same truth serves several tasks.
    api.dataset = {
        **content,
        "annotations": [dict(annotation) for annotation in content["annotations"]],
    }
    api.createIndex()
    return api


def _class_metrics(precision: np.ndarray, dataset: DetectionDataset) -> dict[str, float]:
    """Return each class's AP from precision (T IoU, R recall, C, A areas, M max. detections), -1
    where nothing is there.
    """
    repeated = {name for name, n in Counter(dataset.class_names).items() if n > 1}
    metrics, absent = {}, []
    for index, (name, category_id) in enumerate(
        zip(dataset.class_names, dataset.category_ids, strict=True)
    ):
        values = precision[:, :, index, 0, -1]  # all areas, 100 detections
        values = values[values > -1]
        if values.size:
            metrics[class_metric(f"{name} (id {category_id})" if name in repeated else name)] = (
                100 * float(np.mean(values))
            )
        else:
            absent.append(name)
    if absent:
        logger.warning(
            "%s has no ground truth for %d of its %d classes, which are left out of the mean: %s.",
            dataset.name,
            len(absent),
            len(dataset.class_names),
            ", ".join(absent),
        )
    return metrics


@contextlib.contextmanager
def _to_log():
    """Send what pycocotools prints to the log, its table of numbers included."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        lines = printed.getvalue().splitlines()
        table = [line for line in lines if line.startswith(" Average")]
        logger.debug("\n".join(line for line in lines if line not in table))
        if table:
            logger.info("\n".join(table))
