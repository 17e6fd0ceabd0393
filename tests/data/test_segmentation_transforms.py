"""Training items of semantic segmentation: image and labels stay together, whatever is drawn.

Label images and images are drawn so that a pixel of one follows from the other.

Seen red under: labels that are not mirrored, or mirrored in the other axis; labels resized between
classes; another crop of the labels; fill of 0 in the image, of class 0 in the labels; one scale for
the whole run; the crop always at the upper left corner.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from moco_transfer.config import load_detection_config
from moco_transfer.data.batches.segmentation import SegmentationMapper
from moco_transfer.finetune.torchvision_engine.build import TorchvisionEngine
from moco_transfer.runtime.errors import InputError

MEAN = (123.675, 116.28, 103.53)
HEIGHT, WIDTH = 40, 60


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> dict:
    """An image of grey blocks, 10 times their class; classes 0 to 19 and ignored pixels."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 20, (HEIGHT // 10, WIDTH // 10))
    blocks[1, 1] = 25  # ignored
    classes = np.kron(blocks, np.ones((10, 10), dtype=int))
    Image.fromarray((10 * classes).astype(np.uint8)).convert("RGB").save(folder / "a.png")
    Image.fromarray(np.where(classes == 25, 255, classes).astype(np.uint8)).save(folder / "l.png")
    return {
        "file_name": str(folder / "a.png"),
        "sem_seg_file_name": str(folder / "l.png"),
        "sem_seg_ids": tuple(range(20)),
        "image_id": "a",
        "height": HEIGHT,
        "width": WIDTH,
    }


def mapper(scale=(1.0, 1.0), crop=(), flip="horizontal", **more) -> SegmentationMapper:
    sizes = more.pop("sizes", (800,)), more.pop("max_size", 1333), more.pop("style", "choice")
    return SegmentationMapper(*sizes, flip, scale=scale, crop=crop, pixel_mean=MEAN, **more)


def items(made: SegmentationMapper, record: dict, count: int = 30) -> list[dict]:
    return [made(record, np.random.default_rng(seed)) for seed in range(count)]


def agree(item: dict) -> torch.Tensor:
    """Return where the image is that of the labels; filled places have the mean and are ignored."""
    image, labels = item["image"], item["sem_seg"]
    expected = torch.where(labels == 255, 250, 10 * labels)
    filled = (image == torch.tensor(MEAN).view(3, 1, 1)).all(dim=0)
    assert (labels[filled] == 255).all()
    return filled | (image == expected).all(dim=0)


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "none"])
@pytest.mark.parametrize("crop", [(), (17, 33), (65, 65), (17, 129)])
def test_item__image_and_labels_move_together(record, flip, crop):
    made = items(mapper(crop=crop, flip=flip), record)
    for item in made:
        assert agree(item).all()
        assert tuple(item["sem_seg"].shape) == (crop or (HEIGHT, WIDTH))
        assert item["image"].shape[1:] == item["sem_seg"].shape
        assert (item["sem_seg"].dtype, item["image"].dtype) == (torch.int64, torch.float32)
        assert (item["height"], item["width"], item["image_id"]) == (HEIGHT, WIDTH, "a")
    different = {item["image"].numpy().tobytes() for item in made}
    if crop and crop[0] < HEIGHT:
        assert len(different) > (10 if crop[1] < WIDTH else 4), "crops are drawn"
    else:
        assert len(different) == (1 if flip == "none" else 2)


def test_item__what_a_crop_has_and_the_image_lacks_is_filled_below_and_right(record):
    (item,) = items(mapper(crop=(65, 81), flip="none"), record, 1)
    assert (item["sem_seg"][HEIGHT:] == 255).all() and (item["sem_seg"][:, WIDTH:] == 255).all()
    outside = item["image"][:, HEIGHT:], item["image"][:, :, WIDTH:]
    for part in outside:
        assert torch.equal(part, torch.tensor(MEAN).view(3, 1, 1).expand_as(part))


def test_item__scales_are_drawn_and_no_label_is_made_up(record):
    made = items(mapper(scale=(0.5, 2.0), flip="none"), record, 60)
    heights = np.array([item["sem_seg"].shape[0] for item in made])
    assert heights.min() < 25 and heights.max() > 75 and 45 < heights.mean() < 55
    assert ((heights >= 20) & (heights <= 80)).all()
    for item in made:
        height, width = item["sem_seg"].shape
        assert abs(height / HEIGHT - width / WIDTH) < 0.05
        known = set(np.asarray(Image.open(record["sem_seg_file_name"])).ravel().tolist())
        assert set(item["sem_seg"].unique().tolist()) <= known
        # Blocks of 5 to 20 px: bilinear and nearest agree inside them.
        assert agree(item).float().mean() > 0.3


def test_item__shorter_edges_as_in_detection_without_a_scale(record):
    made = items(mapper(scale=(), sizes=(20, 80), style="range", max_size=90), record)
    shapes = [tuple(item["sem_seg"].shape) for item in made]
    assert min(min(s) for s in shapes) < 30 and max(max(s) for s in shapes) == 90
    assert all(abs(w / h - WIDTH / HEIGHT) < 0.06 for h, w in shapes)


def test_item__depends_on_the_generator_alone(record):
    made = mapper(scale=(0.5, 2.0), crop=(33, 33))
    for first, second in zip(items(made, record), items(made, record), strict=True):
        assert torch.equal(first["image"], second["image"])
        assert torch.equal(first["sem_seg"], second["sem_seg"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.RANDOM_SCALE", "(2.0, 0.5)"),
        ("INPUT.RANDOM_SCALE", "(0.5,)"),
        ("INPUT.CROP.SIZE", "[0.9, 0.9]"),
        ("INPUT.CROP.SIZE", "[0, 5]"),
        ("INPUT.CROP.TYPE", "relative"),
        ("TEST.SLIDING_WINDOW.SIZE", "769"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    ],
)
def test_value_that_cannot_be_honoured__is_refused_by_name(key, value):
    cfg = load_detection_config("voc_R_50_FCN_d6_30k", [key, value])
    with pytest.raises(InputError, match=re.escape(key.rsplit(".", 1)[0])):
        TorchvisionEngine.check(cfg)
