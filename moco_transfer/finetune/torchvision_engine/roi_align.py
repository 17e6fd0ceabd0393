"""RoIAlign: torchvision's operator on a GPU, and on the CPU the same sums as two small matrix
products for each region.

Shapes in this module:
    N: images    C: channels    H, W: height and width of the feature map    M: regions of all
        images    P: cells along each side of a pooled region    Q: cells that are kept of them
Conventions:
    Regions are (image, x0, y0, x1, y1) in px of the resized image.
Source:
    He et al. 2017, arXiv:1703.06870, Sec. 3. A cell is the mean of bilinear samples on a grid in
    it; both the grid and bilinear interpolation are products of a part along y and a part along x,
    so the whole is ``rows @ features @ columns.T``. torchvision's operator computes the same on one
    core, sample by sample and channel by channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor


@dataclass(frozen=True)
class CellGrid:
    """How a region is cut into cells and a cell into samples.

    Attributes:
        cells: P.
        scale: Feature cells per px of the image, 1 / stride.
        sampling_ratio: Samples per cell and axis; 0 takes as many as there are feature cells under
            it.
        aligned: Whether pixel centres lie at .5 (Detectron2's ROIAlignV2).
        step: Only every ``step``-th cell along both sides is kept, from the first: Q = ceil(P /
            step).
    """

    cells: int
    scale: float
    sampling_ratio: int = 0
    aligned: bool = True
    step: int = 1


def roi_align(feature: Tensor, rois: Tensor, grid: CellGrid) -> Tensor:
    """Return the pooled regions (M, C, Q, Q), of the feature's type, channels last in memory on the
    CPU.

    Args:
        feature: (N, C, H, W); gradients flow to it.
        rois: (M, 5) float.
        grid: The cells.
    """
    if feature.device.type == "cpu":
        return _SeparableRoIAlign.apply(feature, rois, grid)
    pooled = torchvision.ops.roi_align(
        feature,
        rois.to(feature.dtype),
        (grid.cells, grid.cells),
        spatial_scale=grid.scale,
        sampling_ratio=grid.sampling_ratio,
        aligned=grid.aligned,
    )
    return pooled if grid.step == 1 else pooled[:, :, :: grid.step, :: grid.step]


class _SeparableRoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feature: Tensor, rois: Tensor, grid: CellGrid) -> Tensor:
        rois = rois.to(torch.promote_types(feature.dtype, torch.float32))
        rows = _AxisWeights(rois[:, 2], rois[:, 4], feature.shape[2], grid)
        columns = _AxisWeights(rois[:, 1], rois[:, 3], feature.shape[3], grid)
        owners = rois[:, 0].long().tolist()
        ctx.saved = rows, columns, owners, feature.shape, feature.dtype
        # Positions by channels: a row of a region is then one stretch of memory, and no number of
        # channels is too small for GEMM.
        maps = feature.permute(0, 2, 3, 1).to(rows.weights.dtype).contiguous()
        pooled = maps.new_empty(len(owners), rows.kept, columns.kept, maps.shape[3])
        with torch.autocast("cpu", enabled=False):
            for target, owner, row, column in zip(pooled, owners, rows, columns, strict=True):
                patch = maps[owner, row.start : row.end, column.start : column.end]
                lines = row.weights @ patch.flatten(1)
                torch.matmul(column.weights, lines.unflatten(1, patch.shape[1:]), out=target)
        return pooled.permute(0, 3, 1, 2).to(feature.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, columns, owners, (images, channels, height, width), dtype = ctx.saved
        grads = grad.permute(0, 2, 3, 1).to(rows.weights.dtype).contiguous()
        total = grads.new_zeros(images, height, width, channels)
        with torch.autocast("cpu", enabled=False):
            for grad_i, owner, row, column in zip(grads, owners, rows, columns, strict=True):
                lines = column.weights.T @ grad_i
                patch = row.weights.T @ lines.flatten(1)
                total[owner, row.start : row.end, column.start : column.end] += patch.unflatten(
                    1, lines.shape[1:]
                )
        return total.permute(0, 3, 1, 2).to(dtype), None, None


@dataclass(frozen=True)
class _Window:
    """One region along one axis: weights (Q, end - start) of the feature cells from ``start`` to
    ``end``.
    """

    start: int
    end: int
    weights: Tensor


class _AxisWeights:
    """How much each feature cell along one axis counts in each cell of each region.

    Attributes:
        weights: (M, Q, length), zero outside a region.
        kept: Q.
    """

    def __init__(self, low: Tensor, high: Tensor, length: int, grid: CellGrid) -> None:
        """Work them out for regions from ``low`` to ``high`` (M,) px on ``length`` feature cells."""
        positions, share = _sample_positions(low, high, length, grid)
        # A sample beyond the last cell's centre takes that cell's value, and so before the first.
        below = positions.floor().clamp(max=length - 1)
        part = torch.where(below < length - 1, positions - below, 0.0)
        below = below.long()
        weights = share.new_zeros(len(low), positions.shape[1], length)
        weights.scatter_add_(2, below.flatten(2), share * (1 - part))
        weights.scatter_add_(2, (below + 1).clamp(max=length - 1), share * part)
        self.weights = weights
        self.kept = weights.shape[1]
        used = (weights > 0).any(dim=1)
        cell = torch.arange(length, device=used.device)
        first = torch.where(used, cell, length).amin(dim=1).clamp(max=length - 1)
        last = torch.where(used, cell, -1).amax(dim=1)
        self._bounds = list(
            zip(first.tolist(), torch.maximum(last, first).add(1).tolist(), strict=True)
        )

    def __iter__(self):
        """Yield a ``_Window`` for each region."""
        for weights, (start, end) in zip(self.weights, self._bounds, strict=True):
            yield _Window(start, end, weights[:, start:end])


def _sample_positions(
    low: Tensor, high: Tensor, length: int, grid: CellGrid
) -> tuple[Tensor, Tensor]:
    """Return the samples' positions (M, Q, G), in feature cells and not below 0, and the share of a
    cell that each is.

    G is the largest number of samples that any region takes; the share of surplus ones, and of
    samples outside the map, is 0.
    """
    offset = 0.5 if grid.aligned else 0.0
    start = low * grid.scale - offset
    size = (
        high * grid.scale - offset - start
    )  # in this order: the last bit decides how many samples there are
    if not grid.aligned:
        size = size.clamp(min=1)
    cell_size = (size / grid.cells)[:, None, None]
    count = (
        torch.full_like(cell_size, grid.sampling_ratio)
        if grid.sampling_ratio > 0
        else cell_size.ceil()
    )
    divisor = count.clamp(min=1)
    cell = torch.arange(0, grid.cells, grid.step, device=low.device)[:, None]
    sample = torch.arange(int(divisor.max()) if len(low) else 1, device=low.device)
    positions = start[:, None, None] + cell * cell_size + (sample + 0.5) * (cell_size / divisor)
    counts = (sample < count) & (positions >= -1) & (positions <= length)
    return positions.clamp(min=0), counts / divisor
