"""YOLO's layout: data.yaml, and for each image a text file with a line for each object.

Layout:
    path, train, val, test, names    in data.yaml; a split is a folder of images, a list of images
                                     (a text file), or several of these
    .../images/a.jpg                 the labels are .../labels/a.txt; next to the image if the
                                     path has no folder ``images``; without a file no objects
Lines:
    CLASS X Y WIDTH HEIGHT           the centre and size of a box
    CLASS X Y X Y X Y ...            a polygon, whose bounds are the box
    Numbers are fractions of the upright image, 0 to 1; classes count from 0.
Source:
    ultralytics' documentation of its dataset formats, and data/utils.py check_det_dataset. There a
    line of 4 numbers in a file with polygons is two points; here it is a box.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import InputError, MissingFileError, did_you_mean
from ...runtime.text import read_text, read_yaml
from ..images.image_source import is_image
from ..images.near_names import find_image_files, find_names, lies_near, list_files
from .faults import Fault, Faults, short
from .records import Contents, OnProblem, check_image_files, count_left_out, raise_problem, size_of

_THREADS = 8
_SLACK = 1e-6  # that rounded shares may exceed 1 by
_SAME_SPLITS = {"valid": "val", "validation": "val", "dev": "val"}


def read_yolo(
    data_yaml: str | os.PathLike[str],
    split: str,
    *,
    as_stored: bool = False,
    on_problem: OnProblem = raise_problem,
) -> Contents:
    """Read one split, such as ``train``; its records are in the order of the images' paths.

    ``as_stored`` takes the images' sizes from the pixels as stored, not upright.
    ``on_problem`` is called with each problem. MissingFileError if data.yaml, the split or an image
    is missing; InputError if a file cannot be used.
    """
    file = Path(data_yaml)
    names, entries, roots = _read_yaml(file, split)
    images = [i for entry in entries for i in _find_images(entry, roots, f"{file}, {split}")]
    images = list(dict.fromkeys(images))
    labels, remarks = _find_labels(images)
    if images and not labels:
        first = _label_file(images[0])
        raise MissingFileError(
            f"{file}, {split}: none of the {len(images)} images has labels; the first are expected"
            f" at {first}.{lies_near(first, _is_text)}"
        )
    read_size = functools.partial(size_of, height=None, width=None, as_stored=as_stored)
    records, faults = [], Faults()
    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = threads.map(lambda image: _try(read_size, image), images)
        for image, size in zip(images, sizes, strict=True):
            if isinstance(size, InputError):
                on_problem(size)
                continue
            record: dict[str, Any] = {"file_name": image, "height": size[0], "width": size[1]}
            record |= {"image_id": os.path.relpath(image, file.parent), "annotations": []}
            records.append(record)
            if image in labels and size[0]:
                _read_labels(labels[image], record, len(names), faults)
    faults.report(on_problem)
    check_image_files(records, f"{file}, {split}", on_problem)
    indices = tuple(range(len(names)))
    return Contents(records, names, indices, count_left_out(records), remarks=tuple(remarks))


def _try(read: Callable[[str], tuple[int, int]], image: str) -> tuple[int, int] | InputError:
    try:
        return read(image)
    except InputError as problem:
        return problem


def _read_yaml(file: Path, split: str) -> tuple[tuple[str, ...], list[str], list[Path]]:
    """Return the class names, the entries of a split, and the folders that they may be below."""
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} is {short(content)}, expected keys such as train and names.")
    if "kpt_shape" in content:
        raise InputError(f"{file} has kpt_shape: YOLO's keypoints are not read; use COCO's format.")
    names = content.get("names")
    if isinstance(names, dict):
        by_index = {str(index): name for index, name in names.items()}
        names = [by_index.get(str(index)) for index in range(len(by_index))]
    if not isinstance(names, list) or not names or not all(map(_is_name, names)):
        expected = "a list of class names, or a mapping from the indices 0, 1, ... to names"
        raise InputError(f"{file}: names is {short(content.get('names'))}, expected {expected}.")
    if content.get("nc", len(names)) != len(names):
        raise InputError(f"{file}: nc is {content['nc']}, but names has {len(names)}.")
    known = [key for key in ("train", "val", "test") if content.get(key)]
    key = split if split in known else _SAME_SPLITS.get(split, split)
    entries = [content.get(key)] if isinstance(content.get(key), str) else content.get(key)
    if (
        not isinstance(entries, list)
        or not entries
        or not all(isinstance(e, str) and e for e in entries)
    ):
        has = f"has {', '.join(known) or 'none of train, val and test'}"
        raise InputError(
            f"{file}: {split} is {short(entries)}, expected a folder or list of images; it {has}."
            f"{did_you_mean(split, known)}"
        )
    path = str(content.get("path") or "").replace("\\", "/")
    return tuple(map(str, names)), entries, [file.parent / path, Path(path), file.parent]


def _is_name(name: Any) -> bool:
    return isinstance(name, (str, int, float))  # yaml takes some words for numbers


def _find_images(entry: str, roots: list[Path], where: str) -> list[str]:
    """Return the images of a folder, or of a list."""
    entry = entry.replace("\\", "/")
    # Roboflow's ../train/images begin one folder too high, and ultralytics looks below as well.
    places = [root / e for e in (entry, entry.removeprefix("../")) for root in roots]
    place = next((place for place in places if os.path.exists(place)), places[0])
    if os.path.isdir(place):
        images = [str(place / name) for name in list_files(place, is_image)]
        if not images:
            raise InputError(f"{where}: {place} holds no image.")
        return images
    if not os.path.exists(place):
        raise MissingFileError(f"{where}: {place} does not exist.{lies_near(place, _is_text)}")
    lines = [line.strip() for line in read_text(place).splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{where}: {place} lists no image.")
    bases = [place.parent, *roots]
    base = next((base for base in bases if os.path.exists(base / lines[0])), roots[0])
    found = find_image_files(lines, base)
    return [os.path.normpath(found.path(line)) for line in lines]


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


def _label_file(image: str) -> str:
    """Return where the labels of an image are expected: ``images`` becomes ``labels``."""
    parts = list(Path(image).with_suffix(".txt").parts)
    folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return os.path.join(*parts)


def _find_labels(images: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the label files of the images that have one, and remarks."""
    by_folder: dict[str, dict[str, str]] = {}  # folder of labels -> name -> image
    for image in images:
        folder, name = os.path.split(_label_file(image))
        by_folder.setdefault(folder, {})[name] = image
    labels: dict[str, str] = {}
    remarks: list[str] = []
    for folder, wanted in by_folder.items():
        there = sorted(filter(_is_text, os.listdir(folder))) if os.path.isdir(folder) else []
        found = find_names(wanted, there, folder)
        labels |= {wanted[name]: found.path(name) for name in found.paths}
        remarks += found.remarks()
    if without := len(images) - len(labels):
        remarks.append(f"images without a label file: {without} (they have no objects).")
    return labels, remarks


def _read_labels(path: str, record: dict, num_classes: int, faults: Faults) -> None:
    """Add the annotations of a label file to a record."""
    try:
        text = read_text(path)
    except InputError as problem:
        faults.add(path, Fault(str(problem).removeprefix(f"{path} "), "text"))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.split():
            try:
                record["annotations"].append(_read_line(words, record, num_classes))
            except Fault as fault:
                faults.add(f"{path}, line {number}", Fault(f"{fault}; correct it.", fault.kind))


def _read_line(words: list[str], record: dict, num_classes: int) -> dict:
    width, height = record["width"], record["height"]
    try:
        category, *shares = map(float, words)
    except ValueError as error:
        raise Fault(f"{short(' '.join(words))} is not a row of numbers", "numbers") from error
    if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
        raise Fault(
            f"it has {len(words)} numbers, expected 5 (class, x, y, width and height of a box), or"
            " 7, 9, ... (class and points of a polygon)",
            "count",
        )
    if category not in range(num_classes):
        raise Fault(f"class {words[0]} is not one of 0 to {num_classes - 1}", "class")
    if not all(-_SLACK <= share <= 1 + _SLACK for share in shares):
        wrong = next(s for s in shares if not -_SLACK <= s <= 1 + _SLACK)
        raise Fault(f"{wrong:g} is not a share of the image, 0 to 1", "share")
    annotation = {"category_id": int(category), "iscrowd": 0}
    xs, ys = np.array(shares[0::2]) * width, np.array(shares[1::2]) * height
    if len(shares) == 4:
        (x, w), (y, h) = xs.tolist(), ys.tolist()
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        return {"bbox": box, **annotation}
    box = [*map(float, (xs.min(), ys.min(), xs.max(), ys.max()))]
    area = abs(float(xs @ np.roll(ys, -1) - ys @ np.roll(xs, -1))) / 2
    polygon = np.stack([xs, ys], axis=1).ravel().tolist()
    return {"bbox": box, **annotation, "area": area, "segmentation": [polygon]}
