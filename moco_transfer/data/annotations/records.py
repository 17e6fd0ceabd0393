"""Detection records: their fields, which can be trained on, and whether their images exist.

A record is a dict, one per image, with the fields of Detectron2's "dataset dict":
    file_name (str), image_id (int or str), height and width (int, px),
    annotations: list of dicts
        bbox          [x0, y0, x1, y1], absolute px, 0-based, right and lower edges exclusive
        category_id   contiguous class index 0 .. C-1
        iscrowd       0 or 1; a crowd region is never trained on
        difficult     0 or 1, VOC only
        area          px^2, not VOC: the area of the mask, which decides small / medium / large
        segmentation  not VOC: list of polygons [x0, y0, x1, y1, ...] or a compressed RLE dict;
                      [] if no polygon has 3 points, absent if there is no mask
        keypoints     COCO only: [x, y, visibility] * K, in the continuous coordinates of the boxes;
                      visibility is 0 (not labelled), 1 (labelled, hidden) or 2 (visible)
        dp_x, dp_y, dp_I, dp_U, dp_V, dp_masks  COCO only, as the file has them: dense pose, see
                      coco_fields.py
    instance_file (str), Cityscapes only: the PNG that is evaluated
    neg_category_ids, not_exhaustive_category_ids (lists of the file's ids), LVIS only: classes that
                      are not in the image, and of which some objects are not annotated
Difference from Detectron2: boxes are always XYXY, so there is no "bbox_mode".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pycocotools import mask as mask_api

from ...runtime.errors import InputError, MissingFileError, printable
from ..images.decode import read_size
from ..images.image_source import missing_files
from ..images.near_names import lies_near
from .keypoints import labelled_keypoints

OnProblem = Callable[[InputError], None]


@dataclass
class Contents:
    """What a reader found."""

    records: list[dict]  # one per image
    class_names: tuple[str, ...]  # in the order of the contiguous class indices
    category_ids: tuple[int, ...]  # the file's category id of each contiguous class index
    left_out: dict[str, int] = field(default_factory=dict)  # counts of what training leaves out
    keypoint_names: tuple[str, ...] = ()  # that all categories with keypoints share
    skeleton: tuple[tuple[int, int], ...] = ()  # indices of the keypoints that lines connect
    has_annotations: bool = True  # False for a test set whose ground truth is not published
    frequencies: tuple[str, ...] = ()  # of LVIS: "r", "c" or "f" (rare, common, frequent) by class
    remarks: tuple[str, ...] = ()  # what may surprise


def raise_problem(problem: InputError) -> None:
    """Stop at the first problem; ``check_dataset`` collects them instead."""
    raise problem


def lies_in(bbox: list[float], width: int, height: int) -> bool:
    """Return whether a box XYXY touches an image of this size and reaches out of it by no more than
    that size. Tools are off by a pixel, or mark what the edge hides: as in Detectron2 and
    pycocotools such a box is clipped in training, not in the evaluation.
    """
    x0, y0, x1, y1 = bbox
    in_x = -width <= x0 <= x1 <= 2 * width and x0 < width and x1 >= 0
    return in_x and -height <= y0 <= y1 <= 2 * height and y0 < height and y1 >= 0


def size_of(file_name: str, height: Any, width: Any, *, as_stored: bool = False) -> tuple[int, int]:
    """Return (height, width), px, as the annotations say it; where they do not, the image's, turned
    upright or ``as_stored``.

    (0, 0) if the image does not exist, which :func:`check_image_files` reports; InputError if it
    cannot be read.
    """
    sides = [_as_pixels(side) for side in (height, width)]
    if all(sides):
        return sides[0], sides[1]
    try:
        return read_size(file_name, as_stored=as_stored)
    except MissingFileError:
        return 0, 0


def _as_pixels(side: Any) -> int:
    """Return 96 for 96, 96.0 or "96.0"; 0 for what is no length."""
    try:
        number = float(side)
        return int(number) if number > 0 and number.is_integer() else 0
    except (TypeError, ValueError, OverflowError):
        return 0


def has_area(bbox: list[float]) -> bool:
    """Return whether a box XYXY has a positive width and height."""
    return bbox[2] > bbox[0] and bbox[3] > bbox[1]


def is_trainable(record: dict, *, masks: bool = False) -> bool:
    """Return whether a record holds a box, with ``masks`` one with a mask, that is not a crowd
    region; or a label image of semantic segmentation.

    Source: detectron2/data/build.py filter_images_with_only_crowd_annotations.
    """
    objects = (a for a in record.get("annotations", ()) if a.get("iscrowd", 0) == 0)
    return "sem_seg_file_name" in record or any(
        not masks or has_pixels(a.get("segmentation")) for a in objects
    )


def has_pixels(segmentation: Any) -> bool:
    """Return whether there is a mask to train on; polygons may be thinner than a pixel."""
    return mask_api.area(segmentation) > 0 if isinstance(segmentation, dict) else bool(segmentation)


LEFT_OUT = {
    "images_without_boxes": "images without a box (left out of training, kept in a test set)",
    "crowd_regions": "crowd regions (not trained on, ignored in the evaluation)",
    "boxes_without_area": "boxes without area (not trained on)",
    "boxes_reaching_out": "boxes that reach out of the image by 1 px or more (clipped in training)",
    "empty_masks": "objects whose mask has no pixel, or no polygon of 3 points (not trained on with"
    " MODEL.MASK_ON; their boxes are scored)",
    "images_without_keypoints": "images with a box and no keypoint (left out by MODEL.KEYPOINT_ON)",
}
"""What training leaves out or changes, by the keys of :func:`count_left_out`."""


def count_left_out(records: list[dict], *, keypoints: bool = False) -> dict[str, int]:
    """Count what training leaves out of records, those without ``keypoints`` if asked for."""
    counts = dict.fromkeys(LEFT_OUT, 0)
    for record in records:
        width, height = record["width"], record["height"]
        has_box = is_trainable(record)
        counts["images_without_boxes"] += not has_box
        if keypoints:
            counts["images_without_keypoints"] += has_box and not labelled_keypoints(record)
        for annotation in record["annotations"]:
            x0, y0, x1, y1 = annotation["bbox"]
            counts["crowd_regions"] += annotation["iscrowd"]
            clipped = [max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)]
            counts["boxes_without_area"] += not has_area(clipped)
            # COCO's own boxes overhang by rounding, always by less than a pixel.
            counts["boxes_reaching_out"] += max(-x0, -y0, x1 - width, y1 - height) >= 1
            mask = annotation.get("segmentation")
            counts["empty_masks"] += mask is not None and not has_pixels(mask)
    return counts


def check_image_files(records: list[dict], where: object, on_problem: OnProblem) -> None:
    """Report how many images named by ``where`` are missing, and the first of them."""
    paths = [record["file_name"] for record in records]
    missing = missing_files(paths)
    if missing:
        text = f"{len(missing)} of the {len(records)} images that {where} names do not exist"
        first = paths[missing[0]]
        on_problem(MissingFileError(f"{text}; the first is {printable(first)}.{lies_near(first)}"))
