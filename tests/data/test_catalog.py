"""The catalogue: Detectron2's names, the user's own data sets, and missing ones.

Seen red under: voc_2007_* scored with the area metric; own data with the metric of 2007 by default;
no keypoints swapped.
"""

from __future__ import annotations

import pytest

from moco_transfer.data import register_dataset
from moco_transfer.data.annotations import catalog
from moco_transfer.data.annotations.catalog import align_classes, get_dataset, parse_dataset_flag
from moco_transfer.data.annotations.cityscapes import CITYSCAPES_LABELS
from moco_transfer.data.annotations.class_selection import check_class_count
from moco_transfer.data.annotations.coco import read_coco
from moco_transfer.runtime.errors import InputError, MissingFileError, UnknownKeyError


def test_get_dataset__reads_builtin_names_below_the_datasets_folder(
    make_voc, tmp_path, monkeypatch
):
    make_voc({"a": (40, 30, [("dog", (2, 2, 9, 9), 0)])}, split="test", root=tmp_path / "VOC2007")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    dataset = get_dataset("voc_2007_test")
    assert (dataset.kind, dataset.year) == ("voc", 2007)
    assert dataset.records[0]["annotations"][0]["category_id"] == 11
    assert dataset.image_root == str(tmp_path / "VOC2007" / "JPEGImages")
    assert get_dataset("voc_2007_test") is dataset, "read once while somebody holds it"


@pytest.mark.parametrize(
    ("value", "message"),
    [("/nowhere", "DETECTRON2_DATASETS is '/nowhere'"), (None, "DETECTRON2_DATASETS is not set")],
)
def test_get_dataset__names_where_a_builtin_name_is_expected(monkeypatch, tmp_path, value, message):
    monkeypatch.chdir(tmp_path)
    (
        monkeypatch.setenv("DETECTRON2_DATASETS", value)
        if value
        else monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    )
    for name, place, folder in (
        ("voc_2012_trainval", "VOC2012", "VOC2012"),
        ("coco_2017_val", "coco/annotations/instances_val2017.json", "coco"),
    ):
        with pytest.raises(MissingFileError) as error:
            _ = get_dataset(name).records
        assert message in str(error.value)
        assert f"{value or 'datasets'}/{place}, which does not exist" in str(error.value)
        assert str(error.value).endswith(f"Set it to the folder that holds {folder}.")


def test_get_dataset__offers_the_nearest_name():
    with pytest.raises(
        UnknownKeyError, match=r"no data set 'voc_2007_tset'\. Did you mean 'voc_2007_test'\?"
    ):
        get_dataset("voc_2007_tset")


def test_parse_dataset_flag__voc_with_classes_in_the_flag_or_in_a_file(make_voc, tmp_path):
    root = make_voc({"a": (40, 30, [("cat", (2, 2, 9, 9), 0)])})
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    for name, classes in (("mine_2007", "dog,cat"), ("mine", str(tmp_path / "classes.txt"))):
        assert parse_dataset_flag(f"{name}=voc:{root}:train:{classes}") == name
        dataset = get_dataset(name)
        assert (dataset.class_names, dataset.year, dataset.category_ids) == (
            ("dog", "cat"),
            2012,
            (0, 1),
        )
        assert dataset.records[0]["annotations"][0]["category_id"] == 1
    assert (
        parse_dataset_flag(f"eleven=voc:{root}:train:dog,cat:year=2007,first_pixel=0") == "eleven"
    )
    assert get_dataset("eleven").year == 2007
    assert get_dataset("eleven").records[0]["annotations"][0]["bbox"] == [2, 2, 9, 9]


def test_parse_dataset_flag__coco(make_coco):
    json_file, images = make_coco([{"id": 1, "file_name": "a.jpg", "width": 9, "height": 8}], [])
    dataset = get_dataset(parse_dataset_flag(f"mine=coco:{json_file}:{images}"))
    assert (dataset.kind, dataset.year, dataset.class_names, dataset.category_ids) == (
        "coco",
        None,
        ("cat", "dog"),
        (3, 7),
    )
    assert (dataset.json_file, dataset.image_root) == (str(json_file), str(images))


@pytest.mark.parametrize(
    "flag",
    [
        "mine",
        "mine=coco:a.json",
        "=coco:a:b",
        "mine=yolo:a",
        "mine=yolo:a:b:year=2007",
        "mine=coco:a:b:classes=",
        "mine=coco:a:b:classes=a:classes=b",
        "mine=labelme:a:b",
        "mine=voc:root:train",
        "mine=coco:a:",
        "mine=voc:a:b:c:d:e",
    ],
)
def test_parse_dataset_flag__refuses_other_forms(flag):
    with pytest.raises(InputError, match="is not understood; expected NAME=coco:JSON:IMAGES"):
        parse_dataset_flag(flag)


def test_parse_dataset_flag__refuses_wrong_parts(tmp_path):
    with pytest.raises(InputError, match=r"year=2007\|2012"):
        parse_dataset_flag("mine=voc:a:b:dog:month=3")
    with pytest.raises(InputError, match="year is 2010"):
        parse_dataset_flag("mine=voc:a:b:dog:year=2010")
    with pytest.raises(MissingFileError, match=r"classes\.txt does not exist"):
        parse_dataset_flag("mine=voc:a:b:classes.txt")
    with pytest.raises(InputError, match="a list of different names"):
        parse_dataset_flag("mine=voc:a:b:dog,dog")


def test_register_dataset__refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(InputError, match="kind is 'labelme'"):
        register_dataset("mine", "labelme")
    with pytest.raises(InputError, match="json_file"):
        register_dataset("mine", "coco", image_root="x")
    with pytest.raises(InputError, match="mine.*'images'"):
        register_dataset("mine", "coco", json_file="a", image_root="b", images="c")
    register_dataset("mine", "coco", json_file=tmp_path / "a.json", image_root=tmp_path)
    register_dataset("mine", "coco", json_file=str(tmp_path / "a.json"), image_root=str(tmp_path))
    for name in ("mine", "voc_2007_test"):
        with pytest.raises(InputError, match="registered already"):
            register_dataset(name, "coco", json_file="other", image_root="b")


def test_check_class_count__names_the_value_to_set(make_coco):
    json_file, images = make_coco([{"id": 1, "file_name": "a.jpg", "width": 9, "height": 8}], [])
    register_dataset("two", "coco", json_file=json_file, image_root=images)
    classes = get_dataset("two").class_names
    check_class_count("two", classes, 2, "MODEL.ROI_HEADS.NUM_CLASSES")
    with pytest.raises(
        InputError,
        match=(
            r"NUM_CLASSES is 80, but data set 'two' has 2 categories \(cat, dog\); set"
            r" MODEL.ROI_HEADS.NUM_CLASSES 2\."
        ),
    ):
        check_class_count("two", classes, 80, "MODEL.ROI_HEADS.NUM_CLASSES")


def test_align_classes__names_the_first_difference():
    register_dataset("a", "voc", root="r", split="s", class_names=["dog", "cat"])
    register_dataset("b", "voc", root="r", split="s", class_names=["dog", "cow", "cat"])
    assert len(align_classes([get_dataset("a"), get_dataset("a")])) == 2
    with pytest.raises(InputError, match="index 1 is 'cat' .* 'cow'"):
        align_classes([get_dataset("a"), get_dataset("b")])


def test_align_classes__another_order_is_matched_by_name(make_coco, make_voc):
    root = make_voc({"a": (40, 30, [("cat", (2, 2, 9, 9), 0), ("dog", (3, 3, 9, 9), 0)])})
    image = {"id": 1, "file_name": "a.jpg", "width": 9, "height": 8}
    one = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 4, 4]}
    json_file, images = make_coco([image], [one])  # cat has id 3, dog id 7
    register_dataset("v", "voc", root=root, split="train", class_names=["dog", "cat"])
    register_dataset("c", "coco", json_file=json_file, image_root=images)
    first, second = align_classes([get_dataset("v"), get_dataset("c")])
    assert first.class_names == second.class_names == ("dog", "cat")
    assert [a["category_id"] for a in first.records[0]["annotations"]] == [1, 0]
    assert [a["category_id"] for a in second.records[0]["annotations"]] == [0]
    assert second.category_ids == (7, 3), "results have the file's ids"
    assert get_dataset("c").class_names == ("dog", "cat"), "for whoever asks by name"
    # The next run begins with the other one.
    second, first = align_classes([get_dataset("c"), get_dataset("v")])
    assert second.class_names == first.class_names == ("cat", "dog")
    assert [a["category_id"] for a in first.records[0]["annotations"]] == [0, 1]


@pytest.mark.parametrize(
    ("classes", "names", "ids", "found"),
    [
        ("dog", ("dog",), (7,), [0]),
        ("dog,cat", ("dog", "cat"), (7, 3), [1, 0]),
        ("cat+dog", ("cat+dog",), (3,), [0, 0]),
        ("c++,cat+dog", ("c++", "cat+dog"), (9, 3), [1, 1, 0]),
        ("c++,pet=cat+dog", ("c++", "pet"), (9, 3), [1, 1, 0]),
    ],
)
def test_classes__a_subset_an_order_or_a_merging(make_coco, make_voc, classes, names, ids, found):
    image = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}
    ones = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": [i, 1, 4, 4]}
        for i, c in enumerate((3, 7, 9), start=1)
    ]
    categories = [{"id": i, "name": n} for i, n in ((3, "cat"), (7, "dog"), (9, "c++"))]
    json_file, images = make_coco([image], ones, categories)
    dataset = get_dataset(parse_dataset_flag(f"c=coco:{json_file}:{images}:classes={classes}"))
    assert (dataset.class_names, dataset.category_ids) == (names, ids)
    assert [a["category_id"] for a in dataset.records[0]["annotations"]] == found
    objects = [(n, (i + 1, 2, i + 4, 5), 0) for i, n in enumerate(("cat", "dog", "c++"), start=1)]
    root = make_voc({"a": (40, 30, objects)})
    flag = f"v=voc:{root}:train:c++,dog,cat:first_pixel=0:classes={classes}"
    dataset = get_dataset(parse_dataset_flag(flag))
    assert (dataset.class_names, dataset.category_ids) == (names, tuple(range(len(names))))
    assert [a["category_id"] for a in dataset.records[0]["annotations"]] == found


@pytest.mark.parametrize(
    ("classes", "facts"),
    [
        ("dgo", "no class 'dgo'.*mean 'dog'"),
        ("dog,cat+dog", "twice"),
        ("x=dog,x=cat", "twice"),
        ("dog+", "no class ''"),
    ],
)
def test_classes__refuses_what_has_no_meaning(make_coco, classes, facts):
    json_file, images = make_coco([{"id": 1, "file_name": "a.jpg", "width": 9, "height": 8}], [])
    with pytest.raises(InputError, match=facts):
        _ = get_dataset(
            parse_dataset_flag(f"c=coco:{json_file}:{images}:classes={classes}")
        ).records


@pytest.mark.parametrize(
    ("names", "mirror"),
    [
        (["nose", "left_eye", "right_eye", "left_ear", "right_ear"], (0, 2, 1, 4, 3)),
        (["L_hip", "tail", "R_hip"], (2, 1, 0)),
        (["hip_l", "hip.r", "hip.l", "hip_r"], (3, 2, 1, 0)),
        (["LeftEye", "RightEye", "lefthoof", "righthoof"], (1, 0, 3, 2)),
        (["LHip", "RHip", "kneeL", "kneeR", "Paw Right", "Paw Left"], (1, 0, 3, 2, 5, 4)),
        (["l", "R", "L", "r"], (3, 2, 1, 0)),
        # Without a twin: a name that only looks like a side, and a side that stands alone.
        (["bright", "L1", "leg", "left_fin"], (0, 1, 2, 3)),
    ],
)
def test_keypoint_mirror__swaps_left_and_right(make_coco, names, mirror):
    json_file, images = make_coco(
        [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 8}],
        [],
        categories=[{"id": 1, "name": "person", "keypoints": names, "skeleton": [[1, 2]]}],
    )
    register_dataset("people", "coco", json_file=json_file, image_root=images)
    assert get_dataset("people").keypoint_mirror == mirror
    assert get_dataset("people").skeleton == ((0, 1),)


def test_keypoint_names__are_those_that_all_categories_with_keypoints_share(make_coco):
    def names(*lists):
        categories = [{"id": i, "name": str(i), "keypoints": n} for i, n in enumerate(lists)]
        image = {"id": 1, "file_name": "a.jpg", "width": 9, "height": 8}
        return read_coco(*make_coco([image], [], categories=categories)).keypoint_names

    assert names(["a", "b"], [], ["a", "b"]) == ("a", "b")
    assert names(["a", "b"], ["b", "a"]) == names([], []) == ()


@pytest.mark.detectron2
def test_catalog__has_detectron2_names_places_and_metadata(monkeypatch):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.detection_utils import create_keypoint_hflip_indices

    monkeypatch.setenv("DETECTRON2_DATASETS", "datasets")
    compared = 0
    for name in catalog.dataset_names():
        # Not published, ours, and of a project of Detectron2.
        if name.startswith(("voc_2012_test", "voc_2012_sem_seg", "densepose_")):
            continue
        assert name in DatasetCatalog.list()
        ours, theirs = get_dataset(name), MetadataCatalog.get(name)
        if ours.kind == "voc":
            assert (ours.year, ours.split) == (theirs.year, theirs.split)
            assert list(ours.class_names) == theirs.thing_classes
            assert theirs.dirname.endswith(ours.root.removeprefix("datasets/"))
        elif ours.kind in ("cityscapes", "semantic"):
            if ours.kind == "cityscapes":
                assert list(CITYSCAPES_LABELS) == theirs.thing_classes
            else:
                assert list(ours.class_names) == theirs.stuff_classes
            assert (ours.root + "/", ours.image_root + "/") == (theirs.gt_dir, theirs.image_dir)
        else:
            assert theirs.json_file.endswith(ours.json_file.removeprefix("datasets/"))
            their_root = theirs.image_root.rstrip("/")
            assert their_root.endswith(ours.image_root.removeprefix("datasets/"))
        compared += 1
    assert compared == 35
    assert create_keypoint_hflip_indices("keypoints_coco_2017_train") == [
        0,
        2,
        1,
        4,
        3,
        6,
        5,
        8,
        7,
        10,
        9,
        12,
        11,
        14,
        13,
        16,
        15,
    ]
