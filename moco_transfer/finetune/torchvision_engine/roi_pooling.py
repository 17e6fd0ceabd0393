"""RoIAlign over one feature map or the levels of a pyramid.

Shapes in this module:
    N: images    L: feature levels    C: channels    M: boxes of all images together    P: side of a
        pooled region, in cells
Conventions:
    Boxes are XYXY in px of the resized image, float32.
Source:
    He et al. 2017, arXiv:1703.06870, Sec. 3; Lin et al. 2017, arXiv:1612.03144, Eq. (1) for the
    level of a box. Behaviour checked against facebookresearch/detectron2@02b5c4e
    detectron2/modeling/poolers.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moco_transfer.finetune.torchvision_engine.box_coding import area
from moco_transfer.finetune.torchvision_engine.roi_align import CellGrid, roi_align

# A box of 224 px, the size of ImageNet's crops, is read from level 4 (stride 16), where ImageNet's
# networks read it.
_CANONICAL_SIZE = 224
_CANONICAL_LEVEL = 4


def assign_levels(boxes: Tensor, *, min_level: int, max_level: int) -> Tensor:
    """Return for each box (M, 4) the offset of its pyramid level from ``min_level``, (M,) int64."""
    size = area(boxes).sqrt()
    level = torch.floor(_CANONICAL_LEVEL + torch.log2(size / _CANONICAL_SIZE + 1e-8))
    return level.clamp(min_level, max_level).to(torch.int64) - min_level


class RoIPooler(nn.Module):
    """Reads a P x P grid of features for every box, from the pyramid level that fits the box's
    size.
    """

    def __init__(
        self,
        *,
        resolution: int,
        strides: Sequence[int],
        sampling_ratio: int = 0,
        aligned: bool = True,
    ) -> None:
        """Build.

        Args:
            resolution: P.
            strides: Of the feature maps, finest first, powers of 2 that double from level to level.
            sampling_ratio: Samples per cell and axis; 0 takes as many as there are feature cells
                under it.
            aligned: True is Detectron2's ROIAlignV2, whose pixel centres lie at .5; False is the
                older ROIAlign.
        """
        super().__init__()
        self.resolution = resolution
        self.strides = tuple(strides)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.min_level, self.max_level = (
            int(math.log2(stride)) for stride in (strides[0], strides[-1])
        )

    def forward(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], *, step: int = 1
    ) -> Tensor:
        """Return (M, C, P, P) in the order of the boxes, image after image.

        Args:
            features: One (N, C, Hl, Wl) for each stride.
            boxes: One (Ri, 4) for each image.
            step: Keep every ``step``-th cell along both sides only: what a convolution of that
                stride and kernel size 1 reads.
        """
        owner = torch.repeat_interleave(
            torch.arange(len(boxes), device=boxes[0].device),
            torch.tensor([len(b) for b in boxes], device=boxes[0].device),
        )
        every_box = torch.cat(list(boxes))
        rois = torch.cat([owner[:, None].to(every_box), every_box], dim=1)
        grids = [
            CellGrid(self.resolution, 1.0 / stride, self.sampling_ratio, self.aligned, step)
            for stride in self.strides
        ]
        if len(features) == 1:
            return roi_align(features[0], rois, grids[0])
        levels = assign_levels(every_box, min_level=self.min_level, max_level=self.max_level)
        order = torch.argsort(levels, stable=True)
        counts = torch.bincount(levels, minlength=len(features)).tolist()
        pooled = [
            roi_align(feature, rois[index], grid)
            for feature, index, grid in zip(features, order.split(counts), grids, strict=True)
        ]
        # order[i] is the box that lies at place i; its inverse says at which place box j lies.
        return torch.cat(pooled).index_select(0, torch.argsort(order))
