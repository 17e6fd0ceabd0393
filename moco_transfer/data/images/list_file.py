"""A list file: the images to train on, one path per line, with or without a label.

    # comment
    n01440764/n01440764_10026.JPEG 0
    n01440764/with blanks in it.JPEG 0

A path is absolute, or relative to the file's folder or to DATA.ROOT. A label is a number from 0 on
or a class name without blanks; all lines have one or none has. Empty lines and lines that start
with # are left out.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from .folder import ImageFolder
from .image_source import is_image, name_table, printable

logger = logging.getLogger(__name__)

# A label above this and above the number of images is an id; a classifier with as many outputs
# would fill the memory.
_MOST_CLASSES = 100_000


class _Row(NamedTuple):
    line: int  # from 1
    name: str
    label: str  # empty without


def read_list_file(file: str | os.PathLike[str], root: str | os.PathLike[str] = "") -> ImageFolder:
    """Read a list file; the images are in its order, class names are numbered in sorted order.

    Args:
        file: UTF-8 text; bytes that are no UTF-8 are kept, as file names may hold them.
        root: Folder that the paths are relative to; empty for the file's own.

    Raises:
        MissingFileError: If the file or an image does not exist.
        InputError: If the file lists nothing, or a line's label does not fit the others'.
    """
    file = Path(file)
    root = Path(root) if os.fspath(root) else file.parent
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise MissingFileError(f"Cannot read list file {file}: {error.strerror}.") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    rows = [_Row(number, *_split(line)) for number, line in lines if line and line[0] != "#"]
    if not rows:
        raise InputError(f"{file} lists no image. Expected one path per line.")
    _check_exist(file, root, rows)
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
    return ImageFolder(root, names, numbers, class_names, listed_in=file)


def _split(line: str) -> tuple[str, str]:
    # Paths may hold blanks: the label is what follows the last one, where an image precedes it.
    if is_image(line):
        return line, ""
    head, _, label = line.replace("\t", " ").rpartition(" ")
    head = line[: len(head)].rstrip()
    return (head, label) if is_image(head) or "\t" in line else (line, "")


def _check_exist(file: Path, root: Path, rows: list[_Row]) -> None:
    present: dict[str, set[str]] = {}  # each folder is listed once, which file servers like
    missing = []
    for row in rows:
        folder, leaf = os.path.split(row.name)
        if folder not in present:
            present[folder] = set()
            # ValueError: a NUL byte, of a file that is no text
            with contextlib.suppress(OSError, ValueError):
                with os.scandir(os.path.join(root, folder)) as entries:
                    present[folder] = {entry.name for entry in entries if not entry.is_dir()}
        if leaf not in present[folder]:
            missing.append(row)
    if missing:
        raise MissingFileError(
            f"{file}, line {missing[0].line}: there is no image"
            f" {printable(os.path.join(root, missing[0].name))} ({len(missing)} of {len(rows)}"
            f" lines name none). Expected `path` or `path label`, the path relative to {root}."
        )


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
