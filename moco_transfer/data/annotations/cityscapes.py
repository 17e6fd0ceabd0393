"""Cityscapes' layout: for each image the objects as a PNG of ids and as polygons.

Layout, of a split such as leftImg8bit/val and gtFine/val:
    LEFTIMG/CITY/CITY_000000_000019_leftImg8bit.png
    GTFINE/CITY/CITY_000000_000019_gtFine_instanceIds.png
    GTFINE/CITY/CITY_000000_000019_gtFine_polygons.json
Terms:
    id: of a pixel, 1000 * label + number in a single object, the label alone in a group of objects
        (``cargroup``) and in what has no objects (road, void). Groups become crowd regions.
Source:
    detectron2@02b5c4e data/datasets/cityscapes.py load_cityscapes_instances, whose masks are equal.
    For masks from ids it measures boxes between the centres of pixels, and leaves out objects that
    are one pixel wide or high; here a box encloses its pixels.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from ...runtime.errors import InputError, MissingFileError
from ...runtime.files import regular
from ...runtime.progress import progress
from ..images.decode import UNREADABLE
from .coco import load_json
from .masks import with_text
from .records import Contents, OnProblem, count_left_out, raise_problem

#: Class names, in the order of their indices, and labels: what cityscapesscripts' table of labels
#: has with hasInstances and without ignoreInEval.
CITYSCAPES_LABELS = {
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
_CLASS_OF = {label: index for index, label in enumerate(CITYSCAPES_LABELS.values())}
_LABELS, _HAVE_OBJECTS = range(34), range(24, 34)  # caravans and trailers are not evaluated

_IMAGE, _IDS, _POLYGONS = "_leftImg8bit.png", "_gtFine_instanceIds.png", "_gtFine_polygons.json"
_THREADS = 8


def read_cityscapes(
    image_root: str | os.PathLike[str],
    gt_root: str | os.PathLike[str],
    *,
    masks: str = "instanceIds",
    on_problem: OnProblem = raise_problem,
) -> Contents:
    """Read a split; its records are in the order of file names.

    ``masks`` is ``instanceIds`` for run-length masks of the pixels, as they are evaluated, or
    ``polygons`` for those of the json without what later ones cover (Detectron2's default; masks
    lose their holes). ``on_problem`` is called with each problem. MissingFileError if a folder, the
    images or their ground truth are missing; InputError if a file cannot be used, or a package that
    ``polygons`` needs is not there.
    """
    images = sorted(Path(image_root).glob(f"*/*{_IMAGE}"))
    if not images:
        fault = "has no image" if Path(image_root).is_dir() else "does not exist"
        raise MissingFileError(f"{image_root} {fault}; Cityscapes' layout has CITY/*{_IMAGE}.")
    stems = [Path(gt_root, p.parent.name, p.name.removesuffix(_IMAGE)) for p in images]
    _check_files(stems, _IDS, gt_root)  # of the evaluation, too
    objects_of = _objects_of_ids
    if masks == "polygons":
        _check_files(stems, _POLYGONS, gt_root)
        check_packages("shapely", "cityscapesscripts")
        objects_of = _objects_of_polygons
    records = []
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda stem: _read(stem, objects_of), stems)
        bar = progress(images, f"reading {gt_root}", unit="images")
        for image, truth in zip(bar, found, strict=True):
            if isinstance(truth, InputError):
                on_problem(truth)
            else:
                records.append({"file_name": str(image), "image_id": image.name, **truth})
    names_and_ids = tuple(CITYSCAPES_LABELS), tuple(CITYSCAPES_LABELS.values())
    return Contents(records, *names_and_ids, count_left_out(records))


def check_packages(*names: str) -> None:
    """Raise InputError if a package of the extra ``cityscapes`` is not there."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"Cityscapes needs the package {missing[0]}, which is not installed. Install it with:"
            " pip install 'moco-transfer[cityscapes]'."
        )


def _check_files(stems: list[Path], ending: str, gt_root: str | os.PathLike[str]) -> None:
    missing = [stem for stem in stems if not Path(f"{stem}{ending}").is_file()]
    if missing:
        first = missing[0]
        files = sorted(path.name for path in first.parent.glob(f"{first.name}_*"))
        there = ", ".join(files) if files else "nothing"
        raise MissingFileError(
            f"{gt_root}: {len(missing)} of the {len(stems)} images have no *{ending}, which tells"
            f" their objects apart. Of the first there is {there}. Unpack Cityscapes'"
            " gtFine_trainvaltest.zip, which has all files."
        )


def _read(stem: Path, objects_of: Callable[[Path], dict]) -> dict | InputError:
    try:
        return {**objects_of(stem), "instance_file": f"{stem}{_IDS}"}
    except InputError as problem:
        return problem


def read_masks(
    file: str | os.PathLike[str], is_wanted: Callable[[int], bool]
) -> tuple[list[int], dict[int, dict]]:
    """Return [height, width] of an instanceIds PNG, and by id the masks of wanted ids as compressed
    RLE; InputError if the file is damaged or something else.
    """
    try:
        with Image.open(regular(file)) as image:
            ids = np.asarray(image)
    except FileNotFoundError as error:
        raise MissingFileError(f"{file} does not exist.") from error
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read ({error}); copy it again.") from error
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise InputError(f"{file} is an image in colours or two tones; expected one id a pixel.")
    # An RLE goes down the columns; OpenCV transposes six times as fast as NumPy.
    shape, pixels = list(ids.shape), cv2.transpose(ids).ravel()
    starts = np.flatnonzero(np.append(True, pixels[1:] != pixels[:-1]))
    ends, values, masks = np.append(starts[1:], ids.size), pixels[starts], {}
    for one in np.unique(values).tolist():
        if one not in _LABELS and one // 1000 not in _HAVE_OBJECTS:
            raise InputError(
                f"{file} has the id {one}; expected a label (0 to 33), or 1000 * label + number for"
                " the labels 24 to 33. If it is of trainIds, take the instanceIds."
            )
        if is_wanted(one):
            mine = values == one
            edges = np.stack((starts[mine], ends[mine]), axis=1).ravel()
            runs = np.diff(edges, prepend=0, append=[ids.size] * int(edges[-1] < ids.size))
            mask = mask_api.frPyObjects({"counts": runs.tolist(), "size": shape}, *shape)
            masks[one] = with_text(mask)
    return shape, masks


def label_of(one: int) -> int:
    """Return the label of an id."""
    return one // 1000 if one >= 1000 else one


def _objects_of_ids(stem: Path) -> dict:
    (height, width), masks = read_masks(f"{stem}{_IDS}", lambda one: label_of(one) in _CLASS_OF)
    annotations = []
    for one, mask in masks.items():
        x, y, w, h = mask_api.toBbox(mask).tolist()
        of_class = {"category_id": _CLASS_OF[label_of(one)], "iscrowd": int(one < 1000)}
        box = {"bbox": [x, y, x + w, y + h], "area": int(mask_api.area(mask))}
        annotations.append({**box, **of_class, "segmentation": mask})
    return {"height": height, "width": width, "annotations": annotations}


def _objects_of_polygons(stem: Path) -> dict:
    from cityscapesscripts.helpers.labels import name2label
    from shapely.geometry import Polygon

    file = Path(f"{stem}{_POLYGONS}")
    content = load_json(file)
    annotations, covered = [], Polygon()
    try:
        for entry in reversed(content["objects"]):  # later ones lie in front
            name = entry["label"]
            label = name2label[name if name in name2label else name.removesuffix("group")]
            if entry.get("deleted") or label.id < 0:
                continue
            # The PNG has each pixel that a polygon through the centres of pixels touches: half a
            # pixel more on each side.
            outline = np.asarray(entry["polygon"], np.float32) + 0.5
            shape = Polygon(outline).buffer(0.5, quad_segs=4)
            visible, covered = shape.difference(covered), covered.union(shape)
            if label.id in _CLASS_OF and not visible.is_empty:
                of_class = {
                    "category_id": _CLASS_OF[label.id],
                    "iscrowd": int(name.endswith("group")),
                }
                outlines = [part.exterior.coords for part in getattr(visible, "geoms", [visible])]
                mask = {"segmentation": [np.ravel(outline).tolist() for outline in outlines]}
                box = {"bbox": list(visible.bounds), "area": visible.area}
                annotations.append({**box, **of_class, **mask})
        size = {"height": content["imgHeight"], "width": content["imgWidth"]}
        return {**size, "annotations": annotations}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{file} is not in Cityscapes' format ({fault}); copy it again."
        ) from error
