"""COCO's json format: images, annotations, categories; boxes as XYWH.

Source:
    Re-expresses detectron2/data/datasets/coco.py load_coco_json; records are equal, apart from boxes that are XYXY here
    (added in float32, as Detectron2's BoxMode.convert does later). Detectron2 drops annotations whose image is not in
    the file with a warning; here they are refused, because they mean that the file was cut wrongly.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.errors import InputError, MissingFileError
from .detection_records import OnProblem, check_image_files, is_trainable, raise_problem

_FAR = 1e9  # px; a number beyond is a mistake, as are infinity and NaN, which no comparison holds for
_COUNTED = ("crowd_regions", "boxes_without_area", "boxes_reaching_out", "invalid_polygons")
_FOUR_FLOATS, _TWO_FLOATS = struct.Struct("4f"), struct.Struct("2f")


@dataclass
class CocoContents:
    """What :func:`read_coco` found.

    Attributes:
        records: One per image, sorted by image id.
        class_names: Names in the order of the contiguous class indices, that is of the file's ascending category ids.
        category_ids: The file's category id of each contiguous class index.
        keypoint_names: Names of the key points of the first category that has some, else empty.
        left_out: Counts of what training leaves out; crowd regions stay in the records for the evaluation.
        has_annotations: False for a test set without ground truth (image_info files).
    """

    records: list[dict]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    keypoint_names: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    has_annotations: bool = True


def read_coco(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    unique_annotation_ids: bool = True,
    on_problem: OnProblem = raise_problem,
) -> CocoContents:
    """Read a file in COCO's instances or key-point format.

    Args:
        json_file: The annotation file.
        image_root: Folder that the file's ``file_name`` entries are relative to.
        unique_annotation_ids: Whether a repeated annotation id is refused. Only COCO 2014's published minival lists
            have some, and Detectron2 lets those pass.
        on_problem: Called with each problem; raises the first by default.

    Returns:
        Records and classes.

    Raises:
        MissingFileError: If the file, the folder or pictures are missing.
        InputError: If the file is not json, not COCO's format, or contradicts itself.
    """
    json_file = Path(json_file)
    content = _load_coco(json_file)
    category_ids, class_names, keypoint_names = _read_categories(content["categories"], json_file)
    records = _read_images(content["images"], json_file, Path(image_root), on_problem)
    reader = _AnnotationReader(
        json_file=json_file,
        records=records,
        index_of={category_id: index for index, category_id in enumerate(category_ids)},
        on_problem=on_problem,
    )
    seen: set = set()
    for annotation in content.get("annotations") or []:
        if unique_annotation_ids and annotation.get("id") is not None and annotation["id"] in seen:
            on_problem(
                InputError(f"{json_file}: annotation id {annotation['id']} occurs more than once; number the annotations anew.")
            )
        seen.add(annotation.get("id"))
        reader.add(annotation)
    ordered = [records[image_id] for image_id in sorted(records)]
    if not Path(image_root).is_dir():
        raise MissingFileError(
            f"The folder of the pictures of {json_file} does not exist: {image_root}. Unpack them there, or correct the folder."
        )
    check_image_files(ordered, str(json_file), on_problem)
    left_out = {"images_without_boxes": sum(not is_trainable(record) for record in ordered), **reader.left_out}
    return CocoContents(ordered, class_names, category_ids, keypoint_names, left_out, "annotations" in content)


def _load_coco(json_file: Path) -> dict:
    content = load_json(json_file)
    for key in ("images", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list) or not content[key]:
            raise InputError(
                f"{json_file} is not in COCO's format: expected an object with a non-empty list {key!r}; export it as "
                "COCO instances."
            )
    return content


def load_json(json_file: Path):
    """Return the content of a json file.

    Raises:
        MissingFileError: If it does not exist.
        InputError: If it is not json; names the line.
    """
    try:
        return json.loads(json_file.read_bytes())
    except FileNotFoundError as error:
        raise MissingFileError(f"{json_file} does not exist; expected annotations in COCO's format.") from error
    except IsADirectoryError as error:
        raise InputError(f"{json_file} is a folder, expected a json file in COCO's format.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{json_file} is not json ({error}); it may be cut off, so copy or export it again.") from error


def _read_categories(categories: list, json_file: Path) -> tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]:
    for category in categories:
        if not isinstance(category, dict) or not isinstance(category.get("id"), int) or not isinstance(category.get("name"), str):
            raise InputError(f"{json_file}: category {category!r} needs an integer 'id' and a 'name'; correct the file.")
    repeated = [i for i, n in Counter(category["id"] for category in categories).items() if n > 1]
    if repeated:
        raise InputError(
            f"{json_file}: category id {repeated[0]} occurs more than once in 'categories'; give each class its own."
        )
    categories = sorted(categories, key=lambda category: category["id"])
    keypoint_names = next((tuple(category["keypoints"]) for category in categories if category.get("keypoints")), ())
    return tuple(c["id"] for c in categories), tuple(c["name"] for c in categories), keypoint_names


def _read_images(images: list, json_file: Path, image_root: Path, on_problem: OnProblem) -> dict:
    records: dict = {}
    for image in images:
        problem = _image_problem(image, records)
        if problem:
            on_problem(InputError(f"{json_file}: {problem}."))
            continue
        records[image["id"]] = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }
    return records


def _image_problem(image, records: dict) -> str | None:
    if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)) or not isinstance(image.get("file_name"), str):
        return f"image {image!r} needs an 'id' and a 'file_name'"
    if any(not isinstance(image.get(side), int) or image[side] <= 0 for side in ("width", "height")):
        return f"image {image['id']} ({image['file_name']}) needs the picture's 'width' and 'height' in pixels"
    if image["id"] in records:
        return f"image id {image['id']} occurs more than once in 'images'; give each picture its own"
    if records and type(image["id"]) is not type(next(iter(records))):
        return f"image ids must be all numbers or all strings, got {image['id']!r} beside {next(iter(records))!r}"
    return None


@dataclass
class _AnnotationReader:
    """Adds annotations to the records they belong to and counts what is odd about them."""

    json_file: Path
    records: dict
    index_of: dict[int, int]
    on_problem: OnProblem
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))

    def add(self, raw: dict) -> None:
        where = f"{self.json_file}, annotation {raw.get('id')}"
        try:
            record = self._record_of(raw, where)
            bbox = _xyxy(raw.get("bbox"), record, where)
            segmentation = _segmentation(raw.get("segmentation"), where)
            keypoints = _keypoints(raw.get("keypoints"), where)
        except InputError as problem:
            self.on_problem(problem)
            return
        if segmentation is not None and len(segmentation) == 0:
            self.left_out["invalid_polygons"] += 1  # Detectron2 leaves the whole instance out
            return
        annotation = {"bbox": bbox, "category_id": self.index_of[raw["category_id"]], "iscrowd": int(raw.get("iscrowd", 0))}
        if "area" in raw:
            annotation["area"] = raw["area"]
        if segmentation is not None:
            annotation["segmentation"] = segmentation
        if keypoints is not None:
            annotation["keypoints"] = keypoints
        self.left_out["crowd_regions"] += annotation["iscrowd"]
        self.left_out["boxes_without_area"] += int(not (bbox[2] > bbox[0] and bbox[3] > bbox[1]))
        self.left_out["boxes_reaching_out"] += int(_reaches_out(bbox, record))
        record["annotations"].append(annotation)

    def _record_of(self, raw: dict, where: str) -> dict:
        if raw.get("image_id") not in self.records:
            raise InputError(
                f"{where}: image_id {raw.get('image_id')!r} is not in 'images'; add the picture or remove the annotation."
            )
        if raw.get("category_id") not in self.index_of:
            ids = sorted(self.index_of)
            some = f"{', '.join(map(str, ids[:10]))}{', ...' if len(ids) > 10 else ''}"
            raise InputError(
                f"{where}: category_id {raw.get('category_id')!r} is not in 'categories' (ids {some}); add the category "
                "or correct the id."
            )
        if raw.get("ignore", 0):
            raise InputError(
                f"{where}: 'ignore' is not part of COCO's format and would have no effect; use 'iscrowd': 1 for regions "
                "to ignore."
            )
        return self.records[raw["image_id"]]


def _xyxy(box, record: dict, where: str) -> list[float]:
    """Turn [x, y, w, h] into [x0, y0, x1, y1]; float32, to place the far corner where Detectron2 places it."""
    numbers = isinstance(box, (list, tuple)) and len(box) == 4 and all(isinstance(v, (int, float)) and abs(v) < _FAR for v in box)
    if not numbers:
        raise InputError(
            f"{where}: bbox is {box!r}, expected four finite numbers [x, y, width, height] in pixels; correct the file."
        )
    width, height = record["width"], record["height"]
    if box[2] < 0 or box[3] < 0 or box[0] >= width or box[1] >= height or box[0] + box[2] < 0 or box[1] + box[3] < 0:
        raise InputError(
            f"{where}: bbox [x, y, width, height] = {list(box)} does not lie in the {width} x {height} picture "
            f"{record['file_name']}; "
            "expected pixels from the top left corner, width and height not negative; correct the file."
        )
    # The sum of two float32 in float64 is exact enough that rounding it once more is the sum in float32.
    x, y, w, h = _FOUR_FLOATS.unpack(_FOUR_FLOATS.pack(*box))
    return [x, y, *_TWO_FLOATS.unpack(_TWO_FLOATS.pack(x + w, y + h))]


def _reaches_out(bbox: list[float], record: dict) -> bool:
    # COCO's own boxes overhang by rounding; a pixel or more is another matter.
    return min(bbox[:2]) <= -1 or bbox[2] >= record["width"] + 1 or bbox[3] >= record["height"] + 1


def _segmentation(segmentation, where: str):
    """Return polygons of at least 3 points, a compressed RLE, None if there is none, [] if no polygon is valid."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        if isinstance(segmentation.get("counts"), list):
            from pycocotools import mask as mask_api

            return mask_api.frPyObjects(segmentation, *segmentation["size"])
        if not isinstance(segmentation.get("counts"), (str, bytes)) or "size" not in segmentation:
            raise InputError(
                f"{where}: segmentation is an object without 'counts' and 'size', expected COCO's RLE; correct the file."
            )
        return segmentation
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise InputError(
            f"{where}: segmentation is {str(segmentation)[:60]}, expected a list of polygons [x, y, x, y, ...] or an RLE; "
            "correct the file."
        )
    return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]


def _keypoints(keypoints, where: str) -> list[float] | None:
    """Shift pixel indices by half a pixel, to the continuous coordinates of the boxes."""
    if not keypoints:
        return None
    if len(keypoints) % 3 != 0:
        raise InputError(
            f"{where}: keypoints has {len(keypoints)} numbers, expected three (x, y, visibility) for each point; correct "
            "the file."
        )
    return [value if i % 3 == 2 else value + 0.5 for i, value in enumerate(keypoints)]
