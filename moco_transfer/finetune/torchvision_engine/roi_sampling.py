"""Which proposals the second stage is trained on, and what each of them should become.

Shapes in this module:
    R: proposals of one image    S: those that were drawn    G: ground-truth objects of the image
        K: foreground classes
Source:
    Girshick 2015, arXiv:1504.08083, Sec. 2.3. Behaviour checked against
    facebookresearch/detectron2@02b5c4e detectron2/modeling/roi_heads/roi_heads.py
    (label_and_sample_proposals).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moco_transfer.finetune.torchvision_engine.box_coding import pairwise_iou
from moco_transfer.finetune.torchvision_engine.image_list import GroundTruth
from moco_transfer.finetune.torchvision_engine.matching import match, sample


@dataclass(frozen=True)
class SampledRegions:
    """Proposals of one image with their targets; first the objects, then the background.

    Attributes:
        boxes: (S, 4) XYXY px; no gradient.
        classes: (S,) int64 in [0, K]; K is the background.
        truth_boxes: (S, 4), the box that each should become; means nothing for background.
        truth_index: (S,) int64, the object that each was matched to; means nothing for background.
    """

    boxes: Tensor
    classes: Tensor
    truth_boxes: Tensor
    truth_index: Tensor


@dataclass(frozen=True)
class RegionSampler:
    """Matches proposals to objects and draws from torch's global generator.

    Attributes:
        num_classes: K.
        regions_per_image: S at most.
        positive_fraction: Largest share of objects among the drawn.
        iou_thresholds: See ``matching.match``.
        iou_labels: See ``matching.match``.
        append_truth: Whether the objects' own boxes join the proposals: early in training no
            proposal may be good enough.
    """

    num_classes: int
    regions_per_image: int = 512
    positive_fraction: float = 0.25
    iou_thresholds: Sequence[float] = (0.5,)
    iou_labels: Sequence[int] = (0, 1)
    append_truth: bool = True

    @torch.no_grad()
    def draw(self, proposals: Tensor, truth: GroundTruth) -> SampledRegions:
        """Return regions to train on, for the proposals (R, 4) of one image."""
        if self.append_truth:
            proposals = torch.cat([proposals, truth.boxes])
        index, label = match(
            pairwise_iou(truth.boxes, proposals),
            thresholds=self.iou_thresholds,
            labels=self.iou_labels,
            allow_low_quality=False,
        )
        classes = torch.full_like(label, self.num_classes)
        if len(truth.boxes):
            classes = torch.where(
                label == 1, truth.classes[index], torch.where(label == 0, classes, label)
            )
        objects, background = sample(
            classes,
            num_samples=self.regions_per_image,
            positive_fraction=self.positive_fraction,
            background=self.num_classes,
        )
        drawn = torch.cat([objects, background])
        boxes, index = proposals[drawn], index[drawn]
        # Without objects there is nothing to regress to; the region's own box stands in and is
        # never read.
        truth_boxes = truth.boxes[index] if len(truth.boxes) else boxes
        return SampledRegions(boxes, classes[drawn], truth_boxes, index)
