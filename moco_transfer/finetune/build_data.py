"""Mappers of the embedded engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fvcore.common.config import CfgNode

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.records import leave_out_empty
from ..data.batches.transforms import TestMapper, TrainMapper

logger = logging.getLogger(__name__)


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
