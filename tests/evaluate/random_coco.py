"""Random test sets in COCO's format with everything that makes evaluators differ: tied scores,
crowds, images without objects or detections, one class, more detections than count.
"""

from __future__ import annotations

import json

import numpy as np
from pycocotools import mask as mask_api

from moco_transfer.data.annotations.catalog import DetectionDataset
from moco_transfer.data.annotations.coco import read_coco

NUM_POINTS = 17


def draw_coco(seed: int) -> tuple[dict, list[dict]]:
    """Return the content of a json file, and results with boxes, masks and keypoints."""
    rng = np.random.default_rng(seed)
    num_classes = int(rng.choice([1, 1, 2, 5]))
    category_ids = sorted(rng.choice(np.arange(1, 91), num_classes, replace=False).tolist())
    side = int(rng.choice([60, 320]))
    images = [
        {"id": int(i), "file_name": f"{i}.jpg", "height": side, "width": side + 7}
        for i in rng.choice(1000, int(rng.integers(1, 9)), replace=False)
    ]
    ties, crowds = rng.random() < 0.5, rng.choice([0, 0.2, 0.6])
    annotations: list[dict] = []
    results: list[dict] = []
    for image in images:
        for _ in range(int(rng.choice([0, 1, 4, 8]))):
            crowd = bool(rng.random() < crowds)
            thing = _object(rng, image, int(rng.choice(category_ids)), crowd)
            annotations.append({"id": len(annotations) + 1, **thing})
            for _ in range(int(rng.choice([0, 1, 2, 40], p=[0.2, 0.4, 0.35, 0.05]))):
                results.append(_detection(rng, image, thing, category_ids, ties))
        for _ in range(int(rng.choice([0, 3, 150], p=[0.5, 0.47, 0.03]))):
            guess = _object(rng, image, int(rng.choice(category_ids)), False)
            results.append(_detection(rng, image, guess, category_ids, ties))
    names = [f"point{i}" for i in range(NUM_POINTS)]
    categories = [{"id": c, "name": f"class{c}", "keypoints": names} for c in category_ids]
    rng.shuffle(results)  # type: ignore[arg-type]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _object(rng, image: dict, category_id: int, crowd: bool) -> dict:
    height, width = image["height"], image["width"]
    whole = rng.random() < 0.5
    w, h = rng.uniform(3, width - 4), rng.uniform(3, height - 4)
    if rng.random() < 0.5:
        w, h = w / 6 + 1, h / 6 + 1
    box = [rng.uniform(0, width - w), rng.uniform(0, height - h), w, h]
    x, y, w, h = (max(float(round(v, 0 if whole else 2)), 0.0) for v in box)
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
    points = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], axis=1)
    polygon = [points.round(2).reshape(-1).tolist()]
    encoded = mask_api.merge(mask_api.frPyObjects(polygon, height, width))
    segmentation: object = polygon
    if crowd or rng.random() < 0.1:
        compressed = {"size": [height, width], "counts": encoded["counts"].decode()}
        segmentation = compressed if rng.random() < 0.5 else _uncompressed(encoded)
    keypoints = np.stack(
        [
            rng.integers(int(x), int(x + w) + 1, NUM_POINTS),
            rng.integers(int(y), int(y + h) + 1, NUM_POINTS),
            rng.choice([0, 1, 2], NUM_POINTS) * (rng.random() < 0.8),
        ],
        axis=1,
    )
    keypoints[keypoints[:, 2] == 0] = 0
    thing = {"image_id": image["id"], "category_id": category_id, "bbox": [x, y, w, h]}
    thing |= {"iscrowd": int(crowd), "segmentation": segmentation}
    thing |= {"area": float(mask_api.area(encoded)) if rng.random() < 0.7 else w * h}
    return thing | {
        "keypoints": keypoints.reshape(-1).tolist(),
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
    }


def _uncompressed(encoded: dict) -> dict:
    flat = mask_api.decode(encoded).reshape(-1, order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    lengths = np.diff(changes, prepend=0).tolist()
    return {"size": list(encoded["size"]), "counts": [int(length) for length in lengths]}


def _detection(rng, image: dict, thing: dict, category_ids: list[int], ties: bool) -> dict:
    """Return a shifted object, of another class at times, as a detector gives it: float32."""
    height, width = image["height"], image["width"]
    spread = rng.choice([0, 0.5, 3, 12])
    box = np.asarray(thing["bbox"], float) + rng.normal(0, spread, 4)
    box[2:] = np.maximum(box[2:], 1)
    shift = rng.integers(-3, 4, 2) * (spread > 0)
    mask = mask_api.decode(_compressed(thing["segmentation"], height, width))
    mask = np.asfortranarray(np.roll(mask, shift, axis=(0, 1)))
    points = np.array(thing["keypoints"], float).reshape(-1, 3)
    points[:, :2] += rng.normal(0, spread, (NUM_POINTS, 2))
    points[:, 2] = rng.random(NUM_POINTS)
    other = rng.random() < 0.1
    encoded = mask_api.encode(mask)
    return {
        "image_id": image["id"],
        "category_id": int(rng.choice(category_ids)) if other else thing["category_id"],
        "bbox": box.astype(np.float32).tolist(),
        "score": float(np.float32(rng.choice([0.1, 0.5, 0.9]) if ties else rng.random())),
        "segmentation": {"size": [height, width], "counts": encoded["counts"].decode()},
        "keypoints": points.astype(np.float32).reshape(-1).tolist(),
    }


def _compressed(segmentation, height: int, width: int) -> dict:
    if isinstance(segmentation, list):
        return mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_api.frPyObjects(segmentation, height, width)
    return segmentation


def read_without_images(content: dict, folder) -> DetectionDataset:
    """Write the content into the folder, and read it, though its images are nowhere."""
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    dataset = DetectionDataset("drawn", "coco", str(folder), str(path))

    def ignore(problem: Exception) -> None:
        assert "do not exist" in str(problem), problem

    dataset.__dict__["_contents"] = read_coco(path, folder, on_problem=ignore)
    return dataset
