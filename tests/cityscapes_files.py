"""A small split in Cityscapes' layout, and Detectron2's reader of it.

    python tests/cityscapes_files.py

writes data/fixtures/detectron2_cityscapes.json: what Detectron2 with shapely 2.2.0 reads from the
split's polygons and from its ids (facebookresearch/detectron2@02b5c4e2), for machines without it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

FIXTURE = Path(__file__).parent / "data" / "fixtures" / "detectron2_cityscapes.json"
STEM = "town_000000_000019"
SIZE = (60, 40)  # width, height
# Label, id in the PNG and polygon, from the back to the front.
OBJECTS = (
    ("road", 7, [(0, 20), (59, 20), (59, 39), (0, 39)]),
    ("car", 26000, [(5, 10), (40, 10), (40, 30), (5, 30)]),
    ("persongroup", 24, [(45, 5), (55, 5), (55, 20), (45, 20)]),
    ("caravan", 29000, [(1, 1), (4, 1), (4, 8), (1, 8)]),
    ("truck", 27000, [(30, 2), (36, 2), (36, 6), (30, 6)]),
    ("static", 4, [(30, 2), (36, 2), (36, 6), (30, 6)]),  # hides the truck
    ("license plate", None, [(6, 28), (10, 28), (10, 29), (6, 29)]),  # never drawn
    ("rider", 25000, [(20, 5), (24, 5), (24, 35), (20, 35)]),  # cuts the car in two
    ("bicycle", 33000, [(19, 33), (26, 31), (28, 38), (18, 37)]),
)


def write_split(folder: Path, *, count: int = 1) -> tuple[Path, Path]:
    """Write images of the same objects, with their files; return the folders of images and of
    ground truth.
    """
    ids = Image.fromarray(np.zeros(SIZE[::-1], np.uint16))
    for _, one, polygon in OBJECTS:
        if one is not None:
            ImageDraw.Draw(ids).polygon(polygon, fill=one)
    labels = np.asarray(ids)
    labels = np.where(labels >= 1000, labels // 1000, labels).astype(np.uint8)
    objects = [{"label": label, "polygon": polygon} for label, _, polygon in OBJECTS]
    content = {"imgHeight": SIZE[1], "imgWidth": SIZE[0], "objects": objects}
    images, truth = folder / "leftImg8bit", folder / "gtFine"
    for root in (images, truth):
        (root / "town").mkdir(parents=True)
    for number in range(count):
        stem = STEM.replace("000000", f"{number:06d}")
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(images / "town" / f"{stem}_leftImg8bit.png")
        ids.save(truth / "town" / f"{stem}_gtFine_instanceIds.png")
        Image.fromarray(labels).save(truth / "town" / f"{stem}_gtFine_labelIds.png")
        (truth / "town" / f"{stem}_gtFine_polygons.json").write_text(json.dumps(content))
    return images, truth


def detectron2_objects(images: Path, truth: Path, masks: str, patch) -> dict[str, list[dict]]:
    """Return the annotations of each image by Detectron2's reader, which finds cityscapesscripts
    where its main branch looks for it (issue 5436).
    """
    import cityscapesscripts.helpers.labels as labels
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances

    internal = "deeplearning.projects.cityscapesApi.cityscapesscripts.helpers"
    parts = internal.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        patch.setitem(sys.modules, name, types.ModuleType(name))
    patch.setitem(sys.modules, f"{internal}.labels", labels)
    of_ids = {"from_json": False, "to_polygons": False} if masks == "instanceIds" else {}
    found = load_cityscapes_instances(str(images), str(truth), **of_ids)
    return {record["image_id"]: [_plain(a) for a in record["annotations"]] for record in found}


def _plain(annotation: dict) -> dict:
    mask = annotation["segmentation"]
    if isinstance(mask, dict):
        mask = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
    box = [float(value) for value in annotation["bbox"]]
    of_class = {key: int(annotation[key]) for key in ("category_id", "iscrowd")}
    return {"bbox": box, **of_class, "segmentation": mask}


def main() -> None:
    """Write the fixture."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        places = write_split(Path(folder))
        read = {}
        for masks in ("instanceIds", "polygons"):
            (read[masks],) = detectron2_objects(*places, masks, patch).values()
    FIXTURE.parent.mkdir(exist_ok=True)
    FIXTURE.write_text(json.dumps(read) + "\n")


if __name__ == "__main__":
    main()
