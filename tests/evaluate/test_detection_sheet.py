"""The sheet of detections: known pixels where boxes must be drawn, and what is refused.

Seen red under: drawing the lowest scores; taking category ids for contiguous ones.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from moco_transfer.data.annotations.catalog import get_dataset, register_dataset
from moco_transfer.data.drawing import CELL, GAP, class_colour
from moco_transfer.evaluate.detection_sheet import draw_detection_sheet, first_images
from moco_transfer.runtime.errors import InputError

NAMES = [f"class {i}" for i in range(12)]


@pytest.fixture
def dataset(tmp_path, request):
    """A COCO set of three grey images, 80 x 80: two objects of classes 0 and 5, none, one of
    class 1; category ids from 100 on.
    """
    name = f"sheet_{abs(hash(request.node.name))}"
    images = [{"id": i, "file_name": f"{i}.png", "width": 80, "height": 80} for i in (7, 8, 9)]
    for image in images:
        Image.new("RGB", (80, 80), (100, 100, 100)).save(tmp_path / image["file_name"])
    objects = [(7, 0, [10, 10, 20, 30]), (7, 5, [50, 50, 20, 20]), (9, 1, [5, 5, 10, 10])]
    annotations = [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": 100 + index,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for i, (image, index, box) in enumerate(objects)
    ]
    categories = [{"id": 100 + i, "name": name} for i, name in enumerate(NAMES)]
    (tmp_path / "set.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    register_dataset(name, "coco", json_file=tmp_path / "set.json", image_root=tmp_path)
    return get_dataset(name)


def _found(image, index, box, score):
    return {"image_id": image, "category_id": 100 + index, "bbox": box, "score": score}


def test_detection_sheet__draws_the_highest_scores_as_many_as_there_are_objects(dataset, tmp_path):
    predictions = [
        _found(7, 5, [50.0, 10.0, 20.0, 20.0], 0.3),
        _found(7, 0, [10.0, 10.0, 20.0, 30.0], 0.9),
        _found(9, 1, [0, 0, 9, 9], 1.0),
        _found(7, 5, [10.0, 60.0, 10.0, 10.0], 0.2),  # not drawn: there are two objects
    ]
    sheet = draw_detection_sheet(tmp_path / "s.png", dataset, {"a": predictions}, image_ids=[7])
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    scale, left, top = CELL // 80, GAP + CELL + GAP, 28
    assert tuple(pixels[top + 25 * scale, GAP + 10 * scale]) == class_colour(0)  # ground truth
    assert tuple(pixels[top + 65 * scale, GAP + 50 * scale]) == class_colour(5)
    assert tuple(pixels[top + 25 * scale, left + 10 * scale]) == class_colour(0)
    assert tuple(pixels[top + 20 * scale, left + 50 * scale]) == class_colour(5)
    assert (pixels[top + 65 * scale, left : left + CELL] == 100).all()
    texts = (tmp_path / "s.svg").read_text(encoding="utf-8")
    assert ">ground truth<" in texts and ">a (highest scores)<" in texts


def test_first_images__have_objects(dataset):
    assert first_images(dataset) == [7, 9]
    assert first_images(dataset, 1) == [7]


def test_detection_sheet__refuses(dataset, tmp_path):
    with pytest.raises(InputError, match="has no image 5 to show; it has 3"):
        draw_detection_sheet(tmp_path / "s.png", dataset, {}, image_ids=[7, 5])
    with pytest.raises(InputError, match="a: a prediction has category 3"):
        draw_detection_sheet(
            tmp_path / "s.png",
            dataset,
            {"a": [{**_found(7, 0, [0, 0, 1, 1], 1.0), "category_id": 3}]},
            image_ids=[7],
        )
    (tmp_path / "7.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"7.png cannot be decoded"):
        draw_detection_sheet(tmp_path / "s.png", dataset, {}, image_ids=[7])
    assert not (tmp_path / "s.png").exists()


def test_detection_sheet__keypoints_of_objects_and_predictions(tmp_path):
    Image.new("RGB", (80, 80), (100, 100, 100)).save(tmp_path / "7.png")
    image = {"id": 7, "file_name": "7.png", "width": 80, "height": 80}
    truth = {"id": 1, "image_id": 7, "category_id": 100, "bbox": [10, 10, 60, 60], "iscrowd": 0}
    truth["keypoints"] = [20, 50, 2, 60, 50, 2]
    category = {"id": 100, "name": "a", "keypoints": ["l", "r"], "skeleton": [[1, 2]]}
    content = {"images": [image], "annotations": [truth], "categories": [category]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    name = f"sheet_{tmp_path.name}"
    register_dataset(name, "coco", json_file=tmp_path / "set.json", image_root=tmp_path)
    found = _found(7, 0, [10.0, 10.0, 60.0, 60.0], 0.9) | {"keypoints": [20, 60, 0.7, 60, 60, 0.7]}
    columns = {"a": [found], "b": [_found(7, 0, [10.0, 10.0, 60.0, 60.0], 0.9)]}
    sheet = tmp_path / "s.png"
    draw_detection_sheet(sheet, get_dataset(name), columns, image_ids=[7])
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    scale, lefts = CELL / 80, [GAP + column * (CELL + GAP) for column in range(3)]
    rows = [28 + round(y * scale) for y in (50.5, 60.5)]
    middle = [left + round(40 * scale) for left in lefts]
    assert tuple(pixels[rows[0], middle[0]]) == class_colour(0)  # ground truth's line
    assert tuple(pixels[rows[1], middle[1]]) == class_colour(0)
    assert (pixels[rows, middle[2]] == 100).all()
