"""The reader of Cityscapes against pixels that the test drew, cityscapesscripts' own count of
instances, and Detectron2's reader.

Seen red under: groups as single objects; caravans as a class; boxes between pixel centres; polygons
in the file's order, or without what hides them; a mask's rows for its columns; thin objects left
out; trainIds taken for ids.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from cityscapes_files import FIXTURE, SIZE, STEM, detectron2_objects, write_split
from PIL import Image
from pycocotools import mask as mask_api

from moco_transfer.data.annotations.catalog import get_dataset, parse_dataset_flag
from moco_transfer.data.annotations.check import check_dataset
from moco_transfer.data.annotations.cityscapes import CITYSCAPES_LABELS, read_cityscapes
from moco_transfer.runtime.errors import InputError, MissingFileError

KINDS = ("instanceIds", "polygons")


@pytest.fixture
def split(tmp_path):
    """Folders of the images and the ground truth of one image."""
    return write_split(tmp_path)


def _need_shapely(masks):
    if masks == "polygons":
        pytest.importorskip("shapely", reason="shapely is not installed")
        pytest.importorskip("cityscapesscripts", reason="cityscapesscripts is not installed")


def _ids(truth):
    return np.asarray(Image.open(truth / "town" / f"{STEM}_gtFine_instanceIds.png"))


def test_read__each_object_is_the_pixels_of_its_id(split):
    contents = read_cityscapes(*split)
    (record,) = contents.records
    assert contents.class_names[:3] == ("person", "rider", "car")
    assert contents.category_ids == (24, 25, 26, 27, 28, 31, 32, 33)
    assert (record["width"], record["height"]) == SIZE
    assert record["image_id"] == os.path.basename(record["file_name"]) == f"{STEM}_leftImg8bit.png"
    ids, found = _ids(split[1]), record["annotations"]
    wanted = [24, 25000, 26000, 33000]  # no caravan, and of the truck nothing is seen
    assert [a["category_id"] for a in found] == [0, 1, 2, 7]
    assert [a["iscrowd"] for a in found] == [1, 0, 0, 0]
    for one, annotation in zip(wanted, found, strict=True):
        assert np.array_equal(mask_api.decode(annotation["segmentation"]), ids == one)
        y, x = np.nonzero(ids == one)
        assert annotation["bbox"] == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert annotation["area"] == len(x)
    assert {k: n for k, n in contents.left_out.items() if n} == {"crowd_regions": 1}


def test_read__keeps_objects_of_one_pixel_and_holes(split):
    ids = _ids(split[1]).copy()
    ids[0, 59], ids[12, 8] = 28000, 0
    Image.fromarray(ids).save(split[1] / "town" / f"{STEM}_gtFine_instanceIds.png")
    objects = {a["category_id"]: a for a in read_cityscapes(*split).records[0]["annotations"]}
    assert (objects[4]["bbox"], objects[4]["area"]) == ([59.0, 0.0, 60.0, 1.0], 1)
    assert mask_api.decode(objects[2]["segmentation"])[12, 7:10].tolist() == [1, 0, 1]


@pytest.mark.parametrize("masks", KINDS)
def test_read__equals_what_detectron2_read(split, masks):
    _need_shapely(masks)
    recorded = json.loads(FIXTURE.read_text())[masks]
    (record,) = read_cityscapes(*split, masks=masks).records
    assert [_as_detectron2(a, masks) for a in record["annotations"]] == recorded
    assert all(a["area"] > 0 for a in record["annotations"])


def _as_detectron2(annotation, masks):
    """Without the area, which it lacks, and with a box between the centres of pixels for ids."""
    x0, y0, x1, y1 = annotation["bbox"]
    box = [x0, y0, x1 - 1, y1 - 1] if masks == "instanceIds" else [x0, y0, x1, y1]
    return {k: v for k, v in annotation.items() if k != "area"} | {"bbox": box}


@pytest.mark.detectron2
@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("masks", KINDS)
def test_real_images__equal_detectron2s_reader(shared_data, masks, part, monkeypatch):
    _need_shapely(masks)
    pytest.importorskip("cityscapesscripts", reason="cityscapesscripts is not installed")
    places = [shared_data / "cityscapes" / root / part for root in ("leftImg8bit", "gtFine")]
    theirs = detectron2_objects(*places, masks, monkeypatch)
    ours = read_cityscapes(*places, masks=masks).records
    assert [record["image_id"] for record in ours] == sorted(theirs)
    for record in ours:
        objects = [_as_detectron2(a, masks) for a in record["annotations"]]
        assert objects == theirs[record["image_id"]]


@pytest.mark.parametrize("part", ["train", "val"])
def test_real_images__have_the_instances_that_cityscapesscripts_counts(shared_data, part):
    counting = pytest.importorskip(
        "cityscapesscripts.evaluation.instances2dict", reason="cityscapesscripts is not installed"
    )
    places = [shared_data / "cityscapes" / root / part for root in ("leftImg8bit", "gtFine")]
    for record in read_cityscapes(*places).records:
        file = os.path.abspath(record["instance_file"])
        theirs = counting.instances2dict([file])[file]
        ours = {name: [] for name in CITYSCAPES_LABELS}
        for a in record["annotations"]:
            name = list(CITYSCAPES_LABELS)[a["category_id"]]
            ours[name].append((a["area"], a["iscrowd"]))
        assert ours == {
            name: [(i["pixelCount"], int(i["instID"] < 1000)) for i in theirs[name]]
            for name in CITYSCAPES_LABELS
        }


def test_classes__are_those_that_cityscapesscripts_evaluates():
    table = pytest.importorskip(
        "cityscapesscripts.helpers.labels", reason="cityscapesscripts is not installed"
    )
    evaluated = [label for label in table.labels if label.hasInstances and not label.ignoreInEval]
    assert {label.name: label.id for label in evaluated} == CITYSCAPES_LABELS


def _truth_file(split, ending):
    return split[1] / "town" / f"{STEM}_gtFine_{ending}"


def test_read__refuses_labels_alone(split):
    _truth_file(split, "instanceIds.png").unlink()
    _truth_file(split, "polygons.json").unlink()
    with pytest.raises(MissingFileError) as refusal:
        read_cityscapes(*split)
    for fact in ("1 of the 1 images", "_gtFine_instanceIds.png", STEM, "_gtFine_labelIds.png"):
        assert fact in str(refusal.value)


@pytest.mark.parametrize("missing", ["images", "ground truth", "city", "polygons"])
def test_read__refuses_missing_folders_and_files(split, missing):
    images, truth = split
    masks = "instanceIds"
    if missing == "images":
        images = images / "nowhere"
    elif missing == "ground truth":
        truth = truth / "nowhere"
    elif missing == "city":
        (images / "town" / f"{STEM}_leftImg8bit.png").unlink()
    else:
        masks = "polygons"
        _truth_file(split, "polygons.json").unlink()
    with pytest.raises(MissingFileError, match=r"nowhere|leftImg8bit|_gtFine_polygons\.json"):
        read_cityscapes(images, truth, masks=masks)


BROKEN = {
    "damaged": lambda file: file.write_bytes(file.read_bytes()[:60]),
    "colours": lambda file: Image.new("RGB", SIZE).save(file),
    "trainIds": lambda file: Image.fromarray(np.full((40, 60), 13000, np.uint16)).save(file),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_read__names_the_png_that_cannot_be_used(split, fault):
    file = _truth_file(split, "instanceIds.png")
    BROKEN[fault](file)
    problems = []
    contents = read_cityscapes(*split, on_problem=problems.append)
    assert contents.records == [] and [str(file) in str(p) for p in problems] == [True]
    assert fault != "trainIds" or "13000" in str(problems[0])


@pytest.mark.parametrize("objects", [[{"label": "tree", "polygon": []}], [{"label": "car"}], None])
def test_read__names_the_json_that_cannot_be_used(split, objects):
    _need_shapely("polygons")
    file = _truth_file(split, "polygons.json")
    file.write_text(json.dumps({"imgHeight": 40, "imgWidth": 60, "objects": objects}))
    with pytest.raises(InputError, match=file.name):
        read_cityscapes(*split, masks="polygons")


def test_flag__registers_and_check_data_reports(split):
    images, truth = split
    dataset = get_dataset(parse_dataset_flag(f"town=cityscapes:{images}:{truth}"))
    assert (dataset.kind, dataset.masks, len(dataset.class_names)) == (
        "cityscapes",
        "instanceIds",
        8,
    )
    assert dataset.category_ids == tuple(CITYSCAPES_LABELS.values())
    report = check_dataset("town")
    assert report.is_usable and (report.num_images, report.num_boxes, report.num_masks) == (1, 3, 3)
    assert report.boxes_of_class["car"] == 1 and report.left_out["crowd_regions"] == 1
    assert "Cityscapes" in report.text()
    other = get_dataset(parse_dataset_flag(f"drawn=cityscapes:{images}:{truth}:masks=polygons"))
    assert other.masks == "polygons"


@pytest.mark.parametrize("rest", ["a", "a:b:masks=boxes", "a:b:c", "a:b:year=2007"])
def test_flag__refuses_other_forms(rest):
    with pytest.raises(InputError, match="NAME=cityscapes:LEFTIMG:GTFINE"):
        parse_dataset_flag(f"town=cityscapes:{rest}")


def test_builtin__without_gtfine_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "cityscapes" / "leftImg8bit").mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(
        MissingFileError, match="gtFine/val.*DETECTRON2_DATASETS.*holds cityscapes/gtFine"
    ):
        get_dataset("cityscapes_fine_instance_seg_val").records  # noqa: B018


def test_classes__cannot_be_merged(split):
    """The PNG of the objects, which is scored, has the file's classes."""
    images, truth = split
    flag = f"merged=cityscapes:{images}:{truth}:classes=person+rider,car"
    with pytest.raises(InputError, match=r"person\+rider"):
        _ = get_dataset(parse_dataset_flag(flag)).records
