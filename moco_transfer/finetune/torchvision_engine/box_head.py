"""Second stage for boxes: the network on pooled regions, class scores, box deltas, their losses and
the detections.

Shapes in this module:
    M: regions of all images    Ri: regions of image i    K: foreground classes; id K is the
        background    D: detections of one image
Conventions:
    Boxes are XYXY in px of the resized image, float32. Losses, decoding and NMS are float32, also
    under autocast.
Source:
    Girshick 2015, arXiv:1504.08083; Ren et al. 2015, arXiv:1506.01497. Behaviour checked against
    facebookresearch/detectron2@02b5c4e detectron2/modeling/roi_heads/box_head.py and fast_rcnn.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from moco_transfer.finetune.torchvision_engine.box_coding import (
    clip_boxes,
    decode_boxes,
    encode_boxes,
    smooth_l1_sum,
)
from moco_transfer.finetune.torchvision_engine.conv_norm import (
    ConvNorm,
    init_msra,
    init_normal,
    init_xavier,
)
from moco_transfer.finetune.torchvision_engine.roi_sampling import SampledRegions


@dataclass(frozen=True)
class Detections:
    """What the detector found in one image.

    Attributes:
        boxes: (D, 4).
        scores: (D,) in [0, 1], descending.
        classes: (D,) int64 in [0, K).
        masks: (D, S, S) probabilities on a grid over each box, before they are pasted; None without
            a mask head.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None

    def with_masks(self, masks: Tensor) -> Detections:
        """Return the same detections with masks (D, S, S)."""
        return replace(self, masks=masks)


class BoxHead(nn.Sequential):
    """3x3 convolutions, then fully connected layers, each with ReLU.

    State-dict keys: ``conv1``, ..., ``fc1``, ...
    """

    def __init__(
        self,
        in_channels: int,
        resolution: int,
        *,
        conv_channels: Sequence[int],
        fc_channels: Sequence[int],
        norm: str,
    ) -> None:
        """Build for regions (M, in_channels, resolution, resolution); ``norm`` follows the
        convolutions only.
        """
        super().__init__()
        channels = in_channels
        for index, out_channels in enumerate(conv_channels, start=1):
            conv = ConvNorm(channels, out_channels, kernel_size=3, norm=norm, relu=True)
            init_msra(conv)
            self.add_module(f"conv{index}", conv)
            channels = out_channels
        self.out_channels = channels * resolution**2
        self.add_module("flatten", nn.Flatten())
        for index, out_channels in enumerate(fc_channels, start=1):
            fc = nn.Linear(self.out_channels, out_channels)
            init_xavier(fc)
            self.add_module(f"fc{index}", fc)
            self.add_module(f"fc_relu{index}", nn.ReLU(inplace=True))
            self.out_channels = out_channels


class BoxPredictor(nn.Module):
    """Two linear layers: K + 1 class scores, and box deltas for each class (or one set for all)."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        class_agnostic: bool = False,
        delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        smooth_l1_beta: float = 0.0,
        box_loss_weight: float = 1.0,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        """Build.

        Args:
            in_channels: Length of a region's feature vector.
            num_classes: K.
            class_agnostic: Whether one box serves all classes.
            delta_weights: See ``box_coding.encode_boxes``.
            smooth_l1_beta: See ``box_coding.smooth_l1_sum``.
            box_loss_weight: Factor of loss_box_reg.
            score_threshold: Detections score more than this.
            nms_threshold: IoU above which the worse of two detections of a class goes.
            max_detections: Per image, over all classes; negative keeps all.
        """
        super().__init__()
        self.num_classes = num_classes
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 * (1 if class_agnostic else num_classes))
        init_normal(self.cls_score, std=0.01)
        init_normal(self.bbox_pred, std=0.001)
        self.delta_weights = tuple(delta_weights)
        self.smooth_l1_beta = smooth_l1_beta
        self.box_loss_weight = box_loss_weight
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.max_detections = max_detections

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (M, K + 1) and deltas (M, K * 4) or (M, 4), float32, for features (M,
        in_channels).
        """
        return self.cls_score(x).float(), self.bbox_pred(x).float()

    def losses(
        self, logits: Tensor, deltas: Tensor, regions: Sequence[SampledRegions]
    ) -> dict[str, Tensor]:
        """Return loss_cls and loss_box_reg.

        Args:
            logits: (M, K + 1).
            deltas: (M, K * 4) or (M, 4).
            regions: One per image, in the order of the rows.
        """
        classes = torch.cat([r.classes for r in regions])
        objects = torch.nonzero((classes >= 0) & (classes < self.num_classes)).squeeze(1)
        per_class = deltas.unflatten(1, (-1, 4))
        column = classes[objects] if per_class.shape[1] > 1 else torch.zeros_like(objects)
        wanted = encode_boxes(
            torch.cat([r.boxes for r in regions])[objects],
            torch.cat([r.truth_boxes for r in regions])[objects],
            weights=self.delta_weights,
        )
        # Divided by all regions, not by the objects among them: each object then weighs the same in
        # every batch.
        box_loss = smooth_l1_sum(
            per_class[objects, column], wanted, beta=self.smooth_l1_beta
        ) / max(classes.numel(), 1)
        cls_loss = F.cross_entropy(logits, classes) if classes.numel() else logits.sum() * 0
        return {"loss_cls": cls_loss, "loss_box_reg": box_loss * self.box_loss_weight}

    def detect(
        self,
        logits: Tensor,
        deltas: Tensor,
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Return the detections of each image, for proposals (Ri, 4) in ``boxes`` and (h, w) in
        ``image_sizes``.
        """
        scores = F.softmax(logits, dim=1)
        refined = decode_boxes(deltas, torch.cat(list(boxes)), weights=self.delta_weights)
        counts = [len(b) for b in boxes]
        return [
            self._suppress(boxes_i, scores_i, size)
            for boxes_i, scores_i, size in zip(
                refined.split(counts), scores.split(counts), image_sizes, strict=True
            )
        ]

    def _suppress(self, boxes: Tensor, scores: Tensor, image_size: tuple[int, int]) -> Detections:
        finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        boxes, scores = boxes[finite], scores[finite, :-1]
        region, classes = torch.nonzero(scores > self.score_threshold, as_tuple=True)
        scores = scores[region, classes]
        per_class = boxes.unflatten(1, (-1, 4))
        boxes = clip_boxes(per_class[region, classes if per_class.shape[1] > 1 else 0], image_size)
        keep = batched_nms(boxes, scores, classes, self.nms_threshold)
        if self.max_detections >= 0:
            keep = keep[: self.max_detections]
        return Detections(boxes[keep], scores[keep], classes[keep])
