"""The random parameters of a view, drawn in one place, and the published chain that applies them.

Drawing is separate from applying, so that every way of applying uses the same numbers and can be
compared image by image. Distributions are torchvision's, whose transforms the official code uses.

Recipes:
    v1: crop, grey p 0.2, jitter (0.4, 0.4, 0.4, hue 0.4) always, flip. arXiv:1911.05722 Sec. 3.3;
        facebookresearch/moco@7397dfe main_moco.py.
    v2: crop, jitter (0.4, 0.4, 0.4, hue 0.1) p 0.8, grey p 0.2, blur sigma U(0.1, 2) p 0.5, flip.
        arXiv:2003.04297; same file, ``--aug-plus``.
    cifar: v2 without the blur. The official CIFAR-10 demo (facebookresearch/moco branch
        colab-notebook @f736491); its flip comes before the jitter, which gives the same pixels.
    supervised: crop, flip.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F

_RATIO = (3 / 4, 4 / 3)  # aspect ratios of torchvision's RandomResizedCrop
_LOG_RATIO = (math.log(_RATIO[0]), math.log(_RATIO[1]))
_JITTER = ("brightness", "contrast", "saturation", "hue")
_ADJUST = {name: getattr(F, f"adjust_{name}") for name in _JITTER}


@dataclass(frozen=True)
class Recipe:
    """What a view may undergo, with which probability."""

    jitter: tuple[float, float, float, float]  # as torchvision's ColorJitter takes it
    jitter_p: float
    grey_p: float
    blur_p: float
    grey_first: bool  # grey before the jitter (v1) or after it (v2)

    @functools.cached_property
    def jitter_ranges(self) -> tuple[tuple[str, float, float], ...]:
        """Operation, lowest and highest factor, in the order in which they are drawn."""
        *strengths, hue = self.jitter
        ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
        return tuple(
            (name, *ends) for name, ends in zip(_ADJUST, [*ranges, (-hue, hue)], strict=True)
        )


RECIPES = {
    "v1": Recipe((0.4, 0.4, 0.4, 0.4), jitter_p=1.0, grey_p=0.2, blur_p=0.0, grey_first=True),
    "v2": Recipe((0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=0.5, grey_first=False),
    "cifar": Recipe((0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=0.0, grey_first=False),
    "supervised": Recipe((0.0,) * 4, jitter_p=0.0, grey_p=0.0, blur_p=0.0, grey_first=False),
}


class ViewParameters(NamedTuple):
    """One view's random numbers."""

    crop: tuple[int, int, int, int]  # (top, left, height, width), px of the source image
    flip: bool
    grey: bool
    jitter: tuple[tuple[str, float], ...]  # operations in random order, (name, factor), or empty
    blur_sigma: float  # px; 0.0 for none


def draw_parameters(
    rng: np.random.Generator,
    height: int,
    width: int,
    recipe: Recipe,
    crop_scale: tuple[float, float],
) -> ViewParameters:
    """Draw one view's parameters for an image of ``height`` x ``width`` px, distributed as
    torchvision's RandomResizedCrop, RandomGrayscale, ColorJitter and RandomHorizontalFlip. A crop
    covers the share ``crop_scale``, (low, high], of the area.
    """
    # low + (high - low) * random() is what rng.uniform(low, high) returns, in a tenth of the time
    random = rng.random
    crop = _draw_crop(rng, height, width, crop_scale)
    jitter: tuple[tuple[str, float], ...] = ()
    if recipe.jitter_p > 0 and random() < recipe.jitter_p:
        ranges = recipe.jitter_ranges
        factors = [(name, low + (high - low) * random()) for name, low, high in ranges]
        jitter = tuple(factors[i] for i in rng.permutation(4))
    grey = recipe.grey_p > 0 and random() < recipe.grey_p
    blurred = recipe.blur_p > 0 and random() < recipe.blur_p
    blur_sigma = 0.1 + (2.0 - 0.1) * random() if blurred else 0.0
    return ViewParameters(crop, random() < 0.5, grey, jitter, blur_sigma)


def _draw_crop(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    # Ten tries, then the largest centred crop with a legal aspect ratio:
    # RandomResizedCrop.get_params of torchvision 0.26.
    random, (low, high) = rng.random, scale
    for _ in range(10):
        area = height * width * (low + (high - low) * random())
        ratio = math.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * random())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    w, h = width, height
    if width / height < _RATIO[0]:
        h = round(w / _RATIO[0])
    elif width / height > _RATIO[1]:
        w = round(h * _RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def apply_reference(
    image: Image.Image, parameters: ViewParameters, size: int, grey_first: bool
) -> np.ndarray:
    """Apply a view's parameters with PIL through torchvision, as the published code does; returns
    uint8 (size, size, 3), RGB.
    """
    view = F.resized_crop(image, *parameters.crop, [size, size], F.InterpolationMode.BILINEAR)
    if parameters.grey and grey_first:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    for name, factor in parameters.jitter:
        view = _ADJUST[name](view, factor)
    if parameters.grey and not grey_first:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    if parameters.blur_sigma > 0:
        view = view.filter(ImageFilter.GaussianBlur(radius=parameters.blur_sigma))
    return np.asarray(F.hflip(view) if parameters.flip else view)


def centre_view(image: Image.Image | np.ndarray, *, size: int, resize: int) -> np.ndarray:
    """Return the view of evaluation, uint8 (size, size, C): the shorter side resized to ``resize``
    px (256 for 224 in the linear protocol), then the centre cropped. An array (H, W, C) of bands is
    resized by torch, within a level of PIL.
    """
    if isinstance(image, np.ndarray):
        planes = torch.from_numpy(image.copy()).permute(2, 0, 1)
        resized = F.resize(planes, [resize], F.InterpolationMode.BILINEAR, antialias=True)
        return F.center_crop(resized, [size, size]).permute(1, 2, 0).numpy()
    resized = F.resize(image, [resize], F.InterpolationMode.BILINEAR)
    return np.asarray(F.center_crop(resized, [size, size]))
