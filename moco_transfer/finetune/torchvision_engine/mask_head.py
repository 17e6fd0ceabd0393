"""Second stage for masks: network on pooled regions, targets, loss, and pasting.

Shapes in this module:
    F: foreground regions    D: detections of one image    K: classes
    S: side of a predicted mask, in cells    H, W: size of the original image in px

Source:
    He et al. 2017, arXiv:1703.06870, Sec. 3. Behaviour checked against
    facebookresearch/detectron2@02b5c4e modeling/roi_heads/mask_head.py, structures/masks.py and
    layers/mask_ops.py. Difference: pasting interpolates rows and columns by two matrix products,
    as bilinear interpolation is separable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.ops import roi_align

from ...data.batches.transforms import draw_polygons
from ...runtime.device import sent
from .box_head import Detections
from .layers import ConvNorm, init_normal
from .sampling import GroundTruth, SampledRegions


class MaskHead(nn.Module):
    """3x3 convolutions (0 in C4), a transposed one that doubles the size, a 1x1 to class logits.

    State-dict keys: ``mask_fcn1``, ..., ``deconv``, ``predictor``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_conv: int,
        conv_dim: int,
        norm: str = "",
        cls_agnostic_mask: bool = False,
    ) -> None:
        super().__init__()
        self.convs = [f"mask_fcn{index}" for index in range(1, num_conv + 1)]
        for name in self.convs:
            conv = ConvNorm(in_channels, conv_dim, 3, norm=norm, relu=True)
            c2_msra_fill(conv)
            self.add_module(name, conv)
            in_channels = conv_dim
        self.deconv = nn.ConvTranspose2d(in_channels, conv_dim, kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(conv_dim, 1 if cls_agnostic_mask else num_classes, kernel_size=1)
        c2_msra_fill(self.deconv)
        init_normal(self.predictor, std=0.001)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return each region's logits for its own class (F,), (F, S, S) float32.

        x is (F, C, S / 2, S / 2). A class-agnostic head does not look at the classes.
        """
        for name in self.convs:
            x = getattr(self, name)(x)
        x = F.relu_(self.deconv(x))
        if self.predictor.out_channels == 1:
            return self.predictor(x)[:, 0].float()
        # Of the K maps of the 1x1 convolution only the own class's is ever read.
        own = self.predictor.weight.flatten(1)[classes]
        logits = torch.einsum("fchw,fc->fhw", x, own.to(x.dtype))
        bias: Any = self.predictor.bias
        return logits.float() + bias[classes].view(-1, 1, 1)

    def loss(
        self, logits: Tensor, objects: Sequence[SampledRegions], truth: Sequence[GroundTruth]
    ) -> Tensor:
        """Return the mean binary cross-entropy of logits (F, S, S) of all images' objects."""
        if logits.shape[0] == 0:
            return logits.sum() * 0
        targets = [
            mask_targets(truth_i.masks, found, size=logits.shape[-1])
            for found, truth_i in zip(objects, truth, strict=True)
        ]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(targets).to(logits))

    def predict(self, x: Tensor, detections: Sequence[Detections]) -> list[Detections]:
        """Return the detections with mask probabilities (D, S, S), for their pooled features x."""
        masks = self(x, torch.cat([d.classes for d in detections])).sigmoid()
        counts = [len(d.boxes) for d in detections]
        return [replace(d, masks=m) for d, m in zip(detections, masks.split(counts), strict=True)]


def mask_targets(masks: Sequence[Any], regions: SampledRegions, *, size: int) -> Tensor:
    """Return what the mask of each region (F) of an image should be, (F, size, size) uint8 of 0
    and 1, from its objects' masks (``GroundTruth.masks``).
    """
    boxes, numbers = regions.boxes, regions.target_index.tolist()
    drawn = np.zeros((len(boxes), size, size), np.uint8)
    of_rle: dict[int, list[int]] = {}
    for place, (number, box) in enumerate(zip(numbers, boxes.cpu().numpy(), strict=True)):
        if isinstance(masks[number], dict):
            of_rle.setdefault(number, []).append(place)
        else:
            drawn[place] = rasterize(masks[number], box, size=size)
    targets = sent(torch.from_numpy(drawn), boxes.device)
    for number, places in of_rle.items():  # an RLE is decoded once, and one at a time
        chosen = sent(torch.tensor(places), boxes.device)
        targets[chosen] = crop_and_resize(masks[number], boxes[chosen], size=size)
    return targets


def crop_and_resize(rle: dict, boxes: Tensor, *, size: int) -> Tensor:
    """Read an RLE of the image on a grid over each of the boxes (F, 4); return (F, size, size)
    uint8, 1 where at least half of a cell's samples lie on the mask.
    """
    pixels = sent(torch.from_numpy(coco_mask.decode(rle)), boxes.device).float()
    shares = roi_align(pixels[None, None], [boxes.float()], size, aligned=True)
    return (shares[:, 0] >= 0.5).byte()


def rasterize(polygons: Sequence, box: np.ndarray, *, size: int) -> np.ndarray:
    """Draw polygons, px of the image, on a grid over a box (4,); return (size, size) of 0 and 1."""
    sides = (box[2:] - box[:2]).astype(np.float64)
    scale = size / np.maximum(sides, 0.1)  # a box without area must not divide by 0
    corners = [np.asarray(p, np.float64).reshape(-1, 2) for p in polygons]
    drawn = [((xy - box[:2].astype(np.float64)) * scale).ravel().tolist() for xy in corners]
    return coco_mask.decode(draw_polygons(drawn, size, size))


def paste_masks(masks: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return the pixels, (D, H, W) bool, where masks (D, S, S) on their boxes reach 0.5."""
    height, width = image_size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    bounds = boxes.cpu()
    starts = (bounds[:, :2].floor() - 1).clamp(min=0).long().tolist()
    ends = torch.minimum(bounds[:, 2:].ceil() + 1, torch.tensor([width, height])).long().tolist()
    with torch.autocast(masks.device.type, enabled=False):
        for index, ((x0, y0), (x1, y1)) in enumerate(zip(starts, ends, strict=True)):
            box = boxes[index]
            rows = _interpolation_weights(y0, y1, low=box[1], high=box[3], cells=masks.shape[-2])
            columns = _interpolation_weights(x0, x1, low=box[0], high=box[2], cells=masks.shape[-1])
            pasted[index, y0:y1, x0:x1] = rows @ masks[index].float() @ columns.T >= 0.5
    return pasted


def _interpolation_weights(
    start: int, end: int, *, low: Tensor, high: Tensor, cells: int
) -> Tensor:
    """Return (end - start, cells): the weight of each cell from ``low`` to ``high`` at each pixel,
    linear between the cells' centres and 0 one cell beyond them.
    """
    pixels = torch.arange(start, end, device=low.device, dtype=torch.float32) + 0.5
    position = (pixels - low) / (high - low) * cells - 0.5
    cell = torch.arange(cells, device=low.device, dtype=torch.float32)
    return (1 - (position[:, None] - cell).abs()).clamp(min=0)
