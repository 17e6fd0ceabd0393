"""From the records of a batch to one padded tensor, and to ground truth on the model's device.

Shapes in this module:
    N: images    G: ground-truth objects of one image    H, W: common padded size in px
    h, w: an image's own size in px
Source:
    Behaviour checked against facebookresearch/detectron2@02b5c4e structures/image_list.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageList:
    """Images of different sizes in one tensor (N, 3, H, W), and the (h, w) of each.

    ``tensor`` is zero right of and below each image.
    """

    tensor: Tensor
    sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class GroundTruth:
    """The objects of one image."""

    boxes: Tensor  # (G, 4) float32, XYXY in px of the resized image
    classes: Tensor  # (G,) int64, contiguous ids from 0
    polygons: list[list[Any]] | None  # of each object [x0, y0, x1, y1, ...]; None without masks

    @classmethod
    def read(
        cls, record: Mapping[str, Any], *, device: torch.device, with_masks: bool
    ) -> GroundTruth:
        """Return the objects of a training record, from its "gt_*" entries."""
        boxes = torch.as_tensor(record["gt_boxes"], dtype=torch.float32, device=device)
        classes = torch.as_tensor(record["gt_classes"], dtype=torch.int64, device=device)
        polygons = list(record["gt_masks"]) if with_masks else None
        return cls(boxes.reshape(-1, 4), classes, polygons)


def pad_images(
    images: Sequence[Tensor], *, divisibility: int, memory_format: torch.memory_format
) -> ImageList:
    """Put images into the upper left corners of one zero tensor.

    Args:
        images: Each (3, h, w) float32, already normalised, so that the padding is the mean colour.
        divisibility: H and W become multiples of it; 0 or 1 means the largest h and w as they are.
        memory_format: Of the tensor; features keep it through the network.
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    step = max(divisibility, 1)
    height, width = (-(-max(side) // step) * step for side in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), 3, height, width)
    batch = batch.contiguous(memory_format=memory_format)
    for slot, image, (h, w) in zip(batch, images, sizes, strict=True):
        slot[:, :h, :w].copy_(image)
    return ImageList(batch, sizes)
