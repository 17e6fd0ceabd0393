"""Pascal VOC's layout: an image list per split, one XML per image, inclusive pixels counted from 1.

Layout:
    ROOT/ImageSets/Main/SPLIT.txt   one image id a line
    ROOT/Annotations/ID.xml
    ROOT/JPEGImages/ID.jpg          (or .jpeg, .png, .bmp)
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
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ...runtime.errors import InputError, MissingFileError, did_you_mean
from ..images.image_source import is_image
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
    boxes included. MissingFileError if a folder, the list, an XML or an image is missing;
    InputError if the list or an XML cannot be used.
    """
    root = Path(root)
    for folder in (root / "Annotations", root / "JPEGImages"):
        if not folder.is_dir():
            parts = "Annotations, ImageSets/Main and JPEGImages"
            raise MissingFileError(f"{folder} does not exist; VOC's layout has {parts}.")
    image_list = root / "ImageSets" / "Main" / f"{split}.txt"
    with_xml = {name[:-4] for name in os.listdir(root / "Annotations") if name.endswith(".xml")}
    ids = _read_image_list(image_list, with_xml)
    without_xml = [image_id for image_id in ids if image_id not in with_xml]
    if without_xml:
        first = root / "Annotations" / f"{without_xml[0]}.xml"
        fault = f"{len(without_xml)} of the {len(ids)} images in {image_list} have no XML"
        fix = "An image without boxes needs an XML without <object>."
        on_problem(MissingFileError(f"{fault}; the first is {first}. {fix}"))
    # If an id has several images, .jpg comes last and wins, as in Detectron2.
    files = sorted(os.listdir(root / "JPEGImages"), key=lambda name: name.endswith(".jpg"))
    images = {os.path.splitext(name)[0]: name for name in files if is_image(name)}
    records, faults = [], Faults()
    for image_id in ids:
        if image_id in with_xml:
            file = str(root / "JPEGImages" / images.get(image_id, f"{image_id}.jpg"))
            xml = root / "Annotations" / f"{image_id}.xml"
            try:
                size = functools.partial(size_of, file, as_stored=as_stored)
                found = _read_xml(xml, size, class_names, first_pixel, faults)
            except InputError as problem:
                on_problem(problem)
            else:
                records.append({"file_name": file, "image_id": image_id, **found})
    faults.report(on_problem)
    check_image_files(records, image_list, on_problem)
    indices = tuple(range(len(class_names)))
    return Contents(records, class_names, indices, count_left_out(records))


def _read_image_list(path: Path, with_xml: set[str]) -> list[str]:
    """Return the ids of a list, which may have blanks or stand in quotes."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        splits = sorted(p.stem for p in path.parent.glob("*.txt"))[:10]
        raise MissingFileError(
            f"{path} does not exist. Splits that exist: {', '.join(splits) or 'none'}."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; expected one image id a line.") from error
    ids = [line.strip() for line in lines if line.strip()]
    ids = [i if i in with_xml or i.strip("\"'") not in with_xml else i.strip("\"'") for i in ids]
    faults = [f"has the line {i!r}" for i in ids if i not in with_xml and i.split()[0] in with_xml]
    faults += [f"lists image {i!r} more than once" for i, n in Counter(ids).items() if n > 1]
    faults += [] if ids else ["lists no image"]
    if faults:
        raise InputError(f"{path} {faults[0]}; expected one image id a line, each once.")
    return ids


def _read_xml(
    path: Path,
    size: Callable[..., tuple[int, int]],
    class_names: tuple[str, ...],
    first_pixel: int,
    faults: Faults,
) -> dict:
    """Return height, width and annotations; collect the faults of objects. ``size`` says what the
    two texts of a size mean.
    """
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not readable XML: {error}; write it again.") from error
    height, width = size(*(tree.findtext(f"./size/{side}") for side in ("height", "width")))
    annotations = []
    for number, node in enumerate(tree.findall("object") if height else (), start=1):
        try:
            annotations.append(_read_object(node, class_names, first_pixel, width, height))
        except Fault as fault:
            name = (node.findtext("name") or "").strip()
            faults.add(f"{path}, object {number} ({name})", fault)
    return {"height": height, "width": width, "annotations": annotations}


def _read_object(
    node: ElementTree.Element, class_names: tuple[str, ...], first_pixel: int, w: int, h: int
) -> dict:
    name = (node.findtext("name") or "").strip()
    if name not in class_names:
        raise Fault(
            f"class {name!r} is not one of the {len(class_names)} classes of this data set:"
            f" {', '.join(class_names)}.{did_you_mean(name, class_names)}"
        )
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
    difficult = (node.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise Fault(f"difficult is {difficult!r}, expected 0 or 1.", "difficult")
    category = class_names.index(name)
    return {"bbox": box, "category_id": category, "iscrowd": 0, "difficult": int(difficult)}
