"""A folder in which the commands of README and docs find what they name, small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

CELLS = ("RBC", "WBC", "Platelets")


@pytest.fixture(scope="module")
def world(tmp_path_factory, repository) -> Path:
    """The working folder: images, data sets, a checkpoint of MoCo, records of runs."""
    import torch
    import torchvision
    from generated_images import write_pool

    root = tmp_path_factory.mktemp("world")
    write_pool(root / "images", count=64, size=40, seed=0)
    for split in ("train", "test"):
        write_pool(root / "labelled" / split, count=16, size=40, seed=1)
    _write_voc(root / "BCCD", CELLS, ("train", "test"))
    for year in (2007, 2012):
        _write_voc(root / f"VOC{year}", ("cat", "dog"), ("trainval", "test"))
    image = next((root / "images").rglob("*.jpg")).relative_to(root / "images")
    coco = {
        "images": [{"id": 1, "file_name": str(image), "width": 40, "height": 40}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400}
            | {"iscrowd": 0}
        ],
    }
    (root / "annotations.json").write_text(json.dumps(coco))
    coco["categories"][0]["keypoints"] = ["beak", "left_wing", "right_wing"]
    coco["annotations"][0]["keypoints"] = [9, 9, 2, 15, 15, 2, 20, 20, 1]
    (root / "birds.json").write_text(json.dumps(coco))

    weights = torchvision.models.resnet18(num_classes=128).state_dict()
    state = {f"module.encoder_{e}.{key}": value for e in "qk" for key, value in weights.items()}
    (root / "out" / "moco").mkdir(parents=True)
    checkpoint = {"arch": "resnet18", "epoch": 12, "state_dict": state}
    torch.save(checkpoint, root / "out" / "moco" / "checkpoint_0012.pth")

    for page in ("README.md", "docs/engines.md", "docs/tables.md"):
        (root / page).parent.mkdir(exist_ok=True)
        shutil.copy(repository / page, root / page)
    shutil.copytree(repository / "docs" / "results", root / "docs" / "results")
    shutil.copytree(root / "docs" / "results" / "cells", root / "docs" / "results" / "bccd")
    shutil.copytree(repository / "docs" / "results" / "voc", root / "out" / "voc")
    shutil.copytree(repository / "docs" / "results" / "cells", root / "runs" / "bccd")
    return root


def _write_voc(root: Path, classes: tuple[str, ...], splits: tuple[str, ...]) -> None:
    """Write four images a split, with one box each."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number, split in enumerate(splits):
        names = [f"{number}{i:05d}" for i in range(4)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            Image.new("RGB", (64, 48), (40 * i, 80, 120 + number)).save(
                root / "JPEGImages" / f"{name}.jpg"
            )
            (root / "Annotations" / f"{name}.xml").write_text(
                f"<annotation><filename>{name}.jpg</filename><size><width>64</width>"
                f"<height>48</height><depth>3</depth></size><object><name>"
                f"{classes[i % len(classes)]}</name><difficult>0</difficult><bndbox><xmin>5</xmin>"
                f"<ymin>5</ymin><xmax>30</xmax><ymax>{30 + i}</ymax></bndbox></object></annotation>"
            )
