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
    image, unknown classes and malformed numbers are refused here.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from ...runtime.errors import InputError, MissingFileError, did_you_mean
from ..images.image_source import is_image
from .records import Contents, OnProblem, check_image_files, count_left_out, raise_problem

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
    on_problem: OnProblem = raise_problem,
) -> Contents:
    """Read one split, such as ``trainval``, with classes in the order of ``class_names``.

    ``first_pixel`` is 1 for VOC's inclusive pixels 1 .. W, 0 for continuous coordinates 0 .. W.
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
    ids = _read_image_list(image_list)
    with_xml = {name[:-4] for name in os.listdir(root / "Annotations") if name.endswith(".xml")}
    without_xml = [image_id for image_id in ids if image_id not in with_xml]
    if without_xml:
        first = root / "Annotations" / f"{without_xml[0]}.xml"
        fault = f"{len(without_xml)} of the {len(ids)} images in {image_list} have no XML"
        fix = "An image without boxes needs an XML without <object>."
        on_problem(MissingFileError(f"{fault}; the first is {first}. {fix}"))
    # If an id has several images, .jpg comes last and wins, as in Detectron2.
    files = sorted(os.listdir(root / "JPEGImages"), key=lambda name: name.endswith(".jpg"))
    images = {os.path.splitext(name)[0]: name for name in files if is_image(name)}
    records = []
    for image_id in ids:
        if image_id in with_xml:
            file = str(root / "JPEGImages" / images.get(image_id, f"{image_id}.jpg"))
            xml = root / "Annotations" / f"{image_id}.xml"
            try:
                found = _read_xml(xml, class_names, first_pixel, on_problem)
            except InputError as problem:
                on_problem(problem)
            else:
                records.append({"file_name": file, "image_id": image_id, **found})
    check_image_files(records, image_list, on_problem)
    indices = tuple(range(len(class_names)))
    return Contents(records, class_names, indices, count_left_out(records))


def _read_image_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        splits = sorted(p.stem for p in path.parent.glob("*.txt"))[:10]
        raise MissingFileError(
            f"{path} does not exist. Splits that exist: {', '.join(splits) or 'none'}."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; expected one image id a line.") from error
    ids = [line.strip() for line in lines if line.strip()]
    faults = [f"has the line {i!r}" for i in ids if len(i.split()) > 1]
    faults += [f"lists image {i!r} more than once" for i, n in Counter(ids).items() if n > 1]
    faults += [] if ids else ["lists no image"]
    if faults:
        raise InputError(f"{path} {faults[0]}; expected one image id a line, each once.")
    return ids


def _read_xml(
    path: Path, class_names: tuple[str, ...], first_pixel: int, on_problem: OnProblem
) -> dict:
    """Return height, width and annotations; report the objects that are wrong."""
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not readable XML: {error}; write it again.") from error
    sides = []
    for side in ("width", "height"):
        text = (tree.findtext(f"./size/{side}") or "").strip()
        if not text.isdecimal() or int(text) == 0:
            raise InputError(f"{path}: size/{side} is {text!r}, expected the {side} in pixels.")
        sides.append(int(text))
    annotations = []
    for number, node in enumerate(tree.findall("object"), start=1):
        try:
            annotations.append(_read_object(node, class_names, first_pixel, *sides))
        except InputError as problem:
            name = (node.findtext("name") or "").strip()
            on_problem(InputError(f"{path}, object {number} ({name}): {problem}"))
    return {"height": sides[1], "width": sides[0], "annotations": annotations}


def _read_object(
    node: ElementTree.Element, class_names: tuple[str, ...], first_pixel: int, w: int, h: int
) -> dict:
    name = (node.findtext("name") or "").strip()
    if name not in class_names:
        raise InputError(
            f"class {name!r} is not one of the {len(class_names)} classes of this data set:"
            f" {', '.join(class_names)}.{did_you_mean(name, class_names)}"
        )
    corners = []
    for corner in ("xmin", "ymin", "xmax", "ymax"):
        text = (node.findtext(f"bndbox/{corner}") or "").strip()
        try:
            corners.append(float(text))
        except ValueError as error:
            raise InputError(f"bndbox/{corner} is {text!r}, expected pixels.") from error
    x0, y0, x1, y1 = corners
    if not (first_pixel <= x0 <= x1 <= w and first_pixel <= y0 <= y1 <= h):
        way_out = ", or use first_pixel=0 if its tool counts from 0" if first_pixel else ""
        raise InputError(
            f"box xmin {x0:g}, ymin {y0:g}, xmax {x1:g}, ymax {y1:g} does not lie in the {w} x {h}"
            f" image, whose pixels count from {first_pixel}. Correct the XML{way_out}."
        )
    difficult = (node.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise InputError(f"difficult is {difficult!r}, expected 0 or 1.")
    box = {"bbox": [x0 - first_pixel, y0 - first_pixel, x1, y1]}
    category = {"category_id": class_names.index(name)}
    return {**box, **category, "iscrowd": 0, "difficult": int(difficult)}
