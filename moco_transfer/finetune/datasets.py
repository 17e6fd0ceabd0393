"""The data sets of a fine-tuning run: which they are, and what prevents a run from using them."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..config.schema_file import SEGMENTOR
from ..data.annotations.catalog import DetectionDataset, align_classes, get_dataset
from ..data.annotations.cityscapes import check_packages
from ..data.annotations.class_selection import check_class_count
from ..data.annotations.keypoints import labelled_keypoints
from ..data.annotations.label_subset import (
    LabelDraw,
    LabelSubset,
    read_label_subset,
    take_label_subset,
)
from ..data.annotations.records import is_trainable
from ..data.annotations.semantic.check import label_faults
from ..evaluate.cityscapes_eval import CityscapesEvaluator
from ..evaluate.coco_eval import CocoEvaluator, has_hotcoco
from ..evaluate.predictions import PredictionWriter
from ..evaluate.semantic_eval import TASK as SEMANTIC_TASK
from ..evaluate.semantic_eval import SemanticEvaluator
from ..evaluate.voc_eval import VocEvaluator
from ..runtime.errors import InputError
from ..runtime.files import sha256_of
from .keypoints import KeypointRequest, keypoint_faults
from .lint import TEXTS, Finding, PlanError, collecting

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Task of a head, the key of MODEL that adds the head, and what it needs of an annotation.
_HEADS = (
    ("segm", "MASK_ON", "segmentation"),
    ("keypoints", "KEYPOINT_ON", "keypoints"),
    ("densepose", "DENSEPOSE_ON", "dp_x"),
)


class Reads:
    """Remembers what was read: the plans of many runs read each file once."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def once(self, key: Any, read: Callable[[], T]) -> T:
        """Return ``read()``, or what it gave when it was called for this key before."""
        if key not in self._known:
            self._known[key] = read()
        return self._known[key]


def evaluated_tasks(heads: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is evaluated, ``bbox``[, ``segm``, ``keypoints``, ``densepose``] or ``sem_seg``,
    of a config's MODEL keys.
    """
    if heads["META_ARCHITECTURE"] == SEGMENTOR:
        return (SEMANTIC_TASK,)
    return ("bbox", *(task for task, head, _ in _HEADS if heads.get(head)))


@dataclass(frozen=True)
class RunData:
    """The data sets of a run: no training sets for an evaluation, their images of the label subset
    alone where there is one, whether the number of classes is the data's, what is evaluated,
    what was asked of the keypoints, None without them; the INPUT.MASK_FORMAT that the masks to
    train on need, None for the config's own; and what may surprise.
    """

    train_sets: list[DetectionDataset]
    test_sets: list[DetectionDataset]
    subset: LabelSubset | None
    count_from_data: bool
    tasks: tuple[str, ...]
    keypoints: KeypointRequest | None = None
    mask_format: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def any_set(self) -> DetectionDataset:
        """One of the data sets; all have the same classes and keypoints."""
        return [*self.train_sets, *self.test_sets][0]

    @property
    def test_names(self) -> list[str]:
        """Names of the test sets."""
        return [dataset.name for dataset in self.test_sets]

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the class indices."""
        return tuple(self.any_set.class_names)


@dataclass(frozen=True)
class DataRequest:
    """What a config asks of its data sets.

    Attributes:
        train, test: Names of data sets; ``train`` does not matter for ``eval_only``.
        num_classes: That all must have; None takes it from the data.
        tasks: See :func:`evaluated_tasks`.
        mask_format: INPUT.MASK_FORMAT; None takes it from the data.
        eval_only: Test sets without ground truth are then legal: predictions are written.
        label_subset: File that lists the training images to use, the subset itself, or what is to
            be drawn.
        keypoints: What ``keypoints`` among the tasks asks for.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    num_classes: int | None
    tasks: tuple[str, ...]
    mask_format: str | None = None
    eval_only: bool = False
    label_subset: str | LabelSubset | LabelDraw | None = None
    keypoints: KeypointRequest | None = None


def read_data(request: DataRequest, reads: Reads) -> RunData:
    """Read the data sets of a run and hold them against the config.

    Raises:
        PlanError: With everything that is wrong with them.
    """
    findings: list[Finding] = []
    roles = {"TRAIN": () if request.eval_only else request.train, "TEST": request.test}
    sets: dict[str, list[DetectionDataset]] = {"TRAIN": [], "TEST": []}
    for role, names in roles.items():
        if not names and (role == "TEST") == request.eval_only:  # a run without a test set is one
            findings.append(Finding("", TEXTS["no_data_set"].format(role=role)))
        for name in names:
            with collecting(findings):
                sets[role].append(get_dataset(name))
                sets[role][-1].records  # noqa: B018 - read now
    both = [*sets["TRAIN"], *sets["TEST"]]
    is_semantic = SEMANTIC_TASK in request.tasks
    for name in dict.fromkeys(d.name for d in both if (d.kind == "semantic") != is_semantic):
        sentence = TEXTS["needs_labels" if is_semantic else "needs_boxes"].format(name=name)
        findings.append(Finding("", sentence))
    if findings:
        raise PlanError(findings)
    with collecting(findings):
        both = align_classes(both)
    train_sets, test_sets = both[: len(sets["TRAIN"])], both[len(sets["TRAIN"]) :]
    with collecting(findings):
        if request.num_classes is not None:
            key = f"MODEL.{'SEM_SEG_HEAD' if is_semantic else 'ROI_HEADS'}.NUM_CLASSES"
            check_class_count(both[0].name, both[0].class_names, request.num_classes, key)
    with collecting(findings):
        if "segm" in request.tasks and any(d.kind == "cityscapes" for d in test_sets):
            check_packages("cityscapesscripts")
    of_request = request.tasks, request.mask_format, request.eval_only
    asked = (tuple(train_sets), tuple(test_sets), *of_request)
    sentences = reads.once(asked, lambda: list(_faults(train_sets, test_sets, request)))
    findings += [Finding("", sentence) for sentence in sentences]
    subset = None
    with collecting(findings):
        subset = _label_subset(request.label_subset, train_sets, reads)
        if subset is not None and train_sets:
            wanted = request.label_subset
            where = wanted if isinstance(wanted, str) else "the label subset"
            train_sets = take_label_subset(train_sets, subset, where)
    if request.keypoints is not None:
        scored = list(filter(has_objects, test_sets))
        sentences = list(keypoint_faults(request.keypoints, train_sets, scored))
        findings += [Finding("", sentence) for sentence in sentences]
    if findings:
        raise PlanError(findings)
    from_data, tasks = request.num_classes is None, request.tasks
    remarks = tuple(f"{d.name}: {remark}" for d in dict.fromkeys(both) for remark in d.remarks)
    remarks += tuple(subset.remarks if subset is not None else ())
    of_heads = tasks, request.keypoints, None, remarks
    data = RunData(train_sets, test_sets, subset, from_data, *of_heads)
    whole = both[: len(sets["TRAIN"])]
    encoded = reads.once(("encoded", *whole), lambda: _encoded_masks(whole))
    if not encoded or "segm" not in tasks or request.mask_format is not None:
        return data
    remarks = (*remarks, TEXTS["bitmask"].format(encoded=len(encoded)))
    return replace(data, mask_format="bitmask", remarks=remarks)


def _label_subset(
    asked: str | LabelSubset | LabelDraw | None, train_sets: list[DetectionDataset], reads: Reads
) -> LabelSubset | None:
    """Return the subset of a file, or draw one; an evaluation has no training images to draw."""
    if isinstance(asked, str):
        return read_label_subset(asked)
    if not isinstance(asked, LabelDraw):
        return asked
    if asked.is_all:
        return None
    if not train_sets:
        raise InputError(f"An evaluation trains on no labels: give no {asked} with --eval-only.")
    return reads.once(("drawn", asked, *train_sets), lambda: asked.draw(train_sets))


def _encoded_masks(train_sets: Sequence[DetectionDataset]) -> list[str]:
    """Return the image of each object to train on whose mask is run-length encoded."""
    return [
        record["file_name"]
        for dataset in train_sets
        for record in dataset.records
        for annotation in record.get("annotations", ())
        if not annotation["iscrowd"] and isinstance(annotation.get("segmentation"), dict)
    ]


def _faults(
    train_sets: Sequence[DetectionDataset],
    test_sets: Sequence[DetectionDataset],
    request: DataRequest,
) -> Iterator[str]:
    for dataset in dict.fromkeys([*train_sets, *test_sets]):
        if dataset.kind == "semantic":
            faults = label_faults(dataset.records, dataset.class_names)
            yield from (f"Data set {dataset.name!r}: {fault}" for fault in faults)
        yield from _head_faults(dataset, request, of_training=dataset in train_sets)
    if train_sets and not any(is_trainable(r) for d in train_sets for r in d.records):
        crowds = sum(len(record["annotations"]) for d in train_sets for record in d.records)
        facts = {"names": ", ".join(d.name for d in train_sets), "crowds": crowds}
        yield TEXTS["all_crowd" if crowds else "no_box"].format(**facts)
    for dataset in test_sets:
        if not request.eval_only and not has_objects(dataset):
            without = "difficult boxes" if dataset.kind == "voc" else "crowd regions"
            facts = {"name": dataset.name, "images": len(dataset.records), "without": without}
            yield TEXTS["no_ground_truth"].format(**facts)
        if dataset.kind == "lvis" and has_objects(dataset) and not has_hotcoco():
            yield TEXTS["no_hotcoco"].format(name=dataset.name)


def has_objects(dataset: DetectionDataset) -> bool:
    """Return whether a data set can be scored: whether it holds an object that is neither a crowd
    region nor VOC's difficult, or label images.
    """
    if dataset.kind == "voc":
        return any(not a.get("difficult", 0) for r in dataset.records for a in r["annotations"])
    return dataset.has_ground_truth and any(is_trainable(record) for record in dataset.records)


def _head_faults(
    dataset: DetectionDataset, request: DataRequest, *, of_training: bool
) -> Iterator[str]:
    """Yield what the heads need and the objects of a data set lack; VOC's have boxes alone."""
    objects = [
        (record["file_name"], annotation)
        for record in dataset.records
        for annotation in record.get("annotations", ())
        if not annotation["iscrowd"]
    ]
    about = {"name": dataset.name, "objects": len(objects)}
    for task, head, key in _HEADS:
        without = [file for file, annotation in objects if not annotation.get(key)]
        # COCO has key points of some objects only; masks without a pixel are left out.
        is_incomplete = task == "segm" and any(key not in a for _, a in objects)
        too_few = is_incomplete or len(without) == len(objects)
        if task in request.tasks and without and too_few:
            facts = {"head": head, "key": key, "without": len(without), "first": without[0]}
            yield TEXTS["lacks"].format(**about, **facts)
    of_polygons = "segm" in request.tasks and request.mask_format == "polygon" and of_training
    if of_polygons and (encoded := _encoded_masks([dataset])):
        yield TEXTS["encoded"].format(**about, encoded=len(encoded), first=encoded[0])


def training_records(
    train_sets: Sequence[DetectionDataset],
    *,
    filter_empty: bool,
    masks: bool = False,
    min_keypoints: int = 0,
) -> list[dict]:
    """Return the records to train on: without those that have no box (for ``masks``, no box with a
    mask), if asked for, and those with fewer than ``min_keypoints`` labelled keypoints. Both are
    counted in the log.
    """
    records = [record for dataset in train_sets for record in dataset.records]
    kept = [r for r in records if is_trainable(r, masks=masks)] if filter_empty else records
    enough = [record for record in kept if labelled_keypoints(record) >= min_keypoints]
    few = f"fewer than {min_keypoints} labelled keypoints"
    none = "no box with a mask" if masks else "no box"
    counts = {none: len(records) - len(kept), few: len(kept) - len(enough)}
    for what, count in counts.items():
        if count:
            logger.info(
                "%d of %d training images have %s and are left out", count, len(records), what
            )
    return enough


def annotation_digests(datasets: Sequence[DetectionDataset], reads: Reads) -> dict[str, str]:
    """Return, by name, the SHA-256 of the annotations of whole data sets, wherever they are."""
    whole = [get_dataset(dataset.name) for dataset in datasets]
    return {d.name: reads.once(("digest", d), functools.partial(_digest, d)) for d in whole}


def _digest(dataset: DetectionDataset) -> str:
    if dataset.json_file is not None and not dataset.chosen and not dataset.exif:
        return sha256_of(dataset.json_file)
    root = dataset.image_root
    images = [
        [r["image_id"], os.path.relpath(r["file_name"], root), r["height"], r["width"], _labels(r)]
        for r in dataset.records
    ]
    content = [dataset.class_names, dataset.year, images]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _labels(record: dict) -> Any:
    """Return a record's annotations, or what stands for its label image."""
    file = record.get("sem_seg_file_name")
    return record["annotations"] if file is None else [sha256_of(file), record["sem_seg_ids"]]


def make_evaluator(
    dataset: DetectionDataset,
    tasks: Sequence[str],
    output_dir: Path,
    *,
    coco_style: bool = False,
    oks_sigmas: Sequence[float] = (),
) -> PredictionWriter:
    """Return the evaluator of a data set, which writes ``predictions_<name>.json`` as well, and
    nothing else on a data set without ground truth. ``coco_style`` is for VOC's layout,
    ``oks_sigmas`` for keypoints, by default COCO's.
    """
    predictions = output_dir / f"predictions_{dataset.name}.json"
    if dataset.kind == "semantic":
        return SemanticEvaluator(dataset, predictions)
    if not has_objects(dataset):
        return PredictionWriter(dataset, predictions)
    if dataset.kind == "voc":
        return VocEvaluator(dataset, predictions, coco_style=coco_style)
    if dataset.kind == "cityscapes":
        return CityscapesEvaluator(dataset, tuple(tasks), output_file=predictions)
    return CocoEvaluator(
        dataset,
        tuple(task for task in tasks if task != "densepose"),  # the engine's, Engine.evaluator
        output_file=predictions,
        oks_sigmas=tuple(oks_sigmas),
        lvis_style=dataset.kind == "lvis",
    )
