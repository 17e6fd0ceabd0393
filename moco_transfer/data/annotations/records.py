"""What all detection records have in common: their fields, which of them can be trained on, whether
their images exist.

A record is a dict, one per image, with the fields of Detectron2's "dataset dict":
    file_name (str), image_id (int or str), height and width (int, px),
    annotations: list of dicts
        bbox          [x0, y0, x1, y1], absolute px, 0-based, right and lower edges exclusive
        category_id   contiguous class index 0 .. C-1
        iscrowd       0 or 1; a crowd region is never trained on
        difficult     0 or 1, VOC only
        area          px^2, COCO only: the area of the mask, which decides small / medium / large
        segmentation  COCO only: list of polygons [x0, y0, x1, y1, ...] or a compressed RLE dict
        keypoints     COCO only: [x, y, visibility] * K, in the continuous coordinates of the boxes
Difference from Detectron2: boxes are always XYXY, so there is no "bbox_mode".
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable

from ...runtime.errors import InputError, MissingFileError

OnProblem = Callable[[InputError], None]


def raise_problem(problem: InputError) -> None:
    """Stop at the first problem; what a run does. ``check_dataset`` passes a function that collects
    them instead.
    """
    raise problem


def is_trainable(record: dict) -> bool:
    """Whether a record holds a box that is not a crowd region."""
    return any(annotation.get("iscrowd", 0) == 0 for annotation in record["annotations"])


def leave_out_empty(records: list[dict]) -> tuple[list[dict], int]:
    """Return the records that can be trained on and the number of the others.

    Source:
        detectron2/data/build.py filter_images_with_only_crowd_annotations
        (DATALOADER.FILTER_EMPTY_ANNOTATIONS).
    """
    kept = [record for record in records if is_trainable(record)]
    return kept, len(records) - len(kept)


def leave_out_few_keypoints(records: list[dict], min_keypoints: int) -> tuple[list[dict], int]:
    """Return the records with at least ``min_keypoints`` labelled key points over all their people,
    and how many have fewer.

    Source:
        detectron2/data/build.py filter_images_with_few_keypoints
        (MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE).
    """

    def num_labelled(record: dict) -> int:
        return sum(v > 0 for a in record["annotations"] for v in a.get("keypoints", [])[2::3])

    kept = [record for record in records if num_labelled(record) >= min_keypoints]
    return kept, len(records) - len(kept)


def missing_files(paths: Iterable[str]) -> list[str]:
    """Return those of ``paths`` that do not exist, in their order.

    Lists each folder once instead of asking for each file, which on a network file system is the
    difference between one request and a hundred thousand.
    """
    paths = list(paths)
    by_folder: dict[str, set[str]] = defaultdict(set)
    for folder in {os.path.dirname(path) for path in paths}:
        try:
            by_folder[folder] = set(os.listdir(folder or "."))
        except (FileNotFoundError, NotADirectoryError):
            by_folder[folder] = set()
    return [
        path for path in paths if os.path.basename(path) not in by_folder[os.path.dirname(path)]
    ]


def check_image_files(
    records: list[dict], where: str, on_problem: OnProblem = raise_problem
) -> None:
    """Refuse records whose images are not there.

    Args:
        records: Detection records.
        where: What names the images (an annotation file, a split), for the message.
        on_problem: Called with the problem; raises it by default.

    Raises:
        MissingFileError: Through ``on_problem``: how many are missing and the first of them.
    """
    missing = missing_files(record["file_name"] for record in records)
    if missing:
        on_problem(
            MissingFileError(
                f"{len(missing)} of the {len(records)} images that {where} names do not exist;"
                f" the first is {missing[0]}. Unpack the images there, or correct the folder."
            )
        )
