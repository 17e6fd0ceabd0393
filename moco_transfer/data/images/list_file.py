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

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from .folder import ImageFolder
from .image_source import is_image, name_table, printable

logger = logging.getLogger(__name__)

# A label above this and above the number of images is an id; a classifier with as many outputs
# would fill the memory.
_MOST_CLASSES = 100_000


def read_list_file(file: str | os.PathLike[str], root: str | os.PathLike[str] = "") -> ImageFolder:
    """Read a list file; the images are in its order, class names are numbered in sorted order.

    Args:
        file: UTF-8 text; bytes that are no UTF-8 are kept, as file names may hold them.
        root: Folder that the paths are relative to; empty for the file's own.

    Raises:
        MissingFileError: If the file, the folder or an image does not exist.
        InputError: If the file lists nothing, or a line's label does not fit the others'.
    """
    file = Path(file)
    root = Path(root) if os.fspath(root) else file.parent
    if not root.is_dir():
        raise MissingFileError(f"Data folder {root}, which {file} refers to, does not exist.")
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError as error:
        raise MissingFileError(f"List file {file} does not exist.") from error
    except OSError as error:
        raise InputError(f"Cannot read list file {file}: {error.strerror or error}.") from error
    rows = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    rows = [(number, line) for number, line in rows if line and not line.startswith("#")]
    if not rows:
        raise InputError(f"{file} lists no image. Expected one path per line.")
    lines = [number for number, _ in rows]
    names, labels = (
        list(column) for column in zip(*(_split(line) for _, line in rows), strict=True)
    )
    for line, name, label in zip(lines, names, labels, strict=True):
        if "\0" in name:
            raise InputError(f"{file}, line {line}: not text. Expected one path per line.")
        if (label is None) != (labels[0] is None):
            has = "no label" if label is None else f"the label {label!r}"
            raise InputError(
                f"{file}, line {line}: {printable(name)} has {has}, unlike line {lines[0]}. Give"
                " every image a label, or none."
            )
    _check_exist(file, root, names, lines)
    repeated = len(names) - len(set(names))
    if repeated:
        logger.warning(
            "%s: %d lines repeat an earlier line's image; it counts again", file, repeated
        )
    numbers, class_names = _number(file, labels, lines)
    return ImageFolder(root, name_table(names), numbers, class_names, listed_in=file)


def _split(line: str) -> tuple[str, str | None]:
    # Paths may hold blanks: the label is what follows the last one, where an image precedes it.
    if is_image(line):
        return line, None
    head, _, label = line.replace("\t", " ").rpartition(" ")
    head = line[: len(head)].rstrip()
    return (head, label) if is_image(head) or "\t" in line else (line, None)


def _check_exist(file: Path, root: Path, names: list[str], lines: list[int]) -> None:
    present: dict[str, set[str]] = {}  # each folder is listed once, which file servers like
    missing = []
    for name, line in zip(names, lines, strict=True):
        folder, leaf = os.path.split(name)
        if folder not in present:
            present[folder] = set()
            with contextlib.suppress(OSError), os.scandir(os.path.join(root, folder)) as entries:
                present[folder] = {entry.name for entry in entries if not entry.is_dir()}
        if leaf not in present[folder]:
            missing.append((line, name))
    if missing:
        line, name = missing[0]
        raise MissingFileError(
            f"{file}, line {line}: there is no image {printable(os.path.join(root, name))}"
            f" ({len(missing)} of {len(names)} lines name none). Expected `path` or `path label`,"
            f" the path relative to {root}."
        )


def _number(
    file: Path, labels: list[str | None], lines: list[int]
) -> tuple[np.ndarray, tuple[str, ...]]:
    given = [label for label in labels if label is not None]
    if not given:
        return np.zeros(0, np.int64), ()
    if not all(label.isascii() and label.isdigit() for label in given):
        class_names, numbers = np.unique(np.array(given, object), return_inverse=True)
        return numbers.astype(np.int64), tuple(class_names)
    numbers = np.array([int(label) for label in given], np.int64)
    highest = int(numbers.max())
    if highest >= max(len(numbers), _MOST_CLASSES):
        raise InputError(
            f"{file}, line {lines[int(numbers.argmax())]}: label {highest} is not the number of a"
            " class. Number the classes from 0 on."
        )
    empty = highest + 1 - len(np.unique(numbers))
    if empty:
        logger.warning("%s: %d of the classes 0 to %d have no image", file, empty, highest)
    return numbers, tuple(map(str, range(highest + 1)))
