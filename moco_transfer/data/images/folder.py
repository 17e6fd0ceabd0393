"""Images that lie in files: a tree of class folders, one flat folder, or any list of paths.

Only names are held in memory, and in one bytes object: a list of a million Python strings would be
    copied, page by page,
into every data worker as reference counts touch it. Every source of images (see ``sources.py``)
has what :class:`ImageFolder` has: ``len``, ``labels``, ``class_names``, ``name(index)``,
``read(index)``, ``decode(index)`` and ``describe()``.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...runtime.errors import InputError, MissingFileError
from .decode import UNREADABLE, Region, decode_pixels, read_rgb

logger = logging.getLogger(__name__)

__all__ = [
    "EXTENSIONS",
    "UNREADABLE",
    "ImageFolder",
    "PathList",
    "find_images",
    "is_image",
    "printable",
    "read_rgb",
]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class PathList(Sequence[str]):
    """An immutable list of file names in two arrays.

    Data workers that are forked share its memory as it is. For those that are started afresh
    (spawn, forkserver) it moves to shared memory when it is first sent to one, so that they do not
    each get a copy.

    Args:
        names: The names, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._shared: tuple[Any, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        if multiprocessing.context.get_spawning_popen() is None:  # to a file, or copied
            return {"arrays": (self._ends, self._bytes)}
        import torch  # not needed otherwise

        if self._shared is None:
            self._shared = tuple(
                torch.tensor(array).share_memory_() for array in (self._ends, self._bytes)
            )
            self._ends, self._bytes = (tensor.numpy() for tensor in self._shared)
        return {"arrays": self._shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._ends, self._bytes = (np.asarray(array) for array in state["arrays"])
        self._shared = None

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


@dataclass(frozen=True)
class ImageFolder:
    """Images in files: those below one folder, or those that a list names.

    Attributes:
        root: The folder.
        names: Paths relative to it, sorted (a list's: in its order), so that index i is the same
            image on every machine.
        labels: int64 (number of images,), the class folder's number in ``class_names``; empty
            where there are no classes.
        class_names: Names of the class folders, sorted; empty where there are no classes.
        listed_in: The file that lists the images, None where the folder itself was searched.
    """

    root: Path
    names: PathList
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    class_names: tuple[str, ...] = ()
    listed_in: Path | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Return the path of image ``index``."""
        return os.path.join(self.root, self.names[index])

    def name(self, index: int) -> str:
        """Return the path of image ``index`` as a log can hold it: bytes that are no UTF-8 are
        escaped.
        """
        return printable(self.path(index))

    def read(self, index: int) -> Image.Image:
        """Decode image ``index`` to RGB; raises one of :data:`UNREADABLE` if that fails."""
        return read_rgb(self.path(index))

    def decode(
        self, index: int, buffer: np.ndarray | None = None, region: Region | None = None
    ) -> np.ndarray:
        """Decode image ``index`` as ``decode.decode_pixels``; pixels and errors are those of
        :meth:`read`.
        """
        return decode_pixels(self.encoded(index), buffer, region)

    def encoded(self, index: int) -> bytes:
        """Return the file's bytes."""
        with open(self.path(index), "rb", buffering=0) as file:
            return file.read()

    def describe(self) -> str:
        """Return in words how many images there are and where."""
        classes = f" in {len(self.class_names)} classes" if self.class_names else ""
        where = f"listed in {self.listed_in}" if self.listed_in else f"below {self.root}"
        return f"{len(self)} images{classes} {where}; the first is {self.name(0)}"


def find_images(root: str | os.PathLike[str], *, layout: str = "auto") -> ImageFolder:
    """List the images below a folder.

    Args:
        root: The folder, searched recursively; links are followed, names that start with a dot are
            left out.
        layout: ``folders`` (each image lies in a class folder of the root), ``flat`` (no classes,
            wherever they lie), or ``auto``: ``folders`` when no image lies directly in the root
            and there are at least two class folders.

    Returns:
        The images, sorted by path. Which files are images is decided by their extension (see
        ``EXTENSIONS``).

    Raises:
        MissingFileError: If the folder does not exist.
        InputError: If it is a file, holds no image, a folder in it cannot be listed, or
            ``folders`` was asked for and images lie outside class folders.
    """
    if not os.fspath(root):
        raise InputError(
            "DATA.ROOT is not set. Give the folder with the images, e.g. DATA.ROOT"
            " /data/imagenet/train."
        )
    root = Path(root)
    if not root.exists():
        raise MissingFileError(
            f"Data folder {root} does not exist (DATA.ROOT). Give a folder that holds images."
        )
    if not root.is_dir():
        raise InputError(f"DATA.ROOT {root} is a file, expected a folder that holds images.")
    names = sorted(_walk(root))
    if not names:
        raise InputError(
            f"Data folder {root} holds no image (looked for {', '.join(EXTENSIONS)}, subfolders"
            " too)."
        )
    tops = [name.split(os.sep, 1)[0] if os.sep in name else "" for name in names]
    classes = tuple(sorted(set(tops)))
    loose = [name for name, top in zip(names, tops, strict=True) if not top]
    if layout == "folders" and loose:
        raise InputError(
            f"{root}: {len(loose)} images lie outside class folders, the first is"
            f" {printable(loose[0])}. Move them into class folders, or set DATA.LAYOUT flat."
        )
    if layout == "flat" or (layout == "auto" and (loose or len(classes) < 2)):
        return ImageFolder(root, PathList(names))
    number = {name: i for i, name in enumerate(classes)}
    return ImageFolder(
        root, PathList(names), np.array([number[top] for top in tops], np.int64), classes
    )


def printable(name: str) -> str:
    """Return a file name that any log and terminal can hold: bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_image(name: str) -> bool:
    """Return whether a file's extension is one of :data:`EXTENSIONS`, in upper or lower case."""
    return name.lower().endswith(EXTENSIONS)


def _walk(root: Path) -> Iterator[str]:
    # Each entry has the folders that it lies in: a link to one of them would lead round for ever
    # and list every image again.
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        relative, above = waiting.pop()
        folder = os.path.join(root, relative)
        try:
            status = os.stat(folder)
            entries = list(os.scandir(folder))
        except OSError as error:
            raise InputError(
                f"Cannot list {printable(folder)} ({error.strerror}). Make it readable or move it"
                f" out of {root}."
            ) from error
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            logger.warning(
                "%s links back to a folder that it lies in and is left out", printable(folder)
            )
            continue
        for entry in entries:
            name = os.path.join(relative, entry.name)
            if entry.name.startswith(
                "."
            ):  # .ipynb_checkpoints holds copies, and macOS leaves ._name.jpg beside name.jpg
                continue
            if entry.is_dir():
                waiting.append((name, above | {identity}))
            elif is_image(entry.name):
                yield name
