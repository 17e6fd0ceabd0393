"""From the bytes of an image to its pixels, by the fastest decoder that gives PIL's pixels.

simplejpeg (libjpeg-turbo with the exact DCT and smooth upsampling, as PIL has them) takes JPEG of 8
bits in grey or colour; what it rejects (CMYK, damaged files that PIL still reads, other formats)
goes to PIL. So an image is unreadable here exactly where it is in the reference chain. Measured on
    200 ImageNet images: no pixel differs; DCT scaling, "fast DCT" and "fast upsampling" are not
        used,
because they change pixels (by up to 24 and 69 levels) for 3 % of the time.

Of a JPEG whose crops are known before its pixels are, only the part that they need is decoded where
``partial_jpeg.c`` was built: the same pixels there, in about three quarters of the time.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from typing import IO

import numpy as np
from PIL import Image

from ..views import native

try:
    import simplejpeg
except ImportError:  # a platform without its wheel
    simplejpeg = None

BUFFER_BYTES = 64 << 20  # for 21 million pixels; what is not used of it takes no memory

_WORTH_IT = 64  # px; with the margins that a part needs, of smaller images nothing is left out
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {
    0xC4,
    0xC8,
    0xCC,
}  # JPEG's markers with the size; the three left out mean other things


# From an image's height and width to the part that is needed of it: (top, left, height, width),
# px.
Region = Callable[[int, int], tuple[int, int, int, int]]


def decode_pixels(
    data: bytes, buffer: np.ndarray | None = None, region: Region | None = None
) -> np.ndarray:
    """Decode an encoded image.

    Args:
        data: The file's bytes.
        buffer: uint8 (n,), which the result may then lie in, so that its memory need not be found
            again for each image.
        region: Says which part is needed; called at most once, and not where the whole image is
            decoded anyway.

    Returns:
        uint8 (H, W, 3), RGB; the pixels of :func:`read_rgb`. If ``region`` was called, what lies
        outside of its answer may be anything.

    Raises:
        OSError, SyntaxError, ValueError, DecompressionBombError: As :func:`read_rgb`; they are
            :data:`UNREADABLE`.
    """
    size = _size_of_usual_jpeg(data)
    if size is not None:
        pixels = (
            _decode_part(data, size, buffer, region)
            if region is not None and native.decodes_parts()
            else None
        )
        if pixels is not None:
            return pixels
        if simplejpeg is not None:
            try:
                return simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
            except (
                ValueError
            ):  # PIL says what is wrong with it, or reads it; or the buffer is too small
                pass
    return np.asarray(read_rgb(io.BytesIO(data)))


def _size_of_usual_jpeg(data: bytes) -> tuple[int, int] | None:
    """Return height and width of a JPEG in grey or three colours, of 8 bits, and not larger than
    PIL takes. Only headers are looked at.
    """
    place, end = 2, len(data) - 10
    if data[:2] != b"\xff\xd8":
        return None
    while place < end and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _START_OF_FRAME:
            height, width = (
                data[place + 5] << 8 | data[place + 6],
                data[place + 7] << 8 | data[place + 8],
            )
            usual = (
                data[place + 4] == 8
                and data[place + 9] in (1, 3)
                and height * width <= (Image.MAX_IMAGE_PIXELS or float("inf"))
            )
            return (height, width) if usual else None
        place += (
            2 + (data[place + 2] << 8 | data[place + 3]) if marker != 0xFF else 1
        )  # bytes 0xff may fill the gap between segments
    return None


def _decode_part(
    data: bytes, size: tuple[int, int], buffer: np.ndarray | None, region: Region
) -> np.ndarray | None:
    """Return an image in which the needed part is decoded; None where only the decoders of whole
    images can tell.
    """
    height, width = size
    if min(size) < _WORTH_IT:
        return None
    count = 3 * height * width
    pixels = (
        buffer[:count] if buffer is not None and len(buffer) >= count else np.empty(count, np.uint8)
    ).reshape(height, width, 3)
    return pixels if native.decode_region(data, region(height, width), out=pixels) else None


def read_rgb(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Decode an image to RGB, as torchvision's default loader and the official code do.

    Two things differ from a bare ``convert("RGB")``: grey values of 16 bits keep their 8 upper bits
    (PIL would cut them off at 255 and make the image white), and pixels that have no known range
    (32 bits, float) are refused. As there, transparency is dropped and EXIF's orientation is not
    applied.

    Args:
        file: Path, or a binary file.

    Raises:
        OSError, SyntaxError, ValueError, DecompressionBombError: If it cannot be decoded; they are
            :data:`UNREADABLE`.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return read_rgb(opened)
    try:
        with Image.open(file) as image:
            return _to_rgb(image)
    except _LEAKS as error:
        raise ValueError(f"damaged image ({type(error).__name__}: {error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    ):  # older versions of PIL say I
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"pixels of mode {image.mode!r} have no known range, expected 8 or 16 bits"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without a warning for each image
    return image.convert("RGB")


# What the code under PIL lets through when a header is damaged: seen, or to be expected, on
# randomly changed files.
_LEAKS = (TypeError, LookupError, EOFError, ArithmeticError, struct.error, zlib.error)

# What PIL raises for files that are truncated, are no image, or claim absurd sizes.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
