"""From the records of a batch to one padded tensor and the ground truth on the model's device.

Shapes in this module:
    N: images    G: ground-truth objects of one image    H, W: common padded size in px    h, w: an
        image's own size in px
Conventions:
    Boxes are XYXY in px of the resized image, 0-based, float32.
Source:
    Behaviour checked against facebookresearch/detectron2@02b5c4e
    detectron2/structures/image_list.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageList:
    """Images of different sizes in one tensor.

    Attributes:
        tensor: (N, 3, H, W); zeros right of and below each image.
        sizes: (h, w) of each image before padding.
    """

    tensor: Tensor
    sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class GroundTruth:
    """The objects of one image.

    Attributes:
        boxes: (G, 4) float32.
        classes: (G,) int64, contiguous ids from 0.
        polygons: For each object a list of polygons [x0, y0, x1, y1, ...] in px of the resized
            image; None without masks.
    """

    boxes: Tensor
    classes: Tensor
    polygons: list[list[Any]] | None


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
    batch = torch.zeros(
        len(images), 3, height, width, device=images[0].device, dtype=images[0].dtype
    )
    batch = batch.contiguous(memory_format=memory_format)
    for slot, image, (h, w) in zip(batch, images, sizes, strict=True):
        slot[:, :h, :w].copy_(image)
    return ImageList(batch, sizes)


def read_ground_truth(
    record: Mapping[str, Any], *, device: torch.device, with_masks: bool
) -> GroundTruth:
    """Return the objects of one training record.

    Args:
        record: With "gt_boxes" (G, 4), "gt_classes" (G,) and, if masks are trained, "gt_masks" (G
            lists of polygons).
        device: Where the tensors are wanted.
        with_masks: Whether the model trains a mask head.

    Raises:
        KeyError: If a key is missing; the data set's mapper, not a user, is then wrong.
    """
    boxes = torch.as_tensor(record["gt_boxes"], dtype=torch.float32, device=device).reshape(-1, 4)
    classes = torch.as_tensor(record["gt_classes"], dtype=torch.int64, device=device)
    return GroundTruth(boxes, classes, list(record["gt_masks"]) if with_masks else None)
