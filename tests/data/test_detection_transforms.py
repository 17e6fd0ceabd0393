"""Images and annotations after resizing and mirroring: against Detectron2's mapper on real
images, and worked by hand.

Seen red under: mirroring to W - 1 - x, or before resizing with the old width; the new size rounded
down; nearest neighbours; crowd regions or boxes without area kept; EXIF ignored; RGB for BGR; left
and right keypoints not swapped; the flip drawn before the size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from moco_transfer.data.annotations.coco import read_coco
from moco_transfer.data.annotations.voc import VOC_CLASSES, read_voc
from moco_transfer.data.batches.transforms import (
    ResizeAndFlip,
    TestMapper,
    TrainMapper,
    draw_shorter_edge,
    read_and_check,
    resized_shape,
)
from moco_transfer.data.images.decode import read_image
from moco_transfer.runtime.errors import InputError, MissingFileError

MIRROR = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


def _record(path, width=20, height=10, annotations=()):
    return {
        "file_name": str(path),
        "image_id": 1,
        "width": width,
        "height": height,
        "annotations": list(annotations),
    }


@pytest.fixture
def image_file(tmp_path):
    """A 20 x 10 image whose pixels all differ."""
    pixels = np.arange(600, dtype=np.uint16).reshape(10, 20, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png", pixels


@pytest.mark.parametrize(
    ("shape", "shorter_edge", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 640 * 800/480 = 1066.67
        ((640, 480), 800, 1333, (1067, 800)),
        ((300, 900), 800, 1333, (444, 1333)),  # 2400 > 1333: 800 * 1333/2400 = 444.3
        ((500, 500), 480, 800, (480, 480)),
    ],
)
def test_resized_shape__by_hand(shape, shorter_edge, max_size, expected):
    assert resized_shape(*shape, shorter_edge=shorter_edge, max_size=max_size) == expected


def test_draw_shorter_edge__choice_takes_members_and_range_all_between():
    rng = np.random.default_rng(0)
    assert {draw_shorter_edge((5, 9), "choice", rng) for _ in range(100)} == {5, 9}
    assert {draw_shorter_edge((5, 9), "range", rng) for _ in range(200)} == {5, 6, 7, 8, 9}


def test_train_mapper__moves_boxes_polygons_and_keypoints_by_known_numbers(image_file):
    path, _ = image_file
    person = {
        "bbox": [2.0, 1.0, 6.0, 9.0],
        "category_id": 4,
        "segmentation": [[2.0, 1.0, 6.0, 1.0, 6.0, 9.0]],
        "keypoints": [4.0, 5.0, 2, 2.0, 1.0, 1, 30.0, 5.0, 2],
    }
    crowd = {"bbox": [0.0, 0.0, 20.0, 10.0], "category_id": 0, "iscrowd": 1}
    empty = {**person, "bbox": [3.0, 3.0, 3.0, 8.0]}
    mapper = TrainMapper((20,), 100, mask_format="polygon", keypoint_mirror=(0, 2, 1))
    record = _record(path, annotations=[person, crowd, empty])
    item = mapper.apply(
        record, read_and_check(record, "RGB"), ResizeAndFlip((10, 20), (20, 40), "horizontal")
    )
    # Twice as large, 40 wide: x -> 40 - 2 x, y -> 2 y.
    assert item["gt_boxes"].tolist() == [[28.0, 2.0, 36.0, 18.0]]
    assert item["gt_classes"].tolist() == [4]
    assert [[polygon.tolist() for polygon in polygons] for polygons in item["gt_masks"]] == [
        [[36.0, 2.0, 28.0, 2.0, 28.0, 18.0]]
    ]
    # The third point lies outside, becomes unlabelled, and changes places with the second.
    assert item["gt_keypoints"].tolist() == [[[32.0, 10.0, 2.0], [0.0, 0.0, 0.0], [36.0, 2.0, 1.0]]]
    assert (item["height"], item["width"], item["image"].shape) == (10, 20, (3, 20, 40))


def test_train_mapper__vertical_flip_and_clipping(image_file):
    path, pixels = image_file
    record = _record(path, annotations=[{"bbox": [-1.0, 1.0, 25.0, 4.0], "category_id": 0}])
    mapper = TrainMapper((10,), 100, flip="vertical")
    item = mapper.apply(
        record, read_and_check(record, "RGB"), ResizeAndFlip((10, 20), (10, 20), "vertical")
    )
    assert item["gt_boxes"].tolist() == [[0.0, 6.0, 20.0, 9.0]]
    assert torch.equal(
        item["image"], torch.from_numpy(pixels[::-1].transpose(2, 0, 1).copy()).float()
    )


def test_train_mapper__is_a_function_of_the_generator(image_file):
    path, _ = image_file
    mapper = TrainMapper((8, 16), 100, "range")
    record = _record(path, annotations=[{"bbox": [1.0, 1.0, 5.0, 5.0], "category_id": 0}])
    np.random.seed(0)
    torch.manual_seed(0)
    first = [mapper(record, np.random.default_rng(i)) for i in range(20)]
    np.random.seed(1)
    torch.manual_seed(1)
    second = [mapper(record, np.random.default_rng(i)) for i in range(20)]
    assert all(
        torch.equal(a["image"], b["image"]) and torch.equal(a["gt_boxes"], b["gt_boxes"])
        for a, b in zip(first, second, strict=True)
    )
    flipped = sum(item["gt_boxes"][0, 0] > item["image"].shape[2] / 2 for item in first)
    assert 4 <= flipped <= 16
    assert len({item["image"].shape for item in first}) > 3
    # Size first, flip second: the documented order of the draws.
    rng = np.random.default_rng(3)
    assert first[3]["image"].shape[1] == draw_shorter_edge((8, 16), "range", rng)
    assert (first[3]["gt_boxes"][0, 0] > first[3]["image"].shape[2] / 2) == (rng.random() < 0.5)


def test_test_mapper__resizes_with_pillows_bilinear_filter(image_file):
    path, pixels = image_file
    item = TestMapper(15, 100, "BGR")(_record(path))
    expected = np.asarray(Image.fromarray(pixels).resize((30, 15), Image.Resampling.BILINEAR))[
        :, :, ::-1
    ]
    assert np.array_equal(item["image"].numpy(), expected.transpose(2, 0, 1).astype(np.float32))
    assert set(item) == {"image", "height", "width", "image_id", "file_name"}


def test_train_mapper__an_image_without_objects(image_file):
    item = TrainMapper((10,), 100, mask_format="polygon", keypoint_mirror=MIRROR)(
        _record(image_file[0]), np.random.default_rng(0)
    )
    assert item["gt_boxes"].shape == (0, 4)
    assert item["gt_classes"].shape == (0,)
    assert item["gt_masks"] == []
    assert item["gt_keypoints"].shape == (0, 17, 3)


def test_train_mapper__an_object_without_keypoints_has_none_labelled(image_file):
    bare = {"bbox": [1.0, 1.0, 5.0, 5.0], "category_id": 0}
    record = _record(image_file[0], annotations=[bare, {**bare, "keypoints": [2.0, 3.0, 2]}])
    item = TrainMapper((10,), 100, flip="none", keypoint_mirror=(0,))(
        record, np.random.default_rng(0)
    )
    assert item["gt_keypoints"].tolist() == [[[0.0, 0.0, 0.0]], [[2.0, 3.0, 2.0]]]


def test_read_image__turns_upright_as_exif_says_and_orders_channels(image_file, tmp_path):
    path, pixels = image_file
    assert np.array_equal(read_image(str(path), "RGB"), pixels)
    assert np.array_equal(read_image(str(path), "BGR"), pixels[:, :, ::-1])
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274] = 6  # the camera was held upright: turn by 90 degrees clockwise to see it right
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(str(tmp_path / "turned.png"), "RGB"), np.rot90(pixels, -1))


def test_mappers__refuse_wrong_input(image_file, tmp_path):
    path, _ = image_file
    with pytest.raises(InputError, match=r"a\.png is 20 x 10 px, but its annotation says 21 x 10"):
        TestMapper(10, 100)(_record(path, width=21))
    with pytest.raises(MissingFileError, match="does not exist"):
        TestMapper(10, 100)(_record(tmp_path / "b.png"))
    (tmp_path / "c.png").write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"c\.png cannot be decoded"):
        TestMapper(10, 100)(_record(tmp_path / "c.png"))
    with pytest.raises(InputError, match="INPUT.FORMAT is 'L'"):
        TestMapper(10, 100, "L")(_record(path))
    with pytest.raises(InputError, match="for MIN_SIZE_TRAIN_SAMPLING 'range' exactly two"):
        TrainMapper((10, 12, 14), 100, "range")


def _detectron2_item(record, shorter_edge, max_size, flip, image_format, **kwargs):
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T
    from detectron2.structures import BoxMode

    augmentations = [T.ResizeShortestEdge([shorter_edge], max_size, "choice")]
    if flip != "none":
        augmentations.append(
            T.RandomFlip(1.0, horizontal=flip == "horizontal", vertical=flip == "vertical")
        )
    annotations = [
        {**annotation, "bbox_mode": BoxMode.XYXY_ABS} for annotation in record["annotations"]
    ]
    mapper = DatasetMapper(True, augmentations=augmentations, image_format=image_format, **kwargs)
    return mapper({**record, "annotations": annotations})


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("flip", "image_format", "size"),
    [
        ("none", "BGR", (800, 1333)),
        ("horizontal", "RGB", (321, 500)),
        ("vertical", "RGB", (99, 120)),
    ],
)
def test_train_mapper__equals_detectron2_on_voc(shared_data, flip, image_format, size):
    records = read_voc(shared_data / "VOC2007", "test", VOC_CLASSES).records[:12]
    mapper = TrainMapper((size[0],), size[1], flip=flip, image_format=image_format)
    for record in records:
        theirs = _detectron2_item(record, *size, flip, image_format)
        shape = resized_shape(
            record["height"], record["width"], shorter_edge=size[0], max_size=size[1]
        )
        pixels = read_and_check(record, image_format)
        ours = mapper.apply(record, pixels, ResizeAndFlip(pixels.shape[:2], shape, flip))
        assert torch.equal(ours["image"], theirs["image"].float())
        assert torch.equal(ours["gt_boxes"], theirs["instances"].gt_boxes.tensor)
        assert torch.equal(ours["gt_classes"], theirs["instances"].gt_classes)


@pytest.mark.detectron2
@pytest.mark.parametrize("flip", ["none", "horizontal"])
def test_train_mapper__masks_and_keypoints_equal_detectron2_on_coco(shared_data, flip):
    contents = read_coco(
        shared_data / "coco/annotations/person_keypoints_val2017.json", shared_data / "coco/val2017"
    )
    records = [record for record in contents.records if record["annotations"]][:12]
    mapper = TrainMapper((240,), 400, flip=flip, mask_format="polygon", keypoint_mirror=MIRROR)
    for record in records:
        theirs = _detectron2_item(
            record,
            240,
            400,
            flip,
            "RGB",
            use_instance_mask=True,
            instance_mask_format="polygon",
            use_keypoint=True,
            keypoint_hflip_indices=np.array(MIRROR),
        )["instances"]
        shape = resized_shape(record["height"], record["width"], shorter_edge=240, max_size=400)
        pixels = read_and_check(record, "RGB")
        ours = mapper.apply(record, pixels, ResizeAndFlip(pixels.shape[:2], shape, flip))
        assert torch.equal(ours["gt_boxes"], theirs.gt_boxes.tensor)
        if len(theirs) == 0:
            continue
        assert torch.equal(ours["gt_keypoints"], theirs.gt_keypoints.tensor)
        for mine, other in zip(ours["gt_masks"], theirs.gt_masks.polygons, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(mine, other, strict=True))


@pytest.mark.detectron2
def test_test_mapper__equals_detectron2(shared_data):
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    records = read_coco(
        shared_data / "coco/annotations/instances_val2017.json", shared_data / "coco/val2017"
    ).records[:12]
    theirs = DatasetMapper(
        False, augmentations=[T.ResizeShortestEdge([480], 640, "choice")], image_format="BGR"
    )
    ours = TestMapper(480, 640, "BGR")
    for record in records:
        mine, other = ours(record), theirs(record)
        assert torch.equal(mine["image"], other["image"].float())
        assert all(mine[key] == other[key] for key in ("height", "width", "image_id", "file_name"))
        assert "annotations" not in mine
