"""From a record of semantic segmentation to a training item: scale, crop, mirror and pad an image
together with its labels.

Shapes in this module:
    H, W: image after all changes, px; the crop's size where there is one
Source:
    He et al. 2019, arXiv:1911.05722, App. A.5 (scale 0.5 to 2, crop, flip), in the order of
    open-mmlab/mmsegmentation 0.x, with which CVMI-Lab/SlotCon does the same: resize, crop, flip,
    then fill what an image is smaller than the crop, on the right and below.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...runtime.errors import InputError
from ..annotations.semantic.labels import IGNORED, read_labels
from .transforms import (
    COPIED,
    ResizeAndFlip,
    TrainMapper,
    draw_shorter_edge,
    read_and_check,
    resized_shape,
    to_tensor,
)


@dataclass(frozen=True)
class SegmentationMapper(TrainMapper):
    """Turns a record into a training item; all that is drawn depends on the given generator.
    InputError if a size is illegal.
    """

    # Least and largest factor of the image's own size; empty for the shorter edges of TrainMapper.
    scale: tuple[float, ...] = field(default=(), kw_only=True)
    crop: tuple[int, ...] = field(default=(), kw_only=True)  # (height, width), px; empty for none
    pixel_mean: tuple[float, ...] = field(default=(0.0, 0.0, 0.0), kw_only=True)  # 0-255; fills

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale and (len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]):
            raise InputError(
                f"INPUT.RANDOM_SCALE is {list(self.scale)}; expected the least and the largest"
                " factor, above 0, such as (0.5, 2.0), or () for INPUT.MIN_SIZE_TRAIN."
            )
        if self.crop and (len(self.crop) != 2 or min(self.crop) < 1 or _fractions(self.crop)):
            raise InputError(
                f"INPUT.CROP.SIZE is {list(self.crop)}; expected height and width in px, such as"
                " [513, 513]."
            )

    def __call__(self, record: dict, rng: np.random.Generator) -> dict:
        """Return the training item of a record; draws the size, the crop, then the flip.

        Returns:
            ``image`` float32 (3, H, W), 0-255, filled with the mean; ``sem_seg`` int64 (H, W), 255
            for ignored and filled pixels; ``height``, ``width`` (int, as read); ``image_id``;
            ``file_name``.

        InputError if the image or the label image cannot be used.
        """
        pixels = read_and_check(record, self.image_format)
        labels = read_labels(record).astype(np.uint8)
        shape = pixels.shape[:2]
        change = ResizeAndFlip(shape, self._draw_shape(shape, rng))
        pixels = change.apply_image(pixels)
        labels = change.apply_image(labels, Image.Resampling.NEAREST)
        if self.crop:
            spare = [
                max(0, have - take) for have, take in zip(labels.shape, self.crop, strict=True)
            ]
            top, left = (int(rng.integers(0, most + 1)) for most in spare)
            place = slice(top, top + self.crop[0]), slice(left, left + self.crop[1])
            pixels, labels = pixels[place], labels[place]
        if self.flip != "none" and rng.random() < 0.5:
            axis = 1 if self.flip == "horizontal" else 0
            pixels, labels = np.flip(pixels, axis), np.flip(labels, axis)
        image, sem_seg = to_tensor(pixels), torch.from_numpy(labels.astype(np.int64))
        if self.crop:
            image, sem_seg = self._fill(image, sem_seg)
        return {**{key: record[key] for key in COPIED}, "image": image, "sem_seg": sem_seg}

    def _draw_shape(self, shape: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        if not self.scale:
            edge = draw_shorter_edge(self.min_sizes, self.sample_style, rng)
            return resized_shape(*shape, shorter_edge=edge, max_size=self.max_size)
        least, most = self.scale
        factor = rng.uniform(least, most)
        height, width = (max(1, int(side * factor + 0.5)) for side in shape)
        return height, width

    def _fill(self, image: Tensor, sem_seg: Tensor) -> tuple[Tensor, Tensor]:
        """Return both at the crop's size."""
        height, width = sem_seg.shape
        mean = torch.tensor(self.pixel_mean, dtype=torch.float32).view(3, 1, 1)
        filled, labels = mean.repeat(1, *self.crop), sem_seg.new_full(self.crop, IGNORED)
        filled[:, :height, :width], labels[:height, :width] = image, sem_seg
        return filled, labels


def _fractions(sizes: tuple[float, ...]) -> bool:
    return any(size != int(size) for size in sizes)
