"""Folders of images and of label images, as pairs of the same name: VOC's, Cityscapes', one's own.

Layout:
    IMAGES/ID.jpg     (any form of image, at any depth)
    LABELS/ID.png     see labels.py
    LIST              optional: a text file with an ID a line
An ending that all names share belongs to no ID: cam1/a_sat.jpg and cam1/a_mask.png are a pair.
Records have no annotations but
    sem_seg_file_name (str)   the label image
    sem_seg_ids (tuple)       the class index of each id of the file, 255 for an ignored one
    sem_seg_palette ("voc")   only if the classes are VOC's, see labels.py
    sem_seg_as_stored (True)  only if the labels belong to the pixels before their EXIF tag's turn
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ....runtime.errors import InputError, MissingFileError, printable
from ....runtime.text import read_text
from ...images.decode import orientation_of, read_size
from ...images.image_source import is_image
from ...images.near_names import find_names, lies_near, list_files
from ..class_selection import group_classes
from ..records import Contents, OnProblem, check_image_files, raise_problem
from ..voc import VOC_CLASSES
from .labels import IGNORED, MOST_CLASSES

_THREADS = 8  # more than cores: they hide the wait for the disk


def read_semantic(
    image_root: str | os.PathLike[str],
    label_root: str | os.PathLike[str],
    class_names: Sequence[str],
    list_file: str | os.PathLike[str] | None = None,
    endings: tuple[str, str] = ("", ""),
    *,
    as_stored: bool = False,
    on_problem: OnProblem = raise_problem,
) -> Contents:
    """Read the names and sizes of pairs, in the order of the list or of their names.

    ``endings`` are what follows the ID in the names of images and of label images; empty for a
    suffix, or what they share. Where both are given, each image needs a label image.
    Sizes are those of the label images; a loader compares them with the images.
    ``as_stored`` says that the labels belong to the pixels before their EXIF tag turns them.
    ``on_problem`` is called with each problem. MissingFileError if a folder, an image or a label
    image is missing; InputError if a list or label image cannot be read.
    """
    from ....runtime.progress import progress  # imports torch, which `doctor` may not find

    image_ending, label_ending = endings
    images = _files(image_root, image_ending, ".jpg")
    labels = _files(label_root, label_ending, ".png")
    remarks: list[str] = []
    if list_file is None and not all(endings):
        pairs = _pair_all(images, labels, (image_root, label_root), on_problem, remarks)
    else:
        ids = sorted(images) if list_file is None else _read_list(Path(list_file))
        found = _find(ids, labels, label_root, remarks)
        first = os.path.join(label_root, f"{{}}{label_ending or '.png'}")
        _report_missing(ids, found, first, list_file or image_root, on_problem)
        paths = _find(ids, images, image_root, remarks)
        pairs = {i: (paths.get(i, f"{i}{image_ending or '.jpg'}"), found[i]) for i in found}
    records, indices = [], tuple(range(len(class_names)))
    more: dict[str, Any] = {"sem_seg_as_stored": True} if as_stored else {}
    if tuple(class_names) == ("background", *VOC_CLASSES):
        more["sem_seg_palette"] = "voc"
    files = [
        (i, os.path.join(image_root, image), os.path.join(label_root, label))
        for i, (image, label) in pairs.items()
    ]
    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = threads.map(lambda entry: _size(entry[1], entry[2], as_stored), files)
        bar = progress(files, f"reading {label_root}", unit="images")
        for (image_id, image, label), size in zip(bar, sizes, strict=True):
            if isinstance(size, InputError):
                on_problem(size)
                continue
            record = {"file_name": image, "image_id": image_id, "height": size[0]}
            record |= {"width": size[1], "sem_seg_file_name": label, "sem_seg_ids": indices}
            records.append(record | more)
    check_image_files(records, list_file or label_root, on_problem)
    return Contents(records, tuple(class_names), indices, remarks=tuple(remarks))


def _size(image: str, label: str, as_stored: bool) -> tuple[int, int] | InputError:
    """Return (height, width) of a label image, turned as its image is for ``as_stored``."""
    try:
        height, width = read_size(label)
        is_turned = as_stored and orientation_of(image) >= 5
        return (width, height) if is_turned else (height, width)
    except InputError as problem:
        return problem


def _files(root: str | os.PathLike[str], ending: str, preferred: str) -> dict[str, str]:
    """Return the images below a folder by their names without ending; of two with the same name the
    one with the preferred suffix.
    """
    if not os.path.isdir(root):
        raise MissingFileError(f"{root} does not exist; expected a folder of images.")
    files = [name for name in list_files(root, is_image) if name.endswith(ending)]
    if not files:
        what = f"*{ending}" if ending else "image"
        near = how_to_make(f"_{ending}") or lies_near(os.path.join(root, "_"))
        raise MissingFileError(f"{root} has no {what}.{near}")
    files.sort(key=lambda name: name.endswith(preferred))
    cut = len(ending)
    return {name[:-cut] if cut else os.path.splitext(name)[0]: name for name in files}


def _pair_all(
    images: dict[str, str],
    labels: dict[str, str],
    roots: tuple[str | os.PathLike[str], str | os.PathLike[str]],
    on_problem: OnProblem,
    remarks: list[str],
) -> dict[str, tuple[str, str]]:
    """Return (image, label image) by id of all label images, in the order of the ids."""
    if not images.keys() & labels.keys():
        images, labels = _without_shared_endings(images, labels)
    paths = _find(sorted(labels), images, roots[0], remarks)
    lost = sorted(set(labels) - set(paths))
    if lost:
        first = os.path.join(roots[1], labels[lost[0]])
        on_problem(
            MissingFileError(
                f"{len(lost)} of the {len(labels)} label images in {roots[1]} have no image in"
                f" {roots[0]}; the first is {printable(first)}."
                f"{lies_near(os.path.join(roots[0], labels[lost[0]]))} A pair has the same name; an"
                " ending that follows it is given as image_ending=... and label_ending=..."
            )
        )
    unused = sorted(set(images.values()) - set(paths.values()))
    if unused:
        remarks.append(
            f"images in {roots[0]} without a label image: {len(unused)}, for example {unused[0]}"
            " (left out)."
        )
    return {i: (paths[i], labels[i]) for i in sorted(paths)}


def _without_shared_endings(
    images: dict[str, str], labels: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return both without the endings that all their names share, where they have pairs then."""
    cut_images, cut_labels = _cut(images), _cut(labels)
    for one, other in ((images, cut_labels), (cut_images, labels), (cut_images, cut_labels)):
        if one.keys() & other.keys():
            return one, other
    return images, labels


def _cut(files: dict[str, str]) -> dict[str, str]:
    shared = os.path.commonprefix([name[::-1] for name in files])[::-1]
    starts = [shared.find(mark) for mark in "_-. " if mark in shared]
    if len(files) < 2 or not starts:
        return files
    length = len(shared) - min(starts)
    return {name[:-length]: file for name, file in files.items()}


def _find(
    ids: Sequence[str], files: dict[str, str], root: str | os.PathLike[str], remarks: list[str]
) -> dict[str, str]:
    """Return the file of each id, also under a nearly equal name where that is one to one."""
    found = {i: files[i] for i in ids if i in files}
    lost = [i for i in ids if i not in found]
    if lost:
        taken = set(found.values())
        free = {name: file for name, file in files.items() if file not in taken}
        near = find_names(lost, list(free), root)
        remarks += near.remarks()
        found |= {i: free[name] for i, name in near.paths.items()}
    return found


def _read_list(path: Path) -> list[str]:
    if not path.exists():
        near = how_to_make(path) or lies_near(path, lambda name: name.endswith(path.suffix))
        raise MissingFileError(f"{path} does not exist.{near}")
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    repeated = [line for line, count in Counter(lines).items() if count > 1]
    if repeated or not lines:
        fault = f"lists image {repeated[0]!r} more than once" if repeated else "lists no image"
        raise InputError(f"{path} {fault}; expected one image id a line, each once.")
    return lines


def _report_missing(
    ids: Sequence[str], found: dict[str, str], path: str, where: object, on_problem: OnProblem
) -> None:
    """Report ids of ``where`` without a label image, which is expected at ``path``."""
    missing = [i for i in ids if i not in found]
    if missing:
        first = path.format(missing[0])
        on_problem(
            MissingFileError(
                f"{len(missing)} of the {len(ids)} images of {where} have no label image; the first"
                f" is {printable(first)}.{how_to_make(first) or lies_near(first)}"
            )
        )


def how_to_make(path: str | os.PathLike[str]) -> str:
    """Return a sentence, with a blank, for missing files that ``make-labels`` makes; else ""."""
    name = os.path.basename(path)
    if name in ("SegmentationClassAug", "trainaug.txt"):
        return " moco-transfer make-labels voc-aug makes it from SBD's files."
    is_of_cityscapes = name.endswith("_gtFine_labelTrainIds.png")
    return " moco-transfer make-labels cityscapes makes them." * is_of_cityscapes


def select_ids(contents: Contents, chosen: Sequence[str], name: str) -> Contents:
    """Return contents with the classes of ``chosen`` alone, in this order; ``a+b`` makes one class
    of two. Pixels of other classes are ignored. InputError as :func:`group_classes`.
    """
    if not chosen:
        return contents
    class_names, groups = group_classes(chosen, contents.class_names, name)
    index_of = {old: index for index, group in enumerate(groups) for old in group}
    indices = tuple(index_of.get(old, IGNORED) for old in range(len(contents.class_names)))
    records = [{**record, "sem_seg_ids": indices} for record in contents.records]
    ids = tuple(group[0] for group in groups)
    return dataclasses.replace(contents, records=records, class_names=class_names, category_ids=ids)


def semantic_fields(
    *,
    image_root: str | os.PathLike[str],
    label_root: str | os.PathLike[str],
    class_names: Sequence[str],
    list_file: str | os.PathLike[str] | None = None,
    image_ending: str = "",
    label_ending: str = "",
    exif: str = "",
) -> dict[str, Any]:
    """Return the fields of a data set of one's own in the catalogue; TypeError if the classes are
    no list of up to 255 different names.
    """
    classes = tuple(class_names)
    is_list = not isinstance(class_names, str) and all(classes)
    if not is_list or not 1 < len(set(classes)) == len(classes) <= MOST_CLASSES:
        expected = f"2 to {MOST_CLASSES} different names"
        raise TypeError(f"class_names {class_names!r} is not a list of {expected}")
    return {
        "image_root": os.fspath(image_root),
        "root": os.fspath(label_root),
        "classes": classes,
        "list_file": list_file and os.fspath(list_file),
        "endings": (image_ending, label_ending),
        "exif": exif,
    }
