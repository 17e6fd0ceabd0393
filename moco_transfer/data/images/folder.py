"""Images that lie in files: a tree of class folders, one flat folder, or any list of paths."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...runtime.errors import InputError, MissingFileError
from .image_source import (
    EXTENSIONS,
    IndexedSource,
    Table,
    count_in_words,
    is_image,
    name_table,
    printable,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFolder(IndexedSource):
    """Images in files: those below one folder, or those that a list names."""

    root: Path
    # Relative to root; sorted (a list's: in its order), so that index i is the same everywhere.
    names: Table[str]
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    class_names: tuple[str, ...] = ()
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
        with open(self.path(index), "rb", buffering=0) as file:
            return file.read()

    def describe(self) -> str:
        """Return in words how many images there are and where."""
        where = f"listed in {self.listed_in}" if self.listed_in else f"below {self.root}"
        return f"{count_in_words(self)} {where}; the first is {self.name(0)}"


def find_images(root: str | os.PathLike[str], *, layout: str = "auto") -> ImageFolder:
    """List the images below a folder, sorted by path; links are followed, names that start with a
    dot are left out.

    Args:
        root: The folder, searched recursively.
        layout: ``folders`` (each image lies in a class folder of the root), ``flat`` (no classes),
            or ``auto``: ``folders`` when no image lies directly in the root and there are at least
            two class folders.

    Raises:
        MissingFileError: If there is no such folder.
        InputError: If it holds no image, a folder in it cannot be listed, or with ``folders``
            images lie outside class folders.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(f"Data folder {root} does not exist or is a file (DATA.ROOT).")
    names = sorted(_walk(root))
    if not names:
        raise InputError(f"Data folder {root} holds no image ({', '.join(EXTENSIONS)}).")
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
    return ImageFolder(root, name_table(names), labels.astype(np.int64), tuple(classes))


def _walk(root: Path) -> Iterator[str]:
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
            if entry.is_dir():
                waiting.append((name, above | {identity}))
            elif is_image(entry.name):
                yield name
