"""Train configs for three iterations each on an engine, in one process; the tests look at what
each left behind.

    DETECTRON2_DATASETS=DATA python run_configs.py OUTPUT_FOLDER ENGINE CONFIG...

A config that fails leaves ``error.txt`` instead of results.json.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from moco_transfer.config import load_detection_config
from moco_transfer.data import register_dataset
from moco_transfer.data.annotations.catalog import datasets_root, get_dataset
from moco_transfer.data.annotations.voc import VOC_CLASSES
from moco_transfer.finetune.plan import Request, plan_finetuning
from moco_transfer.finetune.run import finetune

FEW = 3  # test images
CELLS = ("RBC", "WBC", "Platelets")
SMALL = """
    MODEL.DEVICE cpu SEED 0 DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (64,)
    INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TRAIN 96 INPUT.MAX_SIZE_TEST 96
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 MODEL.RPN.POST_NMS_TOPK_TEST 8 SOLVER.IMS_PER_BATCH 2
    SOLVER.REFERENCE_WORLD_SIZE 0 SOLVER.BASE_LR 0.0025 SOLVER.MAX_ITER 3 SOLVER.STEPS (2,)
    SOLVER.WARMUP_ITERS 1 TEST.PRECISE_BN.NUM_ITER 1
"""


def write_few(folder: Path) -> None:
    """Register test sets of a few images: few_voc, few_coco, few_people, few_lvis, few_cells
    and few_cityscapes; BCCD for training, as cells_train; and LVIS v1 as few_lvis_v1.
    """
    root = datasets_root()
    for name, source, split, classes in (
        ("few_voc", "VOC2007", "test", VOC_CLASSES),
        ("few_cells", "BCCD", "test", CELLS),
    ):
        place = folder / name
        (place / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        for part in ("JPEGImages", "Annotations"):
            if not (place / part).exists():
                (place / part).symlink_to(root / source / part)
        ids = (root / source / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        (place / "ImageSets" / "Main" / "few.txt").write_text("\n".join(ids[:FEW]) + "\n")
        register_dataset(name, "voc", root=str(place), split="few", class_names=classes, year=2007)
    register_dataset(
        "cells_train", "voc", root=str(root / "BCCD"), split="train", class_names=CELLS
    )
    for name, source in (("few_coco", "coco_2017_val"), ("few_people", "keypoints_coco_2017_val")):
        val = get_dataset(source)
        content = json.loads(Path(val.json_file).read_text())
        used = {a["image_id"] for a in content["annotations"] if a.get("num_keypoints", 1)}
        content["images"] = [image for image in content["images"] if image["id"] in used][:FEW]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        file = folder / f"{name}.json"
        file.write_text(json.dumps(content))
        register_dataset(name, "coco", json_file=str(file), image_root=val.image_root)
    for name, source in (("few_lvis", "lvis_v0.5_val"), ("few_lvis_v1", "lvis_v0.5_train")):
        of_lvis = get_dataset(source)
        content = json.loads(Path(of_lvis.json_file).read_text())
        content["images"] = content["images"][:FEW]
        kept = {image["id"] for image in content["images"]}
        last = 1203 if name == "few_lvis_v1" else 1230
        for key, field in (("annotations", "category_id"), ("categories", "id")):
            content[key] = [entry for entry in content[key] if entry[field] <= last]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        for image in content["images"]:
            del image["file_name"]  # v1 has none
        file = folder / f"{name}.json"
        file.write_text(json.dumps(content))
        register_dataset(name, "lvis", json_file=str(file), image_root=of_lvis.image_root)
    val = get_dataset("cityscapes_fine_instance_seg_val")
    for file in sorted(Path(val.image_root).glob("*/*"))[:FEW]:
        place = folder / "few_cityscapes" / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / file.name).symlink_to(file)
    images = folder / "few_cityscapes"
    register_dataset("few_cityscapes", "cityscapes", image_root=images, gt_root=val.root)


def train(name: str, engine: str, folder: Path) -> None:
    """Train one config on the data that it names, and evaluate it on a few images of the same
    kind.
    """
    own = not load_detection_config(name).DATASETS.TRAIN or name.startswith("demo")
    kinds = {
        "keypoint": "people",
        "lvis_v1": "lvis_v1",
        "lvis": "lvis",
        "coco": "coco",
        "cityscapes": "cityscapes",
        "voc": "voc",
    }
    kind = "cells" if own else next(kind for word, kind in kinds.items() if word in name)
    words = [
        *SMALL.split(),
        "MODEL.WEIGHTS",
        "",
        "OUTPUT_DIR",
        str(folder),
        "DATASETS.TEST",
        f"('few_{kind}',)",
    ]
    if own:
        words += ["DATASETS.TRAIN", "('cells_train',)", "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    if kind == "lvis_v1":
        words += ["DATASETS.TRAIN", "('few_lvis_v1',)"]
    finetune(plan_finetuning(Request(name, words, engine=engine, force=True)))


def main() -> None:
    """Train all that are named."""
    output = Path(sys.argv[1])
    output.mkdir(parents=True, exist_ok=True)
    write_few(output)
    for name in sys.argv[3:]:
        try:
            train(name, sys.argv[2], output / name)
        except Exception:
            (output / name).mkdir(exist_ok=True)
            (output / name / "error.txt").write_text(traceback.format_exc())
        for checkpoint in (output / name).glob("*.pth"):
            checkpoint.unlink()


if __name__ == "__main__":
    main()
