"""Masks in run-length form, INPUT.MASK_FORMAT bitmask: the mapper's masks and the mask head's
targets equal Detectron2's, bit for bit, against committed numbers and live.

Seen red under: bilinear for nearest; polygons drawn before they are resized; the mask not mirrored;
targets at more than a half; RoIAlign not aligned; a target read from the neighbouring object.
"""

from __future__ import annotations

import json
from pathlib import Path

import bitmask_cases as cases
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from moco_transfer.data.batches.transforms import TrainMapper, read_and_check
from moco_transfer.finetune.torchvision_engine.mask_head import mask_targets
from moco_transfer.finetune.torchvision_engine.sampling import SampledRegions

FIXTURE = Path(__file__).parent / "fixtures" / "bitmasks.json"


def digests(record: dict) -> list[list[int]]:
    """What ``make_bitmask_fixture.digests`` gives, of the embedded engine."""
    mapper = TrainMapper((cases.SIZES[0],), cases.SIZES[1], mask_format="bitmask")
    pixels, found = read_and_check(record, "RGB"), []
    for change in cases.changes(record):
        item = mapper.apply(record, pixels, change)
        masks = np.stack([mask_api.decode(rle) for rle in item["gt_masks"]])
        boxes = item["gt_boxes"].numpy()
        near = torch.from_numpy(cases.near(boxes, record["image_id"]))
        index = torch.arange(len(boxes)).repeat(len(near))
        everything = near.flatten(0, 1)
        regions = SampledRegions(everything, item["gt_classes"][index], everything, index)
        targets = mask_targets(item["gt_masks"], regions, size=cases.GRID)
        found.append(cases.digest(boxes, masks, targets.numpy()))
    return found


def test_committed_numbers__masks_and_targets_of_twenty_real_images(shared_data):
    expected = json.loads(FIXTURE.read_text())
    records = cases.records(shared_data / "coco")
    assert len(records) == len(expected) == cases.NUM_IMAGES
    assert {str(record["image_id"]): digests(record) for record in records} == expected


@pytest.mark.detectron2
def test_live__masks_and_targets_of_twenty_real_images(shared_data):
    import make_bitmask_fixture as reference

    for record in cases.records(shared_data / "coco"):
        assert digests(record) == reference.digests(record)


def test_mapper__leaves_out_what_has_no_mask_left(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    dot = np.zeros((6, 8), np.uint8, order="F")
    dot[2, 3] = 1  # nearest neighbours at half the size see rows 1, 3, 5 and columns 1, 3, ...
    square = np.zeros_like(dot)
    square[2:, 4:] = 1
    segmentations = [mask_api.encode(dot), mask_api.encode(square), []]
    boxes = [[3.0, 2.0, 4.0, 3.0], [4.0, 2.0, 8.0, 6.0], [0.0, 0.0, 2.0, 2.0]]
    annotations = [
        {"bbox": box, "category_id": number, "segmentation": segmentation}
        for number, (box, segmentation) in enumerate(zip(boxes, segmentations, strict=True))
    ]
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "height": 6, "width": 8}
    record["annotations"] = annotations
    mapper = TrainMapper((3,), 4, flip="none", mask_format="bitmask")
    item = mapper(record, np.random.default_rng(0))
    assert item["gt_classes"].tolist() == [1]
    assert mask_api.decode(item["gt_masks"][0]).tolist() == [[0] * 4, [0, 0, 1, 1], [0, 0, 1, 1]]
    plain = TrainMapper((3,), 4, flip="none")(record, np.random.default_rng(0))
    assert plain["gt_classes"].tolist() == [0, 1, 2] and "gt_masks" not in plain
