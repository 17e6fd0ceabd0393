"""COCO's json format, which is LVIS's as well: images, annotations, categories; boxes as XYWH.

Source:
    detectron2/data/datasets/coco.py load_coco_json and lvis.py load_lvis_json. Records are equal,
    apart from boxes that are XYXY here (added in float32, as Detectron2's BoxMode.convert does
    later), and that objects whose polygons have fewer than 3 points stay, for their boxes.
    Annotations whose image is not in the file are refused.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError, MissingFileError
from .records import Contents, OnProblem, check_image_files, count_left_out, raise_problem

_FAR = 1e9  # px; larger numbers are mistakes, and the comparison is False for NaN
_FOUR_FLOATS, _TWO_FLOATS = struct.Struct("4f"), struct.Struct("2f")


class _Fault(Exception):
    """What is wrong with an entry, without its name."""


def read_coco(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    unique_annotation_ids: bool = True,
    lvis: bool = False,
    on_problem: OnProblem = raise_problem,
) -> Contents:
    """Read a file in COCO's instances or keypoint format; its images lie in ``image_root``.

    ``unique_annotation_ids`` refuses repeated ids, which only COCO 2014's minival lists have.
    ``lvis`` reads LVIS's format: its images lie in the folders below ``image_root`` that end their
    ``coco_url``, and its categories have a ``frequency``.
    ``on_problem`` is called with each problem. Records are sorted by image id, classes by their
    ids; crowd regions stay for the evaluation. MissingFileError if the file, the folder or images
    are missing; InputError if the file is not json, not in COCO's format, or contradicts itself.
    """
    json_file = Path(json_file)
    content = load_json(json_file)
    for key in ("images", "categories", "annotations"):
        value = content.get(key) if isinstance(content, dict) else None
        is_list = isinstance(value, list) and value
        if not is_list and not (key == "annotations" and value in (None, [])):
            fault = f"{key!r} is {_short(value)}, expected a non-empty list of objects"
            raise InputError(f"{json_file} is not in COCO's format: {fault}.")
    categories = _read_categories(content["categories"], json_file, lvis)
    class_of = {category["id"]: index for index, category in enumerate(categories)}
    num_points = [len(category.get("keypoints") or ()) for category in categories]
    records = _read_images(content["images"], json_file, Path(image_root), on_problem, lvis)
    seen: set | None = set() if unique_annotation_ids else None
    for number, raw in enumerate(content.get("annotations") or [], start=1):
        name = raw.get("id", f"number {number}") if isinstance(raw, dict) else f"number {number}"
        try:
            _add_annotation(raw, records, class_of, num_points, seen)
        except _Fault as fault:
            where = f"{json_file}, annotation {_short(name)}"
            on_problem(InputError(f"{where}: {fault}; correct the file."))
    ordered = [records[image_id] for image_id in sorted(records)]
    if not Path(image_root).is_dir():
        raise MissingFileError(f"The image folder of {json_file} does not exist: {image_root}.")
    check_image_files(ordered, json_file, on_problem)
    names, skeleton = _shared_keypoints(categories)
    return Contents(
        ordered,
        tuple(category["name"] for category in categories),
        tuple(class_of),
        count_left_out(ordered, keypoints=bool(names)),
        names,
        skeleton,
        "annotations" in content,
        tuple(category["frequency"] for category in categories) if lvis else (),
    )


def load_json(json_file: Path) -> Any:
    """Return the content of a json file; MissingFileError, or InputError if it is not json."""
    try:
        return json.loads(json_file.read_bytes())
    except FileNotFoundError as error:
        raise MissingFileError(f"{json_file} does not exist.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{json_file} is not json ({error}); copy or export it again.") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_categories(categories: list, json_file: Path, lvis: bool) -> list[dict]:
    """Return the categories in the order of their ids."""
    try:
        for category in categories:
            _check(category, _CATEGORY_FIELDS + _LVIS_CATEGORY_FIELDS * lvis)
            last = max(itertools.chain.from_iterable(category.get("skeleton") or ()), default=0)
            if last > len(category.get("keypoints") or ()):
                raise _Fault(f"skeleton connects keypoint {last}, which 'keypoints' does not name")
        repeated = [i for i, n in Counter(c["id"] for c in categories).items() if n > 1]
        if repeated:
            raise _Fault(f"id {repeated[0]} occurs more than once")
    except _Fault as fault:
        raise InputError(f"{json_file}, 'categories': {fault}; correct the file.") from fault
    return sorted(categories, key=lambda category: category["id"])


def _shared_keypoints(
    categories: list[dict],
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Return names of the keypoints and skeleton; empty if categories have different keypoints."""
    with_points = [category for category in categories if category.get("keypoints")]
    if len({tuple(category["keypoints"]) for category in with_points}) != 1:
        return (), ()
    lines = with_points[0].get("skeleton") or []
    return tuple(with_points[0]["keypoints"]), tuple((a - 1, b - 1) for a, b in lines)


def _read_images(
    images: list, json_file: Path, image_root: Path, on_problem: OnProblem, lvis: bool
) -> dict:
    records: dict = {}
    for number, image in enumerate(images, start=1):
        image = _with_place(image) if lvis else image
        try:
            _check(image, _IMAGE_FIELDS + _LVIS_IMAGE_FIELDS * lvis)
            if image["id"] in records:
                raise _Fault(f"id {image['id']} occurs more than once")
            if records and type(image["id"]) is not type(next(iter(records))):
                raise _Fault("ids must be all numbers or all strings")
        except _Fault as fault:
            on_problem(InputError(f"{json_file}, image {number} of the list: {fault}."))
            continue
        size = {"height": image["height"], "width": image["width"]}
        file = {"file_name": os.path.join(image_root, image["file_name"])}
        records[image["id"]] = {**file, **size, "image_id": image["id"], "annotations": []}
        if lvis:
            records[image["id"]] |= {key: image.get(key, []) for key, *_ in _LVIS_IMAGE_FIELDS}
    return records


def _with_place(image: Any) -> Any:
    """Return LVIS's image with COCO 2017's folder and name, which its address alone has: v0.5's
    ``file_name`` is COCO 2014's, v1 has none.
    """
    url = image.get("coco_url") if isinstance(image, dict) else None
    return image | {"file_name": "/".join(url.split("/")[-2:])} if isinstance(url, str) else image


def _are_finite(numbers: Any) -> bool:
    """Return whether all are finite numbers; one sum is fast for the millions of a COCO file."""
    try:
        return math.isfinite(sum(numbers))
    except (TypeError, OverflowError):
        return False


def _is_box(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) == 4
    return is_list and all(isinstance(n, (int, float)) and abs(n) < _FAR for n in value)


def _is_skeleton(value: Any) -> bool:
    lines = [] if value is None else value
    are_pairs = isinstance(lines, list) and all(isinstance(v, list) and len(v) == 2 for v in lines)
    return are_pairs and all(isinstance(n, int) and n >= 1 for line in lines for n in line)


def _are_names(value: Any) -> bool:
    names = value or []
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return is_list and len(set(names)) == len(names)


_POINTS = "finite numbers [x, y, visibility, ...], three for each point"
_FREQUENCY = (
    "'r', 'c' or 'f' (rare, common, frequent), as LVIS has it; other files are of kind coco"
)
# Key, value of an absent field, whether a value is legal, and what is expected.
_Fields = tuple[tuple[str, Any, Callable[[Any], bool], str], ...]
_CATEGORY_FIELDS: _Fields = (
    ("id", None, lambda v: isinstance(v, int), "an integer"),
    ("name", None, lambda v: isinstance(v, str), "a text"),
    ("keypoints", [], _are_names, "a list of different names"),
    ("skeleton", [], _is_skeleton, "pairs [a, b] of numbers of keypoints, the first is 1"),
)
_IMAGE_FIELDS: _Fields = (
    ("id", None, lambda v: isinstance(v, (int, str)), "a number or a text"),
    ("file_name", None, lambda v: isinstance(v, str), "a path"),
    ("width", None, lambda v: isinstance(v, int) and v > 0, "pixels"),
    ("height", None, lambda v: isinstance(v, int) and v > 0, "pixels"),
)
_LVIS_CATEGORY_FIELDS: _Fields = (("frequency", None, lambda v: v in ("r", "c", "f"), _FREQUENCY),)
_LVIS_IMAGE_FIELDS: _Fields = tuple(
    (key, [], lambda v: isinstance(v, list) and all(isinstance(i, int) for i in v), "a list of ids")
    for key in ("neg_category_ids", "not_exhaustive_category_ids")
)
_ANNOTATION_FIELDS: _Fields = (
    ("id", None, lambda v: isinstance(v, (int, float, str, type(None))), "a number"),
    ("bbox", None, _is_box, "four finite numbers [x, y, width, height]"),
    ("ignore", 0, lambda v: not v, "none: it is not part of COCO's format, use 'iscrowd': 1"),
    ("iscrowd", 0, lambda v: isinstance(v, (int, float)) and v in (0, 1), "0 or 1"),
    ("area", 0, lambda v: _are_finite([v]), "a number of square pixels"),
    ("keypoints", [], lambda v: not v or _are_finite(v) and len(v) % 3 == 0, _POINTS),
)


def _check(entry: Any, fields: _Fields) -> None:
    if not isinstance(entry, dict):
        raise _Fault(f"it is {_short(entry)}, expected an object")
    for key, absent, is_legal, expected in fields:
        value = entry.get(key, absent)
        if not is_legal(value):
            raise _Fault(f"{key} is {_short(value)}, expected {expected}")


def _add_annotation(
    raw: Any, records: dict, class_of: dict, num_points: list[int], seen: set | None
) -> None:
    """Add an annotation to its record.

    ``num_points`` is the number of keypoints that each class names; ``seen`` are earlier ids.
    """
    _check(raw, _ANNOTATION_FIELDS)
    for key, known in (("image_id", records), ("category_id", class_of)):
        value = raw.get(key)
        if not isinstance(value, (int, float, str)) or value not in known:
            some = f"of {len(known)}" if known is records else _short(list(known))
            raise _Fault(f"{key} {value!r} is not one of the ids in this file ({some})")
    if seen is not None and raw.get("id") is not None:
        if raw["id"] in seen:
            raise _Fault("this id occurs more than once")
        seen.add(raw["id"])
    record = records[raw["image_id"]]
    box = _xyxy(raw["bbox"], record)
    segmentation = _segmentation(raw.get("segmentation"), record)
    category, iscrowd = class_of[raw["category_id"]], int(raw.get("iscrowd", 0))
    annotation = {"bbox": box, "category_id": category, "iscrowd": iscrowd}
    if "area" in raw:
        annotation["area"] = raw["area"]
    if segmentation is not None:
        annotation["segmentation"] = segmentation
    if points := raw.get("keypoints"):
        if num_points[category] not in (0, len(points) // 3):
            named = f"but its category names {num_points[category]}"
            raise _Fault(f"keypoints has {len(points) // 3} points, {named}")
        # Pixel indices become the continuous coordinates of the boxes.
        annotation["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(points)]
    record["annotations"].append(annotation)


def _xyxy(box: list[float], record: dict) -> list[float]:
    """Turn [x, y, w, h] into [x0, y0, x1, y1], added in float32 as Detectron2 does."""
    width, height = record["width"], record["height"]
    x, y, w, h = box
    if w < 0 or h < 0 or x >= width or y >= height or x + w < 0 or y + h < 0:
        raise _Fault(
            f"bbox [x, y, width, height] = {list(box)} does not lie in the {width} x {height} image"
            f" {record['file_name']}; width and height must not be negative"
        )
    # The sum of two float32 in float64, rounded once, is the sum in float32.
    x, y, w, h = _FOUR_FLOATS.unpack(_FOUR_FLOATS.pack(*box))
    return [x, y, *_TWO_FLOATS.unpack(_TWO_FLOATS.pack(x + w, y + h))]


def _segmentation(segmentation: Any, record: dict) -> Any:
    """Return polygons of at least 3 points ([] if none is left), a compressed RLE, or None."""
    if not segmentation:
        return None
    height, width = record["height"], record["width"]
    if isinstance(segmentation, dict):
        return _rle(segmentation, [height, width])
    fault = f"segmentation is {_short(segmentation)}, expected"
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        raise _Fault(f"{fault} a list of polygons or an RLE")
    polygons = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
    if not all(map(_are_finite, polygons)):
        raise _Fault(f"{fault} polygons of finite numbers")
    spans = [(min(p[0::2]), max(p[0::2]), min(p[1::2]), max(p[1::2])) for p in polygons]
    if spans and not any(x < width and r >= 0 and y < height and b >= 0 for x, r, y, b in spans):
        raise _Fault(f"{fault} a polygon inside the {width} x {height} image {record['file_name']}")
    return polygons


def _rle(rle: dict, shape: list[int]) -> dict:
    """Return the compressed form. For other shapes pycocotools would write beyond its memory."""
    counts, size, total = rle.get("counts"), rle.get("size"), shape[0] * shape[1]
    if not isinstance(counts, (str, bytes, list)) or not isinstance(size, (list, tuple)):
        raise _Fault(f"segmentation is {_short(rle)}, expected an RLE with 'counts' and 'size'")
    if list(size) != shape:
        raise _Fault(f"the 'size' of its RLE is {size}, expected [height, width] {shape}")
    try:
        lengths = counts if isinstance(counts, list) else _run_lengths(counts)
        if not all(isinstance(length, int) and length >= 0 for length in lengths):
            raise ValueError("a run is not a whole number of pixels")
        if sum(lengths) != total:
            raise ValueError(f"its runs add up to {sum(lengths)} px")
    except ValueError as error:
        fault = f"the 'counts' {_short(counts)} are not the RLE of a mask of {total} px ({error})"
        raise _Fault(fault) from error
    if not isinstance(counts, list):
        return rle
    from pycocotools import mask as mask_api

    return mask_api.frPyObjects(rle, *shape)


def _run_lengths(counts: str | bytes) -> list[int]:
    """Return the run lengths of COCO's compressed RLE, or raise ValueError.

    A number is written in groups of 5 bits, lowest first, one character from "0" on per group. Bit
    32 announces another group ("P" to "o"); bit 16 of the last is the sign. From the fourth number
    on it is the difference from the length two before.
    """
    data = counts.encode() if isinstance(counts, str) else counts
    if not re.fullmatch(rb"([P-o]*[0-O])*", data):
        raise ValueError("it is cut off, or has a character that RLE does not use")
    lengths: list[int] = []
    for number in re.findall(rb"[P-o]*[0-O]", data):
        value = sum((code - 48 & 31) << 5 * i for i, code in enumerate(number))
        if number[-1] - 48 & 16:
            value -= 1 << 5 * len(number)
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
    return lengths
