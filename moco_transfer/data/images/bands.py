"""Images of one or of several channels, for pre-training with DATA.CHANNELS.

A grey image is read as any other, turned into grey as PIL does, and held as three equal channels:
the operators for colours serve it too. Bands come from:
    .npy           uint8 or uint16 (H, W, N)
    TIFF           as many samples or pages; needs the package tifffile, because PIL and OpenCV
                   return the first band of some files without a word
    RGBA, CMYK …   any image that PIL opens with N bands of 8 bits
Of 16 bits the 8 upper ones are kept, as everywhere.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .decode import LEAKS, decode_pixels, is_npy, orientation_of, unknown_format, upper_bits

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def held_channels(channels: int) -> int:
    """Return the channels of an image in memory: 3 for grey."""
    return 3 if channels == 1 else channels


def decode_channels(
    data: bytes | memoryview,
    channels: int,
    buffer: np.ndarray | None = None,
    *,
    upright: bool = False,
) -> np.ndarray:
    """Return pixels, uint8 (H, W, C), perhaps read-only, with C of :func:`held_channels`; the
    arguments are those of :func:`decode_pixels`, which decodes ``channels`` 3.

    Raises one of ``decode.UNREADABLE`` if that fails or the image has another number of bands.
    """
    if channels == 3:
        return decode_pixels(data, buffer, upright=upright)
    if channels == 1 and not is_npy(data):
        pixels = decode_pixels(data, buffer, upright=upright)
        return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
    pixels = _bands(data, upright)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] != channels or 0 in pixels.shape:
        raise ValueError(f"it is {pixels.shape}, expected (H, W, {channels}) by DATA.CHANNELS")
    if pixels.dtype == np.uint16:
        pixels = upper_bits(pixels)
    if pixels.dtype != np.uint8:
        raise ValueError(f"its values are {pixels.dtype}, expected uint8 or uint16")
    return np.repeat(pixels, 3, axis=2) if channels == 1 else np.ascontiguousarray(pixels)


def _bands(data: bytes | memoryview, upright: bool) -> np.ndarray:
    if is_npy(data):
        return np.load(io.BytesIO(data), allow_pickle=False)
    if bytes(data[:4]) not in _TIFF:
        try:
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(image)
        except Image.UnidentifiedImageError as error:
            raise ValueError(unknown_format(io.BytesIO(data))) from error
    if upright and orientation_of(data) != 1:
        raise ValueError("its orientation tag is not applied to bands; save it upright")
    try:
        import tifffile
    except ImportError as error:
        needs = "a TIFF of several bands needs tifffile: pip install 'moco-transfer[bands]'"
        raise ValueError(needs) from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            pixels = series.asarray()
    except (tifffile.TiffFileError, *LEAKS) as error:
        raise ValueError(f"damaged TIFF ({type(error).__name__}: {error})") from error
    return pixels if series.axes.endswith("S") else np.moveaxis(pixels, 0, -1)
