"""Box arithmetic: deltas between boxes, IoU, and anchors.

Boxes (R, 4) are XYXY, absolute px, float32. Deltas are (dx, dy, dw, dh): shifts of the centre in
units of the source box's size, and logarithms of the change of size, each times a weight.

Source:
    Girshick et al. 2014, arXiv:1311.2524, Appendix C; Ren et al. 2015, arXiv:1506.01497,
    Sec. 3.1.1. Behaviour checked against facebookresearch/detectron2@02b5c4e
    modeling/box_regression.py, structures/boxes.py and modeling/anchor_generator.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from ...runtime.device import constant

# A delta may not enlarge a 16 px anchor beyond a typical image, 1000 px: exp() stays finite in
# early training.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def encode_boxes(source: Tensor, target: Tensor, *, weights: Sequence[float]) -> Tensor:
    """Return the deltas (R, 4) from source boxes (R, 4), of positive size, to target boxes."""
    centre, size = _centre_and_size(source)
    target_centre, target_size = _centre_and_size(target)
    scale = constant(tuple(weights), source.device)
    shift = scale[:2] * (target_centre - centre) / size
    return torch.cat([shift, scale[2:] * torch.log(target_size / size)], dim=-1)


def decode_boxes(deltas: Tensor, source: Tensor, *, weights: Sequence[float]) -> Tensor:
    """Return the boxes (..., K * 4) that deltas make of source boxes; inverse of ``encode_boxes``.

    There are K sets of deltas (..., K * 4) for each source box (..., 4). Computed in float32.
    """
    scale = constant(tuple(weights), source.device)
    deltas = deltas.float().unflatten(-1, (-1, 4)) / scale
    centre, size = (t.unsqueeze(-2) for t in _centre_and_size(source.float()))
    new_centre = deltas[..., :2] * size + centre
    new_half = 0.5 * (torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * size)
    return torch.cat([new_centre - new_half, new_centre + new_half], dim=-1).flatten(-2)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def is_larger_than(boxes: Tensor, min_size: float) -> Tensor:
    """Return a mask (R,) of the boxes (R, 4) with both sides longer than ``min_size`` px."""
    return ((boxes[:, 2:] - boxes[:, :2]) > min_size).all(dim=1)


def pairwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Return the intersection over union (A, B) of every pair of boxes (A, 4) and (B, 4)."""
    # Two boxes without area give 0 / 0.
    return box_iou(boxes_a, boxes_b).nan_to_num_(0.0)


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Return anchors (A, 4) around the origin: sqrt(area) in px, then height / width, innermost."""
    widths = [(math.sqrt(size**2 / ratio), ratio) for size in sizes for ratio in aspect_ratios]
    boxes = [(-w / 2, -ratio * w / 2, w / 2, ratio * w / 2) for w, ratio in widths]
    return torch.tensor(boxes, dtype=torch.float32)


class AnchorGenerator(nn.Module):
    """Places A cell anchors on every position of each level. Its state dict is empty."""

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float,
    ) -> None:
        """Build; px, and height / width: one list for each level, or one for all.

        ``offset`` is the centre of the first anchor, as a share of the stride, in [0, 1).
        """
        super().__init__()
        self.strides, self.offset = tuple(strides), offset
        for level in range(len(strides)):
            ratios = aspect_ratios[level % len(aspect_ratios)]
            cell = cell_anchors(sizes[level % len(sizes)], ratios)
            self.register_buffer(f"cell_{level}", cell, persistent=False)
        self.num_anchors = self.get_buffer("cell_0").shape[0]  # A, equal on all levels

    def forward(self, grid_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return each level's anchors (Hl * Wl * A, 4), by row, column, size, aspect ratio."""
        return [self._grid(level, *size) for level, size in enumerate(grid_sizes)]

    def _grid(self, level: int, height: int, width: int) -> Tensor:
        cell, stride = self.get_buffer(f"cell_{level}"), self.strides[level]
        steps = (torch.arange(n, device=cell.device, dtype=torch.float32) for n in (height, width))
        y, x = ((step + self.offset) * stride for step in steps)
        corners = [x.expand(height, -1), y[:, None].expand(-1, width)] * 2
        shifts = torch.stack(corners, dim=-1)  # (Hl, Wl, 4): x, y, x, y
        return (shifts.reshape(-1, 1, 4) + cell.float()).reshape(-1, 4)
