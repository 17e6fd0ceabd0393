"""Second stage for keypoints: network on pooled regions, heatmap targets, loss, and decoding.

Shapes in this module:
    F: foreground regions    D: detections of one image    K: keypoints of an object
    S: side of a heatmap, in cells
A heatmap holds a logit for each cell of a grid over the region's box. Positions are continuous, in
px of the resized image; cell c covers [c, c + 1).

Source:
    He et al. 2017, arXiv:1703.06870, Sec. 5. Behaviour checked against
    facebookresearch/detectron2@02b5c4e modeling/roi_heads/keypoint_head.py
    (KRCNNConvDeconvUpsampleHead), structures/keypoints.py and roi_heads.py
    (select_proposals_with_visible_keypoints). Difference: logits are float32 under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ..sync_norm import at_least_float32
from .box_head import Detections
from .layers import ConvNorm
from .roi_pool import RoIPooler
from .sampling import GroundTruth, SampledRegions


class KeypointHead(nn.Module):
    """3x3 convolutions, a transposed one to K maps of twice the size, and bilinear upsampling by 2.

    State-dict keys: ``conv_fcn1``, ..., ``score_lowres``.
    """

    def __init__(
        self,
        in_channels: int,
        pooler: RoIPooler,
        *,
        num_keypoints: int,
        conv_dims: Sequence[int],
        loss_weight: float = 1.0,
        normalizer: float | None = None,
    ) -> None:
        """Build; the loss is divided by ``normalizer`` times the number of images, or if it is
        None by the number of visible keypoints in the batch.
        """
        super().__init__()
        self.pooler, self.loss_weight, self.normalizer = pooler, loss_weight, normalizer
        self.convs = [f"conv_fcn{index}" for index in range(1, len(conv_dims) + 1)]
        for name, channels in zip(self.convs, conv_dims, strict=True):
            self.add_module(name, ConvNorm(in_channels, channels, 3, relu=True))
            in_channels = channels
        self.score_lowres = nn.ConvTranspose2d(in_channels, num_keypoints, 4, stride=2, padding=1)
        for layer in (*map(self.get_submodule, self.convs), self.score_lowres):
            c2_msra_fill(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return heatmaps (F, K, S, S), float32, for pooled regions x (F, C, S / 4, S / 4)."""
        for name in self.convs:
            x = getattr(self, name)(x)
        scores = at_least_float32(self.score_lowres(x))
        return F.interpolate(scores, scale_factor=2.0, mode="bilinear", align_corners=False)

    def loss(
        self, levels: list[Tensor], objects: Sequence[SampledRegions], truth: Sequence[GroundTruth]
    ) -> Tensor:
        """Return the cross-entropy over the cells, summed over the visible keypoints inside their
        regions and normalised. Regions without one are left out.

        ``objects`` are each image's foreground regions, ``levels`` the features to pool from.
        """
        size = 4 * self.pooler.grids[0].cells
        boxes, cells, visible = [], [], []
        for found, of_image in zip(objects, truth, strict=True):
            cell, is_visible = heatmap_targets(
                of_image.keypoints[found.target_index], found.boxes, size=size
            )
            used = is_visible.any(dim=1).nonzero().squeeze(1)
            boxes.append(found.boxes[used])
            cells.append(cell[used])
            visible.append(is_visible[used])
        seen = torch.cat(visible).flatten().nonzero().squeeze(1)
        logits = self(self.pooler(levels, boxes)).flatten(2).flatten(0, 1)[seen]
        total = F.cross_entropy(logits, torch.cat(cells).flatten()[seen], reduction="sum")
        if self.normalizer is not None:
            return total * (self.loss_weight / (self.normalizer * len(truth)))
        return total / max(len(logits), 1) * self.loss_weight

    def predict(self, levels: list[Tensor], detections: Sequence[Detections]) -> list[Detections]:
        """Return the detections with their keypoints."""
        boxes = [d.boxes for d in detections]
        maps = self(self.pooler(levels, boxes)).split(list(map(len, boxes)))
        return [
            replace(d, keypoints=decode_heatmaps(m, d.boxes))
            for d, m in zip(detections, maps, strict=True)
        ]


def heatmap_targets(keypoints: Tensor, boxes: Tensor, *, size: int) -> tuple[Tensor, Tensor]:
    """Return the cell (F, K) int64, row by row, that holds each keypoint (F, K, 3) on a grid of
    ``size`` x ``size`` over its box (F, 4), and whether it is labelled and inside the box (F, K).

    Keypoints are (x, y, visibility). The last cell includes the box's right or lower edge.
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    position = keypoints[..., :2]
    cell = ((position - low) * (size / (high - low))).floor().long()
    cell = torch.where(position == high, size - 1, cell)
    inside = ((cell >= 0) & (cell < size)).all(dim=-1)
    return cell[..., 1] * size + cell[..., 0], inside & (keypoints[..., 2] > 0)


def decode_heatmaps(maps: Tensor, boxes: Tensor) -> Tensor:
    """Return for heatmaps (D, K, S, S) of boxes (D, 4) each keypoint's x, y and score (D, K, 3).

    A map is resized to whole pixels, at least one; a keypoint lies in the middle of the best pixel.
    Its score is the softmax over the S x S cells there, so that it does not depend on the box's
    size; the cubic interpolation may overshoot, so that it exceeds 1.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    whole = size.ceil()
    found = maps.new_zeros(*maps.shape[:2], 3)
    shapes = whole.int().tolist()
    for index, (width, height) in enumerate(shapes):
        full = F.interpolate(maps[index, None], (height, width), mode="bicubic")[0].flatten(1)
        logit, place = full.max(dim=1)
        column_row = torch.stack((place % width, place // width), dim=1)
        pixel = size[index] / whole[index]
        found[index, :, :2] = (column_row + 0.5) * pixel + boxes[index, :2]
        found[index, :, 2] = (logit - maps[index].flatten(1).logsumexp(dim=1)).exp()
    return found
