"""Detectors trained in earnest, on twenty images of COCO each: for masks and for keypoints.
The tests of what comes out share them. Imports no Detectron2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fvcore.common.config import CfgNode

from moco_transfer.config import load_detection_config
from moco_transfer.data import register_dataset

_SHARED = """MODEL.DEVICE cpu SEED 0 INPUT.RANDOM_FLIP none SOLVER.BASE_LR 0.02
    SOLVER.CHECKPOINT_PERIOD 1000 SOLVER.CLIP_GRADIENTS.ENABLED True
    SOLVER.CLIP_GRADIENTS.CLIP_TYPE norm TEST.PRECISE_BN.NUM_ITER 10 DATALOADER.NUM_WORKERS 0"""


@dataclass(frozen=True)
class RealRun:
    """A run on twenty images of files of COCO, such as "instances_val2017".

    Attributes:
        head: The metric next to ``bbox``.
        least: Labelled keypoints that each object has at least, all of them in its box.
    """

    head: str
    config: str
    files: tuple[str, ...]
    settings: str
    least: int = 0

    @property
    def name(self) -> str:
        """Of the data set."""
        return f"coco_twenty_{self.head}"

    def words(self, coco_folder: Path, folder: Path, *more: str) -> list[str]:
        """Return the KEY VALUE words of the run, with its data set registered."""
        subset = folder / "twenty.json"
        if not subset.exists():
            self.write_subset(coco_folder, subset)
        register_dataset(self.name, "coco", json_file=str(subset), image_root=str(coco_folder))
        settings = f"""DATASETS.TRAIN ('{self.name}',) DATASETS.TEST ('{self.name}',) {_SHARED}
            {self.settings} OUTPUT_DIR {folder / "run"}"""
        return [word.replace(",", ", ") for word in settings.split()] + list(more)

    def run_config(self, coco_folder: Path, folder: Path, *more: str) -> CfgNode:
        """Return the config of the run, with its data set registered."""
        return load_detection_config(self.config, self.words(coco_folder, folder, *more))

    def write_subset(self, coco_folder: Path, target: Path, count: int = 20) -> None:
        """Write the annotations of those images whose smallest object takes the largest share of
        the image's shorter edge.

        A detector on 160 px cannot be asked for objects of 3 px, and none finds keypoints outside
        its boxes. Crowds are left out, and images with more than six objects.
        """
        images: list[dict] = []
        objects: dict[int, list[dict]] = {}
        for name in self.files:
            content = json.loads((coco_folder / "annotations" / f"{name}.json").read_text())
            for annotation in content["annotations"]:
                objects.setdefault(annotation["image_id"], []).append(annotation)
            folder = name.rpartition("_")[2]
            images += [i | {"file_name": f"{folder}/{i['file_name']}"} for i in content["images"]]

        def smallest(image: dict) -> float:
            of_image, edge = objects[image["id"]], min(image["height"], image["width"])
            few = len(of_image) <= 6 and not any(a["iscrowd"] for a in of_image)
            enough = all(keypoints_in_box(a) >= self.least for a in of_image)
            return min(min(a["bbox"][2:]) / edge for a in of_image) if few and enough else 0.0

        images = sorted((i for i in images if i["id"] in objects), key=smallest, reverse=True)
        kept = images[:count]
        annotations = [a for image in kept for a in objects[image["id"]]]
        subset = {"images": kept, "annotations": annotations}
        target.write_text(json.dumps(subset | {"categories": content["categories"]}))


def keypoints_in_box(annotation: dict) -> int:
    """Return how many labelled keypoints an object has; 0 if one of them lies outside its box."""
    x0, y0, width, height = annotation["bbox"]
    points = annotation.get("keypoints", [])
    labelled = [
        (x + 0.5 - x0, y + 0.5 - y0)
        for x, y, v in zip(points[::3], points[1::3], points[2::3], strict=True)
        if v
    ]
    inside = all(0 <= x <= width and 0 <= y <= height for x, y in labelled)
    return len(labelled) if inside else 0


MASKS = RealRun(
    "segm",
    "coco_R_18_FPN_small",
    ("instances_val2017",),
    """MODEL.MASK_ON True INPUT.MIN_SIZE_TRAIN (160,) MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 64
    SOLVER.MAX_ITER 360 SOLVER.STEPS (300,)""",
)
KEYPOINTS = RealRun(
    "keypoints",
    "coco_keypoint_R_18_FPN_320px",
    ("person_keypoints_train2017", "person_keypoints_val2017"),
    """INPUT.MIN_SIZE_TRAIN (128,) INPUT.MIN_SIZE_TEST 128 INPUT.MAX_SIZE_TRAIN 320
    INPUT.MAX_SIZE_TEST 320 MODEL.FPN.OUT_CHANNELS 64 MODEL.RPN.BATCH_SIZE_PER_IMAGE 64
    MODEL.RPN.POST_NMS_TOPK_TRAIN 100 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16
    MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS (128,128) SOLVER.MAX_ITER 480 SOLVER.STEPS (400,)""",
    least=3,
)
