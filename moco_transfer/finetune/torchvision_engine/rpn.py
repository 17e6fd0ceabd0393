"""Region proposal network: objectness and deltas for every anchor, losses, and proposals.

Shapes in this module:
    N: images    L: feature levels    A: anchors per position    T: anchors of all levels
    Al: anchors of level l, Hl * Wl * A    R: proposals of one image
Boxes are XYXY in px of the resized image. Losses, decoding and NMS are float32, also under
autocast.

Source:
    Ren et al. 2015, arXiv:1506.01497, Sec. 3.1. Behaviour checked against
    facebookresearch/detectron2@02b5c4e modeling/proposal_generator/rpn.py and proposal_utils.py.
    Difference: only the boxes that can become proposals are decoded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fvcore.nn import smooth_l1_loss
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from .boxes import AnchorGenerator, decode_boxes, encode_boxes, is_larger_than, pairwise_iou
from .layers import ConvNorm, init_normal
from .sampling import GroundTruth, match, sample


@dataclass(frozen=True)
class RPNSettings:
    """Settings of the proposal network, named as Detectron2's keys of MODEL.RPN."""

    pre_nms_topk_train: int  # best anchors per level and image that enter NMS
    pre_nms_topk_test: int
    post_nms_topk_train: int  # best boxes per image, over all levels, that leave it
    post_nms_topk_test: int
    nms_thresh: float  # IoU above which the worse of two boxes of a level is removed
    min_size: float  # proposals with a side of at most this many px are removed
    iou_thresholds: Sequence[float]  # see sampling.match
    iou_labels: Sequence[int]
    batch_size_per_image: int  # anchors of an image that the losses are taken on
    positive_fraction: float  # largest share of object anchors among them
    boundary_thresh: float  # px; anchors further out of the image are ignored; < 0 keeps all
    bbox_reg_weights: Sequence[float]  # see boxes.encode_boxes
    smooth_l1_beta: float
    loss_weight: float  # of both losses
    bbox_reg_loss_weight: float  # of loss_rpn_loc, on top


class RPNHead(nn.Module):
    """3x3 convolutions with ReLU (-1 channels: as before), then 1x1 for objectness and deltas."""

    def __init__(
        self, in_channels: int, num_anchors: int, *, conv_channels: Sequence[int] = (-1,)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in conv_channels:
            out_channels = in_channels if channels == -1 else channels
            layers.append(ConvNorm(in_channels, out_channels, 3, relu=True))
            in_channels = out_channels
        # The key of published checkpoints is 'conv', not 'conv.conv0'.
        several = nn.Sequential(OrderedDict((f"conv{i}", layer) for i, layer in enumerate(layers)))
        self.conv = layers[0] if len(layers) == 1 else several
        self.objectness_logits = nn.Conv2d(in_channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(in_channels, num_anchors * 4, kernel_size=1)
        for layer in (*layers, self.objectness_logits, self.anchor_deltas):
            init_normal(layer, std=0.01)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, Al) and deltas (N, Al, 4), float32, for one level's feature."""
        hidden = self.conv(feature)
        logits = self.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1)
        deltas = self.anchor_deltas(hidden).permute(0, 2, 3, 1).reshape(feature.shape[0], -1, 4)
        return logits.float(), deltas.float()


class RPN(nn.Module):
    """Anchors, one head for all levels, proposals and losses. State-dict keys: ``rpn_head.*``."""

    def __init__(
        self,
        in_features: Sequence[str],
        head: RPNHead,
        anchor_generator: AnchorGenerator,
        settings: RPNSettings,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.rpn_head, self.anchor_generator, self.settings = head, anchor_generator, settings

    def forward(
        self,
        features: Mapping[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        truth: Sequence[GroundTruth] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """Return each image's proposals (R, 4), clipped to it, without gradient; their objectness
        (R,) before the sigmoid, descending; and, when ground truth is given, the two losses.

        ``image_sizes`` are (h, w) before padding, px. Losses draw anchors from torch's generator;
        they are NaN if a prediction is not finite, and no proposal is made of it.
        """
        levels = [features[name] for name in self.in_features]
        anchors = self.anchor_generator([level.shape[-2:] for level in levels])
        predictions = [self.rpn_head(level) for level in levels]
        logits, deltas = (list(of_all_levels) for of_all_levels in zip(*predictions, strict=True))
        losses = {}
        if truth is not None:
            merged = torch.cat(anchors), torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
            losses = self._losses(*merged, image_sizes, truth)
            # No exception: the other processes would wait for this one's gradients.
            is_finite = merged[1].isfinite().all() & merged[2].isfinite().all()
            losses = {name: loss.where(is_finite, torch.nan) for name, loss in losses.items()}
        proposals = self._propose(anchors, logits, deltas, image_sizes)
        return [boxes for boxes, _ in proposals], [scores for _, scores in proposals], losses

    @torch.no_grad()
    def _label(
        self, anchors: Tensor, image_size: tuple[int, int], truth: GroundTruth
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices: the drawn object anchors, the object of each, the drawn background."""
        settings, margin = self.settings, self.settings.boundary_thresh
        index, label = match(
            pairwise_iou(truth.boxes, anchors),
            thresholds=settings.iou_thresholds,
            labels=settings.iou_labels,
            allow_low_quality=True,
        )
        if margin >= 0:
            height, width = image_size
            inside = (anchors[:, :2] >= -margin).all(dim=1)
            inside &= (anchors[:, 2] < width + margin) & (anchors[:, 3] < height + margin)
            label = label.where(inside, -1)
        objects, background = sample(
            label,
            num_samples=settings.batch_size_per_image,
            positive_fraction=settings.positive_fraction,
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
        """Return both losses, for anchors (T, 4), logits (N, T) and deltas (N, T, 4)."""
        settings, num_anchors = self.settings, anchors.shape[0]
        drawn, targets, positives, wanted = [], [], [], []
        for image, (size, truth_i) in enumerate(zip(image_sizes, truth, strict=True)):
            objects, object_index, background = self._label(anchors, size, truth_i)
            drawn += [objects + image * num_anchors, background + image * num_anchors]
            targets += [torch.ones_like(objects), torch.zeros_like(background)]
            positives.append(objects + image * num_anchors)
            found, weights = truth_i.boxes[object_index], settings.bbox_reg_weights
            wanted.append(encode_boxes(anchors[objects], found, weights=weights))
        # One look-up for the batch, so that backward fills one zero tensor of all anchors.
        drawn_logits = logits.flatten()[torch.cat(drawn)]
        positive_deltas = deltas.flatten(0, 1)[torch.cat(positives)]
        cls_sum = F.binary_cross_entropy_with_logits(
            drawn_logits, torch.cat(targets).to(logits), reduction="sum"
        )
        loc_sum = smooth_l1_loss(
            positive_deltas, torch.cat(wanted), settings.smooth_l1_beta, reduction="sum"
        )
        # Divided by the number of anchors asked for: each anchor counts equally in every batch.
        normalizer = settings.batch_size_per_image * len(truth)
        loc_weight = settings.loss_weight * settings.bbox_reg_loss_weight
        return {
            "loss_rpn_cls": cls_sum * (settings.loss_weight / normalizer),
            "loss_rpn_loc": loc_sum * (loc_weight / normalizer),
        }

    @torch.no_grad()
    def _propose(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[tuple[Tensor, Tensor]]:
        settings = self.settings
        pre_nms, post_nms = settings.pre_nms_topk_test, settings.post_nms_topk_test
        if self.training:
            pre_nms, post_nms = settings.pre_nms_topk_train, settings.post_nms_topk_train
        boxes, scores, level_ids = [], [], []
        for level, (anchors_l, logits_l, deltas_l) in enumerate(
            zip(anchors, logits, deltas, strict=True)
        ):
            best, index = logits_l.topk(min(pre_nms, logits_l.shape[1]), dim=1)
            best_deltas = deltas_l.gather(1, index[..., None].expand(-1, -1, 4))
            weights = settings.bbox_reg_weights
            boxes.append(decode_boxes(best_deltas, anchors_l[index], weights=weights))
            scores.append(best)
            level_ids.append(torch.full((best.shape[1],), level, device=best.device))
        found, ranks, levels = (
            torch.cat(boxes, dim=1),
            torch.cat(scores, dim=1),
            torch.cat(level_ids),
        )
        finite = found.isfinite().all(dim=2) & ranks.isfinite()
        per_image = zip(found, ranks, finite, image_sizes, strict=True)
        return [self._suppress(*image, levels, post_nms) for image in per_image]

    def _suppress(
        self,
        boxes: Tensor,
        scores: Tensor,
        finite: Tensor,
        image_size: tuple[int, int],
        levels: Tensor,
        post_nms: int,
    ) -> tuple[Tensor, Tensor]:
        """Clip the boxes of one image, drop small ones, suppress within levels, keep the best."""
        boxes = clip_boxes_to_image(boxes, image_size)
        is_kept = finite & is_larger_than(boxes, self.settings.min_size)
        keep = is_kept.nonzero().squeeze(1)
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        best = batched_nms(boxes, scores, levels, self.settings.nms_thresh)[:post_nms]
        return boxes[best], scores[best]
