"""The second stage of FPN and DC5 detectors: boxes and masks each pool their own features.

Shapes in this module:
    N: images    Ri: proposals of image i    D: detections of one image
Source:
    Behaviour checked against facebookresearch/detectron2@02b5c4e
    detectron2/modeling/roi_heads/roi_heads.py (StandardROIHeads).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from moco_transfer.finetune.torchvision_engine.box_head import BoxHead, BoxPredictor, Detections
from moco_transfer.finetune.torchvision_engine.image_list import GroundTruth
from moco_transfer.finetune.torchvision_engine.mask_head import MaskHead
from moco_transfer.finetune.torchvision_engine.roi_pooling import RoIPooler
from moco_transfer.finetune.torchvision_engine.roi_sampling import RegionSampler, SampledRegions


def foreground(regions: SampledRegions, num_classes: int) -> tuple[SampledRegions, Tensor]:
    """Return the objects among the sampled regions, and the mask (S,) that selects them."""
    chosen = (regions.classes >= 0) & (regions.classes < num_classes)
    parts = (regions.boxes, regions.classes, regions.truth_boxes, regions.truth_index)
    return SampledRegions(*(part[chosen] for part in parts)), chosen


class StandardRoIHeads(nn.Module):
    """Box head and, optionally, mask head on pooled features.

    State-dict keys: ``box_head.*``, ``box_predictor.*``, ``mask_head.*``.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        sampler: RegionSampler,
        box_pooler: RoIPooler,
        box_head: BoxHead,
        box_predictor: BoxPredictor,
        mask_pooler: RoIPooler | None = None,
        mask_head: MaskHead | None = None,
    ) -> None:
        """Build; the mask parts are given together or not at all."""
        super().__init__()
        self.in_features = tuple(in_features)
        self.sampler = sampler
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head

    def losses(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        truth: Sequence[GroundTruth],
    ) -> dict[str, Tensor]:
        """Return loss_cls, loss_box_reg and, with a mask head, loss_mask; draws from torch's global
        generator.
        """
        levels = [features[name] for name in self.in_features]
        regions = [
            self.sampler.draw(boxes, truth_i)
            for boxes, truth_i in zip(proposals, truth, strict=True)
        ]
        logits, deltas = self._classify(levels, [r.boxes for r in regions])
        losses = self.box_predictor.losses(logits, deltas, regions)
        if self.mask_head is not None:
            objects = [foreground(r, self.sampler.num_classes)[0] for r in regions]
            pooled = self.mask_pooler(levels, [r.boxes for r in objects])
            mask_logits = self.mask_head(pooled, torch.cat([r.classes for r in objects]))
            losses["loss_mask"] = self.mask_head.loss(mask_logits, objects, truth)
        return losses

    def detect(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Return the detections of each image, in px of the resized image."""
        levels = [features[name] for name in self.in_features]
        logits, deltas = self._classify(levels, proposals)
        detections = self.box_predictor.detect(logits, deltas, proposals, image_sizes)
        if self.mask_head is not None:
            detections = self.mask_head.predict(
                self.mask_pooler(levels, [d.boxes for d in detections]), detections
            )
        return detections

    def _classify(self, levels: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        hidden = self.box_head(self.box_pooler(levels, boxes))
        return self.box_predictor(torch.flatten(hidden, 1))
