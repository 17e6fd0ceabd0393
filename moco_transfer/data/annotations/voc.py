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

import math
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ...runtime.errors import InputError, MissingFileError, did_you_mean
from .records import Contents, OnProblem, check_image_files, has_area, is_trainable, raise_problem

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG", ".BMP")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    root: str | os.PathLike[str],
    split: str,
    class_names: tuple[str, ...],
    *,
    first_pixel: int = 1,
    on_problem: OnProblem = raise_problem,
) -> Contents:
    """Read one split of a data set in VOC's layout.

    Args:
        root: Folder with ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: Name of the image list, such as ``trainval``.
        class_names: Legal class names in the order of the class indices.
        first_pixel: 1 for VOC's inclusive pixels 1 .. W; 0 for continuous coordinates 0 .. W.
        on_problem: Called with each problem; raises the first by default.

    Returns:
        Records in the order of the list, images without boxes included (a test set needs them).

    Raises:
        MissingFileError: If a folder, the list, an XML or an image is missing.
        InputError: If the list or an XML cannot be used.
    """
    root = Path(root)
    for folder in (root / "Annotations", root / "JPEGImages"):
        if not folder.is_dir():
            raise MissingFileError(
                f"{folder} does not exist; a data set in VOC's layout has Annotations,"
                " ImageSets/Main and JPEGImages."
            )
    image_list = root / "ImageSets" / "Main" / f"{split}.txt"
    ids = _read_image_list(image_list)
    with_xml = {name[:-4] for name in os.listdir(root / "Annotations") if name.endswith(".xml")}
    without_xml = [image_id for image_id in ids if image_id not in with_xml]
    if without_xml:
        first = root / "Annotations" / f"{without_xml[0]}.xml"
        on_problem(
            MissingFileError(
                f"{len(without_xml)} of the {len(ids)} images in {image_list} have no XML; the"
                f" first is {first}. An image without boxes needs an XML without <object>."
            )
        )
    present = os.listdir(root / "JPEGImages")
    images: dict[str, str] = {}
    for suffix in _SUFFIXES:  # if an id has several images, .jpg wins as in Detectron2
        for name in present:
            if name.endswith(suffix):
                images.setdefault(name[: -len(suffix)], name)
    records = []
    for image_id in ids:
        if image_id in with_xml:
            xml = root / "Annotations" / f"{image_id}.xml"
            record = _read_xml(xml, class_names, first_pixel, on_problem)
            if record is not None:
                image = root / "JPEGImages" / images.get(image_id, f"{image_id}.jpg")
                records.append({"file_name": str(image), "image_id": image_id, **record})
    check_image_files(records, image_list, on_problem)
    boxes = [a["bbox"] for record in records for a in record["annotations"]]
    left_out = {
        "images_without_boxes": sum(not is_trainable(record) for record in records),
        "boxes_without_area": sum(not has_area(bbox) for bbox in boxes),
    }
    return Contents(records, class_names, tuple(range(len(class_names))), left_out)


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
    ids: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) > 1:
            raise InputError(
                f"{path}, line {number}: expected one image id, got {line.strip()!r}. Use the list"
                " of all images, not that of one class."
            )
        ids.extend(words)
    if not ids:
        raise InputError(f"{path} lists no image; expected one image id a line.")
    if len(set(ids)) != len(ids):
        twice = next(image_id for i, image_id in enumerate(ids) if image_id in ids[:i])
        raise InputError(f"{path} lists image {twice!r} more than once; remove the repetition.")
    return ids


def _read_xml(
    path: Path, class_names: tuple[str, ...], first_pixel: int, on_problem: OnProblem
) -> dict | None:
    annotations = []
    try:
        tree = ElementTree.parse(path).getroot()
        width, height = (_size(tree, side, path) for side in ("width", "height"))
    except ElementTree.ParseError as error:
        on_problem(InputError(f"{path} is not readable XML: {error}; write it again."))
        return None
    except InputError as problem:
        on_problem(problem)
        return None
    for number, node in enumerate(tree.findall("object"), start=1):
        try:
            name, box, difficult = _read_object(node, f"{path}, object {number}", class_names)
            xmin, ymin, xmax, ymax = box
            if not (first_pixel <= xmin <= xmax <= width and first_pixel <= ymin <= ymax <= height):
                raise InputError(
                    f"{path}, object {number} ({name}): box xmin {xmin:g}, ymin {ymin:g}, xmax"
                    f" {xmax:g}, ymax {ymax:g} does not lie in the {width} x {height} image; legal"
                    f" is {first_pixel} <= xmin <= xmax <= {width} and {first_pixel} <= ymin <="
                    f" ymax <= {height}. Correct the XML"
                    + (", or use first_pixel=0 if its tool counts from 0." if first_pixel else ".")
                )
        except InputError as problem:
            on_problem(problem)
            continue
        annotations.append(
            {
                "bbox": [xmin - first_pixel, ymin - first_pixel, xmax, ymax],
                "category_id": class_names.index(name),
                "iscrowd": 0,
                "difficult": difficult,
            }
        )
    return {"height": height, "width": width, "annotations": annotations}


def _size(tree: ElementTree.Element, side: str, path: Path) -> int:
    text = (tree.findtext(f"./size/{side}") or "").strip()
    if not text.isdecimal() or int(text) == 0:
        raise InputError(f"{path}: size/{side} is {text!r}, expected the image's {side} in pixels.")
    return int(text)


def _read_object(
    node: ElementTree.Element, where: str, class_names: tuple[str, ...]
) -> tuple[str, list[float], int]:
    """Return class name, [xmin, ymin, xmax, ymax] as written, and difficult."""
    name = (node.findtext("name") or "").strip()
    if name not in class_names:
        raise InputError(
            f"{where}: class {name!r} is not one of the {len(class_names)} classes of this data"
            f" set: {', '.join(class_names)}.{did_you_mean(name, class_names)} Correct the XML or"
            " the list of classes."
        )
    box = []
    for corner in _CORNERS:
        text = (node.findtext(f"bndbox/{corner}") or "").strip()
        try:
            box.append(float(text))
        except ValueError:
            box.append(math.nan)
        if not math.isfinite(box[-1]):
            raise InputError(
                f"{where} ({name}): bndbox/{corner} is {text!r}, expected a number of pixels."
            )
    difficult = (node.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise InputError(f"{where} ({name}): difficult is {difficult!r}, expected 0 or 1.")
    return name, box, int(difficult)
