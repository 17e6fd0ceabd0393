"""What every source of images has, and the table that holds its names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """What DATA.ROOT can name: a folder, a list file, CIFAR-10, local or remote tar shards."""

    # int64 (number of images,), numbers in class_names; empty where there are none, or where they
    # come with the images (a stream of shards).
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    class_names: tuple[str, ...] = ()  # empty where not every image is known to have a label
    pixel_change: str = ""  # what packing did to the pixels, in words; empty for nothing

    def __len__(self) -> int:
        raise NotImplementedError

    def describe(self) -> str:
        """Return in words how many images there are and where."""
        classes = f" in {len(self.class_names)} classes" if self.class_names else ""
        return f"{len(self)} images{classes}{self._where()}"

    def _where(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class IndexedSource(ImageSource):
    """An image source whose images can be read in any order: all but remote shards."""

    def name(self, index: int) -> str:
        """Return where image ``index`` comes from, as a log can hold it."""
        raise NotImplementedError

    def content(self, index: int) -> bytes | memoryview:
        """Return the encoded image; raises one of ``decode.UNREADABLE`` if it cannot be read."""
        raise NotImplementedError


class Table(Sequence[Item]):
    """An immutable sequence (file names, encoded images, pickles) in two tensors.

    A list of a million Python objects would be copied into each forked data worker, because
    reference counts are written when it is read. To spawned workers torch sends shared memory.

    ``data``, uint8, holds the items' bytes; ``ends``, int64 (n + 1,), where each begins and ends.
    ``decode`` makes of an item's bytes what indexing returns.
    """

    def __init__(self, items: Iterable[bytes], decode: Callable[[bytes], Item]) -> None:
        import torch  # readers of file names alone need none

        parts, self._decode = list(items), decode
        self.ends = torch.from_numpy(np.cumsum([0, *map(len, parts)], dtype=np.int64))
        self.data = torch.from_numpy(np.frombuffer(bytearray().join(parts), np.uint8))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start, end = self.ends[place : place + 2].tolist()
        return self._decode(self.data[start:end].numpy().tobytes())


def name_table(names: Iterable[str]) -> Table[str]:
    """Return file names as a table."""
    return Table(map(os.fsencode, names), _decode_name)


def _decode_name(data: bytes) -> str:  # os.fsdecode itself cannot be pickled
    return os.fsdecode(data)


def missing_files(paths: Iterable[str]) -> list[int]:
    """Return the places of the paths that are no files, as broken links are none. Each folder is
    listed once: on a network file system, asking for each file is far slower.
    """
    names: dict[str, dict[str, os.DirEntry[str]]] = {}
    missing = []
    for place, path in enumerate(paths):
        folder, leaf = os.path.split(path)
        if folder not in names:
            names[folder] = {}
            with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL byte in the name
                names[folder] = {e.name: e for e in os.scandir(folder or ".")}
        if (entry := names[folder].get(leaf)) is None or not _is_file(entry):
            missing.append(place)
    return missing


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a file, or a link to one; asks the disk for links alone."""
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def is_image(name: str, *, arrays: bool = False) -> bool:
    """Return whether a file's extension is one of :data:`EXTENSIONS`, with ``arrays`` or .npy, in
    upper or lower case.
    """
    return name.lower().endswith((*EXTENSIONS, ".npy") if arrays else EXTENSIONS)
