"""From a detection record to a model's input: read, resize, mirror, and move the annotations along.

Shapes in this module:
    H, W: image after resizing, px    N: objects in the image    K: keypoints of an object
Conventions:
    All randomness comes from the numpy Generator that the caller passes. Coordinates are
    continuous: the image covers [0, W] x [0, H], so mirroring maps x to W - x.
Source:
    detectron2/data/{dataset_mapper,detection_utils}.py and transforms/ (ResizeShortestEdge,
    RandomFlip, ResizeTransform), structures/masks.py polygons_to_bitmask. Images and annotations
    are equal, bit for bit, given the same size and mirroring. Known difference: a COCO box of four
    whole numbers is scaled exactly here; Detectron2 rounds its scaled corners down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_api
from torch import Tensor

from ...runtime.errors import InputError
from ..images.decode import orientation_of, read_image

COPIED = ("height", "width", "image_id", "file_name")
_MIN_BOX_SIDE = 1e-5  # px; smaller boxes are left out, as in Detectron2's filter_empty_instances


def resized_shape(height: int, width: int, *, shorter_edge: int, max_size: int) -> tuple[int, int]:
    """Return (height, width) for this shorter edge, px, and longest ``max_size``; 0 keeps both."""
    if shorter_edge == 0:
        return height, width
    scale = shorter_edge * 1.0 / min(height, width)
    new_height, new_width = scale * height, shorter_edge * 1.0
    if height < width:
        new_height, new_width = shorter_edge * 1.0, scale * width
    if max(new_height, new_width) > max_size:
        scale = max_size * 1.0 / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    # At least 1 px, which a line of 5000 x 2 px would lose; Detectron2 cannot resize it.
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def draw_shorter_edge(
    min_sizes: tuple[int, ...], sample_style: str, rng: np.random.Generator
) -> int:
    """Draw one of ``min_sizes`` (``choice``) or a number between its two values (``range``), px."""
    if sample_style == "range":
        return int(rng.integers(min_sizes[0], min_sizes[1] + 1))
    return int(rng.choice(min_sizes))


@dataclass(frozen=True)
class ResizeAndFlip:
    """A geometric change of an image and its annotations."""

    old_shape: tuple[int, int]  # (height, width) of the image as read, px
    new_shape: tuple[int, int]  # after resizing
    flip: str = "none"  # or horizontal or vertical, done after resizing

    def apply_image(
        self, pixels: np.ndarray, resample: Image.Resampling = Image.Resampling.BILINEAR
    ) -> np.ndarray:
        """Resize uint8 pixels (H, W, 3) or (H, W) with Pillow and mirror them."""
        resized = np.asarray(Image.fromarray(pixels).resize(self.new_shape[::-1], resample))
        if self.flip == "horizontal":
            return resized[:, ::-1]
        return resized[::-1] if self.flip == "vertical" else resized

    def apply_points(self, points: np.ndarray) -> np.ndarray:
        """Map points (n, 2), (x, y) in px, float64."""
        new_height, new_width = self.new_shape
        x = points[:, 0] * (new_width * 1.0 / self.old_shape[1])
        y = points[:, 1] * (new_height * 1.0 / self.old_shape[0])
        if self.flip == "horizontal":
            x = new_width - x
        elif self.flip == "vertical":
            y = new_height - y
        return np.stack((x, y), axis=1)

    def apply_polygons(self, polygons: Sequence) -> list[np.ndarray]:
        """Map polygons [x0, y0, x1, y1, ...]; float64."""
        return [self.apply_points(np.reshape(p, (-1, 2))).reshape(-1) for p in polygons]

    def apply_mask(self, mask: Any) -> dict:
        """Map a mask, an RLE or polygons, to an RLE of the resized image, as Detectron2's bitmasks:
        an RLE pixel by pixel, to the nearest; polygons are mapped before they are drawn.
        """
        if not isinstance(mask, dict):
            polygons = [polygon.tolist() for polygon in self.apply_polygons(mask)]
            return draw_polygons(polygons, *self.new_shape)
        pixels = self.apply_image(mask_api.decode(mask), Image.Resampling.NEAREST)
        return mask_api.encode(np.asfortranarray(pixels))

    def apply_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes (N, 4) XYXY and clip them to the image; float64."""
        corners = self.apply_points(boxes.reshape(-1, 2)).reshape(-1, 2, 2)
        mapped = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1).clip(min=0)
        return np.minimum(mapped, [*self.new_shape[::-1], *self.new_shape[::-1]])

    def apply_keypoints(self, keypoints: np.ndarray, mirror: tuple[int, ...]) -> np.ndarray:
        """Map keypoints (K, 3) of (x, y, visibility); points outside the image become all zero.

        ``mirror`` holds for each point the index of its opposite-handed twin.
        """
        xy = self.apply_points(keypoints[:, :2])
        inside = ((xy >= 0) & (xy <= self.new_shape[::-1])).all(axis=1)
        mapped = np.concatenate((xy, np.where(inside, keypoints[:, 2], 0)[:, None]), axis=1)
        if self.flip == "horizontal":
            mapped = mapped[list(mirror)]
        mapped[mapped[:, 2] == 0] = 0
        return mapped


def draw_polygons(polygons: Sequence[list[float]], height: int, width: int) -> dict:
    """Return the RLE of a mask of polygons (at least one)."""
    return mask_api.merge(mask_api.frPyObjects(polygons, height, width))


class TurnedError(InputError):
    """An image's annotations belong to its pixels as stored, and its EXIF tag turns it."""


def read_and_check(record: dict, image_format: str) -> np.ndarray:
    """Read a record's image, uint8 (H, W, 3) in the order ``RGB`` or ``BGR``. InputError if it
    cannot be read, or its size is not what the annotations were drawn on.
    """
    pixels = read_image(record["file_name"], image_format)
    height, width = pixels.shape[:2]
    stored, annotation = (height, width), "annotation says"
    if label := record.get("sem_seg_file_name"):
        annotation = f"label image {label} is"
    if (height, width) != (record["height"], record["width"]):
        if orientation_of(record["file_name"]) >= 5:
            stored = width, height
        if stored == (record["height"], record["width"]):
            raise TurnedError(
                f"The image {record['file_name']} is {width} x {height} px, but its {annotation}"
                f" {record['width']} x {record['height']}, the pixels as stored, which its EXIF tag"
                " turns. Add the option exif=apply to --dataset, which turns the annotations too."
            )
        raise InputError(
            f"The image {record['file_name']} is {width} x {height} px, but its {annotation}"
            f" {record['width']} x {record['height']}. It belongs to another version of the image"
            " (resized, or rotated by its EXIF tag): annotate this one or restore the other."
        )
    return pixels


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Turn uint8 (H, W, 3) into float32 (3, H, W), 0-255, in the same channel order."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()


@dataclass(frozen=True)
class TrainMapper:
    """Turns a record into a training item; all that is drawn depends on the given generator.
    InputError if a size is illegal.
    """

    min_sizes: tuple[int, ...]  # of the shorter edge, px; for range exactly two
    max_size: int  # upper limit of the longer edge, px
    sample_style: str = "choice"  # or range
    flip: str = "horizontal"  # or vertical or none; done to half of the images
    image_format: str = "RGB"  # or BGR
    # polygon or bitmask, in Detectron2's sense; empty for no gt_masks.
    mask_format: str = field(default="", kw_only=True)
    # See DetectionDataset.keypoint_mirror; None for no gt_keypoints.
    keypoint_mirror: tuple[int, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        wrong = self.sample_style == "range" and len(self.min_sizes) != 2
        if wrong or not self.min_sizes or min(*self.min_sizes, self.max_size) < 1:
            raise InputError(
                f"INPUT.MIN_SIZE_TRAIN is {self.min_sizes!r} and MAX_SIZE_TRAIN {self.max_size};"
                " expected lengths in px, for MIN_SIZE_TRAIN_SAMPLING 'range' exactly two minima."
            )

    def __call__(self, record: dict, rng: np.random.Generator) -> dict:
        """Return the training item of a record; draws the shorter edge, then the flip.

        Returns:
            ``image`` float32 (3, H, W), 0-255; ``height``, ``width`` (int, as read); ``image_id``;
            ``file_name``; ``gt_boxes`` float32 (N, 4) XYXY in px of ``image``; ``gt_classes`` int64
            (N,); with masks ``gt_masks``: N lists of float64 polygons, or N RLE of the image for
            ``bitmask``; with keypoints ``gt_keypoints`` float32 (N, K, 3): x, y, visibility, all 0
            for objects without them. Crowd regions, empty objects and empty masks are left out.

        InputError if :func:`read_and_check` raises it. Each object has its mask, of polygons for
        ``polygon``, and keypoints as many as the data set names: the plan and the reader have
        checked that.
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
        item = {key: record[key] for key in COPIED}
        item["image"] = to_tensor(change.apply_image(pixels))
        if self.mask_format:
            masks = [self._mask(a["segmentation"], change) for a in objects]
            keep &= torch.tensor([mask is not None for mask in masks], dtype=torch.bool)
            item["gt_masks"] = [m for m, kept in zip(masks, keep.tolist(), strict=True) if kept]
        classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
        item["gt_boxes"], item["gt_classes"] = boxes[keep], classes[keep]
        if self.keypoint_mirror is not None:
            item["gt_keypoints"] = _keypoints(objects, change, self.keypoint_mirror)[keep]
        return item

    def _mask(self, mask: Any, change: ResizeAndFlip) -> Any:
        """Return an object's mask after a change, or None where nothing is left of it."""
        if len(mask) == 0:
            return None
        if self.mask_format == "polygon":
            return change.apply_polygons(mask)
        moved = change.apply_mask(mask)
        return moved if mask_api.area(moved) else None


def _keypoints(objects: list[dict], change: ResizeAndFlip, mirror: tuple[int, ...]) -> Tensor:
    unlabelled = [0.0] * 3 * len(mirror)
    points = np.array([a.get("keypoints") or unlabelled for a in objects], dtype=np.float64)
    shaped = points.reshape(len(objects), len(mirror), 3)
    mapped = np.array([change.apply_keypoints(p, mirror) for p in shaped]).reshape(shaped.shape)
    return torch.from_numpy(mapped).float()


@dataclass(frozen=True)
class TestMapper:
    """Turns a record into an inference item: resized, neither mirrored nor annotated.

    Sizes are those of the shorter and longer edge, px; ``min_size`` 0 keeps the image as it is.
    """

    __test__ = False  # pytest would collect the name

    min_size: int
    max_size: int
    image_format: str = "RGB"

    def __post_init__(self) -> None:
        if self.min_size < 0 or self.max_size < 1:
            found = f"INPUT.MIN_SIZE_TEST is {self.min_size}, MAX_SIZE_TEST {self.max_size}"
            raise InputError(f"{found}; expected lengths in px, or MIN_SIZE_TEST 0.")

    def __call__(self, record: dict) -> dict:
        """Return ``image``, ``height``, ``width``, ``image_id``, ``file_name`` as ``TrainMapper``.
        InputError if :func:`read_and_check` raises it.
        """
        image = self.prepare(read_and_check(record, self.image_format))
        return {"image": image, **{key: record[key] for key in COPIED}}

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """Return pixels uint8 (H, W, 3) in the mapper's order as ``image``."""
        shape = pixels.shape[:2]
        new_shape = resized_shape(*shape, shorter_edge=self.min_size, max_size=self.max_size)
        return to_tensor(ResizeAndFlip(shape, new_shape).apply_image(pixels))
