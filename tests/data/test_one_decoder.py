"""Pre-training and detection read an image the same way; what turns or spoils it is named.

Seen red under: 16 bits clipped at 255; EXIF applied by one of the two; the tag's mirror forgotten
in the annotations; a TIFF turned twice; limit and reason left out of the message; Detectron2's own
reader kept.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from generated_images import write_pool
from PIL import Image
from pycocotools import mask as mask_api

from moco_transfer.data.annotations import catalog
from moco_transfer.data.annotations.catalog import get_dataset, parse_dataset_flag
from moco_transfer.data.annotations.check import check_dataset
from moco_transfer.data.images import decode
from moco_transfer.data.images.folder import find_images
from moco_transfer.data.views.view_batch import ViewMaker
from moco_transfer.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]


def gradient(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    width, height = size
    ramp = np.arange(width * height, dtype=np.int64).reshape(height, width)
    levels = (ramp * 255 // ramp.max()).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(levels.astype(np.uint16) * 257)
    return Image.fromarray(np.stack([levels, levels[::-1], levels[:, ::-1]], 2)).convert(mode)


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


IMAGES = {
    "sixteen.png": (gradient("I;16"), {}),
    "sixteen.tif": (gradient("I;16"), {}),
    "palette.png": (gradient("P"), {"transparency": 0}),
    "palette.gif.png": (gradient("P"), {}),
    "alpha.png": (gradient("RGBA"), {}),
    "grey_alpha.png": (gradient("LA"), {}),
    "one_bit.png": (gradient("1"), {}),
    "cmyk.jpg": (gradient("CMYK"), {"quality": 95}),
    "grey.jpg": (gradient("L"), {"quality": 95}),
    "plain.webp": (gradient(), {"lossless": True}),
    **{f"turned{n}.jpg": (gradient(), {"exif": tagged(n), "quality": 95}) for n in range(1, 9)},
    **{f"turned{n}.png": (gradient(), {"exif": tagged(n)}) for n in range(1, 9)},
    **{f"turned{n}.tif": (gradient(), {"exif": tagged(n)}) for n in range(1, 9)},
}


@pytest.mark.parametrize("name", IMAGES)
def test_decode__detection_and_both_pipelines_see_the_same_pixels(tmp_path, name):
    image, options = IMAGES[name]
    image.save(tmp_path / name, **options)
    detection = decode.read_image(str(tmp_path / name), "RGB")
    for pipeline in ("fast", "reference"):
        maker = ViewMaker("v2", 8, (0.2, 1.0), 2, pipeline, upright=True)
        seen = np.asarray(maker.decode((tmp_path / name).read_bytes()))
        assert np.array_equal(seen, detection), pipeline


@pytest.mark.detectron2
def test_decode__detectron2s_mappers_see_the_same_pixels(tmp_path):
    from detectron2.data import detection_utils

    from moco_transfer.finetune.detectron2_engine import add_datasets

    add_datasets([])
    for name, (image, options) in IMAGES.items():
        image.save(tmp_path / name, **options)
        for order in ("RGB", "BGR"):
            ours = decode.read_image(str(tmp_path / name), order)
            theirs = detection_utils.read_image(str(tmp_path / name), format=order)
            assert np.array_equal(theirs, ours), (name, order)


def test_decode__sixteen_bits_are_the_eight_upper_ones(tmp_path):
    gradient("I;16").save(tmp_path / "a.png")
    levels = np.asarray(gradient("I;16")) >> 8
    assert np.array_equal(decode.read_image(str(tmp_path / "a.png"), "RGB")[:, :, 0], levels)


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """Write a COCO file of images; returns the flag of a data set with its options."""
    monkeypatch.setattr(catalog, "_OWN", {})
    (tmp_path / "images").mkdir()

    def write(images: dict[str, tuple[Image.Image, dict, list[dict]]], option: str = "") -> str:
        content: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "c"}]}
        for number, (name, (image, options, objects)) in enumerate(images.items(), 1):
            image.save(tmp_path / "images" / name, **options)
            size = {"width": image.width, "height": image.height}
            content["images"].append({"id": number, "file_name": name, **size})
            content["annotations"] += [{"image_id": number, "category_id": 1} | o for o in objects]
        for number, annotation in enumerate(content["annotations"], 1):
            annotation |= {"id": number, "area": 9, "iscrowd": 0}
        (tmp_path / "a.json").write_text(json.dumps(content))
        return f"a=coco:{tmp_path / 'a.json'}:{tmp_path / 'images'}{option}"

    return write


@pytest.mark.parametrize(
    ("name", "size"), [("a.png", (24, 16)), ("a.png", (20, 20)), ("a.tif", (24, 16))]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_apply__turns_boxes_masks_and_keypoints_with_the_image(coco, orientation, name, size):
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[3:8, 4:14] = 200  # the object; its upper left pixel is brighter
    pixels[3, 4] = 255
    box, corners = [4, 3, 10, 5], [4, 3, 14, 3, 14, 8, 4, 8]
    mask = mask_api.encode(np.asfortranarray((pixels[:, :, 0] > 0).astype(np.uint8)))
    rle = {"size": mask["size"], "counts": mask["counts"].decode()}
    objects = [
        {"bbox": box, "segmentation": [corners], "keypoints": [4, 3, 2]},
        {"bbox": box, "segmentation": rle},
    ]
    image = Image.fromarray(pixels)
    parse_dataset_flag(coco({name: (image, {"exif": tagged(orientation)}, objects)}, ":exif=apply"))
    (record,) = get_dataset("a").records
    seen = decode.read_image(record["file_name"], "RGB")[:, :, 0]
    assert seen.shape == (record["height"], record["width"])
    rows, columns = np.nonzero(seen)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    first, second = record["annotations"]
    assert first["bbox"] == expected and second["bbox"] == expected
    drawn = mask_api.decode(mask_api.frPyObjects(first["segmentation"], *seen.shape))[:, :, 0]
    assert np.array_equal(drawn, seen > 0)
    assert np.array_equal(mask_api.decode(second["segmentation"]), seen > 0)
    row, column = np.argwhere(seen == 255)[0]
    assert first["keypoints"] == [column + 0.5, row + 0.5, 2]


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_exif_apply__a_missing_size_is_that_of_the_stored_pixels(coco, tmp_path, name):
    images = {name: (gradient(), {"exif": tagged(6)}, [{"bbox": [1, 1, 9, 9]}])}
    parse_dataset_flag(coco(images, ":exif=apply"))
    expected = get_dataset("a").read().records
    content = json.loads((tmp_path / "a.json").read_text())
    del content["images"][0]["width"], content["images"][0]["height"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert get_dataset("a").read().records == expected


def test_exif__boxes_on_stored_pixels_are_one_line_that_names_the_option(coco):
    box = [{"bbox": [1, 1, 9, 9]}]
    images = {f"{n}.jpg": (gradient(), {"exif": tagged(6)}, box) for n in range(3)}
    parse_dataset_flag(coco(images))
    (problem,) = check_dataset("a").problems
    assert "EXIF" in problem and "exif=apply" in problem and "3 images" in problem
    assert "16 x 24" in problem and "24 x 16" in problem


def test_exif__with_the_option_the_data_are_usable_and_the_turn_is_remarked(coco):
    images = {"a.jpg": (gradient(), {"exif": tagged(6)}, [{"bbox": [1, 1, 9, 9]}])}
    parse_dataset_flag(coco(images, ":exif=apply"))
    report = check_dataset("a")
    assert report.is_usable and any("EXIF" in remark for remark in report.remarks)


def test_exif__a_mirrored_image_that_fits_is_remarked(coco):
    images = {"a.jpg": (gradient(), {"exif": tagged(2)}, [{"bbox": [1, 1, 9, 9]}])}
    parse_dataset_flag(coco(images))
    report = check_dataset("a")
    assert report.is_usable and any("exif=apply" in remark for remark in report.remarks)


def test_exif__another_value_is_refused():
    with pytest.raises(InputError, match="exif"):
        parse_dataset_flag("a=coco:a.json:images:exif=ignore")


def test_check__twelve_bits_in_sixteen_and_plain_images_are_named(coco):
    twelve = Image.fromarray(np.asarray(gradient("L")).astype(np.uint16) * 16)
    plain = Image.new("L", (24, 16), 90)
    box = [{"bbox": [1, 1, 9, 9]}]
    parse_dataset_flag(
        coco(
            {
                "twelve.png": (twelve, {}, box),
                "sixteen.png": (gradient("I;16"), {}, box),
                "plain.png": (plain, {}, box),
            }
        )
    )
    remarks = check_dataset("a").remarks
    assert [r for r in remarks if "12-bit" in r and "twelve.png" in r and ": 1." in r]
    assert [r for r in remarks if "one colour: 1" in r and "plain.png" in r]


def run(*words: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "moco_transfer", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | environment,
    )


def test_pixel_limit__is_named_and_can_be_raised(coco):
    flag = coco({"a.png": (gradient(size=(40, 30)), {}, [{"bbox": [1, 1, 9, 9]}])})
    refused = run("check-data", "--dataset", flag, "a", MOCO_TRANSFER_MAX_PIXELS="1000")
    assert refused.returncode == 2 and "MOCO_TRANSFER_MAX_PIXELS=1200" in refused.stdout
    assert "1200 pixels" in refused.stdout
    taken = run("check-data", "--dataset", flag, "a", MOCO_TRANSFER_MAX_PIXELS="1200")
    assert taken.returncode == 0, taken.stdout
    wrong = run("check-data", "--dataset", flag, "a", MOCO_TRANSFER_MAX_PIXELS="many")
    assert wrong.returncode == 2 and "'many'" in wrong.stderr


def test_find_images__counts_what_its_suffix_passes_over(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("moco_transfer"), "propagate", True)
    write_pool(tmp_path / "pool", count=2, size=16, seed=0)
    for name in ("a.heic", "b.HEIC", "notes.txt"):
        (tmp_path / "pool" / name).write_bytes(b"x")
    with caplog.at_level(logging.INFO, "moco_transfer"):
        assert len(find_images(tmp_path / "pool")) == 2
    assert ".heic 2, .txt 1" in caplog.text
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.heic").write_bytes(b"x")
    with pytest.raises(InputError, match=r"\.heic 1"):
        find_images(tmp_path / "none")
