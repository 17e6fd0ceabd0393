"""Small images that are held in memory, so that a set of tiny files need not be unpacked."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .decode import Region, decode_pixels, read_rgb
from .folder import PathList, printable


@dataclass(frozen=True)
class PackedImages:
    """Encoded images one behind the other in one bytes object, which all data workers share.

    Attributes:
        root: Where they come from, for messages.
        names: Their names there.
        data: The files' bytes, in the order of ``names``.
        ends: int64 (number of images + 1,), where each begins and ends in ``data``.
        labels: int64 (number of images,), numbers in ``class_names``; empty where there are no
            classes.
        class_names: Names of the classes.
    """

    root: str
    names: PathList
    data: bytes = field(repr=False)
    ends: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return where image ``index`` comes from."""
        return f"{self.root}: {printable(self.names[index])}"

    def read(self, index: int) -> Image.Image:
        """Decode image ``index`` to RGB; raises one of ``images.UNREADABLE`` if that fails."""
        return read_rgb(io.BytesIO(self.encoded(index)))

    def decode(
        self, index: int, buffer: np.ndarray | None = None, region: Region | None = None
    ) -> np.ndarray:
        """Decode image ``index`` as ``decode.decode_pixels``."""
        return decode_pixels(self.encoded(index), buffer, region)

    def encoded(self, index: int) -> bytes:
        """Return the file's bytes."""
        return self.data[self.ends[index] : self.ends[index + 1]]

    def describe(self) -> str:
        """Return in words how many images there are and where."""
        return (
            f"{len(self)} images in {len(self.class_names)} classes, held in memory, from"
            f" {self.root}; the first is {self.names[0]}"
        )


@dataclass(frozen=True)
class PixelImages:
    """Images of one size as an array of pixels.

    Attributes:
        root: Where they come from, for messages.
        pixels: uint8 (number of images, 3, height, width), RGB.
        labels: int64 (number of images,), numbers in ``class_names``.
        class_names: Names of the classes.
    """

    root: str
    pixels: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """Return where image ``index`` comes from."""
        return f"{self.root}: image {index}"

    def read(self, index: int) -> Image.Image:
        """Return image ``index``."""
        return Image.fromarray(self.decode(index))

    def decode(
        self, index: int, buffer: np.ndarray | None = None, region: Region | None = None
    ) -> np.ndarray:
        """Return image ``index`` as uint8 (H, W, 3), RGB."""
        return np.ascontiguousarray(self.pixels[index].transpose(1, 2, 0))

    def describe(self) -> str:
        """Return in words how many images there are and where."""
        return (
            f"{len(self)} images in {len(self.class_names)} classes, held in memory, from"
            f" {self.root}"
        )
