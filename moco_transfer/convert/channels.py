"""Weights for images of one or of several channels, made from weights for RGB.

The first convolution alone changes, and it stays linear: of grey images its filters are the sums
over R, G and B, so that a grey image gives the features of its RGB copy; of N bands they are R, G,
B, R, ... times 3/N, so that N equal bands do. Weights for grey
images are read as weights for RGB; those for N bands stay as they are.

Source: timm 1.0 models/_manipulate.py adapt_input_conv, which repeats and scales likewise.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models import BANDS
from ..runtime.errors import InputError
from .formats import Source

logger = logging.getLogger(__name__)

_STEM = "conv1.weight"
_TARGETS = ("torchvision", "timm", "huggingface")


def check_channels(channels: int, to: str) -> None:
    """Raise InputError for a number of channels that is none, or that a target's network lacks."""
    if not 1 <= channels <= 64:
        raise InputError(f"--input-channels {channels}: expected 1 (grey) to 64.")
    if channels != 3 and to not in _TARGETS:
        raise InputError(
            f"--input-channels {channels} does not go with --to {to}: detectors and the official"
            f" tools read 3 channels here; use --to {', '.join(_TARGETS)}."
        )


def channels_of(source: Source) -> int:
    """Return the channels of the images that an encoder takes; 3 where it has no square filters,
    as TensorFlow's (H, W, in, out) are none.
    """
    stem = source.state.get(_STEM)
    if stem is None or stem.ndim != 4 or stem.shape[2] != stem.shape[3]:
        return 3
    return int(stem.shape[1])


def channels_to_write(source: Source, asked: int, to: str) -> int:
    """Return the channels of the file to write, of an encoder for RGB or for N bands. InputError
    where N bands cannot become ``asked`` channels, or the target reads 3 alone.
    """
    own = channels_of(source)
    if own == 3:
        return asked
    if to not in _TARGETS or asked not in (3, own):
        raise InputError(
            f"{source.title} takes images of {own} bands, which --to {to} with --input-channels"
            f" {asked} cannot hold: detectors and the official tools read 3 channels here; use --to"
            f" {', '.join(_TARGETS)}."
        )
    return own


def _mixing(channels: int) -> Tensor:
    """Return (3, channels): how much of R, G and B each new channel is."""
    if channels == 1:
        return torch.ones(3, 1)
    return torch.eye(3).repeat(1, channels)[:, :channels] * (3 / channels)


def rgb_weights(source: Source) -> Source:
    """Return an encoder for grey images as one for RGB, whose filters are a third each: copies of a
    grey image in R, G and B have its features. Any other encoder is returned as it is.
    """
    stem = source.state.get(_STEM)
    if stem is None or rgb_filters(_STEM, stem) is stem:
        return source
    logger.warning("%s takes grey images; R, G and B get a third of each filter", source.title)
    return dataclasses.replace(source, state=source.state | {_STEM: rgb_filters(_STEM, stem)})


def rgb_filters(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor, changed if it is the first convolution of an encoder for grey images."""
    is_grey = name.endswith(_STEM) and tensor.ndim == 4 and tensor.shape[1] == 1
    return tensor.repeat(1, 3, 1, 1) / 3 if is_grey else tensor


def with_channels(source: Source, channels: int) -> Source:
    """Return an encoder whose first convolution takes images of this many channels."""
    if channels in (3, channels_of(source)):
        return source
    stem = source.state[_STEM]
    changed = torch.einsum("okhw,kc->ochw", stem.double(), _mixing(channels).double())
    return dataclasses.replace(source, state=source.state | {_STEM: changed.to(stem.dtype)})


def as_rgb(image: Tensor) -> Tensor:
    """Return the image (N, 3, H, W) whose features by the weights for RGB are those of ``image``
    (N, C, H, W) by the changed ones.
    """
    channels = image.shape[1]
    return image if channels == 3 else torch.einsum("nchw,kc->nkhw", image, _mixing(channels))


def stamp_of_channels(stamp: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Return the stamp with the number of channels: grey has the mean of the statistics, and those
    of other bands are not known.
    """
    stamp = dict(stamp)
    if stamp["format"] == "L":  # of a source for grey images
        stamp |= {"format": "RGB", **{k: 3 * stamp[k] for k in ("pixel_mean", "pixel_std")}}
    if channels == 3:
        return stamp
    if stamp["format"] == BANDS:  # of a source for bands
        return {**stamp, "input_channels": channels}
    grey = channels == 1 and stamp["format"] is not None
    pixels = {
        "format": "L" if grey else None,
        **{k: [sum(stamp[k]) / 3] if grey else None for k in ("pixel_mean", "pixel_std")},
    }
    return {**stamp, **pixels, "input_channels": channels}
