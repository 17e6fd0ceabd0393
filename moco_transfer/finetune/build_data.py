"""From a detection config to its data sets, mappers and evaluators; refuses what does not fit
together before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from ..data.annotations.catalog import (
    DetectionDataset,
    check_class_count,
    check_same_classes,
    get_dataset,
)
from ..data.annotations.records import is_trainable, leave_out_empty
from ..data.batches.transforms import TestMapper, TrainMapper
from ..evaluate.coco_eval import CocoEvaluator
from ..evaluate.predictions import PredictionWriter
from ..evaluate.voc_eval import VocEvaluator
from ..runtime.errors import InputError
from ..runtime.files import sha256_of

Evaluator = VocEvaluator | CocoEvaluator | PredictionWriter

logger = logging.getLogger(__name__)


def find_datasets(
    cfg: CfgNode, *, eval_only: bool = False
) -> tuple[list[DetectionDataset], list[DetectionDataset]]:
    """Return the training and test sets that DATASETS names; no training set for ``eval_only``.

    Raises:
        InputError: If none is named, one is not known or cannot be read, their classes differ,
            there is no box to train on or no ground truth to evaluate on, or MODEL.MASK_ON asks for
            masks that one lacks.
    """
    for key in ("TRAIN", "TEST"):
        if not cfg.DATASETS[key] and not (key == "TRAIN" and eval_only):
            raise InputError(
                f"DATASETS.{key} names no data set. Give e.g. DATASETS.{key} voc_2007_trainval, or"
                " your own with --dataset."
            )
    train_sets = [] if eval_only else [get_dataset(name) for name in cfg.DATASETS.TRAIN]
    test_sets = [get_dataset(name) for name in cfg.DATASETS.TEST]
    check_same_classes([*train_sets, *test_sets])
    if cfg.MODEL.MASK_ON:
        for dataset in dict.fromkeys([*train_sets, *test_sets]):
            check_masks(
                dataset, needs_polygons=dataset in train_sets and cfg.INPUT.MASK_FORMAT == "polygon"
            )
    if train_sets and not any(
        is_trainable(record) for dataset in train_sets for record in dataset.records
    ):
        raise InputError(
            f"No image of DATASETS.TRAIN {', '.join(d.name for d in train_sets)} has a box. Look"
            " at it with moco-transfer check-data."
        )
    for dataset in test_sets:
        # With eval_only the predictions are the purpose: they are written, and handed in where the
        # annotations are.
        if not eval_only and not has_objects(dataset):
            raise InputError(
                f"DATASETS.TEST: {dataset.name!r} has no ground truth: {_nothing_to_find(dataset)},"
                " so the run could not be evaluated at its end. Name a set with annotated objects;"
                " --eval-only writes the predictions on this one."
            )
    return train_sets, test_sets


def has_objects(dataset: DetectionDataset) -> bool:
    """Return whether AP can be computed on a data set: whether it holds an object that is neither a
    crowd region nor VOC's difficult.
    """
    if dataset.kind == "voc":
        return any(
            not a.get("difficult", 0) for record in dataset.records for a in record["annotations"]
        )
    return dataset.has_ground_truth and any(is_trainable(record) for record in dataset.records)


def _nothing_to_find(dataset: DetectionDataset) -> str:
    if not dataset.has_ground_truth:
        return "its file has no annotations"
    kind = "difficult boxes" if dataset.kind == "voc" else "crowd regions"
    return f"its {len(dataset.records)} images hold no object, {kind} not counted"


def identify(datasets: Sequence[DetectionDataset]) -> dict[str, str]:
    """Return, by name, the SHA-256 of what each data set's annotations say: the same wherever its
    folder lies.
    """
    return {dataset.name: _digest(dataset) for dataset in datasets}


def _digest(dataset: DetectionDataset) -> str:
    if dataset.json_file is not None:
        return sha256_of(dataset.json_file)
    images = [
        [
            record["image_id"],
            os.path.relpath(record["file_name"], dataset.image_root),
            record["height"],
            record["width"],
            record["annotations"],
        ]
        for record in dataset.records
    ]
    return hashlib.sha256(
        json.dumps([dataset.class_names, dataset.year, images], sort_keys=True).encode()
    ).hexdigest()


def takes_class_count_from_data(cfg: CfgNode, own: Sequence[str], *, is_set_by_user: bool) -> bool:
    """Return whether the number of classes is the data's: with data sets of one's own, unless the
    user wrote a number.

    Args:
        cfg: A merged config.
        own: Names that ``--dataset`` registered.
        is_set_by_user: Whether MODEL.ROI_HEADS.NUM_CLASSES stands on the command line or in a file
            of the user's.

    Raises:
        InputError: If a registered name is not used: a run would go on with other data than those
            meant.
    """
    used = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    for name in own:
        if name not in used:
            raise InputError(
                f"--dataset {name} is named neither in DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)}"
                f" nor in DATASETS.TEST {list(cfg.DATASETS.TEST)}. Add DATASETS.TRAIN {name} or"
                f" DATASETS.TEST {name}, or leave the flag out."
            )
    return bool(own) and not is_set_by_user


def check_masks(dataset: DetectionDataset, *, needs_polygons: bool) -> None:
    """Refuse a data set that a mask head can neither be trained nor evaluated on.

    Args:
        dataset: The data set; its annotations are read.
        needs_polygons: Whether its masks must be polygons: it is trained on with INPUT.MASK_FORMAT
            polygon, all that the embedded engine knows.

    Raises:
        InputError: If it is in VOC's layout, or an object (crowd regions not counted) has no mask
            that can be used.
    """
    if dataset.kind == "voc":
        raise InputError(
            f"MODEL.MASK_ON is True, but data set {dataset.name!r} is in VOC's layout, which has"
            " boxes alone. Set MODEL.MASK_ON False, or give the data in COCO's format with"
            " 'segmentation'."
        )
    if not dataset.has_ground_truth:
        return
    objects = [
        (record, a) for record in dataset.records for a in record["annotations"] if not a["iscrowd"]
    ]
    without = [record for record, annotation in objects if not annotation.get("segmentation")]
    if without:
        raise InputError(
            f"MODEL.MASK_ON is True, but {len(without)} of the {len(objects)} objects of data set"
            f" {dataset.name!r} have no 'segmentation'; the first is in {without[0]['file_name']}."
            " Set MODEL.MASK_ON False to train on the boxes alone, or add the masks."
        )
    encoded = [
        record for record, annotation in objects if isinstance(annotation["segmentation"], dict)
    ]
    if needs_polygons and encoded:
        raise InputError(
            f"{len(encoded)} of the {len(objects)} masks of data set {dataset.name!r} are"
            f" run-length encoded, the first in {encoded[0]['file_name']}; INPUT.MASK_FORMAT"
            " 'polygon' trains on polygons. Export polygons, or use --engine detectron2 with"
            " INPUT.MASK_FORMAT bitmask."
        )


def fit_class_count(
    cfg: CfgNode, datasets: Sequence[DetectionDataset], *, from_data: bool
) -> CfgNode:
    """Return the config with the data's number of classes, or refuse another number.

    Args:
        cfg: A merged config; left as it is.
        datasets: At least one; their classes are equal.
        from_data: Take the number from the data. Otherwise the config's must be it.

    Raises:
        InputError: If the config has another number and ``from_data`` is not set.
    """
    count = len(datasets[0].class_names)
    if from_data and count != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = count
        cfg.freeze()
    for dataset in datasets:
        check_class_count(dataset, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    return cfg


def training_data(
    cfg: CfgNode, train_sets: Sequence[DetectionDataset]
) -> tuple[list[dict], TrainMapper]:
    """Return the records to train on and what makes training items of them.

    Raises:
        InputError: If INPUT has an illegal value.
    """
    records = [record for dataset in train_sets for record in dataset.records]
    total = len(records)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records, left_out = leave_out_empty(records)
        if left_out:
            logger.info("%d of %d training images have no box and are left out", left_out, total)
    names = ", ".join(d.name for d in train_sets)
    objects = sum(len(record["annotations"]) for record in records)
    logger.info("training on %d images with %d objects from %s", len(records), objects, names)
    return records, training_mapper(
        cfg, keypoint_mirror=train_sets[0].keypoint_mirror if cfg.MODEL.KEYPOINT_ON else ()
    )


def training_mapper(cfg: CfgNode, *, keypoint_mirror: tuple[int, ...] = ()) -> TrainMapper:
    """Return what makes training items of records.

    Raises:
        InputError: If INPUT has an illegal value.
    """
    return TrainMapper(
        tuple(cfg.INPUT.MIN_SIZE_TRAIN),
        cfg.INPUT.MAX_SIZE_TRAIN,
        cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        cfg.INPUT.RANDOM_FLIP,
        cfg.INPUT.FORMAT,
        with_masks=cfg.MODEL.MASK_ON,
        mask_format=cfg.INPUT.MASK_FORMAT,
        with_keypoints=cfg.MODEL.KEYPOINT_ON,
        keypoint_mirror=keypoint_mirror,
    )


def inference_mapper(cfg: CfgNode) -> TestMapper:
    """Return what makes inference items of test images.

    Raises:
        InputError: If INPUT has an illegal size.
    """
    return TestMapper(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT)


def make_evaluator(
    cfg: CfgNode, dataset: DetectionDataset, output_dir: Path, *, coco_style: bool = False
) -> Evaluator:
    """Return the evaluator, chosen by what the data set says of itself and never by its name; see
    ``VocEvaluator`` for ``coco_style``.

    On a data set without ground truth it writes the predictions and computes nothing.
    """
    predictions = output_dir / f"predictions_{dataset.name}.json"
    if not has_objects(dataset):
        return PredictionWriter(dataset, predictions)
    if dataset.kind == "voc":
        return VocEvaluator(dataset, predictions, coco_style=coco_style)
    tasks = (
        "bbox",
        *(("segm",) if cfg.MODEL.MASK_ON else ()),
        *(("keypoints",) if cfg.MODEL.KEYPOINT_ON else ()),
    )
    return CocoEvaluator(dataset, tasks, output_file=predictions)
