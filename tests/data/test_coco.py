"""COCO reader against Detectron2's and against json written by hand.

Seen red under: boxes kept XYWH; the corner added in float64; classes indexed by file order instead
of by id; crowd regions dropped; the half pixel of keypoints forgotten; polygons of two points kept;
a check of types, finiteness, ids, iscrowd, area, size or runs of a mask left out; the sign, the
difference or the end of a compressed run ignored; ids compared as they are written; a size of 0
believed; a repeated fault reported twice; points of dense pose left out, or their ranges unchecked.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from moco_transfer.data.annotations.coco import read_coco
from moco_transfer.runtime.errors import InputError, MissingFileError

IMAGES = [
    {"id": 5, "file_name": "b.jpg", "width": 40, "height": 30},
    {"id": 2, "file_name": "a.jpg", "width": 20, "height": 30},
]


def _annotation(**fields):
    return {
        "id": 1,
        "image_id": 5,
        "category_id": 7,
        "bbox": [1.5, 2, 10, 20],
        "area": 200,
        "iscrowd": 0,
        **fields,
    }


def test_read_coco__sorts_images_and_classes_by_id_and_turns_boxes_into_corners(make_coco):
    contents = read_coco(
        *make_coco(IMAGES, [_annotation(), _annotation(id=2, image_id=2, category_id=3, iscrowd=1)])
    )
    assert [record["image_id"] for record in contents.records] == [2, 5]
    assert contents.class_names == ("cat", "dog")
    assert contents.category_ids == (3, 7)
    # Added in float32, as Detectron2 adds: 0.1 + 0.3 is 0.4000000059604645 there, not 0.4.
    thin = read_coco(*make_coco(IMAGES, [_annotation(bbox=[0.1, 2, 0.3, 20])])).records[1][
        "annotations"
    ][0]
    assert thin["bbox"][2] == 0.4000000059604645
    crowd, dog = (record["annotations"][0] for record in contents.records)
    assert dog == {"bbox": [1.5, 2.0, 11.5, 22.0], "category_id": 1, "iscrowd": 0, "area": 200}
    assert (crowd["iscrowd"], crowd["category_id"]) == (1, 0)
    assert contents.left_out == {
        "images_without_boxes": 1,
        "crowd_regions": 1,
        "boxes_without_area": 0,
        "boxes_reaching_out": 0,
        "empty_masks": 0,
        "images_without_keypoints": 0,
    }


def test_read_coco__counts_boxes_without_area_and_masks_without_a_pixel(make_coco):
    polygon, nothing = [[1, 1, 9, 1, 9, 9]], {"size": [30, 40], "counts": "`U1"}
    annotations = [
        _annotation(bbox=[3, 3, 0, 5]),
        _annotation(id=4, bbox=[30, 3, 10.9, 5]),  # 40.9 of 40 px: rounding
        _annotation(id=5, bbox=[30, 3, 11, 5]),
        _annotation(id=2, segmentation=[[1, 1, 9, 9]]),
        _annotation(id=3, segmentation=[[1, 1, 9, 9], *polygon]),
        _annotation(id=6, segmentation=nothing),
    ]
    contents = read_coco(*make_coco(IMAGES, annotations))
    kept = contents.records[1]["annotations"]
    assert [annotation.get("segmentation") for annotation in kept[3:]] == [[], polygon, nothing]
    assert contents.left_out["boxes_without_area"] == 1
    assert contents.left_out["boxes_reaching_out"] == 1
    assert contents.left_out["empty_masks"] == 2


def test_read_coco__shifts_keypoints_by_half_a_pixel(make_coco):
    contents = read_coco(*make_coco(IMAGES, [_annotation(keypoints=[4, 6, 2, 0, 0, 0])]))
    assert contents.records[1]["annotations"][0]["keypoints"] == [4.5, 6.5, 2, 0.5, 0.5, 0]


def test_read_coco__as_many_keypoints_as_the_category_names(make_coco):
    categories = [{"id": 7, "name": "dog", "keypoints": ["nose", "tail"]}, {"id": 3, "name": "cat"}]
    points = [4, 6, 2, 0, 0, 0]
    files = make_coco(IMAGES, [_annotation(keypoints=points)], categories)
    assert read_coco(*files).left_out["images_without_keypoints"] == 0
    unlabelled = make_coco(IMAGES, [_annotation(keypoints=[0] * 6), _annotation(id=5)], categories)
    assert read_coco(*unlabelled).left_out["images_without_keypoints"] == 1
    wrong = make_coco(IMAGES, [_annotation(keypoints=points[:3])], categories)
    with pytest.raises(InputError, match="keypoints has 1 points, but its category names 2"):
        read_coco(*wrong)


def test_read_coco__compresses_rle(make_coco):
    # 20 x 30 px, column by column: 30 zeros (column 0), 60 ones (columns 1 and 2), zeros.
    contents = read_coco(
        *make_coco(
            IMAGES,
            [_annotation(image_id=2, segmentation={"size": [30, 20], "counts": [30, 60, 510]})],
        )
    )
    from pycocotools import mask as mask_api

    mask = mask_api.decode(contents.records[0]["annotations"][0]["segmentation"])
    assert mask.shape == (30, 20)
    assert mask[:, 1:3].all()
    assert mask.sum() == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "image_id 99"),
        ({"image_id": [5]}, r"image_id \[5\]"),
        ({"category_id": 8}, r"category_id 8 .*\[3, 7\]"),
        ({"category_id": {"id": 7}}, r"category_id \{'id': 7\}"),
        ({"bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\]"),
        ({"bbox": [1, 2, float("nan"), 3]}, "bbox is .*nan"),
        ({"bbox": [1, 2, -3, 4]}, r"bbox .*\[1, 2, -3, 4\] .*40 x 30"),
        ({"bbox": [41, 2, 3, 4]}, r"bbox .*\[41, 2, 3, 4\] .*40 x 30"),
        ({"bbox": [30, 2, 400, 4]}, r"bbox .*\[30, 2, 400, 4\] .*40 x 30"),
        ({"bbox": []}, r"bbox is \[\]"),
        ({"ignore": 1}, "ignore is 1.*use 'iscrowd': 1"),
        ({"iscrowd": "no"}, "iscrowd is 'no'"),
        ({"iscrowd": [1]}, r"iscrowd is \[1\]"),
        ({"iscrowd": 2}, "iscrowd is 2"),
        ({"area": "large"}, "area is 'large'"),
        ({"area": float("nan")}, "area is nan"),
        ({"keypoints": [1, 2]}, r"keypoints is \[1, 2\]"),
        ({"keypoints": [1, 2, "2"]}, r"keypoints is \[1, 2, '2'\]"),
        ({"keypoints": [1, float("nan"), 2]}, r"keypoints is \[1, nan, 2\]"),
        ({"keypoints": 7}, "keypoints is 7"),
        ({"segmentation": "x"}, "segmentation is 'x'"),
        ({"segmentation": [["1", "2", "3", "4", "5", "6"]]}, r"\['1', '2'.*finite"),
        ({"segmentation": [[1, 2, 3, 4, 5, [6]]]}, r"\[6\].*finite"),
        ({"segmentation": [[1, 2, 3, 4, 5, None]]}, "None.*finite"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "nan.*finite"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("-inf")]]}, "-inf.*finite"),
        (
            {"segmentation": [[41, 2, 50, 2, 50, 9], [41, 2, 50, 2, 50, 9]]},
            r"\[41, 2, 50.*40 x 30 .*b\.jpg",
        ),
        ({"segmentation": [[1, -2, 9, -2, 9, -9]]}, "40 x 30"),
        ({"segmentation": [[1, 2, 1e9, 2, 9, 9]]}, "40 x 30"),
        ({"segmentation": {"size": [1, 2]}}, "'counts'"),
        ({"segmentation": {"counts": [0, 1200]}}, "'size'"),
        (
            {"segmentation": {"size": [40, 30], "counts": [0, 1200]}},
            r"'size' .*\[40, 30\].*\[30, 40\]",
        ),
        ({"segmentation": {"size": 1200, "counts": [0, 1200]}}, "'size': 1200"),
        ({"segmentation": {"size": [30, 40], "counts": [0, 1199]}}, "1200 px .*1199 px"),
        ({"segmentation": {"size": [30, 40], "counts": [-1, 1201]}}, "whole number"),
        ({"segmentation": {"size": [30, 40], "counts": [0, "1200"]}}, "whole number"),
        ({"segmentation": {"size": [30, 40], "counts": "garbage"}}, "'garbage' .*1200 px"),
        ({"segmentation": {"size": [30, 40], "counts": "0P"}}, "it is cut off"),
        ({"segmentation": {"size": [30, 40], "counts": "0 \u00e9"}}, "'0 \u00e9' .*character"),
        ("x", "'x', expected an object"),
        ({"id": [1]}, r"id is \[1\]"),
    ],
)
def test_read_coco__refuses_a_wrong_annotation(make_coco, change, message):
    wrong = _annotation(**change) if isinstance(change, dict) else change
    with pytest.raises(InputError, match=message) as error:
        read_coco(*make_coco(IMAGES, [wrong]))
    assert "annotations.json, annotation " in str(error.value)
    # Listed with the others, and nothing of the annotation is kept.
    problems = []
    contents = read_coco(*make_coco(IMAGES, [wrong, _annotation(id=2)]), on_problem=problems.append)
    assert [str(problem) for problem in problems] == [str(error.value)]
    assert len(contents.records[1]["annotations"]) == 1


def test_read_coco__a_polygon_that_reaches_out_is_kept_with_one_that_lies_inside(make_coco):
    polygons = [[41, 2, 50, 2, 50, 9], [-5, -5, 100, -5, 100, 100]]
    contents = read_coco(*make_coco(IMAGES, [_annotation(segmentation=polygons)]))
    assert contents.records[1]["annotations"][0]["segmentation"] == polygons


def test_read_coco__takes_every_rle_that_pycocotools_writes(make_coco):
    from pycocotools import mask as mask_api

    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 1.0):
        rle = mask_api.encode(np.asfortranarray((rng.random((30, 40)) < share).astype(np.uint8)))
        rle["counts"] = rle["counts"].decode()
        kept = read_coco(*make_coco(IMAGES, [_annotation(segmentation=rle)])).records[1][
            "annotations"
        ][0]["segmentation"]
        assert kept == rle
        # One character less or another one: other runs, or none.
        for broken in (rle["counts"][:-1], "5" + rle["counts"][1:]):
            with pytest.raises(InputError, match="are not the RLE of a mask of 1200 px"):
                read_coco(*make_coco(IMAGES, [_annotation(segmentation={**rle, "counts": broken})]))


# What tools write, and what it means.
POLYGON = [1, 1, 9, 1, 9, 9]
VARIANTS = {
    "iscrowd null": ({"iscrowd": None}, {}),
    "iscrowd empty": ({"iscrowd": ""}, {}),
    "iscrowd text": ({"iscrowd": "1"}, {"iscrowd": 1}),
    "iscrowd bool": ({"iscrowd": True}, {"iscrowd": 1}),
    "area null": ({"area": None}, {}),
    "ids as text": ({"image_id": "5", "category_id": "7"}, {}),
    "ids as floats": ({"image_id": 5.0, "category_id": 7.0}, {}),
    "no id": ({"id": None}, {}),
    "empty segmentation": ({"segmentation": ""}, {}),
    "flat polygon": ({"segmentation": POLYGON}, {"segmentation": [POLYGON]}),
    "polygon of points": ({"segmentation": [[1, 1], [9, 1], [9, 9]]}, {"segmentation": [POLYGON]}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_read_coco__takes_what_has_one_meaning(make_coco, name):
    written, means = VARIANTS[name]
    (odd,) = read_coco(*make_coco(IMAGES, [_annotation(**written)])).records[1]["annotations"]
    (plain,) = read_coco(*make_coco(IMAGES, [_annotation(**means)])).records[1]["annotations"]
    if "area" in written:
        del plain["area"]
    assert odd == plain


@pytest.mark.parametrize("sides", [{}, {"width": 40.0, "height": 30.0}, {"width": 0, "height": ""}])
def test_read_coco__sizes_are_whole_numbers_or_the_images(make_coco, sides):
    json_file, images = make_coco(IMAGES, [_annotation()])
    content = json.loads(json_file.read_text())
    content["images"][0] = {"id": 5, "file_name": "b.jpg"} | sides
    json_file.write_text(json.dumps(content))
    record = read_coco(json_file, images).records[1]
    assert [record["height"], record["width"]] == [30, 40]
    assert all(isinstance(record[side], int) for side in ("height", "width"))
    (images / "b.jpg").unlink()
    problems = []
    read_coco(json_file, images, on_problem=problems.append)
    assert [type(problem) for problem in problems] == [MissingFileError], "nothing follows from it"


def test_read_coco__category_ids_as_text_are_numbers(make_coco):
    categories = [{"id": "7", "name": "dog"}, {"id": "10", "name": "cat"}]
    contents = read_coco(*make_coco(IMAGES, [_annotation()], categories=categories))
    assert contents.category_ids == (7, 10) and contents.class_names == ("dog", "cat")


def test_read_coco__a_repeated_fault_is_one_line(make_coco):
    wrong = [_annotation(id=n, iscrowd="no", bbox=[n, 2, 3, 4]) for n in range(3)]
    problems = []
    read_coco(*make_coco(IMAGES, wrong), on_problem=problems.append)
    (problem,) = map(str, problems)
    assert "annotation 0 and 2 more: iscrowd is 'no'" in problem
    with pytest.raises(InputError, match="annotation 0 and 2 more"):
        read_coco(*make_coco(IMAGES, wrong))


def test_read_coco__nothing_follows_from_an_image_that_is_wrong(make_coco):
    image = {"id": 9, "file_name": 3, "width": 5, "height": 5}
    problems = []
    annotations = [_annotation(image_id=9), _annotation(image_id=9), _annotation()]
    place = make_coco(IMAGES, annotations)
    content = json.loads(place[0].read_text())
    content["images"].append(image)
    place[0].write_text(json.dumps(content))
    contents = read_coco(*place, on_problem=problems.append)
    assert len(problems) == 1 and "file_name is 3" in str(problems[0])
    assert [len(record["annotations"]) for record in contents.records] == [0, 1]


def test_read_coco__refuses_repeated_ids(make_coco):
    with pytest.raises(InputError, match="image 2 .*id 5 occurs more than once"):
        read_coco(*make_coco([IMAGES[0], IMAGES[0]], []))
    with pytest.raises(InputError, match="categories.*id 3 occurs more than once"):
        read_coco(
            *make_coco(IMAGES, [], categories=[{"id": 3, "name": "a"}, {"id": 3, "name": "b"}])
        )
    # Annotations' ids mean nothing here: all are kept.
    contents = read_coco(*make_coco(IMAGES, [_annotation(), _annotation()]))
    assert len(contents.records[1]["annotations"]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "is not json"),
        ("[]", "not in COCO's format"),
        ('{"images": [], "categories": []}', "'images'"),
        (
            '{"images": [{}], "categories": [{}], "annotations": {"1": {}}}',
            "'annotations' is {'1': {}}",
        ),
        (
            '{"images": [{}], "categories": [{"id": 1, "name": "a", "keypoints": 3}]}',
            "keypoints is 3",
        ),
        (
            '{"images": [{}], "categories": [{"id": 1, "name": "a", "keypoints": ["x", "x"]}]}',
            "'x', 'x'",
        ),
        (
            '{"images": [{}], "categories": [{"id": 1, "name": "a", "skeleton": [[0, 1]]}]}',
            r"skeleton is \[\[0, 1\]\]",
        ),
        (
            '{"images": [{}], "categories":'
            ' [{"id": 1, "name": "a", "keypoints": ["x"], "skeleton": [[1, 2]]}]}',
            "connects keypoint 2",
        ),
    ],
)
def test_read_coco__refuses_other_files(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_coco(tmp_path / "a.json", tmp_path)
    with pytest.raises(MissingFileError, match=r"b\.json does not exist"):
        read_coco(tmp_path / "b.json", tmp_path)


def test_read_coco__counts_missing_images_and_names_the_first(make_coco):
    json_file, images = make_coco(IMAGES, [])
    (images / "a.jpg").unlink()
    with pytest.raises(MissingFileError, match=r"1 of the 2 images .* the first is .*a\.jpg"):
        read_coco(json_file, images)
    with pytest.raises(MissingFileError, match="does not exist: .*nowhere"):
        read_coco(json_file, images / "nowhere")


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "name",
    [
        "instances_train2017",
        "instances_val2017",
        "person_keypoints_train2017",
        "person_keypoints_val2017",
    ],
)
def test_read_coco__equals_detectron2(shared_data, name):
    from detectron2.data.datasets.coco import load_coco_json
    from detectron2.structures import BoxMode

    json_file, images = (
        shared_data / "coco/annotations" / f"{name}.json",
        shared_data / "coco" / name.rsplit("_", 1)[1],
    )
    theirs = load_coco_json(str(json_file), str(images), dataset_name=f"test_coco_{name}")
    ours = read_coco(json_file, images)
    assert len(ours.records) == len(theirs) >= 128
    for mine, other in zip(ours.records, theirs, strict=True):
        assert all(mine[key] == other[key] for key in ("file_name", "image_id", "height", "width"))
        assert len(mine["annotations"]) == len(other["annotations"])
        for a, b in zip(mine["annotations"], other["annotations"], strict=True):
            assert a["bbox"] == BoxMode.convert(b["bbox"], b["bbox_mode"], BoxMode.XYXY_ABS)
            if isinstance(b.get("segmentation"), dict):  # ours are text
                b["segmentation"]["counts"] = b["segmentation"]["counts"].decode()
            for key in ("category_id", "iscrowd", "segmentation", "keypoints"):
                assert a.get(key) == b.get(key)
    assert np.all(np.diff(ours.category_ids) > 0)


DENSE_POSE = {
    "dp_x": [10.5, 200.0],
    "dp_y": [20.0, 255.0],
    "dp_I": [1.0, 24.0],
    "dp_U": [0.5, 1.0],
    "dp_V": [0.0, 0.25],
    "dp_masks": [[], {"size": [256, 256], "counts": "PPPo0"}],
}


def test_read_coco__dense_pose_as_the_file_has_it(make_coco):
    annotations = [_annotation(**DENSE_POSE), _annotation(id=2)]
    with_points, without = read_coco(*make_coco(IMAGES, annotations)).records[1]["annotations"]
    assert {key: with_points[key] for key in DENSE_POSE} == DENSE_POSE
    assert not DENSE_POSE.keys() & without.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dp_I", [1.0, 25.0]),
        ("dp_I", [1.5, 2.0]),
        ("dp_U", [0.5]),
        ("dp_V", [0.5, -0.1]),
        ("dp_x", None),
        ("dp_y", [1.0, float("nan")]),
        ("dp_masks", [{"size": [30, 40], "counts": "PPPo0"}]),
    ],
)
def test_read_coco__refuses_dense_pose_that_is_none(make_coco, key, value):
    annotation = _annotation(**DENSE_POSE | {key: value})
    with pytest.raises(InputError, match=rf"annotation 1: {key} is"):
        read_coco(*make_coco(IMAGES, [annotation]))
