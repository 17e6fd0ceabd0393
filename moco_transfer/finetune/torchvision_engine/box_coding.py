"""Box arithmetic: deltas between boxes, clipping, IoU, and the loss of a regression.

Shapes in this module:
    R: boxes    K: boxes predicted from each (one per class, or 1)
Conventions:
    Boxes are XYXY, absolute px, float32. Deltas are (dx, dy, dw, dh): shifts of the centre in units
        of the source box's size and
    logarithms of the change of size, each times a weight.
Source:
    Girshick et al. 2014, arXiv:1311.2524, Appendix C. Behaviour checked against
    facebookresearch/detectron2@02b5c4e detectron2/modeling/box_regression.py and
    detectron2/structures/boxes.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A delta may not blow a 16 px anchor up to more than a typical image, 1000 px: exp() stays finite
# in early training.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode_boxes(source: Tensor, target: Tensor, *, weights: Sequence[float]) -> Tensor:
    """Return the deltas (R, 4) that turn each source box (R, 4), of positive size, into its target
    box (R, 4).
    """
    centre, size = _centre_and_size(source)
    target_centre, target_size = _centre_and_size(target)
    scale = torch.tensor(weights, device=source.device, dtype=torch.float32)
    return torch.cat(
        [scale[:2] * (target_centre - centre) / size, scale[2:] * torch.log(target_size / size)],
        dim=-1,
    )


def decode_boxes(deltas: Tensor, source: Tensor, *, weights: Sequence[float]) -> Tensor:
    """Return the boxes (..., K * 4) that the deltas make of the source boxes.

    Args:
        deltas: (..., K * 4) of any float type; computed in float32.
        source: (..., 4), one box for each row of deltas.
        weights: The four weights that ``encode_boxes`` used.
    """
    scale = torch.tensor(weights, device=source.device, dtype=torch.float32)
    deltas = deltas.float().unflatten(-1, (-1, 4)) / scale
    centre, size = (t.unsqueeze(-2) for t in _centre_and_size(source.float()))
    new_centre = deltas[..., :2] * size + centre
    new_half = 0.5 * (torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * size)
    return torch.cat([new_centre - new_half, new_centre + new_half], dim=-1).flatten(-2)


def clip_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return boxes (..., 4), cut off at the borders of an image of (height, width) px."""
    height, width = image_size
    limit = torch.tensor([width, height, width, height], device=boxes.device, dtype=boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def is_larger_than(boxes: Tensor, min_size: float) -> Tensor:
    """Return a mask (R,) of the boxes (R, 4) whose both sides are longer than ``min_size`` px."""
    return ((boxes[:, 2:] - boxes[:, :2]) > min_size).all(dim=1)


def area(boxes: Tensor) -> Tensor:
    """Return the areas (R,) of boxes (R, 4), px^2."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def pairwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Return the intersection over union (A, B) of every pair of boxes (A, 4) and (B, 4); 0 where
    they do not meet.
    """
    upper_left = torch.maximum(boxes_a[:, None, :2], boxes_b[:, :2])
    lower_right = torch.minimum(boxes_a[:, None, 2:], boxes_b[:, 2:])
    sides = (lower_right - upper_left).clamp_(min=0)
    overlap = sides[..., 0] * sides[..., 1]
    union = area(boxes_a)[:, None] + area(boxes_b) - overlap
    # Two boxes without area would give 0 / 0.
    return torch.where(overlap > 0, overlap / union, torch.zeros_like(overlap))


def smooth_l1_sum(prediction: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Return the sum of the smooth L1 loss: quadratic below ``beta``, linear above; plain L1 when
    beta is (nearly) 0.
    """
    error = (prediction - target).abs()
    if beta < 1e-5:
        return error.sum()
    return torch.where(error < beta, 0.5 * error.square() / beta, error - 0.5 * beta).sum()
