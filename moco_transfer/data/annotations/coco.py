"""COCO's json format: images, annotations, categories; boxes as XYWH.

Source:
    Re-expresses detectron2/data/datasets/coco.py load_coco_json; records are equal, apart from
    boxes that are XYXY here (added in float32, as Detectron2's BoxMode.convert does later).
    Detectron2 drops annotations whose image is not in the file with a warning; here they are
    refused, because they mean that the file was cut wrongly.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.errors import InputError, MissingFileError
from .records import OnProblem, check_image_files, is_trainable, raise_problem

_FAR = (
    1e9  # px; a number beyond is a mistake, as are infinity and NaN, which no comparison holds for
)
_COUNTED = ("crowd_regions", "boxes_without_area", "boxes_reaching_out", "invalid_polygons")
_FOUR_FLOATS, _TWO_FLOATS = struct.Struct("4f"), struct.Struct("2f")


@dataclass
class CocoContents:
    """What :func:`read_coco` found.

    Attributes:
        records: One per image, sorted by image id.
        class_names: Names in the order of the contiguous class indices, that is of the file's
            ascending category ids.
        category_ids: The file's category id of each contiguous class index.
        keypoint_names: Names of the key points of the first category that has some, else empty.
        left_out: Counts of what training leaves out; crowd regions stay in the records for the
            evaluation.
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
        unique_annotation_ids: Whether a repeated annotation id is refused. Only COCO 2014's
            published minival lists have some, and Detectron2 lets those pass.
        on_problem: Called with each problem; raises the first by default.

    Returns:
        Records and classes.

    Raises:
        MissingFileError: If the file, the folder or images are missing.
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
    for number, annotation in enumerate(content.get("annotations") or [], start=1):
        problem = _entry_problem(annotation)
        if problem:
            on_problem(
                InputError(
                    f"{json_file}: number {number} of 'annotations' {problem}; correct the file."
                )
            )
            continue
        if unique_annotation_ids and annotation.get("id") is not None and annotation["id"] in seen:
            on_problem(
                InputError(
                    f"{json_file}: annotation id {annotation['id']} occurs more than once; number"
                    " the annotations again."
                )
            )
        seen.add(annotation.get("id"))
        reader.add(annotation)
    ordered = [records[image_id] for image_id in sorted(records)]
    if not Path(image_root).is_dir():
        raise MissingFileError(
            f"The folder of the images of {json_file} does not exist: {image_root}. Unpack them"
            " there, or correct the folder."
        )
    check_image_files(ordered, str(json_file), on_problem)
    left_out = {
        "images_without_boxes": sum(not is_trainable(record) for record in ordered),
        **reader.left_out,
    }
    return CocoContents(
        ordered, class_names, category_ids, keypoint_names, left_out, "annotations" in content
    )


def _load_coco(json_file: Path) -> dict:
    content = load_json(json_file)
    for key in ("images", "categories"):
        if (
            not isinstance(content, dict)
            or not isinstance(content.get(key), list)
            or not content[key]
        ):
            raise InputError(
                f"{json_file} is not in COCO's format: expected an object with a non-empty list"
                f" {key!r}; export it as COCO instances."
            )
    if not isinstance(content.get("annotations"), (list, type(None))):
        raise InputError(
            f"{json_file} is not in COCO's format: 'annotations' is"
            f" {_short(content['annotations'])}, expected a list of objects; export it as COCO"
            " instances."
        )
    return content


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def load_json(json_file: Path):
    """Return the content of a json file.

    Raises:
        MissingFileError: If it does not exist.
        InputError: If it is not json; names the line.
    """
    try:
        return json.loads(json_file.read_bytes())
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{json_file} does not exist; expected annotations in COCO's format."
        ) from error
    except IsADirectoryError as error:
        raise InputError(
            f"{json_file} is a folder, expected a json file in COCO's format."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{json_file} is not json ({error}); it may be cut off, so copy or export it again."
        ) from error


def _read_categories(
    categories: list, json_file: Path
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]:
    for category in categories:
        if (
            not isinstance(category, dict)
            or not isinstance(category.get("id"), int)
            or not isinstance(category.get("name"), str)
        ):
            raise InputError(
                f"{json_file}: category {category!r} needs an integer 'id' and a 'name'; correct"
                " the file."
            )
        if not isinstance(category.get("keypoints") or [], list):
            raise InputError(
                f"{json_file}: 'keypoints' of category {category['name']!r} must be a list of"
                " names; correct the file."
            )
    repeated = [i for i, n in Counter(category["id"] for category in categories).items() if n > 1]
    if repeated:
        raise InputError(
            f"{json_file}: category id {repeated[0]} occurs more than once in 'categories'; give"
            " each class its own."
        )
    categories = sorted(categories, key=lambda category: category["id"])
    keypoint_names = next(
        (tuple(category["keypoints"]) for category in categories if category.get("keypoints")), ()
    )
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
    if (
        not isinstance(image, dict)
        or not isinstance(image.get("id"), (int, str))
        or not isinstance(image.get("file_name"), str)
    ):
        return f"image {image!r} needs an 'id' and a 'file_name'"
    if any(
        not isinstance(image.get(side), int) or image[side] <= 0 for side in ("width", "height")
    ):
        return (
            f"image {image['id']} ({image['file_name']}) needs the image's 'width' and 'height'"
            " in pixels"
        )
    if image["id"] in records:
        return f"image id {image['id']} occurs more than once in 'images'; give each image its own"
    if records and type(image["id"]) is not type(next(iter(records))):
        return (
            f"image ids must be all numbers or all strings, got {image['id']!r} beside"
            f" {next(iter(records))!r}"
        )
    return None


def _entry_problem(annotation) -> str | None:
    if not isinstance(annotation, dict):
        return f"is {_short(annotation)}, expected an object"
    if not isinstance(annotation.get("id"), (int, float, str, type(None))):
        return f"has the id {_short(annotation['id'])}, expected a number"
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
            segmentation = _segmentation(raw.get("segmentation"), record, where)
            keypoints = _keypoints(raw.get("keypoints"), where)
            iscrowd = _iscrowd(raw.get("iscrowd", 0), where)
            if "area" in raw and not _are_finite([raw["area"]]):
                raise InputError(
                    f"{where}: area is {_short(raw['area'])}, expected a number of square pixels;"
                    " correct the file, or leave it out."
                )
        except InputError as problem:
            self.on_problem(problem)
            return
        if segmentation is not None and len(segmentation) == 0:
            self.left_out["invalid_polygons"] += 1  # Detectron2 leaves the whole instance out
            return
        annotation = {
            "bbox": bbox,
            "category_id": self.index_of[raw["category_id"]],
            "iscrowd": iscrowd,
        }
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
        if not _is_in(raw.get("image_id"), self.records):
            raise InputError(
                f"{where}: image_id {raw.get('image_id')!r} is not in 'images'; add the image or"
                " remove the annotation."
            )
        if not _is_in(raw.get("category_id"), self.index_of):
            ids = sorted(self.index_of)
            some = f"{', '.join(map(str, ids[:10]))}{', ...' if len(ids) > 10 else ''}"
            raise InputError(
                f"{where}: category_id {raw.get('category_id')!r} is not in 'categories' (ids"
                f" {some}); add the category or correct the id."
            )
        if raw.get("ignore", 0):
            raise InputError(
                f"{where}: 'ignore' is not part of COCO's format and would have no effect; use"
                " 'iscrowd': 1 for regions to ignore."
            )
        return self.records[raw["image_id"]]


def _xyxy(box, record: dict, where: str) -> list[float]:
    """Turn [x, y, w, h] into [x0, y0, x1, y1]; float32, to place the far corner where Detectron2
    places it.
    """
    numbers = (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(isinstance(v, (int, float)) and abs(v) < _FAR for v in box)
    )
    if not numbers:
        raise InputError(
            f"{where}: bbox is {box!r}, expected four finite numbers [x, y, width, height] in"
            " pixels; correct the file."
        )
    width, height = record["width"], record["height"]
    if (
        box[2] < 0
        or box[3] < 0
        or box[0] >= width
        or box[1] >= height
        or box[0] + box[2] < 0
        or box[1] + box[3] < 0
    ):
        raise InputError(
            f"{where}: bbox [x, y, width, height] = {list(box)} does not lie in the {width} x"
            f" {height} image {record['file_name']}; expected pixels from the top left corner,"
            " width and height not negative; correct the file."
        )
    # The sum of two float32 in float64 is exact enough that rounding it once more is the sum in
    # float32.
    x, y, w, h = _FOUR_FLOATS.unpack(_FOUR_FLOATS.pack(*box))
    return [x, y, *_TWO_FLOATS.unpack(_TWO_FLOATS.pack(x + w, y + h))]


def _reaches_out(bbox: list[float], record: dict) -> bool:
    # COCO's own boxes overhang by rounding; a pixel or more is another matter.
    return min(bbox[:2]) <= -1 or bbox[2] >= record["width"] + 1 or bbox[3] >= record["height"] + 1


def _is_in(key: object, known: dict) -> bool:
    return isinstance(key, (int, float, str)) and key in known


def _are_finite(numbers: list) -> bool:
    """Return whether these are numbers, none of them infinite or NaN: a sum tells in one pass, and
    a file of COCO's size has millions.
    """
    try:
        return math.isfinite(sum(numbers))
    except (
        TypeError,
        OverflowError,
    ):  # no list, text or lists in it, or a whole number beyond float's range
        return False


def _iscrowd(value: object, where: str) -> int:
    if not isinstance(value, (int, float)) or value not in (0, 1):
        raise InputError(f"{where}: iscrowd is {_short(value)}, expected 0 or 1; correct the file.")
    return int(value)


def _segmentation(segmentation, record: dict, where: str):
    """Return polygons of at least 3 points, a compressed RLE, None if there is none, [] if no
    polygon is valid.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _rle(segmentation, record, where)
    if not isinstance(segmentation, list) or not all(
        isinstance(polygon, list) for polygon in segmentation
    ):
        raise InputError(
            f"{where}: segmentation is {str(segmentation)[:60]}, expected a list of polygons [x, y,"
            " x, y, ...] or an RLE; correct the file."
        )
    polygons = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
    for polygon in polygons:
        if not _are_finite(polygon):
            raise InputError(
                f"{where}: the polygon {_short(polygon)} does not hold finite numbers alone, [x, y,"
                " x, y, ...]; correct the file."
            )
    width, height = record["width"], record["height"]
    if polygons and not any(_reaches_in(polygon, width, height) for polygon in polygons):
        raise InputError(
            f"{where}: no polygon of its segmentation reaches into the {width} x {height} image"
            f" {record['file_name']}, the first is {_short(polygons[0])}; expected pixels from the"
            " top left corner; correct the file."
        )
    return polygons


def _reaches_in(polygon: list, width: int, height: int) -> bool:
    x, y = polygon[0::2], polygon[1::2]
    return (0 <= x[0] < width and 0 <= y[0] < height) or (
        min(x) < width and max(x) >= 0 and min(y) < height and max(y) >= 0
    )


def _rle(rle: dict, record: dict, where: str) -> dict:
    """Return the compressed form; refuse what is none of this image's masks, which pycocotools
    would decode into memory that is not its own.
    """
    counts, size, shape = rle.get("counts"), rle.get("size"), [record["height"], record["width"]]
    if not isinstance(counts, (str, bytes, list)) or "size" not in rle:
        raise InputError(
            f"{where}: segmentation is an object without 'counts' and 'size', expected COCO's RLE;"
            " correct the file."
        )
    if not isinstance(size, (list, tuple)) or list(size) != shape:
        raise InputError(
            f"{where}: its RLE has the size {_short(size)}, expected the image's [height, width]"
            f" {shape}; correct the file."
        )
    try:
        lengths = counts if isinstance(counts, list) else _run_lengths(counts)
        if not all(isinstance(length, int) and length >= 0 for length in lengths):
            raise ValueError("a run is no whole number of pixels")
        if sum(lengths) != shape[0] * shape[1]:
            raise ValueError(f"its runs add up to {sum(lengths)} px")
    except ValueError as error:
        raise InputError(
            f"{where}: the 'counts' {_short(counts)} are not the RLE of a mask of"
            f" {shape[0] * shape[1]} px ({error}); correct the file."
        ) from error
    if not isinstance(counts, list):
        return rle
    from pycocotools import mask as mask_api

    return mask_api.frPyObjects(rle, *shape)


def _run_lengths(counts: str | bytes) -> list[int]:
    """Return the lengths that COCO's compressed RLE stands for.

    Each is written in groups of 5 bits, the lowest first, a character from "0" on for each: 32 says
    that another group follows, 16 in the last group that the number is negative. From the fourth on
    it is the difference from the length two before.

    Raises:
        ValueError: If it is something else.
    """
    lengths: list[int] = []
    value = shift = 0
    for code in counts.encode() if isinstance(counts, str) else counts:
        code -= 48
        if not 0 <= code < 64:
            raise ValueError("a character of it is none of the 64 that there are")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("it is cut off")
    return lengths


def _keypoints(keypoints, where: str) -> list[float] | None:
    """Shift pixel indices by half a pixel, to the continuous coordinates of the boxes."""
    if not keypoints:
        return None
    if not _are_finite(keypoints):
        raise InputError(
            f"{where}: keypoints is {_short(keypoints)}, expected finite numbers [x, y, visibility,"
            " ...]; correct the file."
        )
    if len(keypoints) % 3 != 0:
        raise InputError(
            f"{where}: keypoints has {len(keypoints)} numbers, expected three (x, y, visibility)"
            " for each point; correct the file."
        )
    return [value if i % 3 == 2 else value + 0.5 for i, value in enumerate(keypoints)]
