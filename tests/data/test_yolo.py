"""YOLO's layout: boxes and polygons against numbers computed by hand, and all that may be wrong.

Seen red under: a centre taken for a corner; width and height exchanged; the first folder ``images``
replaced; a class that does not exist; shares above 1.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from moco_transfer.data.annotations.yolo import read_yolo
from moco_transfer.runtime.errors import InputError, MissingFileError


@pytest.fixture
def make_yolo(tmp_path):
    """Return a function that writes a set: {image: label file's text or None}, 40 x 20 px."""

    def make(labels, yaml="path: .\ntrain: images\nnames: [dog, cat]\n", images="images"):
        for name, text in labels.items():
            file = tmp_path / images / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(file)
            if text is not None:
                label = tmp_path / images.replace("images", "labels") / name
                label.parent.mkdir(parents=True, exist_ok=True)
                label.with_suffix(".txt").write_text(text)
        (tmp_path / "data.yaml").write_text(yaml)
        return tmp_path / "data.yaml"

    return make


def test_read_yolo__boxes_polygons_and_images_without_labels(make_yolo):
    file = make_yolo(
        {
            "a.jpg": "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.5 0.2 0.5 0.9\n",
            "b.png": "",
            "c/d.jpg": "0.0 1e-1 0.2 0.2 0.4\r\n",
            "e.jpg": None,
        }
    )
    contents = read_yolo(file, "train")
    a, b, d, e = contents.records
    # Centre 20, 10 px, 10 x 10 px.
    assert a["annotations"][0] == {"bbox": [15, 5, 25, 15], "category_id": 1, "iscrowd": 0}
    polygon = a["annotations"][1]
    assert polygon["bbox"] == pytest.approx([4, 4, 20, 18])
    assert polygon["segmentation"] == [pytest.approx([4, 4, 20, 4, 20, 18])]
    assert polygon["area"] == pytest.approx(16 * 14 / 2)
    assert b["annotations"] == e["annotations"] == []
    assert d["annotations"][0]["bbox"] == pytest.approx([0, 0, 8, 8])
    assert [r["image_id"] for r in contents.records] == [
        *("images/a.jpg", "images/b.png", "images/c/d.jpg", "images/e.jpg")
    ]
    assert (a["width"], a["height"], contents.class_names) == (40, 20, ("dog", "cat"))
    assert contents.left_out["images_without_boxes"] == 2
    assert "without a label file: 1" in contents.remarks[0]


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nval: x\nnames: {0: dog, 1: cat}\nnc: 2\n",
        "train: ../images/train\nnames: [dog, cat]\n",  # as Roboflow has it
        "train: images\\train\nnames: ['dog', 'cat']\n",
        "path: /content/datasets/x\ntrain: [images/train]\nnames: {'1': cat, '0': dog}\n",
        "train: list.txt\nnames: [dog, cat]\n",
        "\ufefftrain: images/train\r\nnames: [dog, cat]\r\n",
    ],
)
def test_read_yolo__data_yaml_in_every_form(make_yolo, tmp_path, yaml):
    below = tmp_path / "images/set"
    file = make_yolo({"images/train/a.jpg": None}, yaml, images="images/set")
    file.rename(below / "data.yaml")
    (below / "labels/train").mkdir(parents=True)
    (below / "labels/train/a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (below / "list.txt").write_text("./images/train/a.jpg\n")
    (record,) = read_yolo(below / "data.yaml", "train").records
    assert record["annotations"][0]["bbox"] == [15, 5, 25, 15]


def test_read_yolo__split_of_another_name_and_labels_beside_the_images(make_yolo, tmp_path):
    yaml = "val: pictures\nnames: [dog, cat]\n"
    file = make_yolo({"a.JPG": "1 0.5 0.5 0.25 0.5\n"}, yaml, images="pictures")
    (record,) = read_yolo(file, "valid").records
    assert record["annotations"][0]["bbox"] == [15, 5, 25, 15]


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2 is not one of 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "class -1"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5"),
        ("nan 0.5 0.5 0.1 0.1", "class nan"),
        ("0 1.5 0.5 0.1 0.1", "1.5 is not a share"),
        ("0 0.5 0.5 -0.1 0.1", "-0.1 is not a share"),
        ("0 nan 0.5 0.1 0.1", "nan is not a share"),
        ("0 0.5 0.5 0.1", "it has 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "it has 6 numbers"),
        ("0 0.1 0.1 0.5 0.5 0.9 0.9 0.3", "it has 8 numbers"),
        ("dog 0.5 0.5 0.1 0.1", "'dog 0.5 0.5 0.1 0.1' is not a row of numbers"),
    ],
)
def test_read_yolo__a_wrong_line_is_one_sentence(make_yolo, line, facts):
    file = make_yolo({"a.jpg": f"0 0.5 0.5 0.1 0.1\n{line}\n", "b.jpg": f"{line}\n"})
    with pytest.raises(InputError, match=r"labels/a\.txt, line 2 and 1 more: ") as error:
        read_yolo(file, "train")
    assert facts in str(error.value) and "\n" not in str(error.value)


def test_read_yolo__labels_in_another_encoding_are_one_line(make_yolo, tmp_path):
    file = make_yolo({"a.jpg": "", "b.jpg": ""})
    for name in "ab":
        (tmp_path / f"labels/{name}.txt").write_bytes(b"0 \xff")
    with pytest.raises(InputError, match=r"labels/a\.txt and 1 more: .*save it as UTF-8"):
        read_yolo(file, "train")


@pytest.mark.parametrize(
    ("yaml", "facts"),
    [
        ("train: images\n", "names is None"),
        ("train: images\nnames: {0: dog, 2: cat}\n", "names is"),
        ("train: images\nnames: [dog]\nnc: 2\n", "nc is 2, but names has 1"),
        ("train: images\nnames: [dog, cat]\nkpt_shape: [17, 3]\n", "kpt_shape"),
        ("train: []\nnames: [dog]\n", r"train is \[\]"),
        ("train: images\nnames: [[dog]]\n", "names is"),
        (f"train: {'x' * 999}\nnames: [dog]\n", "does not exist"),
        ("val: images\nnames: [dog]\n", "train is None.*has val"),
        ("train: nowhere\nnames: [dog]\n", "nowhere does not exist"),
        ("train: [\n", "not readable yaml"),
        ("- a\n", "expected keys"),
        ("train: empty\nnames: [dog]\n", "holds no image"),
        ("train: other/images\nnames: [dog]\n", "none of the 1 images has labels"),
    ],
)
def test_read_yolo__a_wrong_data_yaml_is_one_sentence(make_yolo, tmp_path, yaml, facts):
    file = make_yolo({"a.jpg": "0 0.5 0.5 0.1 0.1\n"}, yaml)
    make_yolo({"a.jpg": None}, yaml, images="other/images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=facts) as error:
        read_yolo(file, "train")
    assert str(file) in str(error.value)


def test_read_yolo__a_missing_data_yaml(tmp_path):
    with pytest.raises(MissingFileError, match=r"data\.yaml does not exist"):
        read_yolo(tmp_path / "data.yaml", "train")
