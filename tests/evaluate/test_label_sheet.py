"""The sheet of label images: pixels tinted by class, those of no class dark.

Seen red under: labels of the image's transposed size; a tint on the background; masks of a
prediction by their place in the file in place of their class.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from moco_transfer.data.annotations.catalog import get_dataset, parse_dataset_flag
from moco_transfer.data.drawing import CELL, GAP, class_colour, draw_labels
from moco_transfer.evaluate.detection_sheet import draw_detection_sheet, first_images


def test_draw__tints_classes_and_darkens_the_rest():
    image = np.full((40, 60, 3), 120, np.uint8)
    labels = np.zeros((40, 60), np.int64)
    labels[:, 20:40], labels[:, 50:] = 1, 255
    drawn = draw_labels(image, labels, ("background", "cell"))
    assert (drawn[-1, :20] == 120).all() and (drawn[-1, 50:] == 40).all()
    assert np.abs(drawn[-1, 20:40] - (0.6 * 120 + 0.4 * np.array(class_colour(1)))).max() < 1


def test_sheet__shows_the_labels_and_each_prediction(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    labels = np.zeros((CELL // 2, CELL), np.uint8)
    labels[:, CELL // 2 :] = 1
    Image.fromarray(np.full((*labels.shape, 3), 120, np.uint8)).save(tmp_path / "images" / "a.png")
    Image.fromarray(labels).save(tmp_path / "labels" / "a.png")
    flag = f"own=semantic:{tmp_path}/images:{tmp_path}/labels:background,cell"
    dataset = get_dataset(parse_dataset_flag(flag))
    mask = mask_api.encode(np.asfortranarray(1 - labels))
    found = [{"image_id": "a", "category_id": 1, "segmentation": mask}]
    path = tmp_path / "sheet.png"
    draw_detection_sheet(path, dataset, {"row": found}, image_ids=first_images(dataset))
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    y = sheet.shape[0] - GAP - 2
    tinted = 0.6 * 120 + 0.4 * np.array(class_colour(1))
    quarters = [GAP + x for x in (10, CELL - 10, CELL + GAP + 10, 2 * CELL + GAP - 10)]
    for x, expected in zip(quarters, (120, tinted, tinted, 40), strict=True):
        assert np.abs(sheet[y, x] - expected).max() <= 1
    with pytest.raises(Exception, match="nowhere"):
        draw_detection_sheet(path, dataset, {}, image_ids=["nowhere"])
