"""Decoding of images, shared by pre-training and detection.

simplejpeg (libjpeg-turbo with the exact DCT and smooth upsampling, as in PIL) decodes JPEG of 8
bits in grey or three colours. PIL decodes everything else, and whatever simplejpeg rejects. On 200
ImageNet images no pixel differs between the two.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
import struct
import tokenize
import warnings
import zlib
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ...runtime.errors import InputError, MissingFileError
from ...runtime.files import regular
from ...runtime.text import nature_of

try:
    import simplejpeg
except ImportError:  # a platform without its wheel
    simplejpeg = None

logger = logging.getLogger(__name__)

PIXEL_LIMIT = "MOCO_TRANSFER_MAX_PIXELS"
"""Environment variable: pixels of the largest image that is decoded; by default PIL's limit."""

BUFFER_BYTES = 64 << 20
"""For 21 million pixels; unused pages take no memory."""

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What PIL raises for files that are truncated, are no image, or claim absurd sizes."""

# What PIL's own code lets through when a header is damaged, seen on randomly changed files.
LEAKS = (TypeError, LookupError, EOFError, ArithmeticError, struct.error, zlib.error)
_USUAL = ("Gray", "YCbCr", "RGB")  # what simplejpeg calls the colour spaces; not CMYK and YCCK
_NPY, _JPEG = b"\x93NUMPY", b"\xff\xd8"


def set_pixel_limit() -> None:
    """Let PIL, here and in Detectron2, decode images of as many pixels as :data:`PIXEL_LIMIT` says.
    InputError if that is no number.
    """
    text = os.environ.get(PIXEL_LIMIT, "")
    if not text:
        return
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InputError(f"{PIXEL_LIMIT} is {text!r}, expected a number of pixels.")
    Image.MAX_IMAGE_PIXELS = -(-int(text) // 2)  # PIL warns above it and refuses above twice that
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


set_pixel_limit()


def decode_pixels(
    data: bytes | memoryview, buffer: np.ndarray | None = None, *, upright: bool = False
) -> np.ndarray:
    """Return the pixels of :func:`read_rgb`, uint8 (H, W, 3), perhaps read-only; raises one of
    :data:`UNREADABLE` if that fails.

    Args:
        data: The file's bytes; also a ``.npy`` file of uint8 (H, W, 3), which is not copied.
        buffer: uint8 (n,), which the result may lie in, to reuse its memory.
        upright: Whether to turn the image as its EXIF orientation says.
    """
    if is_npy(data):
        start = 10 + int.from_bytes(data[8:10], "little")
        shape = _npy_shape(bytes(data[:start]))
        return np.frombuffer(data, np.uint8, 3 * shape[0] * shape[1], start).reshape(shape)
    if simplejpeg is not None and data[:2] == _JPEG:
        if upright and (orientation := orientation_of(data)) != 1:
            return np.asarray(_turned(Image.fromarray(decode_pixels(data, buffer)), orientation))
        # ValueError: PIL reads it or explains; or the buffer is too small.
        with contextlib.suppress(ValueError):
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours in _USUAL and height * width <= (Image.MAX_IMAGE_PIXELS or float("inf")):
                return simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
    return np.asarray(read_rgb(data, upright=upright))


def is_npy(data: bytes | memoryview) -> bool:
    """Return whether a file is a numpy array."""
    return data[:6] == _NPY


def encode_npy(pixels: np.ndarray) -> bytes:
    """Return uint8 (H, W, 3) as a ``.npy`` file, the raw form of an image in a shard."""
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return file.getvalue()


@functools.lru_cache(maxsize=4096)
def _npy_shape(header: bytes) -> tuple[int, ...]:
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("expected version 1.0 of the .npy format")
    try:
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except tokenize.TokenError as error:  # numpy's second reader, of old headers
        raise ValueError(f"damaged header of a .npy file ({error})") from error
    if fortran_order or dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"expected uint8 (H, W, 3) in C order, got {dtype} {shape}")
    return shape


def orientation_of(file: str | os.PathLike[str] | bytes | memoryview) -> int:
    """Return an image's EXIF orientation, 1 to 8; 1, upright, where it does not say or is
    damaged.
    """
    opened: Any = file
    if isinstance(file, (bytes, memoryview)):
        if is_npy(file) or file[:2] == _JPEG and b"Exif" not in bytes(file[: 1 << 16]):
            return 1  # without PIL, which takes far longer
        opened = io.BytesIO(file)
    with contextlib.suppress(Exception):  # damaged EXIF raises nearly anything; pixels are good
        with Image.open(regular(opened)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in range(1, 9) else 1
    return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def read_rgb(
    file: str | os.PathLike[str] | IO[bytes] | bytes | memoryview, *, upright: bool = False
) -> Image.Image:
    """Decode an image to RGB, as torchvision's default loader and the official code do; raises one
    of :data:`UNREADABLE` if that fails.

    Two things differ from a bare ``convert("RGB")``: grey values of 16 bits keep their 8 upper bits
    (PIL would clip them at 255), and pixels without a known range (32 bits, float) are rejected.
    Transparency is dropped; ``upright`` turns the image as its EXIF orientation says, which the
    official code does not. A TIFF is always turned: PIL does it.
    """
    if isinstance(file, (bytes, memoryview)):
        if is_npy(file):
            return Image.fromarray(decode_pixels(file))
        file = io.BytesIO(file)
    try:
        with Image.open(regular(file)) as image:
            orientation = 1
            if upright and image.format != "TIFF":
                with contextlib.suppress(Exception):  # as in orientation_of
                    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            pixels = _to_rgb(image)
            return pixels if orientation == 1 else _turned(pixels, orientation)
    except Image.UnidentifiedImageError as error:
        raise ValueError(unknown_format(file)) from error
    except Image.DecompressionBombError as error:
        number = (re.findall(r"\d+", str(error)) or ["?"])[0]
        raise Image.DecompressionBombError(
            f"it has {number} pixels, more than PIL's limit against decompression bombs; if you"
            f" trust the file, set {PIXEL_LIMIT}={number} in the environment"
        ) from error
    except LEAKS as error:
        raise ValueError(f"damaged image ({type(error).__name__}: {error})") from error


def unknown_format(file: str | os.PathLike[str] | IO[bytes]) -> str:
    """Return why PIL does not know a file's format, which it names by an address in memory."""
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return unknown_format(opened)
    file.seek(0)
    head = file.read(512)
    begins = f"in no format that PIL knows, it begins with {head[:12]!r}"
    return f"it is {nature_of(head) or begins}"


def has_16_bits(file: str | os.PathLike[str] | IO[bytes]) -> bool:
    """Return whether an image that can be read has 16 bits of grey."""
    with Image.open(regular(file)) as image:
        return _is_16_bits(image)


def _is_16_bits(image: Image.Image) -> bool:
    # Older versions of PIL use mode I for 16 bits.
    return image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM")


def upper_bits(values: np.ndarray) -> np.ndarray:
    """Return the 8 upper bits of values of 16, as uint8; warns once of what looks like 12."""
    if values.max() < 1 << 12:
        _warn_of_12_bits()
    return (values >> 8).astype(np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if _is_16_bits(image):
        return Image.fromarray(upper_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range, use 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without a warning for each image
    return image.convert("RGB")


def read_size(path: str, *, as_stored: bool = False) -> tuple[int, int]:
    """Return (height, width) of what :func:`read_image` returns, or of the pixels before they are
    turned upright, where possible from the header alone; InputError if the image cannot be read.
    """
    is_turned = orientation_of(path) >= 5
    try:
        with Image.open(regular(path)) as header:
            width, height = header.size
            if is_turned and header.format == "TIFF":  # whose size PIL's versions give either way
                raise ValueError
    except Exception:  # another form than PIL reads, or damaged: the decoder says which
        height, width = read_image(path, "RGB").shape[:2]
        is_turned, as_stored = is_turned and as_stored, False
    return (width, height) if is_turned and not as_stored else (height, width)


@functools.cache
def _warn_of_12_bits() -> None:
    logger.warning(
        "an image of 16 bits has no value above 4095, as 12-bit data have: it is nearly black,"
        " because the upper 8 bits are used; multiply such images by 16 (see check-data)"
    )


def read_image(path: str, colour_order: str) -> np.ndarray:
    """Read an image for detection, rotated upright as its EXIF orientation says; returns uint8
    (H, W, 3), perhaps read-only. InputError if it cannot be read, or ``colour_order`` is neither
    ``RGB`` nor ``BGR``.
    """
    if colour_order not in ("RGB", "BGR"):
        raise InputError(f"INPUT.FORMAT is {colour_order!r}, expected RGB or BGR.")
    try:
        with open(regular(path), "rb", buffering=0) as file:
            pixels = decode_pixels(file.read(), upright=True)
    except FileNotFoundError as error:
        broken = f" It is a link to {os.readlink(path)}." if os.path.islink(path) else ""
        raise MissingFileError(f"The image {path} does not exist.{broken}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"The image {path} is not decoded: {error}.") from error
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"The image {path} cannot be decoded ({reason}). Replace it.") from error
    return pixels if colour_order == "RGB" else pixels[:, :, ::-1]
