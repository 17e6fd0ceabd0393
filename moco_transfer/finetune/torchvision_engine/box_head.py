"""Second stage for boxes: network on pooled regions, scores and deltas, losses, and detections.

Shapes in this module:
    M: regions of all images    Ri: regions of image i    D: detections of one image
    K: foreground classes; id K is the background
Boxes are XYXY in px of the resized image. Losses, decoding and NMS are float32, also under
autocast.

Source:
    Girshick 2015, arXiv:1504.08083; Ren et al. 2015, arXiv:1506.01497. Behaviour checked against
    facebookresearch/detectron2@02b5c4e modeling/roi_heads/box_head.py and fast_rcnn.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fvcore.nn import smooth_l1_loss
from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from .boxes import decode_boxes, encode_boxes
from .layers import ConvNorm, init_normal
from .sampling import SampledRegions, places_of_objects

# With a score above .05, as for COCO, 1000 proposals have no more; LVIS's .0001 admits a million.
_FEW_CANDIDATES = 20_000


@dataclass(frozen=True)
class Detections:
    """What the detector found in one image."""

    boxes: Tensor  # (D, 4)
    scores: Tensor  # (D,) in [0, 1], descending
    classes: Tensor  # (D,) int64 in [0, K)
    masks: Tensor | None = None  # (D, S, S) probabilities on a grid over each box
    keypoints: Tensor | None = None  # (D, P, 3): x, y and score of each of P keypoints


class BoxHead(nn.Sequential):
    """3x3 convolutions, then fully connected layers, each with ReLU, for resolution^2 cells.

    State-dict keys: ``conv1``, ..., ``fc1``, ...
    """

    def __init__(
        self, in_channels: int, resolution: int, convs: Sequence[int], fcs: Sequence[int], norm: str
    ) -> None:
        super().__init__()
        for index, channels in enumerate(convs, start=1):
            conv = ConvNorm(in_channels, channels, 3, norm=norm, relu=True)
            c2_msra_fill(conv)
            self.add_module(f"conv{index}", conv)
            in_channels = channels
        self.out_channels = in_channels * resolution**2
        self.add_module("flatten", nn.Flatten())
        for index, channels in enumerate(fcs, start=1):
            fc = nn.Linear(self.out_channels, channels)
            c2_xavier_fill(fc)
            self.add_module(f"fc{index}", fc)
            self.add_module(f"fc_relu{index}", nn.ReLU(inplace=True))
            self.out_channels = channels


@dataclass(frozen=True)
class BoxSettings:
    """Settings of the box predictor, named as Detectron2's keys."""

    num_classes: int  # K
    cls_agnostic_bbox_reg: bool = False  # whether one box serves all classes
    bbox_reg_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0)  # see boxes.encode_boxes
    smooth_l1_beta: float = 0.0
    bbox_reg_loss_weight: float = 1.0
    score_thresh_test: float = 0.05  # detections score more than this
    nms_thresh_test: float = 0.5  # IoU above which the worse of two boxes of a class is removed
    detections_per_image: int = 100  # at most, over all classes; negative keeps all


class BoxPredictor(nn.Module):
    """Two linear layers: K + 1 class scores, and box deltas for each class (or one set for all)."""

    def __init__(self, in_channels: int, settings: BoxSettings) -> None:
        super().__init__()
        self.settings = settings
        num_boxes = 1 if settings.cls_agnostic_bbox_reg else settings.num_classes
        self.cls_score = nn.Linear(in_channels, settings.num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 * num_boxes)
        init_normal(self.cls_score, std=0.01)
        init_normal(self.bbox_pred, std=0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (M, K + 1) and deltas (M, K * 4) or (M, 4), float32.

        Features x are (M, in_channels), or maps (M, in_channels, h, w), which are averaged.
        """
        x = x.mean(dim=(2, 3)) if x.dim() == 4 else x
        return self.cls_score(x).float(), self.bbox_pred(x).float()

    def losses(
        self, logits: Tensor, deltas: Tensor, regions: Sequence[SampledRegions]
    ) -> dict[str, Tensor]:
        """Return loss_cls and loss_box_reg of predictions on each image's regions, in order."""
        settings = self.settings
        classes = torch.cat([r.classes for r in regions])
        objects = places_of_objects(regions, classes.device)
        per_class = deltas.unflatten(1, (-1, 4))
        column = torch.zeros_like(objects) if settings.cls_agnostic_bbox_reg else classes[objects]
        boxes, beta = torch.cat([r.boxes for r in regions])[objects], settings.smooth_l1_beta
        targets = torch.cat([r.target_boxes for r in regions])[objects]
        wanted = encode_boxes(boxes, targets, weights=settings.bbox_reg_weights)
        box_sum = smooth_l1_loss(per_class[objects, column], wanted, beta, reduction="sum")
        # Divided by all regions, so that each object weighs the same in every batch.
        box_loss = box_sum / max(classes.numel(), 1)
        cls_loss = F.cross_entropy(logits, classes) if classes.numel() else logits.sum() * 0
        return {"loss_cls": cls_loss, "loss_box_reg": box_loss * settings.bbox_reg_loss_weight}

    def detect(
        self,
        logits: Tensor,
        deltas: Tensor,
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Return the detections of each image, for proposals (Ri, 4) and image sizes (h, w)."""
        scores = F.softmax(logits, dim=1)
        weights = self.settings.bbox_reg_weights
        refined = decode_boxes(deltas, torch.cat(list(boxes)), weights=weights)
        counts = [len(b) for b in boxes]
        per_image = zip(refined.split(counts), scores.split(counts), image_sizes, strict=True)
        return [self._suppress(*image) for image in per_image]

    def _suppress(self, boxes: Tensor, scores: Tensor, image_size: tuple[int, int]) -> Detections:
        settings = self.settings
        finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        boxes, scores = boxes[finite], scores[finite, :-1]
        region, classes = torch.nonzero(scores > settings.score_thresh_test, as_tuple=True)
        scores = scores[region, classes]
        per_class = boxes.unflatten(1, (-1, 4))
        column = 0 if settings.cls_agnostic_bbox_reg else classes
        boxes = clip_boxes_to_image(per_class[region, column], image_size)
        keep = _best(boxes, scores, classes, settings)
        return Detections(boxes[keep], scores[keep], classes[keep])


def _best(boxes: Tensor, scores: Tensor, classes: Tensor, settings: BoxSettings) -> Tensor:
    """Return the indices of the detections that survive non-maximum suppression, best first."""
    limit, share = settings.detections_per_image, _FEW_CANDIDATES
    while limit >= 0 and share < len(scores):
        # A box is removed by better ones alone: what survives among the best survives among all.
        best = torch.nonzero(scores >= scores.topk(share).values[-1]).squeeze(1)
        keep = batched_nms(boxes[best], scores[best], classes[best], settings.nms_thresh_test)
        if len(keep) >= limit:
            return best[keep[:limit]]
        share *= 4
    keep = batched_nms(boxes, scores, classes, settings.nms_thresh_test)
    return keep[:limit] if limit >= 0 else keep
