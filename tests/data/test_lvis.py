"""LVIS's format: where its images are, its lists and frequencies; what is refused.

Seen red under: file_name preferred to coco_url; lists left out; frequencies in the file's order;
the frequency not checked.
"""

from __future__ import annotations

import json

import pytest
from PIL import Image

from moco_transfer.data.annotations import catalog
from moco_transfer.data.annotations.catalog import get_dataset, parse_dataset_flag
from moco_transfer.data.annotations.check import check_dataset
from moco_transfer.data.annotations.coco import read_coco
from moco_transfer.runtime.errors import InputError


@pytest.fixture
def lvis(tmp_path, monkeypatch):
    """The content of a file as v0.5 and v1 have it, and a function that writes it."""
    monkeypatch.setattr(catalog, "_OWN", {})
    images = [
        {"id": 8, "coco_url": "http://host/val2017/000000000008.jpg", "height": 20, "width": 30}
        | {"file_name": "COCO_val2014_000000000008.jpg"},
        {"id": 5, "coco_url": "http://host/train2017/000000000005.jpg", "height": 20, "width": 30}
        | {"neg_category_ids": [9], "not_exhaustive_category_ids": [2]},
    ]
    categories = [
        {"id": 9, "name": "zebra", "frequency": "f"},
        {"id": 2, "name": "acorn", "frequency": "r"},
        {"id": 4, "name": "bow", "frequency": "c"},
    ]
    box = {"bbox": [1, 2, 10, 10], "area": 50.0, "segmentation": [[1, 2, 11, 2, 11, 12]]}
    annotations = [{"id": 3, "image_id": 5, "category_id": 2, **box}]
    content = {"images": images, "categories": categories, "annotations": annotations}

    def write():
        for image in images:
            path = tmp_path / "coco" / "/".join(image["coco_url"].split("/")[-2:])
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20)).save(path)
        file = tmp_path / "lvis.json"
        file.write_text(json.dumps(content))
        return file, tmp_path / "coco"

    return content, write


def test_read__images_below_their_folder_and_what_federated_evaluation_needs(lvis):
    file, folder = lvis[1]()
    contents = read_coco(file, folder, lvis=True)
    first, second = contents.records
    assert first["file_name"] == str(folder / "train2017" / "000000000005.jpg")
    assert second["file_name"] == str(folder / "val2017" / "000000000008.jpg")
    assert (first["neg_category_ids"], first["not_exhaustive_category_ids"]) == ([9], [2])
    assert (second["neg_category_ids"], second["not_exhaustive_category_ids"]) == ([], [])
    assert contents.class_names == ("acorn", "bow", "zebra")
    assert contents.frequencies == ("r", "c", "f")
    (annotation,) = first["annotations"]
    assert annotation == {
        "bbox": [1.0, 2.0, 11.0, 12.0],
        "category_id": 0,
        "iscrowd": 0,
        "area": 50.0,
        "segmentation": [[1, 2, 11, 2, 11, 12]],
    }


def test_flag__registers_a_set_that_check_data_takes(lvis):
    file, folder = lvis[1]()
    assert parse_dataset_flag(f"mine=lvis:{file}:{folder}") == "mine"
    dataset = get_dataset("mine")
    assert (dataset.kind, dataset.frequencies) == ("lvis", ("r", "c", "f"))
    assert dataset.category_ids == (2, 4, 9) and dataset.has_ground_truth
    report = check_dataset("mine")
    assert report.is_usable and report.metric == "LVIS AP"
    assert report.boxes_of_class == {"acorn": 1, "bow": 0, "zebra": 0}


@pytest.mark.parametrize("value", [None, "often"])
def test_read__without_frequencies_is_refused(lvis, value):
    content, write = lvis
    content["categories"][1]["frequency"] = value
    file, folder = write()
    with pytest.raises(InputError) as error:
        read_coco(file, folder, lvis=True)
    assert all(fact in str(error.value) for fact in (str(file), "frequency", repr(value), "'r'"))
    assert "\n" not in str(error.value)
    assert read_coco(file, folder.parent / "coco" / "val2017", on_problem=str).frequencies == ()


def test_read__a_list_of_names_is_refused(lvis):
    content, write = lvis
    content["images"][1]["neg_category_ids"] = ["zebra"]
    with pytest.raises(InputError, match="neg_category_ids"):
        read_coco(*write(), lvis=True)


def test_text__of_a_thousand_classes_lists_the_frequent_ones(lvis):
    content, write = lvis
    more = [{"id": i, "name": f"class{i}", "frequency": "r"} for i in range(10, 1010)]
    content["categories"] += more
    file, folder = write()
    parse_dataset_flag(f"many=lvis:{file}:{folder}")
    text = check_dataset("many").text()
    assert "classes: 1003" in text and "acorn 1" in text and "class1009" not in text


@pytest.mark.parametrize(
    ("name", "images", "classes"), [("lvis_v0.5_train", 130, 1230), ("lvis_v0.5_val", 128, 1230)]
)
def test_builtin_names__in_the_layout_of_detectron2(
    shared_data, monkeypatch, name, images, classes
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    dataset = get_dataset(name)
    assert (len(dataset.records), len(dataset.class_names)) == (images, classes)
    assert dataset.records[0]["file_name"].startswith(str(shared_data / "coco"))
