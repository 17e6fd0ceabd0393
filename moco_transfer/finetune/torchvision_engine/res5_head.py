"""The second stage of C4 detectors: res5 runs on every pooled region and serves boxes and masks
alike.

Shapes in this module:
    N: images    M: regions of all images    C: channels of res5    P: side of a pooled region in
        cells; res5 halves it
Source:
    He et al. 2016, arXiv:1512.03385, Appendix A; He et al. 2019, arXiv:1911.05722, Sec. 4.2 and A.1
    for the norm after res5. Behaviour checked against facebookresearch/detectron2@02b5c4e
    detectron2/modeling/roi_heads/roi_heads.py (Res5ROIHeads) and facebookresearch/moco@7397dfe
    detection/train_net.py (Res5ROIHeadsExtraNorm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from moco_transfer.finetune.torchvision_engine.box_head import BoxPredictor, Detections
from moco_transfer.finetune.torchvision_engine.image_list import GroundTruth
from moco_transfer.finetune.torchvision_engine.mask_head import MaskHead
from moco_transfer.finetune.torchvision_engine.norm import get_norm
from moco_transfer.finetune.torchvision_engine.resnet import Bottleneck, ResNetShape, make_stage
from moco_transfer.finetune.torchvision_engine.roi_heads import foreground
from moco_transfer.finetune.torchvision_engine.roi_pooling import RoIPooler
from moco_transfer.finetune.torchvision_engine.roi_sampling import RegionSampler


def make_res5(shape: ResNetShape, *, extra_norm: bool) -> nn.Sequential:
    """Return res5 of stride 2 with keys ``0.*``, ``1.*``, ... and, if asked for, ``norm.*`` behind
    it.

    Args:
        shape: The trunk's; R18 and R34 get basic blocks, so that a pre-trained layer4 finds its
            place.
        extra_norm: MoCo's norm after res5: self-supervised features have another scale than
            supervised ones.
    """
    res5 = make_stage("res5", shape, stride=2)
    if extra_norm:
        res5.add_module("norm", get_norm(shape.norm, shape.channels("res5")))
    return res5


class Res5RoIHeads(nn.Module):
    """res5 as the box head; the mask head reads the same features.

    State-dict keys: ``res5.*``, ``box_predictor.*``, ``mask_head.*``.
    """

    def __init__(
        self,
        *,
        in_feature: str,
        sampler: RegionSampler,
        pooler: RoIPooler,
        res5: nn.Sequential,
        box_predictor: BoxPredictor,
        mask_head: MaskHead | None = None,
    ) -> None:
        """Build on one feature of the backbone, usually 'res4'."""
        super().__init__()
        self.in_feature = in_feature
        self.sampler = sampler
        self.pooler = pooler
        self.res5 = res5
        self.box_predictor = box_predictor
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
        regions = [
            self.sampler.draw(boxes, truth_i)
            for boxes, truth_i in zip(proposals, truth, strict=True)
        ]
        hidden = self._transform(features, [r.boxes for r in regions])
        losses = self.box_predictor.losses(*self.box_predictor(hidden.mean(dim=(2, 3))), regions)
        if self.mask_head is not None:
            objects, chosen = zip(
                *(foreground(r, self.sampler.num_classes) for r in regions), strict=True
            )
            mask_logits = self.mask_head(
                hidden[torch.cat(chosen)], torch.cat([r.classes for r in objects])
            )
            losses["loss_mask"] = self.mask_head.loss(mask_logits, objects, truth)
        return losses

    def detect(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Return the detections of each image, in px of the resized image."""
        hidden = self._transform(features, proposals)
        detections = self.box_predictor.detect(
            *self.box_predictor(hidden.mean(dim=(2, 3))), proposals, image_sizes
        )
        if self.mask_head is not None:
            pooled = self._transform(features, [d.boxes for d in detections])
            detections = self.mask_head.predict(pooled, detections)
        return detections

    def _transform(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return (M, C, P / 2, P / 2)."""
        feature = features[self.in_feature]
        first, *others = self.res5
        if feature.is_cuda or not isinstance(
            first, Bottleneck
        ):  # torchvision's operator cannot pool every second cell alone
            return self.res5(self.pooler([feature], boxes))
        hidden = first.forward_pooled(feature, lambda x, step: self.pooler([x], boxes, step=step))
        for layer in others:
            hidden = layer(hidden)
        return hidden
