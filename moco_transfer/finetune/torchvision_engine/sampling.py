"""Ground truth, which anchor or proposal stands for which object, and which are trained on.

Shapes in this module:
    G: ground-truth objects of one image    R: anchors or proposals of the same image
    S: regions drawn among them    K: foreground classes
Labels are 1 (object), 0 (background), -1 (ignored). Draws come from torch's global generator.

Source:
    Ren et al. 2015, arXiv:1506.01497, Sec. 3.1.2; Girshick 2015, arXiv:1504.08083, Sec. 2.3.
    Behaviour and order of the draws checked against facebookresearch/detectron2@02b5c4e
    modeling/matcher.py, sampling.py and roi_heads/roi_heads.py (label_and_sample_proposals).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...runtime.device import constant, sent
from .boxes import pairwise_iou


@dataclass(frozen=True)
class GroundTruth:
    """The objects of one image."""

    boxes: Tensor  # (G, 4) float32, XYXY in px of the resized image
    classes: Tensor  # (G,) int64, contiguous ids from 0
    masks: list[Any]  # of each object [[x0, y0, x1, y1, ...], ...] or an RLE; none without masks
    keypoints: Tensor  # (G, P, 3) float32: x, y, visibility of P keypoints; P is 0 without them

    @classmethod
    def read(
        cls,
        record: Mapping[str, Any],
        *,
        device: torch.device,
        with_masks: bool,
        with_keypoints: bool,
    ) -> GroundTruth:
        """Return the objects of a training record, from its "gt_*" entries."""
        boxes = sent(torch.as_tensor(record["gt_boxes"], dtype=torch.float32), device)
        classes = sent(torch.as_tensor(record["gt_classes"], dtype=torch.int64), device)
        masks = list(record["gt_masks"]) if with_masks else []
        keypoints = record["gt_keypoints"] if with_keypoints else boxes.new_zeros(len(boxes), 0, 3)
        points = sent(torch.as_tensor(keypoints, dtype=torch.float32), device)
        return cls(boxes.reshape(-1, 4), classes, masks, points)


def match(
    iou: Tensor, *, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality: bool
) -> tuple[Tensor, Tensor]:
    """Return for every region the object (R,) that it overlaps most by IoU (G, R), and a label.

    Ascending ``thresholds`` cut the best IoU into intervals, each closed below, with ``labels``
    from the lowest. ``allow_low_quality`` also labels 1 what overlaps an object as much as its best
    region does. Without objects the object is 0.
    """
    num_objects, num_regions = iou.shape
    if num_objects == 0:
        index = torch.zeros(num_regions, dtype=torch.int64, device=iou.device)
        return index, torch.full_like(index, labels[0])
    best, index = iou.max(dim=0)
    cuts = constant(tuple(thresholds), iou.device).to(iou.dtype)
    interval = torch.bucketize(best, cuts, right=True)
    label = constant(tuple(labels), iou.device).long()[interval]
    if allow_low_quality:
        # Only the label changes: a region keeps the object that it overlaps most.
        is_best = (iou == iou.max(dim=1, keepdim=True).values).any(dim=0)
        label = torch.where(is_best, 1, label)
    return index, label


def sample(
    labels: Tensor, *, num_samples: int, positive_fraction: float, background: int
) -> tuple[Tensor, Tensor]:
    """Draw positives and negatives at random; return the indices of both, in random order.

    In labels (R,) ``background`` is a negative, -1 is ignored, anything else a positive. Negatives
    fill up to ``num_samples``.
    """
    is_background = labels == background
    positives = torch.nonzero(~is_background & (labels != -1)).squeeze(1)
    negatives = torch.nonzero(is_background).squeeze(1)
    num_positives = min(positives.numel(), int(num_samples * positive_fraction))
    num_negatives = min(negatives.numel(), num_samples - num_positives)
    drawn_positives = torch.randperm(positives.numel(), device=labels.device)[:num_positives]
    drawn_negatives = torch.randperm(negatives.numel(), device=labels.device)[:num_negatives]
    return positives[drawn_positives], negatives[drawn_negatives]


@dataclass(frozen=True)
class SampledRegions:
    """Proposals of one image with their targets: first the objects, then the background."""

    boxes: Tensor  # (S, 4) XYXY px; no gradient
    classes: Tensor  # (S,) int64 in [0, K]; K is the background
    target_boxes: Tensor  # (S, 4), what each should become; undefined for background
    target_index: Tensor  # (S,) int64, the object of each; undefined for background
    num_objects: int = 0  # how many of the first are objects

    def objects(self) -> SampledRegions:
        """Return those that are objects."""
        end = self.num_objects
        targets = self.target_boxes[:end], self.target_index[:end]
        return SampledRegions(self.boxes[:end], self.classes[:end], *targets, end)


@dataclass(frozen=True)
class RegionSampler:
    """Matches the proposals of an image to its objects and draws those to train on.

    Fields are named as Detectron2's keys of MODEL.ROI_HEADS.
    """

    num_classes: int  # K
    batch_size_per_image: int  # S at most
    positive_fraction: float  # largest share of objects among the drawn
    iou_thresholds: Sequence[float]  # see match
    iou_labels: Sequence[int]
    proposal_append_gt: bool  # objects' boxes join the proposals, which may be poor at first

    @torch.no_grad()
    def draw(self, proposals: Tensor, truth: GroundTruth) -> SampledRegions:
        """Return regions to train on, for the proposals (R, 4) of one image."""
        if self.proposal_append_gt:
            proposals = torch.cat([proposals, truth.boxes])
        index, label = match(
            pairwise_iou(truth.boxes, proposals),
            thresholds=self.iou_thresholds,
            labels=self.iou_labels,
            allow_low_quality=False,
        )
        classes = torch.full_like(label, self.num_classes)
        if len(truth.boxes):
            not_object = torch.where(label == 0, classes, label)
            classes = torch.where(label == 1, truth.classes[index], not_object)
        objects, background = sample(
            classes,
            num_samples=self.batch_size_per_image,
            positive_fraction=self.positive_fraction,
            background=self.num_classes,
        )
        drawn = torch.cat([objects, background])
        boxes, index = proposals[drawn], index[drawn]
        # Without objects there is no target: the region's own box stands in and is never read.
        target_boxes = truth.boxes[index] if len(truth.boxes) else boxes
        return SampledRegions(boxes, classes[drawn], target_boxes, index, len(objects))


def places_of_objects(regions: Sequence[SampledRegions], device: torch.device) -> Tensor:
    """Return where the objects are among the regions of all images, int64."""
    starts = itertools.accumulate((len(each.boxes) for each in regions), initial=0)
    places = [range(s, s + each.num_objects) for s, each in zip(starts, regions, strict=False)]
    return sent(torch.tensor([*itertools.chain(*places)], dtype=torch.int64), device)
