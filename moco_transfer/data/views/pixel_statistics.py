"""Mean and standard deviation of the pixels of a set of images, channel by channel."""

from __future__ import annotations

import logging

import numpy as np

from ...runtime.errors import InputError
from ..images.bands import decode_channels
from ..images.decode import UNREADABLE
from ..images.image_source import IndexedSource

logger = logging.getLogger(__name__)

IMAGES = 500  # that are read, evenly spaced


def measure_pixels(
    source: IndexedSource, *, channels: int, upright: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, 0-255, over all pixels of up to
    :data:`IMAGES` images; images that cannot be read are left out.

    InputError if none can be read, or a channel has one value everywhere.
    """
    count, sums, squares, reason = 0, np.zeros(channels), np.zeros(channels), ""
    for index in np.unique(np.linspace(0, len(source) - 1, IMAGES, dtype=np.int64)).tolist():
        try:
            data = source.content(index)
            pixels = decode_channels(data, channels, upright=upright)[:, :, :channels]
        except UNREADABLE as error:
            reason = reason or f"{source.name(index)}: {error}"
            continue
        values = pixels.reshape(-1, channels).astype(np.float64)
        count, sums, squares = (
            count + len(values),
            sums + values.sum(0),
            squares + (values**2).sum(0),
        )
    if count == 0:
        raise InputError(f"DATA.PIXEL_MEAN () cannot be measured, no image can be read: {reason}.")
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    if std.min() < 1e-3:
        raise InputError(
            f"DATA.PIXEL_STD () cannot be measured: channel {int(std.argmin())} of the images has"
            f" the value {mean[std.argmin()]:g} everywhere. Leave it out, or give the statistics."
        )
    found = tuple(mean.round(3).tolist()), tuple(std.round(3).tolist())
    logger.info("pixels measured: mean %s, standard deviation %s", *found)
    return found
