"""A test set whose records are given in the test, so that no image has to be written."""

from __future__ import annotations

import json

import pytest
import torch
from detectron2_numbers import box_masks

from moco_transfer.data.annotations.catalog import DetectionDataset
from moco_transfer.data.annotations.records import Contents

SIZE = 100  # px, both sides of every image


def _records(truth):
    """``truth`` is {image id: [(class, [x0, y0, x1, y1], difficult or crowd)]}, 0-based."""
    return [
        {
            "file_name": f"{image_id}.jpg",
            "image_id": image_id,
            "height": SIZE,
            "width": SIZE,
            "annotations": [
                {
                    "bbox": list(map(float, box)),
                    "category_id": c,
                    "iscrowd": 0,
                    "difficult": int(odd),
                }
                for c, box, odd in objects
            ],
        }
        for image_id, objects in truth.items()
    ]


@pytest.fixture
def voc_dataset():
    """Return a function (truth, class names, year) -> data set."""

    def make(truth, class_names, year=2012):
        names = tuple(class_names)
        dataset = DetectionDataset("made", "voc", "nowhere", classes=names, year=year)
        contents = Contents(_records(truth), names, tuple(range(len(names))))
        dataset.__dict__["_contents"] = contents  # instead of reading files
        return dataset

    return make


@pytest.fixture
def coco_dataset(tmp_path):
    """Return a function (truth, class names, category ids) -> data set with a json file."""

    def make(truth, class_names, category_ids, **fields):
        records = _records(truth)
        annotations = []
        for record in records:
            for a in record["annotations"]:
                a["iscrowd"] = a.pop("difficult")
                x0, y0, x1, y1 = a["bbox"]
                polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
                a["segmentation"] = polygon
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record["image_id"],
                        "category_id": category_ids[a["category_id"]],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": a["iscrowd"],
                        "segmentation": polygon,
                        **fields,
                    }
                )
        images = [
            {"id": r["image_id"], "file_name": r["file_name"], "height": SIZE, "width": SIZE}
            for r in records
        ]
        categories = [
            {"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)
        ]
        path = tmp_path / "truth.json"
        path.write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
        dataset = DetectionDataset("made", "coco", "nowhere", str(path))
        dataset.__dict__["_contents"] = Contents(records, tuple(class_names), tuple(category_ids))
        return dataset

    return make


@pytest.fixture
def as_output():
    """Return a function that makes a model's output from [(class, score, [x0, y0, x1, y1])]."""

    def make(detections):
        return {
            "boxes": (
                torch.tensor([box for _, _, box in detections], dtype=torch.float32).reshape(-1, 4)
            ),
            "scores": torch.tensor([score for _, score, _ in detections], dtype=torch.float32),
            "classes": torch.tensor([c for c, _, _ in detections], dtype=torch.int64),
        }

    return make


@pytest.fixture
def as_outputs(as_output):
    """Return a function that makes outputs by image id from drawn detections, with masks that fill
    the boxes if asked.
    """

    def make(detections, masks=False):
        outputs = {image_id: as_output(found) for image_id, found in detections.items()}
        if masks:
            for output in outputs.values():
                output["masks"] = box_masks(output["boxes"])
        return outputs

    return make


@pytest.fixture
def run():
    """Return a function (evaluator, {image id: output}) -> metrics of its first task."""

    def evaluate(evaluator, outputs):
        for image_id, output in outputs.items():
            evaluator.process([{"image_id": image_id}], [output])
        return evaluator.evaluate()

    return evaluate
