"""Region proposal network: objectness and box deltas for every anchor, their losses, and the best
boxes as proposals.

Shapes in this module:
    N: images    L: feature levels    A: anchors per position    Al: anchors of level l, Hl * Wl * A
        T: anchors of all levels
    R: proposals of one image
Conventions:
    Boxes are XYXY in px of the resized image, float32. Losses, decoding and NMS are float32, also
    under autocast.
Source:
    Ren et al. 2015, arXiv:1506.01497, Sec. 3.1. Behaviour checked against
    facebookresearch/detectron2@02b5c4e detectron2/modeling/proposal_generator/rpn.py and
    proposal_utils.py. Difference: only the boxes that can become proposals are decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from moco_transfer.finetune.torchvision_engine.anchors import AnchorGenerator
from moco_transfer.finetune.torchvision_engine.box_coding import (
    clip_boxes,
    decode_boxes,
    encode_boxes,
    is_larger_than,
    pairwise_iou,
    smooth_l1_sum,
)
from moco_transfer.finetune.torchvision_engine.conv_norm import ConvNorm, init_normal
from moco_transfer.finetune.torchvision_engine.image_list import GroundTruth
from moco_transfer.finetune.torchvision_engine.matching import match, sample


@dataclass(frozen=True)
class Proposals:
    """Candidate boxes of one image.

    Attributes:
        boxes: (R, 4), clipped to the image; no gradient.
        logits: (R,) objectness before the sigmoid, descending.
    """

    boxes: Tensor
    logits: Tensor


@dataclass(frozen=True)
class ProposalLimits:
    """How many boxes become proposals.

    Attributes:
        pre_nms: Best anchors per level and image that enter NMS.
        post_nms: Best boxes per image, over all levels, that leave it.
    """

    pre_nms: int
    post_nms: int


class RPNHead(nn.Module):
    """3x3 convolutions with ReLU, then a 1x1 convolution for objectness and one for deltas; shared
    by all levels.
    """

    def __init__(
        self, in_channels: int, num_anchors: int, *, conv_channels: Sequence[int] = (-1,)
    ) -> None:
        """Build; -1 in ``conv_channels`` means as many as come in."""
        super().__init__()
        layers = []
        for channels in conv_channels:
            out_channels = in_channels if channels == -1 else channels
            layers.append(ConvNorm(in_channels, out_channels, kernel_size=3, relu=True))
            in_channels = out_channels
        if len(layers) == 1:  # the key of published checkpoints is 'conv', not 'conv.conv0'
            self.conv = layers[0]
        else:
            self.conv = nn.Sequential()
            for index, layer in enumerate(layers):
                self.conv.add_module(f"conv{index}", layer)
        self.objectness_logits = nn.Conv2d(in_channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(in_channels, num_anchors * 4, kernel_size=1)
        for layer in (*layers, self.objectness_logits, self.anchor_deltas):
            init_normal(layer, std=0.01)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, Al) and deltas (N, Al, 4), float32, for one level's feature (N, C, Hl,
        Wl).
        """
        hidden = self.conv(feature)
        logits = self.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1)
        deltas = self.anchor_deltas(hidden).permute(0, 2, 3, 1).reshape(feature.shape[0], -1, 4)
        return logits.float(), deltas.float()


class RPN(nn.Module):
    """Anchors, head, proposals and losses. State-dict keys: ``rpn_head.*``."""

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: RPNHead,
        anchor_generator: AnchorGenerator,
        train_limits: ProposalLimits,
        test_limits: ProposalLimits,
        nms_threshold: float = 0.7,
        min_box_size: float = 0.0,
        iou_thresholds: Sequence[float] = (0.3, 0.7),
        iou_labels: Sequence[int] = (0, -1, 1),
        anchors_per_image: int = 256,
        positive_fraction: float = 0.5,
        boundary_threshold: float = -1.0,
        delta_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        smooth_l1_beta: float = 0.0,
        cls_loss_weight: float = 1.0,
        loc_loss_weight: float = 1.0,
    ) -> None:
        """Build.

        Args:
            in_features: Names of the backbone's features to use, finest first.
            head: Shared by the levels.
            anchor_generator: With one entry per level.
            train_limits: Numbers of proposals in training.
            test_limits: Numbers of proposals in inference.
            nms_threshold: IoU above which the worse of two boxes of a level goes.
            min_box_size: Proposals with a side of at most so many px go.
            iou_thresholds: See ``matching.match``.
            iou_labels: See ``matching.match``.
            anchors_per_image: Anchors that the losses are taken on, per image.
            positive_fraction: Largest share of object anchors among them.
            boundary_threshold: Anchors further out of the image than this (px) are ignored;
                negative keeps all.
            delta_weights: See ``box_coding.encode_boxes``.
            smooth_l1_beta: See ``box_coding.smooth_l1_sum``.
            cls_loss_weight: Factor of loss_rpn_cls.
            loc_loss_weight: Factor of loss_rpn_loc.
        """
        super().__init__()
        self.in_features = tuple(in_features)
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.train_limits, self.test_limits = train_limits, test_limits
        self.nms_threshold = nms_threshold
        self.min_box_size = min_box_size
        self.iou_thresholds, self.iou_labels = tuple(iou_thresholds), tuple(iou_labels)
        self.anchors_per_image, self.positive_fraction = anchors_per_image, positive_fraction
        self.boundary_threshold = boundary_threshold
        self.delta_weights, self.smooth_l1_beta = tuple(delta_weights), smooth_l1_beta
        self.cls_loss_weight, self.loc_loss_weight = cls_loss_weight, loc_loss_weight

    def forward(
        self,
        features: Mapping[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        truth: Sequence[GroundTruth] | None = None,
    ) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Return the proposals of each image and, when ground truth is given, the two losses.

        Args:
            features: The backbone's, by name.
            image_sizes: (h, w) of each image before padding, px.
            truth: One per image; draws from torch's global generator.

        Raises:
            FloatingPointError: If predictions are not finite in training.
        """
        levels = [features[name] for name in self.in_features]
        anchors = self.anchor_generator([level.shape[-2:] for level in levels])
        predictions = [self.rpn_head(level) for level in levels]
        logits = [prediction[0] for prediction in predictions]
        deltas = [prediction[1] for prediction in predictions]
        losses = {}
        if truth is not None:
            losses = self._losses(
                torch.cat(anchors),
                torch.cat(logits, dim=1),
                torch.cat(deltas, dim=1),
                image_sizes,
                truth,
            )
        return self._propose(anchors, logits, deltas, image_sizes), losses

    @torch.no_grad()
    def _label(
        self, anchors: Tensor, image_size: tuple[int, int], truth: GroundTruth
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the drawn object anchors, the object of each of them, and the drawn background
        anchors (indices).
        """
        index, label = match(
            pairwise_iou(truth.boxes, anchors),
            thresholds=self.iou_thresholds,
            labels=self.iou_labels,
            allow_low_quality=True,
        )
        if self.boundary_threshold >= 0:
            height, width = image_size
            limit = torch.tensor([width, height], device=anchors.device) + self.boundary_threshold
            inside = (anchors[:, :2] >= -self.boundary_threshold).all(dim=1) & (
                anchors[:, 2:] < limit
            ).all(dim=1)
            label[~inside] = -1
        objects, background = sample(
            label,
            num_samples=self.anchors_per_image,
            positive_fraction=self.positive_fraction,
            background=0,
        )
        return objects, index[objects], background

    def _losses(
        self,
        anchors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        truth: Sequence[GroundTruth],
    ) -> dict[str, Tensor]:
        """Return loss_rpn_cls and loss_rpn_loc for anchors (T, 4), logits (N, T), deltas (N, T, 4)."""
        num_anchors = anchors.shape[0]
        drawn, targets, positives, wanted = [], [], [], []
        for image, (size, truth_i) in enumerate(zip(image_sizes, truth, strict=True)):
            objects, object_index, background = self._label(anchors, size, truth_i)
            drawn += [objects + image * num_anchors, background + image * num_anchors]
            targets += [torch.ones(objects.numel()), torch.zeros(background.numel())]
            positives.append(objects + image * num_anchors)
            wanted.append(
                encode_boxes(
                    anchors[objects], truth_i.boxes[object_index], weights=self.delta_weights
                )
            )
        # One look-up for the whole batch: its backward fills one zero tensor of all anchors, not
        # one for each image.
        drawn_logits = logits.flatten()[torch.cat(drawn)]
        positive_deltas = deltas.flatten(0, 1)[torch.cat(positives)]
        cls_sum = F.binary_cross_entropy_with_logits(
            drawn_logits, torch.cat(targets).to(logits), reduction="sum"
        )
        loc_sum = smooth_l1_sum(positive_deltas, torch.cat(wanted), beta=self.smooth_l1_beta)
        # Both sums are divided by the number of anchors asked for, so that each anchor counts
        # equally in every batch.
        normalizer = self.anchors_per_image * len(truth)
        return {
            "loss_rpn_cls": cls_sum * (self.cls_loss_weight / normalizer),
            "loss_rpn_loc": loc_sum * (self.loc_loss_weight / normalizer),
        }

    @torch.no_grad()
    def _propose(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Proposals]:
        limits = self.train_limits if self.training else self.test_limits
        boxes, scores, level_ids = [], [], []
        for level, (anchors_l, logits_l, deltas_l) in enumerate(
            zip(anchors, logits, deltas, strict=True)
        ):
            best, index = logits_l.topk(min(limits.pre_nms, logits_l.shape[1]), dim=1)
            best_deltas = deltas_l.gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(decode_boxes(best_deltas, anchors_l[index], weights=self.delta_weights))
            scores.append(best)
            level_ids.append(torch.full((best.shape[1],), level, device=best.device))
        all_boxes, all_scores, levels = (
            torch.cat(boxes, dim=1),
            torch.cat(scores, dim=1),
            torch.cat(level_ids),
        )
        return [
            self._suppress(all_boxes[image], all_scores[image], levels, size, limits.post_nms)
            for image, size in enumerate(image_sizes)
        ]

    def _suppress(
        self,
        boxes: Tensor,
        scores: Tensor,
        levels: Tensor,
        image_size: tuple[int, int],
        post_nms: int,
    ) -> Proposals:
        """Clip the candidates of one image, drop what is too small, suppress within each level,
        keep the best.
        """
        finite = boxes.isfinite().all(dim=1) & scores.isfinite()
        if self.training and not finite.all():
            raise FloatingPointError(
                "The RPN predicts boxes or scores that are not finite: training has diverged."
            )
        boxes = clip_boxes(boxes, image_size)
        keep = finite & is_larger_than(boxes, self.min_box_size)
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        best = batched_nms(boxes, scores, levels, self.nms_threshold)[:post_nms]
        return Proposals(boxes[best], scores[best])
