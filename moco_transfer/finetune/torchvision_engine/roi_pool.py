"""RoIAlign over one feature map or the levels of a pyramid.

On a GPU it is torchvision's operator. On the CPU that sums sample by sample on one core, so here
the same sums are two small matrix products for each region, ``rows @ features @ columns.T``: both
the mean over a cell and bilinear samples are products of a part along y and a part along x.

Shapes in this module:
    N: images    C: channels    H, W: height and width of a feature map    M: boxes of all images
    P: cells along each side of a pooled region    Q: cells kept of them
Boxes are XYXY in px of the resized image, float32; a region is (image, x0, y0, x1, y1).

Source:
    He et al. 2017, arXiv:1703.06870, Sec. 3; Lin et al. 2017, arXiv:1612.03144, Eq. (1) for the
    level of a box. Behaviour checked against facebookresearch/detectron2@02b5c4e
    modeling/poolers.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import box_area

from ..sync_norm import at_least_float32

# A box of 224 px, the size of ImageNet's crops, is read from level 4 (stride 16), where ImageNet's
# networks read it.
_CANONICAL_SIZE = 224
_CANONICAL_LEVEL = 4


class RoIPooler(nn.Module):
    """Reads a P x P grid of features for every box, from the level that fits the box's size."""

    def __init__(
        self, resolution: int, strides: Sequence[int], sampling_ratio: int = 0, aligned: bool = True
    ) -> None:
        """Build for feature maps of ``strides``, finest first; see ``CellGrid`` for the rest."""
        super().__init__()
        self.grids = [CellGrid(resolution, 1.0 / s, sampling_ratio, aligned) for s in strides]
        self.min_level, self.max_level = (int(math.log2(s)) for s in (strides[0], strides[-1]))

    def forward(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], *, step: int = 1
    ) -> Tensor:
        """Return (M, C, Q, Q) in the order of the boxes, one (Ri, 4) for each image.

        Every ``step``-th cell along both sides is kept: what a 1x1 convolution of it reads.
        """
        all_boxes = torch.cat(list(boxes))
        owner = torch.cat([b.new_full((len(b), 1), image) for image, b in enumerate(boxes)])
        rois = torch.cat([owner, all_boxes], dim=1)
        if len(features) == 1:
            return roi_align(features[0], rois, self.grids[0], step=step)
        levels = assign_levels(all_boxes, min_level=self.min_level, max_level=self.max_level)
        order = torch.argsort(levels, stable=True)
        every = torch.arange(len(features), device=levels.device)
        counts = (levels[:, None] == every).sum(dim=0).tolist()
        pooled = [
            roi_align(feature, rois[index], grid, step=step)
            for feature, index, grid in zip(features, order.split(counts), self.grids, strict=True)
        ]
        # order[i] is the box at place i; its inverse is the place of box j.
        return torch.cat(pooled).index_select(0, torch.argsort(order))


def assign_levels(boxes: Tensor, *, min_level: int, max_level: int) -> Tensor:
    """Return for each box (M, 4) the offset of its pyramid level from ``min_level``, (M,) int64."""
    size = box_area(boxes).sqrt()
    level = torch.floor(_CANONICAL_LEVEL + torch.log2(size / _CANONICAL_SIZE + 1e-8))
    return level.clamp(min_level, max_level).to(torch.int64) - min_level


@dataclass(frozen=True)
class CellGrid:
    """How a region is cut into cells and a cell into samples."""

    cells: int  # P
    scale: float  # feature cells per px of the image, 1 / stride
    sampling_ratio: int = 0  # samples per cell and axis; 0 takes one per feature cell under it
    aligned: bool = True  # whether pixel centres lie at .5 (Detectron2's ROIAlignV2)


def roi_align(feature: Tensor, rois: Tensor, grid: CellGrid, *, step: int = 1) -> Tensor:
    """Return (M, C, Q, Q) for rois (M, 5) of a feature (N, C, H, W); Q = ceil(P / step)."""
    if feature.device.type == "cpu":
        return _SeparableRoIAlign.apply(feature, rois, grid, step)
    # In float32, as torchvision does under autocast: half types would round boxes by up to 0.5 px.
    pooled = torchvision.ops.roi_align(
        at_least_float32(feature),
        rois.to(torch.promote_types(feature.dtype, torch.float32)),
        (grid.cells, grid.cells),
        spatial_scale=grid.scale,
        sampling_ratio=grid.sampling_ratio,
        aligned=grid.aligned,
    ).to(feature.dtype)
    return pooled if step == 1 else pooled[:, :, ::step, ::step]


class _SeparableRoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feature: Tensor, rois: Tensor, grid: CellGrid, step: int) -> Tensor:
        rois = rois.to(torch.promote_types(feature.dtype, torch.float32))
        rows = _AxisWeights(rois[:, 2], rois[:, 4], feature.shape[2], grid, step)
        columns = _AxisWeights(rois[:, 1], rois[:, 3], feature.shape[3], grid, step)
        owners = rois[:, 0].long().tolist()
        ctx.saved = rows, columns, owners, feature.shape, feature.dtype
        # Positions by channels: a row of a region is then one stretch of memory, and no number of
        # channels is too small for GEMM.
        maps = feature.permute(0, 2, 3, 1).to(rows.weights.dtype).contiguous()
        cells = rows.weights.shape[1], columns.weights.shape[1]
        pooled = maps.new_empty(len(owners), *cells, maps.shape[3])
        with torch.autocast("cpu", enabled=False):
            for target, owner, (y, row), (x, column) in zip(
                pooled, owners, rows, columns, strict=True
            ):
                patch = maps[owner, y, x]
                lines = row @ patch.flatten(1)
                torch.matmul(column, lines.unflatten(1, patch.shape[1:]), out=target)
        return pooled.permute(0, 3, 1, 2).to(feature.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        rows, columns, owners, (images, channels, height, width), dtype = ctx.saved
        grads = grad.permute(0, 2, 3, 1).to(rows.weights.dtype).contiguous()
        total = grads.new_zeros(images, height, width, channels)
        with torch.autocast("cpu", enabled=False):
            for grad_i, owner, (y, row), (x, column) in zip(
                grads, owners, rows, columns, strict=True
            ):
                lines = column.T @ grad_i
                patch = row.T @ lines.flatten(1)
                total[owner, y, x] += patch.unflatten(1, lines.shape[1:])
        return total.permute(0, 3, 1, 2).to(dtype), None, None, None


class _AxisWeights:
    """Weights (M, Q, length) of the feature cells along one axis in each cell of each region."""

    def __init__(self, low: Tensor, high: Tensor, length: int, grid: CellGrid, step: int) -> None:
        """Compute them for regions from ``low`` to ``high`` (M,) px on ``length`` feature cells."""
        positions, share = _sample_positions(low, high, length, grid, step)
        # A sample beyond the centre of the first or last cell takes that cell's value.
        below = positions.floor().clamp(max=length - 1)
        part = torch.where(below < length - 1, positions - below, 0.0)
        below = below.long()
        weights = share.new_zeros(len(low), positions.shape[1], length)
        weights.scatter_add_(2, below.flatten(2), share * (1 - part))
        weights.scatter_add_(2, (below + 1).clamp(max=length - 1), share * part)
        used = (weights > 0).any(dim=1)
        cell = torch.arange(length, device=used.device)
        first = torch.where(used, cell, length).amin(dim=1).clamp(max=length - 1)
        last = torch.where(used, cell, -1).amax(dim=1)
        ends = torch.maximum(last, first).add(1)
        self.weights = weights
        self._windows = [slice(*w) for w in zip(first.tolist(), ends.tolist(), strict=True)]

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield for each region its window of feature cells, and the weights (Q, len) in it."""
        for weights, window in zip(self.weights, self._windows, strict=True):
            yield window, weights[:, window]


def _sample_positions(
    low: Tensor, high: Tensor, length: int, grid: CellGrid, step: int
) -> tuple[Tensor, Tensor]:
    """Return the samples' positions (M, Q, G) in feature cells, and each one's share of a cell.

    G is the most samples of any region; surplus samples and those outside the map have share 0.
    """
    offset = 0.5 if grid.aligned else 0.0
    start = low * grid.scale - offset
    # In this order: the last bit decides how many samples there are.
    size = high * grid.scale - offset - start
    if not grid.aligned:
        size = size.clamp(min=1)
    cell_size = (size / grid.cells)[:, None, None]
    count = cell_size.ceil()
    if grid.sampling_ratio > 0:
        count = torch.full_like(cell_size, grid.sampling_ratio)
    divisor = count.clamp(min=1)
    cell = torch.arange(0, grid.cells, step, device=low.device)[:, None]
    sample = torch.arange(int(divisor.max()) if len(low) else 1, device=low.device)
    positions = start[:, None, None] + cell * cell_size + (sample + 0.5) * (cell_size / divisor)
    counts = (sample < count) & (positions >= -1) & (positions <= length)
    return positions.clamp(min=0), counts / divisor
