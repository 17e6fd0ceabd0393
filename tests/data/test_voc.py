"""VOC reader against Detectron2's and against XML written by hand.

Seen red under: 1 taken from xmax too, or from nothing; difficult left out; a box next to the image
accepted; images without boxes skipped; classes in alphabetical order; a size of 0 believed; the
sides of a turned image exchanged; a repeated fault reported twice.
"""

from __future__ import annotations

import re

import pytest
from PIL import Image

from moco_transfer.data.annotations.coco import read_coco
from moco_transfer.data.annotations.voc import VOC_CLASSES, read_voc
from moco_transfer.data.batches.transforms import read_and_check
from moco_transfer.runtime.errors import InputError, MissingFileError

CLASSES = ("dog", "cat")


def test_read_voc__takes_one_from_the_top_left_corner_only(make_voc):
    root = make_voc({"a": (40, 30, [("cat", (1, 1, 40, 30), 0), ("dog", (5, 6, 5, 20), 1)])})
    (record,) = read_voc(root, "train", CLASSES).records
    # 1..40 of 40 inclusive pixels is the whole image, [0, 40]; a box of one pixel's width, 5..5,
    # is [4, 5].
    assert record["annotations"] == [
        {"bbox": [0.0, 0.0, 40.0, 30.0], "category_id": 1, "iscrowd": 0, "difficult": 0},
        {"bbox": [4.0, 5.0, 5.0, 20.0], "category_id": 0, "iscrowd": 0, "difficult": 1},
    ]
    assert (record["image_id"], record["width"], record["height"]) == ("a", 40, 30)
    assert record["file_name"] == str(root / "JPEGImages" / "a.jpg")


def test_read_voc__first_pixel_0_takes_coordinates_as_they_are(make_voc):
    root = make_voc({"a": (40, 30, [("cat", (0, 0.5, 40, 30), 0)])})
    (record,) = read_voc(root, "train", CLASSES, first_pixel=0).records
    assert record["annotations"][0]["bbox"] == [0.0, 0.5, 40.0, 30.0]


def test_read_voc__keeps_images_without_boxes_and_counts_them(make_voc):
    root = make_voc({"b": (40, 30, []), "a": (40, 30, [("dog", (2, 2, 9, 9), 0)])})
    contents = read_voc(root, "train", CLASSES)
    assert [record["image_id"] for record in contents.records] == ["b", "a"]
    assert {key: count for key, count in contents.left_out.items() if count} == {
        "images_without_boxes": 1
    }


def test_read_voc__finds_images_of_other_suffixes(make_voc):
    root = make_voc({"a": (40, 30, [])})
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / "a.png")
    assert read_voc(root, "train", CLASSES).records[0]["file_name"].endswith("a.png")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((41, 2, 49, 9), "box xmin 41, ymin 2, xmax 49, ymax 9 does not lie in the 40 x 30 image"),
        ((2, -9, 9, -2), "ymax -2 does not lie in the 40 x 30 image"),
        ((9, 2, 8, 9), "does not lie in"),
        ((2, 2, 4000, 9), "xmax 4000, ymax 9 does not lie in the 40 x 30 image"),
        ((2, 2, "inf", 9), "xmax inf"),
        (("two", 2, 9, 9), "bndbox/xmin is 'two', expected pixels"),
        (("nan", 2, 9, 9), "box xmin nan"),
    ],
)
def test_read_voc__refuses_a_box_that_is_not_in_the_image(make_voc, box, message):
    root = make_voc({"a": (40, 30, [("dog", (2, 2, 9, 9), 0), ("cat", box, 0)])})
    with pytest.raises(InputError) as error:
        read_voc(root, "train", CLASSES)
    assert message in str(error.value)
    assert "a.xml, object 2 (cat)" in str(error.value)
    assert "\n" not in str(error.value)


def test_read_voc__refuses_an_unknown_class_and_lists_the_legal_ones(make_voc):
    root = make_voc({"a": (40, 30, [("hourse", (2, 2, 9, 9), 0)])})
    with pytest.raises(
        InputError,
        match=r"a\.xml, object 1 .*: class 'hourse' .*20 classes .*aeroplane.*mean 'horse'\?",
    ):
        read_voc(root, "train", VOC_CLASSES)


def test_read_voc__collects_all_problems_when_asked(make_voc):
    root = make_voc(
        {
            "a": (40, 30, [("hourse", (2, 2, 9, 9), 0), ("dog", (50, 2, 45, 9), 0)]),
            "b": (40, 30, []),
        }
    )
    (root / "JPEGImages" / "b.jpg").unlink()
    problems = []
    read_voc(root, "train", CLASSES, on_problem=problems.append)
    assert [type(problem) for problem in problems] == [InputError, InputError, MissingFileError]


@pytest.mark.parametrize("box", [(0, 2, 9, 9), (-0.492, 2, 9, 9), (2, 2, 41, 9), (2, 2, 9, 31)])
def test_read_voc__a_box_over_the_edge_is_kept_and_counted(make_voc, make_coco, box):
    """As in COCO's format: clipped in training, not in the evaluation."""
    root = make_voc({"a": (40, 30, [("dog", box, 0), ("dog", (2, 2, 9, 9), 0)])})
    contents = read_voc(root, "train", CLASSES)
    x0, y0, x1, y1 = box[0] - 1, box[1] - 1, box[2], box[3]
    assert contents.records[0]["annotations"][0]["bbox"] == [x0, y0, x1, y1]
    assert contents.left_out["boxes_reaching_out"] == 1
    boxes = [[x0, y0, x1 - x0, y1 - y0], [1, 1, 8, 8]]
    annotations = [
        {"id": 1 + n, "image_id": 1, "category_id": 7, "bbox": b} for n, b in enumerate(boxes)
    ]
    image = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}
    assert read_coco(*make_coco([image], annotations)).left_out == contents.left_out


@pytest.mark.parametrize(
    "size", ["", "<size><width>0</width><height>0</height></size>", "<size><width>x</width></size>"]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_read_voc__a_missing_size_is_the_images(make_voc, size, orientation):
    root = make_voc({"a": (40, 30, [("dog", (2, 2, 9, 9), 0)])})
    path = root / "Annotations/a.xml"
    path.write_text(re.sub("<size>.*</size>", size, path.read_text()))
    image = Image.open(root / "JPEGImages/a.jpg")
    exif = image.getexif()
    exif[274] = orientation  # 6: to be turned by 90 degrees
    image.save(root / "JPEGImages/a.jpg", exif=exif)
    (record,) = read_voc(root, "train", CLASSES).records
    sides = (30, 40) if orientation == 1 else (40, 30)
    assert (record["height"], record["width"]) == sides
    assert read_and_check(record, "RGB").shape == (*sides, 3)
    assert record["annotations"][0]["bbox"] == [1, 1, 9, 9]
    (root / "JPEGImages/a.jpg").unlink()
    problems = []
    read_voc(root, "train", CLASSES, on_problem=problems.append)
    assert [type(problem) for problem in problems] == [MissingFileError], "nothing follows from it"


def test_read_voc__whole_numbers_with_a_point_are_sizes(make_voc):
    root = make_voc({"a": (40, 30, [("dog", (2, 2, 9, 9), 0)])})
    path = root / "Annotations/a.xml"
    path.write_text(path.read_text().replace("<width>40<", "<width>40.0<"))
    assert read_voc(root, "train", CLASSES).records[0]["width"] == 40


@pytest.mark.parametrize("form", ["{}", '"{}"', "'{}'", " {} ", "\ufeff{}"])
def test_read_voc__ids_may_have_blanks_and_stand_in_quotes(make_voc, form):
    root = make_voc({"image (0)": (40, 30, [("dog", (2, 2, 9, 9), 0)])})
    (root / "ImageSets/Main/train.txt").write_text(form.format("image (0)") + "\n")
    (record,) = read_voc(root, "train", CLASSES).records
    assert record["image_id"] == "image (0)"
    assert record["file_name"] == str(root / "JPEGImages" / "image (0).jpg")


def test_read_voc__a_repeated_fault_is_one_line(make_voc):
    wrong = ("hourse", (2, 2, 9, 9), 0)
    root = make_voc({"a": (40, 30, [wrong, wrong]), "b": (40, 30, [wrong, ("cart", *wrong[1:])])})
    problems = []
    read_voc(root, "train", CLASSES, on_problem=problems.append)
    assert len(problems) == 2
    assert "a.xml, object 1 (hourse) and 2 more: class 'hourse'" in str(problems[0])
    assert "b.xml, object 2 (cart): class 'cart'" in str(problems[1])


def _damage_list(root):
    (root / "ImageSets/Main/train.txt").write_text("a dog\n")


def _empty_list(root):
    (root / "ImageSets/Main/train.txt").write_text("\n")


def _repeat_in_list(root):
    (root / "ImageSets/Main/train.txt").write_text("a\na\n")


def _add_to_list(root):
    (root / "ImageSets/Main/train.txt").write_text("a\nzz\nyy\n")


def _cut_xml(root):
    (root / "Annotations/a.xml").write_text("<annotation><size>")


def _wrong_difficult(root):
    path = root / "Annotations/a.xml"
    path.write_text(path.read_text().replace("<difficult>0<", "<difficult>maybe<"))


def _drop_image(root):
    (root / "JPEGImages/a.jpg").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_damage_list, "'a dog'; expected one image id a line"),
        (_empty_list, "lists no image"),
        (_repeat_in_list, "lists image 'a' more than once"),
        (_add_to_list, "2 of the 3 images in .* have no XML; the first is .*zz.xml"),
        (_cut_xml, "a.xml is not readable XML"),
        (_wrong_difficult, "difficult is 'maybe', expected 0 or 1"),
        (
            _drop_image,
            "1 of the 1 images that .*train.txt names do not exist; the first is .*a.jpg",
        ),
    ],
)
def test_read_voc__refuses_wrong_the_files(make_voc, damage, message):
    root = make_voc({"a": (40, 30, [("dog", (2, 2, 9, 9), 0)])})
    damage(root)
    with pytest.raises(InputError, match=message):
        read_voc(root, "train", CLASSES)


def test_read_voc__names_the_splits_that_are_there(make_voc):
    root = make_voc({"a": (40, 30, [])}, split="trainval")
    with pytest.raises(MissingFileError, match=r"train\.txt does not exist.*: trainval"):
        read_voc(root, "train", CLASSES)


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("VOC2007", "trainval"),
        ("VOC2007", "test"),
        ("VOC2012", "trainval"),
        ("BCCD", "train"),
        ("BCCD", "test"),
    ],
)
def test_read_voc__equals_detectron2(shared_data, folder, split):
    from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances

    names = ("RBC", "WBC", "Platelets") if folder == "BCCD" else CLASS_NAMES
    theirs = load_voc_instances(str(shared_data / folder), split, names)
    ours = read_voc(shared_data / folder, split, names).records
    assert len(ours) == len(theirs) > 30
    for mine, other in zip(ours, theirs, strict=True):
        assert all(mine[key] == other[key] for key in ("file_name", "image_id", "height", "width"))
        assert [(a["bbox"], a["category_id"]) for a in mine["annotations"]] == [
            (a["bbox"], a["category_id"]) for a in other["annotations"]
        ]
    if folder != "BCCD":
        assert tuple(CLASS_NAMES) == VOC_CLASSES
