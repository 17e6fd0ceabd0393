"""What every source of images has, and the table that holds its names."""

from __future__ import annotations

import multiprocessing.context
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

Item = TypeVar("Item")


class ImageSource:
    """What DATA.ROOT can name: a folder, a list file, CIFAR-10, local or remote tar shards.

    Attributes:
        labels: int64 (number of images,), numbers in ``class_names``; empty where there are none,
            or where they come with the images (remote shards).
        class_names: Names of the classes; empty where there are none.
        pixel_change: What packing did to the pixels, in words; empty for nothing.
        is_raw: Whether images are stored decoded.
    """

    labels: np.ndarray
    class_names: tuple[str, ...] = ()
    pixel_change: str = ""
    is_raw: bool = False

    def __len__(self) -> int:
        raise NotImplementedError

    def describe(self) -> str:
        """Return in words how many images there are and where."""
        raise NotImplementedError


class IndexedSource(ImageSource):
    """An image source whose images can be read in any order: all but remote shards."""

    def name(self, index: int) -> str:
        """Return where image ``index`` comes from, as a log can hold it."""
        raise NotImplementedError

    def content(self, index: int) -> bytes | memoryview:
        """Return the encoded image; raises one of ``decode.UNREADABLE`` if it cannot be read."""
        raise NotImplementedError


class Table(Sequence[Item]):
    """An immutable sequence (file names, encoded images, pickles) in two arrays.

    A list of a million Python objects would be copied into each forked data worker, because
    reference counts are written when it is read. For spawned workers the arrays move to shared
    memory when they are first sent.

    ``data``, uint8, holds the items' bytes; ``ends``, int64 (n + 1,), where each begins and ends.
    ``decode`` makes of an item's bytes what indexing returns.
    """

    def __init__(self, items: Iterable[bytes], decode: Callable[[bytes], Item]) -> None:
        parts = list(items)
        self.ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        self.data = np.frombuffer(b"".join(parts), np.uint8)
        self._decode = decode
        self._shared: tuple[Any, ...] | None = None

    def __getstate__(self) -> tuple[Any, ...]:
        arrays: tuple[Any, ...] = (self.ends, self.data)
        if multiprocessing.context.get_spawning_popen() is not None:
            if self._shared is None:
                import torch  # readers of file names alone need none

                self._shared = tuple(torch.tensor(array).share_memory_() for array in arrays)
                self.ends, self.data = (tensor.numpy() for tensor in self._shared)
            arrays = self._shared
        return (*arrays, self._decode)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.ends, self.data = (np.asarray(array) for array in state[:2])
        self._decode, self._shared = state[2], None

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._decode(self.data[self.ends[place] : self.ends[place + 1]].tobytes())


def name_table(names: Iterable[str]) -> Table[str]:
    """Return file names as a table."""
    return Table(map(os.fsencode, names), _decode_name)


def _decode_name(data: bytes) -> str:  # os.fsdecode itself cannot be pickled
    return os.fsdecode(data)


def count_in_words(source: ImageSource) -> str:
    """Return how many images and classes there are, in words."""
    classes = f" in {len(source.class_names)} classes" if source.class_names else ""
    return f"{len(source)} images{classes}"


def printable(name: str) -> str:
    """Return a file name for logs and terminals: bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_image(name: str) -> bool:
    """Return whether a file's extension is one of :data:`EXTENSIONS`, in upper or lower case."""
    return name.lower().endswith(EXTENSIONS)
