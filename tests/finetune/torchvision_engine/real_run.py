"""A detector trained in earnest, on twenty images of COCO val; the tests of what comes out share
it. Imports no Detectron2.
"""

from __future__ import annotations

import json
from pathlib import Path

from fvcore.common.config import CfgNode

from moco_transfer.config import load_detection_config
from moco_transfer.data import register_dataset

NAME = "coco_val_twenty"
CONFIG = "coco_R_18_FPN_small"


def write_subset(coco_folder: Path, target: Path, count: int = 20) -> Path:
    """Write the annotations of those images whose smallest object takes the largest share of the
    image's shorter edge.

    A detector on 160 px cannot be asked for objects of 3 px. Crowds are left out, and images with
    more than six objects.
    """
    content = json.loads((coco_folder / "annotations" / "instances_val2017.json").read_text())
    objects: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)

    def smallest(image: dict) -> float:
        sides = [
            min(a["bbox"][2:]) / min(image["height"], image["width"]) for a in objects[image["id"]]
        ]
        return (
            min(sides)
            if len(sides) <= 6 and not any(a["iscrowd"] for a in objects[image["id"]])
            else 0.0
        )

    images = sorted(
        (i for i in content["images"] if i["id"] in objects), key=smallest, reverse=True
    )[:count]
    kept = {image["id"] for image in images}
    annotations = [a for a in content["annotations"] if a["image_id"] in kept]
    target.write_text(
        json.dumps(
            {"images": images, "annotations": annotations, "categories": content["categories"]}
        )
    )
    return target


def run_words(coco_folder: Path, folder: Path, *more: str) -> list[str]:
    """Return the KEY VALUE words of the run, with its data set registered."""
    subset = folder / "twenty.json"
    if not subset.exists():
        write_subset(coco_folder, subset)
    register_dataset(NAME, "coco", json_file=str(subset), image_root=str(coco_folder / "val2017"))
    settings = f"""DATASETS.TRAIN ('{NAME}',) DATASETS.TEST ('{NAME}',) MODEL.MASK_ON True
        MODEL.DEVICE cpu SEED 0 INPUT.MIN_SIZE_TRAIN (160,) INPUT.RANDOM_FLIP none
        MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 64 SOLVER.BASE_LR 0.02 SOLVER.MAX_ITER 360
        SOLVER.STEPS (300,)
        SOLVER.CHECKPOINT_PERIOD 1000 SOLVER.CLIP_GRADIENTS.ENABLED True
        SOLVER.CLIP_GRADIENTS.CLIP_TYPE norm TEST.PRECISE_BN.NUM_ITER 10
        DATALOADER.NUM_WORKERS 0 OUTPUT_DIR {folder / "run"}"""
    return [word.replace(",", ", ") for word in settings.split()] + list(more)


def run_config(coco_folder: Path, folder: Path, *more: str) -> CfgNode:
    """Return the config of the run, with its data set registered."""
    return load_detection_config(CONFIG, run_words(coco_folder, folder, *more))
