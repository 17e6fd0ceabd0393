"""COCO's json format, which is LVIS's as well: images, annotations, categories; boxes as XYWH.

Source:
    detectron2/data/datasets/coco.py load_coco_json and lvis.py load_lvis_json. Records are equal,
    apart from boxes that are XYXY here (added in float32, as Detectron2's BoxMode.convert does
    later), and that objects whose polygons have fewer than 3 points stay, for their boxes. What a
    tool writes otherwise is taken where it has one meaning: sizes as 96.0 or not at all, ids as
    text, a null ``iscrowd`` or ``area``. Annotations' ids are not used, and may be repeated.
    Annotations whose image is not in the file are refused.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError, MissingFileError
from ...runtime.text import nature_of, not_text, parse_json, read_bytes
from ..images.near_names import Found, find_image_files
from .coco_fields import (
    ANNOTATION_FIELDS,
    CATEGORY_FIELDS,
    CROWD,
    IMAGE_FIELDS,
    LVIS_CATEGORY_FIELDS,
    LVIS_IMAGE_FIELDS,
    as_text,
    check,
    dense_pose_of,
)
from .faults import Fault, Faults, short
from .masks import read_mask
from .records import (
    Contents,
    OnProblem,
    check_image_files,
    count_left_out,
    lies_in,
    raise_problem,
    size_of,
)

_FOUR_FLOATS, _TWO_FLOATS = struct.Struct("4f"), struct.Struct("2f")


def read_coco(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    lvis: bool = False,
    as_stored: bool = False,
    on_problem: OnProblem = raise_problem,
) -> Contents:
    """Read a file in COCO's instances or keypoint format; its images lie in ``image_root``.

    ``lvis`` reads LVIS's format: its images lie in the folders below ``image_root`` that end their
    ``coco_url``, and its categories have a ``frequency``.
    ``as_stored`` takes missing sizes from the pixels as stored, not upright.
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
            fault = f"{key!r} is {short(value)}, expected a non-empty list of objects"
            raise InputError(f"{json_file} is not in COCO's format: {fault}.")
    categories = _read_categories(content["categories"], json_file, lvis)
    class_of = {as_text(category["id"]): index for index, category in enumerate(categories)}
    num_points = [len(category.get("keypoints") or ()) for category in categories]
    images = [_with_place(image) if lvis else image for image in content["images"]]
    named = [
        i["file_name"]
        for i in images
        if isinstance(i, dict) and isinstance(i.get("file_name"), str)
    ]
    found = find_image_files(named, image_root)
    form = {"lvis": lvis, "as_stored": as_stored}
    records = _read_images(images, json_file, found, on_problem, **form)
    faults = Faults()
    for number, raw in enumerate(content.get("annotations") or [], start=1):
        name = raw.get("id", f"number {number}") if isinstance(raw, dict) else f"number {number}"
        try:
            _add_annotation(raw, records, class_of, num_points)
        except Fault as fault:
            place = f"{json_file}, annotation {short(name)}"
            faults.add(place, Fault(f"{fault}; correct the file.", fault.kind))
    faults.report(on_problem)
    ordered = sorted(filter(None, records.values()), key=lambda record: record["image_id"])
    if not Path(image_root).is_dir():
        raise MissingFileError(f"The image folder of {json_file} does not exist: {image_root}.")
    check_image_files(ordered, json_file, on_problem)
    names, skeleton = _shared_keypoints(categories)
    return Contents(
        ordered,
        tuple(category["name"] for category in categories),
        tuple(category["id"] for category in categories),
        count_left_out(ordered, keypoints=bool(names)),
        names,
        skeleton,
        "annotations" in content,
        tuple(category["frequency"] for category in categories) if lvis else (),
        tuple(found.remarks()),
    )


def load_json(json_file: Path) -> Any:
    """Return the content of a json file; MissingFileError, or InputError if it is not json."""
    try:
        data = read_bytes(json_file)
        return parse_json(data)  # UTF-8, 16 and 32, with a byte order mark or not
    except UnicodeDecodeError as error:
        raise not_text(json_file, error) from error
    except InputError:
        raise
    except ValueError as error:
        if nature := nature_of(data[:512]):
            raise InputError(f"{json_file} is {nature}; expected json.") from error
        raise InputError(f"{json_file} is not json ({error}); copy or export it again.") from error


def _read_categories(categories: list, json_file: Path, lvis: bool) -> list[dict]:
    """Return the categories in the order of their ids."""
    try:
        for category in categories:
            check(category, CATEGORY_FIELDS + LVIS_CATEGORY_FIELDS * lvis)
            last = max(itertools.chain.from_iterable(category.get("skeleton") or ()), default=0)
            if last > len(category.get("keypoints") or ()):
                raise Fault(f"skeleton connects keypoint {last}, which 'keypoints' does not name")
        with_ids = [category | {"id": int(category["id"])} for category in categories]
        repeated = [i for i, n in Counter(c["id"] for c in with_ids).items() if n > 1]
        if repeated:
            raise Fault(f"id {repeated[0]} occurs more than once")
    except Fault as fault:
        raise InputError(f"{json_file}, 'categories': {fault}; correct the file.") from fault
    return sorted(with_ids, key=lambda category: category["id"])


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
    images: list,
    json_file: Path,
    found: Found,
    on_problem: OnProblem,
    *,
    lvis: bool,
    as_stored: bool,
) -> dict[str | None, dict | None]:
    """Return the record of each id as a text; None where there is a fault, which is reported."""
    records: dict[str | None, dict | None] = {}
    kinds, faults = set(), Faults()
    for number, image in enumerate(images, start=1):
        name = as_text(image.get("id")) if isinstance(image, dict) else None
        is_repeated = name in records
        records.setdefault(name, None)
        try:
            check(image, IMAGE_FIELDS + LVIS_IMAGE_FIELDS * lvis)
            kinds.add(isinstance(image["id"], str))
            if is_repeated:
                raise Fault(f"id {name} occurs more than once", "repeated")
            if len(kinds) > 1:
                raise Fault("ids must be all numbers or all strings")
            file = found.path(image["file_name"])
            sides = image.get("height"), image.get("width")
            height, width = size_of(file, *sides, as_stored=as_stored)
        except Fault as fault:
            place = f"{json_file}, image {number} of the list"
            faults.add(place, Fault(f"{fault}.", fault.kind))
        except InputError as problem:
            on_problem(problem)
        else:
            image_id = image["id"] if isinstance(image["id"], str) else int(image["id"])
            record = {"file_name": file, "height": height, "width": width, "image_id": image_id}
            if lvis:
                record |= {key: image.get(key, []) for key, *_ in LVIS_IMAGE_FIELDS}
            records[name] = record | {"annotations": []}
    faults.report(on_problem)
    return records


def _with_place(image: Any) -> Any:
    """Return LVIS's image with COCO 2017's folder and name, which its address alone has: v0.5's
    ``file_name`` is COCO 2014's, v1 has none.
    """
    url = image.get("coco_url") if isinstance(image, dict) else None
    return image | {"file_name": "/".join(url.split("/")[-2:])} if isinstance(url, str) else image


def _add_annotation(raw: Any, records: dict, class_of: dict, num_points: list[int]) -> None:
    """Add an annotation to its record; ``num_points``: of the keypoints that each class names."""
    check(raw, ANNOTATION_FIELDS)
    for key, known in (("image_id", records), ("category_id", class_of)):
        if as_text(raw.get(key)) not in known:
            some = f"of {len(known)}" if known is records else short(list(map(int, known)))
            raise Fault(f"{key} {raw.get(key)!r} is not one of the ids in this file ({some})", key)
    record, category = records[as_text(raw["image_id"])], class_of[as_text(raw["category_id"])]
    if record is None or not record["height"]:
        return  # its image has been reported
    annotation = {"bbox": _xyxy(raw["bbox"], record), "category_id": category}
    annotation["iscrowd"] = CROWD[raw.get("iscrowd")]
    if raw.get("area") is not None:
        annotation["area"] = raw["area"]
    segmentation = read_mask(raw.get("segmentation"), record)
    if segmentation is not None:
        annotation["segmentation"] = segmentation
    if points := raw.get("keypoints"):
        if num_points[category] not in (0, len(points) // 3):
            named = f"but its category names {num_points[category]}"
            raise Fault(f"keypoints has {len(points) // 3} points, {named}")
        # Pixel indices become the continuous coordinates of the boxes.
        annotation["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(points)]
    record["annotations"].append(annotation | dense_pose_of(raw))


def _xyxy(box: list[float], record: dict) -> list[float]:
    """Turn [x, y, w, h] into [x0, y0, x1, y1], added in float32 as Detectron2 does."""
    width, height = record["width"], record["height"]
    x, y, w, h = box
    if not lies_in([x, y, x + w, y + h], width, height):
        raise Fault(
            f"bbox [x, y, width, height] = {list(box)} does not lie in the {width} x {height} image"
            f" {record['file_name']}; width and height must not be negative",
            "box",
        )
    # The sum of two float32 in float64, rounded once, is the sum in float32.
    x, y, w, h = _FOUR_FLOATS.unpack(_FOUR_FLOATS.pack(*box))
    return [x, y, *_TWO_FLOATS.unpack(_TWO_FLOATS.pack(x + w, y + h))]
