"""A list file: the images to train on, one path per line, with or without a label.

    # comment
    n01440764/n01440764_10026.JPEG 0
    n01440764/with blanks in it.JPEG 0

A path is relative to the file's folder, or to a folder that is named apart from it, or absolute. A
label is a number from 0 on or a class name without blanks; all lines have one or none has. Empty
lines and lines that start with # are left out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from .folder import ImageFolder, PathList, is_image, printable

logger = logging.getLogger(__name__)

# a larger number than this and than the number of images is an id; a classifier with as many
# outputs fills the memory
_MOST_CLASSES = 100_000


def read_list_file(file: str | os.PathLike[str], root: str | os.PathLike[str] = "") -> ImageFolder:
    """Read a list file.

    Args:
        file: UTF-8 text; bytes that are no UTF-8 are taken as they are, as file names may hold
            them.
        root: Folder that the paths are relative to; empty for the file's own.

    Returns:
        The images in the file's order. Numbers as labels are kept, class names are numbered in
        sorted order.

    Raises:
        MissingFileError: If the file, the folder or an image does not exist; names the file and
            the line.
        InputError: If the file lists nothing, or a line's label does not fit the others'.
    """
    file = Path(file)
    root = Path(root) if os.fspath(root) else file.parent
    if not root.is_dir():
        raise MissingFileError(
            f"Data folder {root}, which the paths in {file} are relative to, does not exist"
            " (DATA.ROOT)."
        )
    names: list[str] = []
    labels: list[str | None] = []
    lines: list[int] = []
    for number, name, label in _entries(file):
        if labels and (label is None) != (labels[0] is None):
            has = "no label" if label is None else f"the label {label!r}"
            raise InputError(
                f"{file}, line {number}: {printable(name)} has {has}, unlike line {lines[0]}. Give"
                " every image a label, or none."
            )
        names.append(name)
        labels.append(label)
        lines.append(number)
    if not names:
        raise InputError(f"{file} lists no image. Expected one path per line.")
    _check_exist(file, root, names, lines)
    repeated = len(names) - len(set(names))
    if repeated:
        logger.warning(
            "%s: %d lines name an image that an earlier line names; it counts as often as it is"
            " named",
            file,
            repeated,
        )
    numbers, class_names = _number(file, labels, lines)
    return ImageFolder(root, PathList(names), numbers, class_names, listed_in=file)


def _entries(file: Path) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line number from 1, path, label or None)."""
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                line = line.strip()
                if not line or line.startswith("#"):
                    continue
                if "\0" in line:
                    raise InputError(
                        f"{file}, line {number}: not text. Expected one path per line."
                    )
                yield number, *_split(line)
    except FileNotFoundError as error:
        raise MissingFileError(f"List file {file} does not exist.") from error
    except OSError as error:
        raise InputError(f"Cannot read list file {file}: {error.strerror or error}.") from error


def _split(line: str) -> tuple[str, str | None]:
    # Paths may hold blanks, so the label is what stands behind the last one, and only where what is
    # before it is an image.
    if is_image(line):
        return line, None
    head, _, label = line.replace("\t", " ").rpartition(" ")
    head = line[: len(head)].rstrip()
    return (head, label) if is_image(head) or "\t" in line else (line, None)


def _check_exist(file: Path, root: Path, names: list[str], lines: list[int]) -> None:
    # One listing of each folder instead of a million questions to a file server.
    present: dict[str, set[str]] = {}
    missing = []
    for name, line in zip(names, lines, strict=True):
        folder, leaf = os.path.split(name)
        if folder not in present:
            present[folder] = _files_in(os.path.join(root, folder))
        if leaf not in present[folder]:
            missing.append((line, name))
    if missing:
        line, name = missing[0]
        raise MissingFileError(
            f"{file}, line {line}: there is no image {printable(os.path.join(root, name))}"
            f" ({len(missing)} of {len(names)} lines name none). Expected `path` or `path label`,"
            f" the path relative to {root}."
        )


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_dir()}
    except OSError:
        return set()


def _number(
    file: Path, labels: list[str | None], lines: list[int]
) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels[0] is None:
        return np.zeros(0, np.int64), ()
    if all(label.isascii() and label.isdigit() for label in labels):
        numbers = np.array([int(label) for label in labels], np.int64)
        highest = int(numbers.max())
        if highest >= max(len(numbers), _MOST_CLASSES):
            line = lines[int(numbers.argmax())]
            raise InputError(
                f"{file}, line {line}: label {highest} is not the number of a class. Number the"
                " classes from 0 on."
            )
        empty = highest + 1 - len(np.unique(numbers))
        if empty:
            logger.warning("%s: %d of the classes 0 to %d have no image", file, empty, highest)
        return numbers, tuple(str(i) for i in range(highest + 1))
    class_names = tuple(sorted(set(labels)))
    number = {name: i for i, name in enumerate(class_names)}
    return np.array([number[label] for label in labels], np.int64), class_names
