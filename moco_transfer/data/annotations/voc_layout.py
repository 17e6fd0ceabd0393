"""Where the files of a VOC split lie: VOC's own layout, and those of Roboflow, Kaggle and others.

    ROOT/{Annotations,JPEGImages}, ROOT/ImageSets/Main/SPLIT.txt    VOC's
    ROOT/SPLIT with XML files and images, or with a folder of each  Roboflow's
    ROOT/{annotations,images}/SPLIT
    ROOT/{annotations,images}, or both in ROOT, without any split   Kaggle's; SPLIT is all or train
Ids may have folders: ``cam1/a`` is Annotations/cam1/a.xml.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.errors import InputError, MissingFileError
from ...runtime.text import read_text, read_xml
from ..images.image_source import is_image
from ..images.near_names import find_names, lies_near, list_files
from .records import OnProblem

_XML_FOLDERS = ("annotations", "annotation", "xmls", "xml", "labels")
_IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img")
_WHOLE = ("all", "train", "trainval")  # names of the only split; a test set is never meant by it
_SAME_SPLITS = (("val", "valid", "validation"), ("train", "training"), ("test", "testing"))


@dataclass
class VocFiles:
    """The files of a split."""

    where: Path  # the list, or the folder of XML files where there is none
    xmls: dict[str, Path]  # image id -> file, in the split's order
    images: dict[str, str]  # image id -> file, which may not exist
    remarks: list[str] = field(default_factory=list)


def find_voc(root: Path, split: str, on_problem: OnProblem) -> VocFiles:
    """Find the files of a split.

    ``on_problem`` is called with ids that have no XML. MissingFileError if the split does not
    exist, InputError if its list cannot be used.
    """
    image_list, xml_root, image_root = _find_split(root, split)
    xmls = {name[:-4]: name for name in list_files(xml_root, _is_xml)}
    if not xmls:
        raise MissingFileError(f"{xml_root} has no XML; VOC's layout has one for each image.")
    # If an id has several images, .jpg comes last and wins, as in Detectron2.
    files = sorted(list_files(image_root, is_image), key=lambda name: name.endswith(".jpg"))
    images = {os.path.splitext(name)[0]: name for name in files}
    remarks = []
    if image_list is None:
        ids, where = list(xmls), xml_root
        if no_xml := [name for name in images if name not in xmls]:
            remarks.append(
                f"images in {image_root} without XML: {len(no_xml)}, for example"
                f" {images[no_xml[0]]} (left out)."
            )
    else:
        where = image_list
        ids = _read_image_list(image_list, list(xmls), xml_root, on_problem, remarks)
    found = find_names(ids, list(images), image_root)
    remarks += found.remarks()
    # A last resort is the name that the XML has.
    lost = {i: _named_in(xml_root / xmls[i]) for i in ids if i not in found.paths}
    free = [name for name in images if name not in found.paths.values()]
    named = find_names(filter(None, lost.values()), free, image_root).paths
    stems = found.paths | {i: named[n] for i, n in lost.items() if n in named}
    paths = {i: images[stems[i]] if i in stems else f"{i}.jpg" for i in ids}
    full = {i: os.path.join(image_root, path) for i, path in paths.items()}
    return VocFiles(where, {i: xml_root / xmls[i] for i in ids}, full, remarks)


def _named_in(xml: Path) -> str:
    with contextlib.suppress(InputError):  # which the reader reports
        return (read_xml(xml).findtext("filename") or "").strip()
    return ""


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml")


def _find_split(root: Path, split: str) -> tuple[Path | None, Path, Path]:
    """Return the list of a split, None without one, and the folders of XML files and images."""
    names = next((list(same) for same in _SAME_SPLITS if split in same), [split])
    names.sort(key=lambda name: name != split)
    lists = [root / "ImageSets" / "Main", root / "ImageSets", root]
    image_list = next((f for d in lists if os.path.isfile(f := d / f"{split}.txt")), None)
    xml_root, image_root = _subfolder(root, _XML_FOLDERS), _subfolder(root, _IMAGE_FOLDERS)
    if image_list is not None:
        return image_list, xml_root, image_root
    if xml_root != root and (below := _subfolder(xml_root, names)) != xml_root:
        return None, below, _subfolder(image_root, names)
    if (below := _subfolder(root, names)) != root:
        return None, _subfolder(below, _XML_FOLDERS), _subfolder(below, _IMAGE_FOLDERS)
    if not (root / "ImageSets").is_dir() and split in _WHOLE and _has_xml(xml_root):
        return None, xml_root, image_root
    texts = (root / "ImageSets" / "Main").glob("*.txt")
    splits = sorted(p.stem for p in texts if p.is_file())[:10]
    folders = [p for place in (root, xml_root) for p in place.iterdir() if p != xml_root]
    splits += sorted({p.name for p in folders if _has_xml(p)})[:10]
    file = lists[0] / f"{split}.txt"
    whole = " SPLIT all reads the XML files that are there." * _has_xml(xml_root)
    raise MissingFileError(
        f"{file} {'is a folder' if file.is_dir() else 'does not exist'}. Splits that exist:"
        f" {', '.join(splits) or 'none'}.{whole * (not splits)}"
    )


def _subfolder(folder: Path, names: tuple[str, ...] | list[str]) -> Path:
    """Return the first folder below one that has one of the names, in upper or lower case."""
    below = {p.name.lower(): p for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else {}
    return next((below[name] for name in names if name in below), folder)


def _has_xml(folder: Path) -> bool:
    return folder.is_dir() and any(map(_is_xml, os.listdir(folder)))


def _read_image_list(
    path: Path, known: list[str], xml_root: Path, on_problem: OnProblem, remarks: list[str]
) -> list[str]:
    """Return the ids of a list that have an XML. Lines may have blanks, quotes, suffixes, folders,
    or the flag of a class (-1, 0, 1); without the XML's name an id is found by a near one.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    there = set(known)
    if lines and all(re.search(r"\s[-+]?[01]$", line) and line not in there for line in lines):
        lines = [line.rsplit(None, 1)[0] for line in lines]
        remarks.append(f"{path} lists images with a flag of a class, which is not used.")
    lines = [line if line in there else _bare(line) for line in lines]
    found = find_names(lines, known, xml_root)
    remarks += found.remarks()
    ids = [found.paths[line] for line in lines if line in found.paths]
    missing = [line for line in lines if line not in found.paths]
    faults = [f"has the line {i!r}" for i in missing if i.split()[0] in there]
    faults += [f"lists image {i!r} more than once" for i, n in Counter(lines).items() if n > 1]
    faults += [] if lines else ["lists no image"]
    if faults:
        raise InputError(f"{path} {faults[0]}; expected one image id a line, each once.")
    if missing:
        first = xml_root / f"{missing[0]}.xml"
        fault = f"{len(missing)} of the {len(lines)} images in {path} have no XML"
        fix = "An image without boxes needs an XML without <object>."
        on_problem(
            MissingFileError(f"{fault}; the first is {first}. {fix}{lies_near(first, _is_xml)}")
        )
    return ids


def _bare(line: str) -> str:
    """Return the id of a line in quotes, or of a line with an image and its XML."""
    pair = re.fullmatch(r"\S+\s+(\S+\.xml)", line, re.IGNORECASE)
    return pair[1] if pair else line.strip("\"'")
