"""Images of COCO val with half of their masks run-length encoded, and what becomes of them as
bitmasks: on the changed image, and on a grid over boxes near each object. Imports no Detectron2.

    python tests/finetune/torchvision_engine/make_bitmask_fixture.py ../shared/data/coco

writes what Detectron2 makes of them to ``fixtures/bitmasks.json``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api

from moco_transfer.data.annotations.coco import read_coco
from moco_transfer.data.batches.transforms import ResizeAndFlip, resized_shape

SIZES, GRID, NUM_IMAGES = (144, 200), 14, 20
FLIPS = ("none", "horizontal", "vertical")


def records(coco_folder: Path) -> list[dict]:
    """Return images with at most eight objects, of which every second one is an RLE."""
    file = coco_folder / "annotations" / "instances_val2017.json"
    chosen = [
        record
        for record in read_coco(file, coco_folder / "val2017").records
        if 1 <= len(record["annotations"]) <= 8
    ][:NUM_IMAGES]
    for record in chosen:
        size = record["height"], record["width"]
        for annotation in record["annotations"][::2]:
            if isinstance(annotation["segmentation"], list):  # crowd regions have an RLE already
                parts = mask_api.frPyObjects(annotation["segmentation"], *size)
                annotation["segmentation"] = mask_api.merge(parts)
    return chosen


def changes(record: dict) -> Iterator[ResizeAndFlip]:
    """Yield each change of a record's image: smaller, and mirrored."""
    shape = record["height"], record["width"]
    for flip in FLIPS:
        yield ResizeAndFlip(
            shape, resized_shape(*shape, shorter_edge=SIZES[0], max_size=SIZES[1]), flip
        )


def near(boxes: np.ndarray, seed: int) -> np.ndarray:
    """Return three boxes for each (N, 4): itself, shifted and grown by up to a quarter of it."""
    rng = np.random.Generator(np.random.PCG64(seed))
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + rng.uniform(-0.25, 0.25, (2, *boxes.shape)) * sides
    return np.concatenate([boxes[None], moved]).astype(np.float32)


def digest(boxes: np.ndarray, masks: np.ndarray, targets: np.ndarray) -> list[int]:
    """Return the number of objects, of set pixels and of set cells, and checksums."""
    sums = [zlib.crc32(np.packbits(array.astype(bool)).tobytes()) for array in (masks, targets)]
    exact = zlib.crc32(boxes.astype(np.float32).tobytes())
    return [len(boxes), int(masks.sum()), int(targets.sum()), exact, *sums]
