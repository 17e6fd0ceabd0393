"""Pascal VOC's layout: an image list per split, one XML per image, inclusive pixels counted from 1.

Layout:
    ROOT/ImageSets/Main/SPLIT.txt   one image id a line
    ROOT/Annotations/ID.xml
    ROOT/JPEGImages/ID.jpg          (or .jpeg, .png, .bmp); other ones: see voc_layout
Conventions:
    xmin = 1, xmax = W covers the whole image. In the continuous coordinates of the records that is
    x0 = 0, x1 = W, so 1 is taken from xmin and ymin only.
Source:
    detectron2/data/datasets/pascal_voc.py load_voc_instances; records are equal. Boxes outside the
    image, unknown classes and malformed numbers are refused here. A size that is missing is the
    image's own.
"""

from __future__ import annotations

import functools
import math
import os
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

from ...runtime.errors import InputError, MissingFileError, did_you_mean
from ...runtime.text import read_xml
from .faults import Fault, Faults
from .records import (
    Contents,
    OnProblem,
    check_image_files,
    count_left_out,
    lies_in,
    raise_problem,
    size_of,
)
from .voc_layout import find_voc

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def read_voc(
    root: str | os.PathLike[str],
    split: str,
    class_names: tuple[str, ...],
    *,
    first_pixel: int = 1,
    as_stored: bool = False,
    on_problem: OnProblem = raise_problem,
) -> Contents:
    """Read one split, such as ``trainval``, with classes in the order of ``class_names``.

    ``first_pixel`` is 1 for VOC's inclusive pixels 1 .. W, 0 for continuous coordinates 0 .. W.
    ``as_stored`` takes missing sizes from the pixels as stored, not upright.
    ``on_problem`` is called with each problem. Records are in the order of the list, images without
    boxes included. MissingFileError if a folder, the split, an XML or an image is missing;
    InputError if the list or an XML cannot be used.
    """
    if not Path(root).is_dir():
        raise MissingFileError(f"{root} does not exist; expected a folder in VOC's layout.")
    files = find_voc(Path(root), split, on_problem)
    class_of = {_composed(name): index for index, name in enumerate(class_names)}
    records, faults, unreadable = [], Faults(), []
    for image_id, xml in files.xmls.items():
        file = files.images[image_id]
        try:
            size = functools.partial(size_of, file, as_stored=as_stored)
            found = _read_xml(xml, size, class_of, first_pixel, faults)
        except InputError as problem:
            unreadable.append(problem)
        else:
            records.append({"file_name": file, "image_id": image_id, **found})
    if unreadable:
        more = f" {len(unreadable) - 1} more files cannot be read." if unreadable[1:] else ""
        on_problem(InputError(f"{unreadable[0]}{more}"))
    faults.report(on_problem)
    check_image_files(records, files.where, on_problem)
    indices, left_out = tuple(range(len(class_names))), count_left_out(records)
    return Contents(records, class_names, indices, left_out, remarks=tuple(files.remarks))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


def _read_xml(
    path: Path,
    size: Callable[..., tuple[int, int]],
    class_of: dict[str, int],
    first_pixel: int,
    faults: Faults,
) -> dict:
    """Return height, width and annotations; collect the faults of objects. ``size`` says what the
    two texts of a size mean.
    """
    tree = read_xml(path)
    if tree.tag.rpartition("}")[2] != "annotation" and tree.find("object") is None:
        raise InputError(f"{path} is not VOC's: it is a <{tree.tag}>, expected an <annotation>.")
    height, width = size(*(tree.findtext(f"./size/{side}") for side in ("height", "width")))
    annotations = []
    for number, node in enumerate(tree.findall("object") if height else (), start=1):
        try:
            annotations.append(_read_object(node, class_of, first_pixel, width, height))
        except Fault as fault:
            name = (node.findtext("name") or "").strip()
            faults.add(f"{path}, object {number} ({name})", fault)
    return {"height": height, "width": width, "annotations": annotations}


def _read_object(
    node: ElementTree.Element, class_of: dict[str, int], first_pixel: int, w: int, h: int
) -> dict:
    name = _composed(node.findtext("name") or "")
    if not name:
        raise Fault("it has no <name>, expected its class.", "no name")
    if name not in class_of:
        raise Fault(
            f"class {name!r} is not one of the {len(class_of)} classes of this data set:"
            f" {', '.join(class_of)}.{did_you_mean(name, class_of)}"
        )
    if node.find("bndbox") is None:
        has = ", ".join(f"<{part.tag}>" for part in node) or "nothing"
        raise Fault(f"it has no <bndbox>, which holds its box; it has {has}.", "no box")
    corners = []
    for corner in ("xmin", "ymin", "xmax", "ymax"):
        text = (node.findtext(f"bndbox/{corner}") or "").strip()
        try:
            corners.append(float(text))
        except ValueError as error:
            raise Fault(f"bndbox/{corner} is {text!r}, expected pixels.", "no number") from error
    x0, y0, x1, y1 = corners
    box = [x0 - first_pixel, y0 - first_pixel, x1, y1]
    is_finite = math.isfinite(sum(corners))
    if not (is_finite and x0 <= x1 and y0 <= y1 and lies_in(box, w, h)):
        raise Fault(
            f"box xmin {x0:g}, ymin {y0:g}, xmax {x1:g}, ymax {y1:g} does not lie in the {w} x {h}"
            f" image, whose pixels count from {first_pixel}. Correct the XML.",
            "box",
        )
    difficult = (node.findtext("difficult") or "").strip() or "0"
    if difficult not in ("0", "1"):
        raise Fault(f"difficult is {difficult!r}, expected 0 or 1.", "difficult")
    return {"bbox": box, "category_id": class_of[name], "iscrowd": 0, "difficult": int(difficult)}
