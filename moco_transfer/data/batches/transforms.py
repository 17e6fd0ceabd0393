"""From a detection record to a model's input: read, resize, mirror, and move the annotations along.

Shapes in this module:
    H, W: image after resizing, px    N: objects in the image    K: keypoints of an object
Conventions:
    All randomness comes from the numpy Generator that the caller passes.
Source:
    detectron2/data/{dataset_mapper,detection_utils}.py. Images and annotations are equal, bit for
    bit, given the same size and mirroring. Known difference: a COCO box of four whole numbers is
    scaled exactly here; Detectron2 rounds its scaled corners down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...runtime.errors import InputError
from ..images.decode import read_image
from .geometry import ResizeAndFlip, draw_shorter_edge, resized_shape

_COPIED = ("height", "width", "image_id", "file_name")
_MIN_BOX_SIDE = 1e-5  # px; smaller boxes are left out, as in Detectron2's filter_empty_instances


def read_and_check(record: dict, image_format: str) -> np.ndarray:
    """Read a record's image, uint8 (H, W, 3) in the order ``RGB`` or ``BGR``.

    Raises:
        InputError: If it cannot be read, or its size is not what the annotations were drawn on.
    """
    pixels = read_image(record["file_name"], image_format)
    height, width = pixels.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise InputError(
            f"The image {record['file_name']} is {width} x {height} px, but its annotation says"
            f" {record['width']} x {record['height']}. The boxes belong to another version of it"
            " (resized, or rotated by its EXIF tag): annotate this one or restore the other."
        )
    return pixels


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Turn uint8 (H, W, 3) into float32 (3, H, W), 0-255, in the same channel order."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()


class TrainMapper:
    """Turns a record into a training item; all that is drawn depends on the given generator.

    Args:
        min_sizes: Lengths of the shorter edge, px; for ``range`` exactly two.
        max_size: Upper limit of the longer edge, px.
        sample_style: ``choice`` or ``range``.
        flip: ``horizontal``, ``vertical`` or ``none``; done to half of the images.
        image_format: ``RGB`` or ``BGR``.
        masks: Whether the item has ``gt_masks``.
        keypoint_mirror: See ``DetectionDataset.keypoint_mirror``; None for no ``gt_keypoints``.

    Raises:
        InputError: If a size is illegal.
    """

    def __init__(
        self,
        min_sizes: tuple[int, ...],
        max_size: int,
        sample_style: str = "choice",
        flip: str = "horizontal",
        image_format: str = "RGB",
        *,
        masks: bool = False,
        keypoint_mirror: tuple[int, ...] | None = None,
    ) -> None:
        wrong_count = len(min_sizes) != 2 if sample_style == "range" else not min_sizes
        if wrong_count or min(*min_sizes, max_size) < 1:
            raise InputError(
                f"INPUT.MIN_SIZE_TRAIN is {min_sizes!r} and MAX_SIZE_TRAIN {max_size}; expected"
                " lengths in px, for MIN_SIZE_TRAIN_SAMPLING 'range' exactly two minima."
            )
        self.min_sizes, self.max_size, self.sample_style = min_sizes, max_size, sample_style
        self.flip, self.image_format = flip, image_format
        self.masks, self.keypoint_mirror = masks, keypoint_mirror

    def __call__(self, record: dict, rng: np.random.Generator) -> dict:
        """Return the training item of a record; draws the shorter edge, then the flip.

        Returns:
            ``image`` float32 (3, H, W), 0-255; ``height``, ``width`` (int, as read); ``image_id``;
            ``file_name``; ``gt_boxes`` float32 (N, 4) XYXY in px of ``image``; ``gt_classes`` int64
            (N,); with masks ``gt_masks``: N lists of float64 polygons; with keypoints
            ``gt_keypoints`` float32 (N, K, 3). Crowd regions and empty objects are left out.

        Raises:
            InputError: If the image cannot be read or has another size, or an object lacks its
                mask or keypoints.
        """
        pixels = read_and_check(record, self.image_format)
        shorter_edge = draw_shorter_edge(self.min_sizes, self.sample_style, rng)
        old_shape = pixels.shape[:2]
        new_shape = resized_shape(*old_shape, shorter_edge=shorter_edge, max_size=self.max_size)
        flip = self.flip if self.flip != "none" and rng.random() < 0.5 else "none"
        return self.apply(record, pixels, ResizeAndFlip(old_shape, new_shape, flip))

    def apply(self, record: dict, pixels: np.ndarray, change: ResizeAndFlip) -> dict:
        """Return the training item for a given change; see :meth:`__call__`."""
        objects = [a for a in record["annotations"] if a.get("iscrowd", 0) == 0]
        corners = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)
        boxes = torch.from_numpy(change.apply_boxes(corners)).float()
        keep = ((boxes[:, 2:] - boxes[:, :2]) > _MIN_BOX_SIDE).all(dim=1)
        item = {key: record[key] for key in _COPIED}
        item["image"] = to_tensor(change.apply_image(pixels))
        if self.masks:
            polygons = _polygons(objects, change, record)
            item["gt_masks"] = [p for p, kept in zip(polygons, keep.tolist(), strict=True) if kept]
        classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
        item["gt_boxes"], item["gt_classes"] = boxes[keep], classes[keep]
        if self.keypoint_mirror is not None:
            points = _keypoints(objects, change, record, self.keypoint_mirror)
            item["gt_keypoints"] = points[keep]
        return item


def _polygons(objects: list[dict], change: ResizeAndFlip, record: dict) -> list:
    segmentations = [_required(a, "segmentation", "MASK_ON", record) for a in objects]
    if any(isinstance(segmentation, dict) for segmentation in segmentations):
        raise InputError(f"{record['file_name']} has an RLE mask; this engine needs polygons.")

    def mapped(polygon: list) -> np.ndarray:
        return change.apply_points(np.asarray(polygon, np.float64).reshape(-1, 2)).reshape(-1)

    return [[mapped(polygon) for polygon in polygons] for polygons in segmentations]


def _keypoints(
    objects: list[dict], change: ResizeAndFlip, record: dict, mirror: tuple[int, ...]
) -> Tensor:
    mapped = []
    for annotation in objects:
        given = _required(annotation, "keypoints", "KEYPOINT_ON", record)
        points = np.asarray(given, dtype=np.float64).reshape(-1, 3)
        if change.flip == "horizontal" and len(points) != len(mirror):
            names = f"{len(points)} keypoints, but the data set names {len(mirror)}"
            raise InputError(f"{record['file_name']}: {names}.")
        mapped.append(change.apply_keypoints(points, mirror))
    shape = (-1, len(mapped[0]) if mapped else len(mirror), 3)
    return torch.from_numpy(np.array(mapped, dtype=np.float64).reshape(shape)).float()


def _required(annotation: dict, key: str, config_key: str, record: dict) -> Any:
    if key not in annotation:
        fault = f"An object of {record['file_name']} has no {key}"
        raise InputError(f"{fault}; MODEL.{config_key} True needs one for each.")
    return annotation[key]


class TestMapper:
    """Turns a record into an inference item: resized, neither mirrored nor annotated.

    Sizes are those of the shorter and longer edge, px; ``min_size`` 0 keeps the image as it is.
    InputError for an illegal size.
    """

    __test__ = False  # pytest would collect the name

    def __init__(self, min_size: int, max_size: int, image_format: str = "RGB") -> None:
        if min_size < 0 or (min_size and max_size <= 0):
            raise InputError(
                f"INPUT.MIN_SIZE_TEST is {min_size} and MAX_SIZE_TEST {max_size}; expected lengths"
                " in px. MIN_SIZE_TEST 0 keeps the size."
            )
        self.min_size, self.max_size, self.image_format = min_size, max_size, image_format

    def __call__(self, record: dict) -> dict:
        """Return ``image``, ``height``, ``width``, ``image_id``, ``file_name`` as ``TrainMapper``.

        Raises:
            InputError: If the image cannot be read or has another size than its annotation says.
        """
        pixels = read_and_check(record, self.image_format)
        shape = pixels.shape[:2]
        new_shape = resized_shape(*shape, shorter_edge=self.min_size, max_size=self.max_size)
        image = to_tensor(ResizeAndFlip(shape, new_shape).apply_image(pixels))
        return {"image": image, **{key: record[key] for key in _COPIED}}
