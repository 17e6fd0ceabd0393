"""Images that lie in files: a tree of class folders, one flat folder, or a list file.

A list file has one path per line, with or without a label:

    # comment
    n01440764/n01440764_10026.JPEG 0
    n01440764/with blanks in it.JPEG 0

A path is absolute, or relative to the file's folder or to DATA.ROOT. A label is a number from 0 on
or a class name without blanks; all lines have one or none has. Empty lines and lines that start
with # are left out.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...runtime.errors import InputError, MissingFileError, printable
from ...runtime.files import regular
from ...runtime.text import read_text
from .image_source import EXTENSIONS, IndexedSource, Table, is_image, name_table
from .near_names import find_image_files, lies_near

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFolder(IndexedSource):
    """Images in files: those below one folder, or those that a list names."""

    root: Path
    # Relative to root; sorted (a list's: in its order), so that index i is the same everywhere.
    names: Table[str]
    listed_in: Path | None = None  # the list, None where the folder itself was searched

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Return the path of image ``index``."""
        return os.path.join(self.root, self.names[index])

    def name(self, index: int) -> str:
        """Return where image ``index`` comes from."""
        return printable(self.path(index))

    def content(self, index: int) -> bytes:
        """Return the encoded image."""
        with open(regular(self.path(index)), "rb", buffering=0) as file:
            return file.read()

    def _where(self) -> str:
        where = f"listed in {self.listed_in}" if self.listed_in else f"below {self.root}"
        return f" {where}; the first is {self.name(0)}"


def find_images(
    root: str | os.PathLike[str], *, layout: str = "auto", arrays: bool = False
) -> ImageFolder:
    """List the images below a folder, sorted by path; links are followed, names that start with a
    dot are left out.

    ``layout`` is ``folders`` (each image lies in a class folder of the root), ``flat`` (no
    classes), or ``auto``: ``folders`` when no image lies directly in the root and there are at
    least two class folders. ``arrays`` takes .npy files too.

    MissingFileError if there is no such folder; InputError if it holds no image, a folder in it
    cannot be listed, or with ``folders`` images lie outside class folders.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"Data folder {root} does not exist or is a file (DATA.ROOT).")
    others: Counter[str] = Counter()
    names = sorted(_walk(root, others, arrays))
    passed = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(5))
    passed = f"{others.total()} files of other kinds ({passed})" if others else ""
    if not names:
        but = f", but {passed}" if passed else ""
        raise InputError(f"Data folder {root} holds no image ({', '.join(EXTENSIONS)}){but}.")
    if passed:
        logger.info("%s: passed over %s", root, passed)
    tops = [name.split(os.sep, 1)[0] if os.sep in name else "" for name in names]
    loose = [name for name, top in zip(names, tops, strict=True) if not top]
    if layout == "folders" and loose:
        raise InputError(
            f"{root}: {len(loose)} images lie outside class folders, the first is"
            f" {printable(loose[0])}. Move them into class folders, or set DATA.LAYOUT flat."
        )
    classes, labels = np.unique(np.array(tops, object), return_inverse=True)
    if layout == "flat" or (layout == "auto" and (loose or len(classes) < 2)):
        return ImageFolder(root, name_table(names))
    numbers = labels.astype(np.int64)
    return ImageFolder(root, name_table(names), labels=numbers, class_names=tuple(classes))


def _walk(root: Path, others: Counter[str], arrays: bool) -> Iterator[str]:
    """Yield the names of images below a folder, and count the suffixes of other files."""
    # Each folder carries those that it lies in: a link to one of them would be followed for ever.
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        relative, above = waiting.pop()
        folder = os.path.join(root, relative)
        try:
            status, entries = os.stat(folder), list(os.scandir(folder))
        except OSError as error:
            raise InputError(f"Cannot list {printable(folder)} ({error.strerror}).") from error
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            logger.warning("%s links to a folder that contains it; left out", printable(folder))
            continue
        for entry in entries:
            name = os.path.join(relative, entry.name)
            if entry.name.startswith("."):  # .ipynb_checkpoints, or ._name.jpg, which macOS leaves
                continue
            if _is_folder(entry):
                waiting.append((name, above | {identity}))
            elif is_image(entry.name, arrays=arrays):
                yield name
            else:
                others[printable(os.path.splitext(entry.name)[1].lower() or entry.name)] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, which cannot be read as an image either
        return False


# A label above this and above the number of images is an id; a classifier with as many outputs
# would fill the memory.
_MOST_CLASSES = 100_000


class _Row(NamedTuple):
    line: int  # from 1
    name: str
    label: str  # empty without


def read_list_file(file: str | os.PathLike[str], root: str | os.PathLike[str] = "") -> ImageFolder:
    """Read a list file; the images are in its order, class names are numbered in sorted order.

    Paths are relative to ``root``, if empty to the file's folder; bytes that are no UTF-8 are kept,
    as file names may hold them. MissingFileError if the file or an image does not exist; InputError
    if the file lists nothing, or a line's label does not fit the others'.
    """
    file = Path(file)
    root = Path(root) if os.fspath(root) else file.parent
    try:
        text = read_text(file, errors="surrogateescape")
    except InputError as error:
        raise MissingFileError(f"List file {error}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    rows = [_Row(number, *_split(line)) for number, line in lines if line and line[0] != "#"]
    if not rows:
        raise InputError(f"{file} lists no image. Expected one path per line.")
    found = find_image_files([row.name for row in rows], root)
    if missing := [place for place, row in enumerate(rows) if row.name not in found.paths]:
        row = rows[missing[0]]
        raise MissingFileError(
            f"{file}, line {row.line}: there is no image"
            f" {printable(os.path.join(root, row.name))} ({len(missing)} of {len(rows)} lines name"
            f" none). Expected `path` or `path label`, the path relative to {root}."
            f"{printable(lies_near(os.path.join(root, row.name)))}"
        )
    for remark in found.remarks():
        logger.warning("%s: %s", file, printable(remark))
    rows = [row._replace(name=found.paths[row.name]) for row in rows]
    for row in rows:
        if bool(row.label) != bool(rows[0].label):
            has = f"the label {row.label!r}" if row.label else "no label"
            raise InputError(
                f"{file}, line {row.line}: {printable(row.name)} has {has}, unlike line"
                f" {rows[0].line}. Give every image a label, or none."
            )
    repeated = len(rows) - len({row.name for row in rows})
    if repeated:
        logger.warning("%s: %d lines repeat an earlier line's image", file, repeated)
    numbers, class_names = _number(file, rows) if rows[0].label else (np.zeros(0, np.int64), ())
    names = name_table(row.name for row in rows)
    return ImageFolder(root, names, file, labels=numbers, class_names=class_names)


def _split(line: str) -> tuple[str, str]:
    if line[0] == line[-1] and line[0] in "\"'":
        line = line[1:-1]
    # Paths may hold blanks: the label is what follows the last one, where an image precedes it.
    if is_image(line, arrays=True):
        return line, ""
    head, _, label = line.replace("\t", " ").rpartition(" ")
    head = line[: len(head)].rstrip()
    return (head, label) if is_image(head, arrays=True) or "\t" in line else (line, "")


def _number(file: Path, rows: list[_Row]) -> tuple[np.ndarray, tuple[str, ...]]:
    labels = [row.label for row in rows]
    if not all(label.isascii() and label.isdigit() for label in labels):
        class_names, numbers = np.unique(np.array(labels, object), return_inverse=True)
        return numbers.astype(np.int64), tuple(class_names)
    numbers = np.array(labels, np.int64)
    highest = int(numbers.max())
    if highest >= max(len(numbers), _MOST_CLASSES):
        raise InputError(
            f"{file}, line {rows[int(numbers.argmax())].line}: label {highest} is not the number of"
            " a class. Number the classes from 0 on."
        )
    return numbers, tuple(map(str, range(highest + 1)))
