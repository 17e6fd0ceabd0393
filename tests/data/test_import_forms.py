"""Data sets as other programs leave them: encodings, layouts and names that are nearly right.

Seen red under: multi-byte encodings left to expat; a byte order mark taken for a letter; the base
name accepted from another folder; two names given one file; the first of two files taken.
"""

from __future__ import annotations

import json
import os
import shutil
import unicodedata

import pytest

from moco_transfer.data.annotations.coco import read_coco
from moco_transfer.data.annotations.voc import read_voc
from moco_transfer.data.images.folder import read_list_file
from moco_transfer.data.images.near_names import find_names
from moco_transfer.runtime.errors import InputError, MissingFileError
from moco_transfer.runtime.text import read_text, read_xml

CLASSES = ("犬", "cat")
BOXES = [("犬", (2, 2, 9, 9), 0), ("cat", (3, 4, 20, 21), 0)]


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("gb2312", "gb18030"),
        ("GBK", "gbk"),
        ("utf8", "utf-8"),
        ("UTF-8", "utf-8-sig"),
        ("big5", "big5"),
        ("Shift_JIS", "cp932"),
        ("utf-16", "utf-16"),
        ("utf-16", "utf-8"),  # as C# writes a string
        ("", "utf-16"),
        ("", "utf-8"),
    ],
)
def test_read_xml__in_what_python_can_decode(tmp_path, declared, encoding):
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    file = tmp_path / "a.xml"
    file.write_bytes(f"{head}\r\n<a><b>犬</b>\r\n</a>".encode(encoding))
    assert read_xml(file).findtext("b") == "犬"


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        ("<a>照片犬</a>".encode("gb18030"), "utf-8"),
        (b'<?xml version="1.0" encoding="martian"?><a/>', "martian"),
        ("<a>b</a>".encode("utf-16-le"), "UTF-16 without"),
        (b"\xff\x00\x01\x00\x00", "save it as UTF-8"),
        (b'<?xml version="1.0" encoding="base64"?><a/>', "base64"),
        (b'<?xml version="1.0" encoding="undefined"?><a/>', "undefined"),
    ],
)
def test_read_xml__what_it_cannot_read_is_one_sentence(tmp_path, data, facts):
    file = tmp_path / "a.xml"
    file.write_bytes(data)
    with pytest.raises(InputError, match=facts) as error:
        read_xml(file)
    assert str(file) in str(error.value) and "UTF-8" in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_texts__json_lists_and_classes_in_every_utf(make_coco, make_voc, tmp_path, encoding):
    json_file, images = make_coco([{"id": 1, "file_name": "é.jpg", "width": 9, "height": 8}], [])
    content = json.dumps(json.loads(json_file.read_text()), ensure_ascii=False)
    json_file.write_bytes(content.encode(encoding))
    assert read_coco(json_file, images).records[0]["file_name"] == str(images / "é.jpg")
    root = make_voc({"é": (40, 30, BOXES)})
    (root / "ImageSets/Main/train.txt").write_bytes("é\r\n".encode(encoding))
    assert read_voc(root, "train", CLASSES).records[0]["image_id"] == "é"
    (images / "list.txt").write_bytes("é.jpg\r\n".encode(encoding))
    assert read_text(images / "list.txt") == "é.jpg\r\n"
    assert read_list_file(images / "list.txt").name(0).endswith("é.jpg")


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("a.jpg", ["a.jpg", "A.jpg"], "a.jpg"),
        ("a.jpg", ["a.JPG", "a.png"], "a.JPG"),
        ("a.jpg", ["a.png"], "a.png"),
        ("a", ["a.png"], "a.png"),
        ("v1.2", ["v1.2.png", "v1.3.png"], "v1.2.png"),
        ("x\\a.jpg", ["x/a.jpg", "y/a.jpg"], "x/a.jpg"),
        ("x/a.jpg", ["a.jpg", "b.jpg"], "a.jpg"),
        ("a.jpg", ["x/y/a.jpg"], "x/y/a.jpg"),
        ("C:\\data\\x\\a.jpg", ["x/a.JPEG"], "x/a.JPEG"),
        ("../../x/a.jpg", ["x/a.jpg"], "x/a.jpg"),
        (unicodedata.normalize("NFD", "é.jpg"), [unicodedata.normalize("NFC", "é.jpg")], "é.jpg"),
        # Of these, no file is the one that is meant.
        ("a.jpg", ["x/a.jpg", "y/a.jpg"], None),
        ("y/a.jpg", ["x/a.jpg"], None),
        ("a.jpg", ["a.png", "a.bmp"], None),
        ("ab.jpg", ["b.jpg"], None),
        ("", ["b.jpg"], None),
        ("..", ["b.jpg"], None),
    ],
)
def test_find_names__accepts_what_is_one_to_one(name, files, expected):
    assert find_names([name], files).paths == ({name: expected} if expected else {})


def test_find_names__two_names_never_share_a_file():
    assert find_names(["a.jpg", "A.jpg"], ["a.jpg"]).paths == {"a.jpg": "a.jpg"}
    assert find_names(["x/a.jpg", "y/a.jpg"], ["a.jpg"]).paths == {}


def test_missing_images__the_message_names_what_is_there(make_coco):
    json_file, images = make_coco(
        [{"id": i, "file_name": f"a{i}.jpg", "width": 9, "height": 8} for i in (1, 2)], []
    )
    (images / "a2.jpg").rename(images / "a22.jpg")
    with pytest.raises(MissingFileError, match=r"1 of the 2 images .*a2\.jpg\..* has .*a22\.jpg"):
        read_coco(json_file, images)


def test_missing_images__only_near_folders_are_searched(make_coco, monkeypatch, tmp_path):
    """The nearest folder that exists may be the root of the disk."""
    json_file, images = make_coco([{"id": 1, "width": 9, "height": 8, "file_name": "a.jpg"}], [])
    disk = tmp_path / "disk"
    for folder in range(30):
        (disk / str(folder)).mkdir(parents=True)
        for file in range(100):
            (disk / str(folder) / f"{file}.txt").touch()
    text = json_file.read_text().replace("a.jpg", f"{disk}/nowhere/b.jpg")
    json_file.write_text(text)
    seen = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda top: (seen.append(p) or p for p in walk(top)))
    with pytest.raises(MissingFileError, match=f"the first is {disk}/nowhere/b.jpg."):
        read_coco(json_file, images)
    assert 0 < sum(len(names) for _, _, names in seen) < 3000


def _roboflow(voc, root):
    (root / "train").mkdir(parents=True)
    for path in [*(voc / "JPEGImages").iterdir(), *(voc / "Annotations").iterdir()]:
        shutil.copy(path, root / "train")


def _kaggle(voc, root):
    shutil.copytree(voc / "JPEGImages", root / "images")
    shutil.copytree(voc / "Annotations", root / "annotations")


def _split_below(voc, root):
    shutil.copytree(voc / "JPEGImages", root / "images/train")
    shutil.copytree(voc / "Annotations", root / "annotations/train")


def _nested(voc, root):
    shutil.copytree(voc / "JPEGImages", root / "JPEGImages/cam1")
    shutil.copytree(voc / "Annotations", root / "Annotations/cam1")
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("cam1/a\ncam1/b\n")


def _list(text):
    def write(voc, root):
        shutil.copytree(voc, root)
        (root / "ImageSets/Main/train.txt").write_text(text)

    return write


@pytest.mark.parametrize(
    "layout",
    [
        _roboflow,
        _kaggle,
        _split_below,
        _nested,
        _list("a.jpg\nb.jpg\n"),
        _list("a -1\nb  1\n"),
        _list("JPEGImages/a.jpg Annotations/a.xml\nJPEGImages/b.jpg Annotations/b.xml\n"),
        _list("C:\\data\\a.JPG\nC:\\data\\b.JPG\n"),
    ],
)
def test_read_voc__other_layouts_are_read_as_the_plain_one(make_voc, tmp_path, layout):
    plain = make_voc({"a": (40, 30, BOXES), "b": (40, 30, BOXES[:1])})
    layout(plain, tmp_path / "other")
    records = [read_voc(root, "train", CLASSES).records for root in (plain, tmp_path / "other")]
    without = [[{k: r[k] for k in ("width", "height", "annotations")} for r in s] for s in records]
    assert without[0] == without[1]
    assert [r["image_id"].split("/")[-1] for r in records[1]] == ["a", "b"]


def test_read_voc__an_image_may_have_the_name_that_its_xml_says(make_voc):
    root = make_voc({"a": (40, 30, BOXES), "b": (40, 30, [])})
    (root / "JPEGImages/a.jpg").rename(root / "JPEGImages/DSC_7.JPG")
    path = root / "Annotations/a.xml"
    text = path.read_text().replace("<annotation>", "<annotation><filename>DSC_7.JPG</filename>")
    path.write_text(text)
    records = read_voc(root, "train", CLASSES).records
    assert [r["file_name"] for r in records] == [
        str(root / "JPEGImages" / name) for name in ("DSC_7.JPG", "b.jpg")
    ]
    path.write_text(text.replace("DSC_7.JPG", "b.jpg"))  # which is the other one's
    with pytest.raises(MissingFileError, match=r"JPEGImages/a\.jpg\. "):
        read_voc(root, "train", CLASSES)


def test_read_voc__a_folder_without_splits_is_no_test_set(make_voc, tmp_path):
    _kaggle(make_voc({"a": (40, 30, BOXES)}), tmp_path / "kaggle")
    assert len(read_voc(tmp_path / "kaggle", "all", CLASSES).records) == 1
    with pytest.raises(MissingFileError, match=r"test\.txt does not exist.*SPLIT all"):
        read_voc(tmp_path / "kaggle", "test", CLASSES)
