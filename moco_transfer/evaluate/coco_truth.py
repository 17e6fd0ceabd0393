"""Ground truth in the form that pycocotools takes: a COCO file as it is, or any other data set's
records converted.

Source:
    The conversion follows detectron2/data/datasets/coco.py convert_to_coco_dict, so that COCO-style
    AP on a VOC data set is Detectron2's; like there, VOC's difficult objects count as ordinary
    ones.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ..data.annotations.catalog import DetectionDataset
from ..data.annotations.coco import load_json
from ..runtime.errors import InputError

logger = logging.getLogger(__name__)


def coco_truth(dataset: DetectionDataset) -> dict:
    """Return a data set's ground truth as the content of a COCO json file.

    Fields that pycocotools needs and home-made files often lack (``iscrowd``, ``area``, ids from 1)
    are filled in: it takes an object with id 0 as never found.

    Raises:
        InputError: If the data set has no annotations to evaluate against.
    """
    if not dataset.has_ground_truth or not any(record["annotations"] for record in dataset.records):
        raise InputError(
            f"Data set {dataset.name!r} has no ground truth: its {len(dataset.records)} images"
            " hold no annotation, so no AP can be computed; test on a split with annotations."
        )
    truth = load_json(Path(dataset.json_file)) if dataset.json_file else _from_records(dataset)
    truth.setdefault("info", {})
    for annotation in truth["annotations"]:
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    if any(not annotation.get("id") for annotation in truth["annotations"]):
        logger.warning(
            "%s: an annotation has id 0 or none, which pycocotools takes as not found; annotations"
            " are numbered from 1 here.",
            dataset.name,
        )
        for number, annotation in enumerate(truth["annotations"], start=1):
            annotation["id"] = number
    return truth


def number_images(truth: dict, results: list[dict]) -> list[dict]:
    """Give images with ids that are text, such as VOC's, numbers in the order of the ids:
    faster-coco-eval takes no text.

    Args:
        truth: Content of a COCO file; changed in place.
        results: COCO results; left as they are.

    Returns:
        The results with the new ids, or the same list where the ids are numbers.
    """
    if not any(isinstance(image["id"], str) for image in truth["images"]):
        return results
    number_of = {
        image_id: number
        for number, image_id in enumerate(sorted(image["id"] for image in truth["images"]), start=1)
    }
    for image in truth["images"]:
        image["id"] = number_of[image["id"]]
    for annotation in truth["annotations"]:
        annotation["image_id"] = number_of[annotation["image_id"]]
    return [{**result, "image_id": number_of[result["image_id"]]} for result in results]


def _from_records(dataset: DetectionDataset) -> dict:
    images = [
        {key: record[key] for key in ("height", "width", "file_name")} | {"id": record["image_id"]}
        for record in dataset.records
    ]
    annotations = []
    for record in dataset.records:
        for annotation in record["annotations"]:
            x0, y0, x1, y1 = annotation["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record["image_id"],
                    "category_id": dataset.category_ids[annotation["category_id"]],
                    "bbox": [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": annotation.get("iscrowd", 0),
                }
            )
    categories = [
        {"id": i, "name": name}
        for i, name in zip(dataset.category_ids, dataset.class_names, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
