"""Anchors: a fixed set of boxes around every position of every feature map.

Shapes in this module:
    L: feature levels    A: anchors per position    Hl, Wl: height and width of a level's feature
        map
Conventions:
    Boxes are XYXY in px of the padded image, float32; the order within a level is row, column,
    size, aspect ratio.
Source:
    Ren et al. 2015, arXiv:1506.01497, Sec. 3.1.1. Behaviour checked against
    facebookresearch/detectron2@02b5c4e detectron2/modeling/anchor_generator.py
    (DefaultAnchorGenerator).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Return the anchors (A, 4) around the origin, one per size and aspect ratio, sizes outermost.

    Args:
        sizes: Square roots of the anchors' areas, px.
        aspect_ratios: Height divided by width.
    """
    boxes = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            boxes.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(boxes, dtype=torch.float32)


class AnchorGenerator(nn.Module):
    """Places the cell anchors of each level on its grid; keeps the grids of the sizes seen last.

    Nothing of it enters a state dict.
    """

    _MAX_KEPT_GRIDS = 64

    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float,
    ) -> None:
        """Build; one entry of ``sizes`` or ``aspect_ratios`` serves all levels, else there is one
        per level.

        Args:
            sizes: For each level the anchors' sizes, px.
            aspect_ratios: For each level the anchors' height / width.
            strides: Of each level, px.
            offset: Position of the first anchor's centre in the first cell, as a share of the
                stride, in [0, 1).
        """
        super().__init__()
        levels = len(strides)
        self.strides = tuple(strides)
        self.offset = offset
        for level in range(levels):
            cell = cell_anchors(
                sizes[level % len(sizes)], aspect_ratios[level % len(aspect_ratios)]
            )
            self.register_buffer(f"cell_{level}", cell, persistent=False)
        self._grids: dict[tuple, Tensor] = {}

    @property
    def num_anchors(self) -> int:
        """A, the number of anchors per position (equal on all levels)."""
        return self.cell_0.shape[0]

    def forward(self, grid_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return for each level its anchors (Hl * Wl * A, 4), for the given (Hl, Wl)."""
        return [self._grid(level, size) for level, size in enumerate(grid_sizes)]

    def _grid(self, level: int, size: tuple[int, int]) -> Tensor:
        cell = getattr(self, f"cell_{level}")
        key = (level, *size, cell.device)
        if key not in self._grids:
            if len(self._grids) >= self._MAX_KEPT_GRIDS:
                self._grids.clear()
            stride = self.strides[level]
            y, x = (
                (torch.arange(n, device=cell.device, dtype=torch.float32) + self.offset) * stride
                for n in size
            )
            shifts = torch.stack(
                [x.expand(size[0], -1), y[:, None].expand(-1, size[1])] * 2, dim=-1
            )  # (Hl, Wl, 4): x, y, x, y
            self._grids[key] = (shifts.reshape(-1, 1, 4) + cell.float()).reshape(-1, 4)
        return self._grids[key]
