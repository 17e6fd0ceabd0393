"""Random detections on test sets in LVIS's format, and small random test sets, with all that makes
evaluators of LVIS differ: negative and not-exhaustive classes, other classes, more than 300
detections an image, tied scores, boxes and masks without area, images without detections.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api

from moco_transfer.data.annotations.catalog import DetectionDataset
from moco_transfer.data.annotations.coco import read_coco

# lvis-api's names of the thirteen numbers, and ours.
NUMBERS = {
    **{name: name for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")},
    **{"AR@300": "AR300", "ARs@300": "ARs", "ARm@300": "ARm", "ARl@300": "ARl"},
}


def draw_lvis(seed: int) -> dict:
    """Return the content of a json file of LVIS: 6 images, 12 classes."""
    rng = np.random.default_rng([1, seed])
    categories = [
        {"id": i, "name": f"class{i}", "frequency": str(rng.choice([*"rcf"])), "image_count": 1}
        for i in range(1, 13)
    ]
    images, annotations = [], []
    for number in range(6):
        size = {"height": int(rng.integers(60, 300)), "width": int(rng.integers(60, 300))}
        held = rng.choice(np.arange(1, 13), 8, replace=False).tolist()
        url = f"http://host/val2017/{number:012d}.jpg"
        lists = {"neg_category_ids": held[:3], "not_exhaustive_category_ids": held[3:5]}
        images.append({"id": 100 - number, "coco_url": url, **size, **lists})
        for _ in range(int(rng.integers(0, 9))):
            box = _corners(rng, images[-1], None, 0)
            width, height = box[2] - box[0], box[3] - box[1]
            polygon = _outline(rng, box)
            thing = {"id": len(annotations) + 1, "image_id": 100 - number}
            thing |= {"category_id": int(rng.choice(held[3:])), "area": width * height}
            thing |= {"bbox": [box[0], box[1], width, height], "segmentation": [polygon]}
            annotations.append(thing)
    return {"images": images, "annotations": annotations, "categories": categories}


def draw_results(content: dict, seed: int, num_images: int | None = None) -> tuple[list, list]:
    """Return detections with boxes and masks, and the ids of the images that they are on, all or
    ``num_images`` by chance.
    """
    rng = np.random.default_rng([2, seed])
    images = sorted(content["images"], key=lambda image: image["id"])
    if num_images is not None:
        chosen = rng.choice(len(images), num_images, replace=False)
        images = [images[i] for i in sorted(chosen)]
    truth = defaultdict(list)
    for annotation in content["annotations"]:
        truth[annotation["image_id"]].append(annotation)
    all_ids = [category["id"] for category in content["categories"]]
    crowded, empty = rng.choice(len(images), 2, replace=False)
    digits, share, spread = rng.integers(1, 5), rng.uniform(0.2, 1), rng.uniform(0.02, 0.3)
    results = []
    for number, image in enumerate(images):
        objects = truth[image["id"]] if number != empty else []
        wanted = [(a, a["category_id"]) for a in objects * 2 if rng.random() < share / 1.5]
        more = int(rng.integers(0, 8)) * int(number != empty)
        more += int(rng.integers(310, 380)) * int(number == crowded)
        pools = [[a["category_id"] for a in objects], image["neg_category_ids"]]
        pools += [image["not_exhaustive_category_ids"], all_ids]
        pools = [pool for pool in pools if pool]
        near = (
            [objects[i] for i in rng.integers(0, len(objects), more)] if objects else [None] * more
        )
        wanted += [(a if rng.random() < 0.4 else None, None) for a in near]
        for near_to, category in wanted:
            if category is None or rng.random() < 0.2:
                category = int(rng.choice(pools[rng.integers(len(pools))]))
            found = _detection(rng, image, near_to, spread)
            score = round(float(rng.random()), int(digits))
            results.append({"category_id": category, "score": score, **found})
    order = rng.permutation(len(results)) if seed % 2 else range(len(results))
    return [results[i] for i in order], [image["id"] for image in images]


def _detection(rng, image: dict, near_to: dict | None, spread: float) -> dict:
    height, width = image["height"], image["width"]
    box = _corners(rng, image, near_to, spread)
    if rng.random() < 0.01:
        box[2] = box[0]
    corners = np.array(box, np.float32)
    sizes = corners[2:] - corners[:2]
    mask = {"size": [height, width], "counts": [height * width]}  # without a pixel
    if rng.random() > 0.03 and sizes.min() > 0:
        mask = mask_api.frPyObjects([_outline(rng, box)], height, width)[0]
    else:
        mask = mask_api.frPyObjects(mask, height, width)
    counts = mask["counts"].decode()
    return {
        "image_id": image["id"],
        "bbox": [*corners[:2].tolist(), *sizes.tolist()],
        "segmentation": {"size": [height, width], "counts": counts},
    }


def _corners(rng, image: dict, near_to: dict | None, spread: float) -> list[float]:
    height, width = image["height"], image["width"]
    if near_to is None:
        x, y = rng.random() * width * 0.9, rng.random() * height * 0.9
        w, h = rng.random() * (width - x), rng.random() * (height - y)
    else:
        x, y, w, h = near_to["bbox"]
        x, y = x + rng.normal() * spread * w, y + rng.normal() * spread * h
        w, h = w * np.exp(rng.normal() * spread), h * np.exp(rng.normal() * spread)
    x0, y0 = min(max(x, 0.0), width - 1), min(max(y, 0.0), height - 1)
    corners = [x0, y0, max(min(x + w, width), x0 + 1), max(min(y + h, height), y0 + 1)]
    return [round(float(v), 2) for v in corners]


def _outline(rng, box: list[float]) -> list[float]:
    """Return a polygon: the box, at times without a quarter."""
    x0, y0, x1, y1 = box
    if rng.random() < 0.5:
        return [x0, y0, x1, y0, x1, y1, x0, y1]
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return [x0, y0, x, y0, x, y, x1, y, x1, y1, x0, y1]


def read_without_images(content: dict, folder: Path) -> DetectionDataset:
    """Write the content into the folder, and read it, though its images are nowhere."""
    file = folder / "lvis.json"
    file.write_text(json.dumps(content))
    dataset = DetectionDataset("drawn", "lvis", str(folder), str(file))

    def ignore(problem: Exception) -> None:
        assert "do not exist" in str(problem), problem

    dataset.__dict__["_contents"] = read_coco(file, folder, lvis=True, on_problem=ignore)
    return dataset
