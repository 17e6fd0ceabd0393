"""Where unlabelled pictures come from: a tree of class folders or one flat folder.

Only names are held in memory, and in one bytes object: a list of a million Python strings would be copied, page by page,
into every data worker as reference counts touch it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..runtime.errors import InputError, MissingFileError

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class PathList(Sequence[str]):
    """An immutable list of file names in two arrays.

    Args:
        names: The names, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])


@dataclass(frozen=True)
class ImageFolder:
    """The pictures below one folder.

    Attributes:
        root: The folder.
        names: Paths relative to it, sorted, so that index i is the same picture on every machine.
        labels: int64 (number of pictures,), the class folder's number in ``class_names``; empty for a flat folder.
        class_names: Names of the class folders, sorted; empty for a flat folder.
    """

    root: Path
    names: PathList
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Return the path of picture ``index``."""
        return os.path.join(self.root, self.names[index])


def find_images(root: str | os.PathLike[str], *, layout: str = "auto") -> ImageFolder:
    """List the pictures below a folder.

    Args:
        root: The folder, searched recursively; links are followed.
        layout: ``folders`` (each picture lies in a class folder of the root), ``flat`` (no classes, wherever they lie), or
            ``auto``: ``folders`` when no picture lies directly in the root and there are at least two class folders.

    Returns:
        The pictures, sorted by path. Which files are pictures is decided by their extension (see ``EXTENSIONS``).

    Raises:
        MissingFileError: If the folder does not exist.
        InputError: If it is a file, holds no picture, or ``folders`` was asked for and pictures lie outside class folders.
    """
    if not os.fspath(root):
        raise InputError("DATA.ROOT is not set. Give the folder with the pictures, e.g. DATA.ROOT /data/imagenet/train.")
    root = Path(root)
    if not root.exists():
        raise MissingFileError(f"Data folder {root} does not exist (DATA.ROOT). Give a folder that holds pictures.")
    if not root.is_dir():
        raise InputError(f"DATA.ROOT {root} is a file, expected a folder that holds pictures.")
    names = sorted(_walk(root))
    if not names:
        raise InputError(f"Data folder {root} holds no picture (looked for {', '.join(EXTENSIONS)}, subfolders too).")
    tops = [name.split(os.sep, 1)[0] if os.sep in name else "" for name in names]
    classes = tuple(sorted(set(tops)))
    loose = [name for name, top in zip(names, tops, strict=True) if not top]
    if layout == "folders" and loose:
        raise InputError(
            f"{root}: {len(loose)} pictures lie outside class folders, the first is {loose[0]}. "
            f"Move them into class folders, or set DATA.LAYOUT flat."
        )
    if layout == "flat" or (layout == "auto" and (loose or len(classes) < 2)):
        return ImageFolder(root, PathList(names))
    number = {name: i for i, name in enumerate(classes)}
    return ImageFolder(root, PathList(names), np.array([number[top] for top in tops], np.int64), classes)


def _walk(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders.sort()
        relative = os.path.relpath(folder, root)
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield name if relative == "." else os.path.join(relative, name)


def read_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Decode a picture to RGB, as torchvision's default loader does.

    Raises:
        OSError, SyntaxError, ValueError: If it cannot be decoded (PIL's own exceptions); see :data:`UNREADABLE`.
    """
    with open(path, "rb") as file, Image.open(file) as image:
        return image.convert("RGB")


# What PIL raises for files that are truncated, are no picture, or claim absurd sizes.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
