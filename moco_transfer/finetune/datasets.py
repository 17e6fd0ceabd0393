"""The data sets of a fine-tuning run: which they are, and what prevents a run from using them."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..data.annotations.catalog import (
    DetectionDataset,
    check_class_count,
    check_same_classes,
    get_dataset,
)
from ..data.annotations.label_subset import LabelSubset, read_label_subset, take_label_subset
from ..data.annotations.records import is_trainable, leave_out_empty
from ..evaluate.coco_eval import CocoEvaluator
from ..evaluate.predictions import PredictionWriter
from ..evaluate.voc_eval import VocEvaluator
from ..runtime.errors import InputError
from ..runtime.files import sha256_of
from .lint import Finding, PlanError, collecting

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Reads:
    """Remembers what was read, faults included: the plans of many runs read each file once."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Any, InputError | None]] = {}

    def once(self, key: Any, read: Callable[[], T]) -> T:
        """Return ``read()``, or what it gave (or raised) when it was called for this key before."""
        if key not in self._known:
            try:
                self._known[key] = read(), None
            except InputError as error:
                self._known[key] = None, error
        value, failure = self._known[key]
        if failure is not None:
            raise failure
        return value


@dataclass(frozen=True)
class RunData:
    """The data sets of a run: no training sets for an evaluation, their images of the label subset
    alone where there is one, and whether the number of classes is the data's.
    """

    train_sets: list[DetectionDataset]
    test_sets: list[DetectionDataset]
    subset: LabelSubset | None
    count_from_data: bool

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the class indices."""
        return tuple([*self.train_sets, *self.test_sets][0].class_names)


@dataclass(frozen=True)
class DataRequest:
    """What a config asks of its data sets.

    Attributes:
        train, test: Names of data sets; ``train`` does not matter for ``eval_only``.
        num_classes: That all must have; None takes it from the data.
        masks: Whether the detector has a mask head.
        polygons: Whether the masks to train on must be polygons (INPUT.MASK_FORMAT).
        eval_only: Test sets without ground truth are then legal: predictions are written.
        label_subset: File that lists the training images to use, or the subset itself.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    num_classes: int | None
    masks: bool
    polygons: bool
    eval_only: bool = False
    label_subset: str | LabelSubset | None = None


def read_data(request: DataRequest, reads: Reads) -> RunData:
    """Read the data sets of a run and hold them against the config.

    Raises:
        PlanError: With everything that is wrong with them.
    """
    findings: list[Finding] = []
    roles = {"TRAIN": () if request.eval_only else request.train, "TEST": request.test}
    sets: dict[str, list[DetectionDataset]] = {"TRAIN": [], "TEST": []}
    for role, names in roles.items():
        with collecting(findings):
            if not names and not (role == "TRAIN" and request.eval_only):
                raise InputError(
                    f"DATASETS.{role} names no data set. Give e.g. DATASETS.{role}"
                    " voc_2007_trainval, or your own with --dataset."
                )
        for name in names:
            with collecting(findings):
                sets[role].append(get_dataset(name))
                sets[role][-1].records  # noqa: B018 - read now
    if findings:
        raise PlanError(findings)
    train_sets, test_sets = sets["TRAIN"], sets["TEST"]
    both = [*train_sets, *test_sets]
    with collecting(findings):
        check_same_classes(both)
    with collecting(findings):
        if request.num_classes is not None:
            check_class_count(both[0], request.num_classes)
    key = (tuple(train_sets), tuple(test_sets), request.masks, request.polygons, request.eval_only)
    sentences = reads.once(key, lambda: list(_faults(train_sets, test_sets, request)))
    findings += [Finding("", sentence, option="") for sentence in sentences]
    subset = None
    with collecting(findings):
        if isinstance(request.label_subset, LabelSubset):
            subset, where = request.label_subset, "the label subset"
        elif request.label_subset is not None:
            subset, where = read_label_subset(request.label_subset), request.label_subset
        if subset is not None and train_sets:
            train_sets = take_label_subset(train_sets, subset, where)
    if findings:
        raise PlanError(findings)
    return RunData(train_sets, test_sets, subset, request.num_classes is None)


def _faults(
    train_sets: Sequence[DetectionDataset],
    test_sets: Sequence[DetectionDataset],
    request: DataRequest,
) -> Iterator[str]:
    if request.masks:
        for dataset in dict.fromkeys([*train_sets, *test_sets]):
            yield from _mask_faults(dataset, polygons=request.polygons and dataset in train_sets)
    if train_sets and not any(is_trainable(r) for d in train_sets for r in d.records):
        names = ", ".join(d.name for d in train_sets)
        yield (
            f"No image of DATASETS.TRAIN {names} has a box. Look at it with moco-transfer"
            " check-data."
        )
    for dataset in test_sets:
        if not request.eval_only and not has_objects(dataset):
            yield (
                f"DATASETS.TEST: {dataset.name!r} has no ground truth: {_emptiness(dataset)}, so"
                " the run could not be evaluated at its end. Name a set with annotated objects;"
                " --eval-only writes the predictions on this one."
            )


def has_objects(dataset: DetectionDataset) -> bool:
    """Return whether AP is defined on a data set: whether it holds an object that is neither a
    crowd region nor VOC's difficult.
    """
    if dataset.kind == "voc":
        return any(not a.get("difficult", 0) for r in dataset.records for a in r["annotations"])
    return dataset.has_ground_truth and any(is_trainable(record) for record in dataset.records)


def _emptiness(dataset: DetectionDataset) -> str:
    if not dataset.has_ground_truth:
        return "its file has no annotations"
    kind = "difficult boxes" if dataset.kind == "voc" else "crowd regions"
    return f"its {len(dataset.records)} images hold no object, {kind} not counted"


def _mask_faults(dataset: DetectionDataset, *, polygons: bool) -> Iterator[str]:
    if dataset.kind == "voc":
        yield (
            f"MODEL.MASK_ON is True, but data set {dataset.name!r} is in VOC's layout, which has"
            " boxes alone. Set MODEL.MASK_ON False, or give the data in COCO's format with"
            " 'segmentation'."
        )
        return
    if not dataset.has_ground_truth:
        return
    objects = [(r, a) for r in dataset.records for a in r["annotations"] if not a["iscrowd"]]
    without = [record for record, annotation in objects if not annotation.get("segmentation")]
    if without:
        yield (
            f"MODEL.MASK_ON is True, but {len(without)} of the {len(objects)} objects of data set"
            f" {dataset.name!r} have no 'segmentation'; the first is in {without[0]['file_name']}."
            " Set MODEL.MASK_ON False to train on the boxes alone, or add the masks."
        )
    encoded = [r for r, annotation in objects if isinstance(annotation.get("segmentation"), dict)]
    if polygons and encoded:
        yield (
            f"{len(encoded)} of the {len(objects)} masks of data set {dataset.name!r} are"
            f" run-length encoded, the first in {encoded[0]['file_name']}; INPUT.MASK_FORMAT"
            " 'polygon' trains on polygons. Export polygons, or use --engine detectron2 with"
            " INPUT.MASK_FORMAT bitmask."
        )


def training_records(train_sets: Sequence[DetectionDataset], *, filter_empty: bool) -> list[dict]:
    """Return the records to train on, those without a box left out if asked for."""
    records = [record for dataset in train_sets for record in dataset.records]
    total = len(records)
    if filter_empty:
        records, left_out = leave_out_empty(records)
        if left_out:
            logger.info("%d of %d training images have no box and are left out", left_out, total)
    return records


def annotation_digests(datasets: Sequence[DetectionDataset], reads: Reads) -> dict[str, str]:
    """Return, by name, the SHA-256 of what data sets' annotations say, wherever their folders are;
    of the whole set also where a label subset is used.
    """
    whole = [get_dataset(dataset.name) for dataset in datasets]
    return {d.name: reads.once(("digest", d), functools.partial(_digest, d)) for d in whole}


def _digest(dataset: DetectionDataset) -> str:
    if dataset.json_file is not None:
        return sha256_of(dataset.json_file)
    images = [
        [
            record["image_id"],
            os.path.relpath(record["file_name"], dataset.image_root),
            *(record[key] for key in ("height", "width", "annotations")),
        ]
        for record in dataset.records
    ]
    content = [dataset.class_names, dataset.year, images]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_evaluator(
    dataset: DetectionDataset, tasks: Sequence[str], output_dir: Path, *, coco_style: bool = False
) -> VocEvaluator | CocoEvaluator | PredictionWriter:
    """Return the evaluator of a data set, which writes ``predictions_<name>.json`` as well.

    It is chosen by what the data set says of itself, never by its name. On a data set without
    ground truth it writes the predictions and computes nothing. ``tasks`` are of ``bbox``, ``segm``
    and ``keypoints``; a data set in VOC's layout has boxes alone (``coco_style``: see there).
    """
    predictions = output_dir / f"predictions_{dataset.name}.json"
    if not has_objects(dataset):
        return PredictionWriter(dataset, predictions)
    if dataset.kind == "voc":
        return VocEvaluator(dataset, predictions, coco_style=coco_style)
    return CocoEvaluator(dataset, tuple(tasks), output_file=predictions)
