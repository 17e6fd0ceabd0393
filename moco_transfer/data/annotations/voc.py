"""Pascal VOC's layout: a split's image list, one XML per image, boxes in inclusive pixels counted
from 1.

Layout:
    ROOT/ImageSets/Main/SPLIT.txt   one image id a line
    ROOT/Annotations/ID.xml
    ROOT/JPEGImages/ID.jpg          (or .jpeg, .png, .bmp)
Conventions:
    An XML's xmin = 1, xmax = W covers the whole image: in the continuous coordinates of the
    records that is x0 = 0, x1 = W, so 1 is taken from xmin and ymin alone.
Source:
    Re-expresses detectron2/data/datasets/pascal_voc.py load_voc_instances; records are equal. What
    Detectron2 passes on or trips over (a box outside the image, an unknown class, a number that
    is none) is refused here with a sentence.
"""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.errors import InputError, MissingFileError, did_you_mean
from .records import OnProblem, check_image_files, is_trainable, raise_problem

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG", ".BMP")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class VocContents:
    """What :func:`read_voc` found: the records, and the counts of what training leaves out."""

    records: list[dict]
    left_out: dict[str, int] = field(default_factory=dict)


def read_voc(
    root: str | os.PathLike[str],
    split: str,
    class_names: tuple[str, ...],
    *,
    first_pixel: int = 1,
    on_problem: OnProblem = raise_problem,
) -> VocContents:
    """Read one split of a data set in VOC's layout.

    Args:
        root: Folder with ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: Name of the image list, such as ``trainval``.
        class_names: Legal class names in the order of the class indices.
        first_pixel: 1 for VOC's inclusive pixels 1 .. W; 0 for tools that write continuous
            coordinates 0 .. W, which are then taken as they are.
        on_problem: Called with each problem; raises the first by default.

    Returns:
        Records in the order of the list, images without boxes included (a test set needs them),
        and their count.

    Raises:
        MissingFileError: If a folder, the list, an XML or an image is missing.
        InputError: If the list or an XML cannot be used; names the file, the class or box, and what
            is legal.
    """
    root = Path(root)
    image_list = root / "ImageSets" / "Main" / f"{split}.txt"
    ids = _read_image_list(image_list)
    with_xml = {
        name[:-4] for name in os.listdir(_folder(root / "Annotations")) if name.endswith(".xml")
    }
    without_xml = [image_id for image_id in ids if image_id not in with_xml]
    if without_xml:
        first = root / "Annotations" / f"{without_xml[0]}.xml"
        on_problem(
            MissingFileError(
                f"{len(without_xml)} of the {len(ids)} images in {image_list} have no XML; the"
                f" first is {first}. Write it (without <object> for an image without boxes), or"
                " take the id off the list."
            )
        )
    images = _image_names(_folder(root / "JPEGImages"))
    index_of = {name: index for index, name in enumerate(class_names)}
    records = []
    for image_id in ids:
        if image_id not in with_xml:
            continue
        record = _read_xml(
            root / "Annotations" / f"{image_id}.xml", index_of, first_pixel, on_problem
        )
        if record is not None:
            image = root / "JPEGImages" / images.get(image_id, f"{image_id}.jpg")
            records.append({"file_name": str(image), "image_id": image_id, **record})
    check_image_files(records, str(image_list), on_problem)
    without_area = sum(
        not (a["bbox"][2] > a["bbox"][0] and a["bbox"][3] > a["bbox"][1])
        for record in records
        for a in record["annotations"]
    )
    return VocContents(
        records,
        {
            "images_without_boxes": sum(not is_trainable(record) for record in records),
            "boxes_without_area": without_area,
        },
    )


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise MissingFileError(
            f"{path} does not exist; a data set in VOC's layout has Annotations, ImageSets/Main and"
            " JPEGImages."
        )
    return path


def _image_names(folder: Path) -> dict[str, str]:
    """Map image ids to file names; when one id has several images, the earlier suffix wins, .jpg
    first as in Detectron2.
    """
    names: dict[str, str] = {}
    present = os.listdir(folder)
    for suffix in _PICTURE_SUFFIXES:
        for name in present:
            if name.endswith(suffix):
                names.setdefault(name[: -len(suffix)], name)
    return names


def _read_image_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        there = sorted(p.stem for p in path.parent.glob("*.txt")) if path.parent.is_dir() else []
        hint = f" Splits that are there: {', '.join(there[:10])}." if there else ""
        raise MissingFileError(
            f"{path} does not exist; it lists one image id a line.{hint}"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; expected one image id a line.") from error
    ids: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) > 1:
            raise InputError(
                f"{path}, line {number}: expected one image id, got {line.strip()!r}; name the list"
                " of all images, not a class's."
            )
        ids.extend(words)
    if not ids:
        raise InputError(f"{path} lists no image; expected one image id a line.")
    if len(set(ids)) != len(ids):
        twice = next(image_id for i, image_id in enumerate(ids) if image_id in ids[:i])
        raise InputError(f"{path} lists image {twice!r} more than once; take the repetition out.")
    return ids


def _read_xml(
    path: Path, index_of: dict[str, int], first_pixel: int, on_problem: OnProblem
) -> dict | None:
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        on_problem(InputError(f"{path} is not readable XML: {error}; write it again."))
        return None
    try:
        width, height = (_size(tree, side, path) for side in ("width", "height"))
    except InputError as problem:
        on_problem(problem)
        return None
    annotations = []
    for number, node in enumerate(tree.findall("object"), start=1):
        try:
            annotations.append(
                _read_object(node, f"{path}, object {number}", index_of, width, height, first_pixel)
            )
        except InputError as problem:
            on_problem(problem)
    return {"height": height, "width": width, "annotations": annotations}


def _size(tree: ElementTree.Element, side: str, path: Path) -> int:
    text = (tree.findtext(f"./size/{side}") or "").strip()
    if not text.isdecimal() or int(text) == 0:
        raise InputError(
            f"{path}: size/{side} is {text!r}, expected the image's {side} in pixels; write it"
            " into the XML."
        )
    return int(text)


def _read_object(
    node: ElementTree.Element,
    where: str,
    index_of: dict[str, int],
    width: int,
    height: int,
    first_pixel: int,
) -> dict:
    name = (node.findtext("name") or "").strip()
    if name not in index_of:
        raise InputError(
            f"{where}: class {name!r} is not one of the {len(index_of)} classes of this data set:"
            f" {', '.join(index_of)}.{did_you_mean(name, index_of)} Correct the XML or the list of"
            " classes."
        )
    where = f"{where} ({name})"
    if node.find("bndbox") is None:
        raise InputError(f"{where}: there is no bndbox; expected one with {', '.join(_CORNERS)}.")
    xmin, ymin, xmax, ymax = (_number(node, f"bndbox/{corner}", where) for corner in _CORNERS)
    inside_x, inside_y = first_pixel <= xmin <= xmax <= width, first_pixel <= ymin <= ymax <= height
    if not inside_x or not inside_y:
        raise InputError(
            f"{where}: box xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g} does not lie"
            f" in the {width} x {height} image; legal is {first_pixel} <= xmin <= xmax <= {width}"
            f" and {first_pixel} <= ymin <= ymax <= {height}. Correct the XML"
            + (
                ", or register the data set with first_pixel=0 if its tool counts from 0."
                if first_pixel == 1
                else "."
            )
        )
    difficult = (node.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise InputError(f"{where}: difficult is {difficult!r}, expected 0 or 1; correct the XML.")
    return {
        "bbox": [xmin - first_pixel, ymin - first_pixel, xmax, ymax],
        "category_id": index_of[name],
        "iscrowd": 0,
        "difficult": int(difficult),
    }


def _number(node: ElementTree.Element, tag: str, where: str) -> float:
    text = (node.findtext(tag) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"{where}: {tag} is {text!r}, expected a number of pixels; correct the XML."
        )
    return value
