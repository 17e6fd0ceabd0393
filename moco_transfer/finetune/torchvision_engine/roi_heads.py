"""The second stage: regions drawn and pooled, then boxes, masks and keypoints.

Features of the M regions of all images are (M, C, P, P), P the side of a pooled region in cells.

Source:
    Behaviour checked against facebookresearch/detectron2@02b5c4e modeling/roi_heads/roi_heads.py
    (StandardROIHeads, Res5ROIHeads). The norm after res5: He et al. 2019, arXiv:1911.05722,
    Sec. 4.2 and A.1, and facebookresearch/moco@7397dfe detection/train_net.py.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import ResNetShape, make_stage
from .box_head import BoxHead, BoxPredictor, Detections
from .keypoint_head import KeypointHead
from .layers import NORMS
from .mask_head import MaskHead
from .roi_pool import RoIPooler
from .sampling import GroundTruth, RegionSampler, places_of_objects

Features = Mapping[str, Tensor]
Boxes = Sequence[Tensor]  # one (Ri, 4) for each image


class RoIHeads(nn.Module, abc.ABC):
    """What both kinds of second stage share: training on drawn regions, and detection.

    ``in_features`` of the backbone are given finest first. Without a ``mask_pooler`` the mask head
    reads the box head's features.
    """

    box_head_key: str  # of the box network, in the state dict
    box_pooler: RoIPooler

    def __init__(
        self,
        box_head: nn.Module,
        *,
        in_features: Sequence[str],
        sampler: RegionSampler,
        box_pooler: RoIPooler,
        box_predictor: BoxPredictor,
        mask_head: MaskHead | None = None,
        mask_pooler: RoIPooler | None = None,
        keypoint_head: KeypointHead | None = None,
    ) -> None:
        super().__init__()
        self.add_module(self.box_head_key, box_head)
        self.in_features, self.sampler = tuple(in_features), sampler
        self.box_pooler, self.box_predictor = box_pooler, box_predictor
        self.mask_head, self.mask_pooler = mask_head, mask_pooler
        self.keypoint_head = keypoint_head

    @abc.abstractmethod
    def box_features(self, levels: list[Tensor], boxes: Boxes) -> Tensor:
        """Return the features of M regions that ``box_predictor`` reads, before averaging."""

    def losses(
        self, features: Features, proposals: Boxes, truth: Sequence[GroundTruth]
    ) -> dict[str, Tensor]:
        """Return loss_cls, loss_box_reg and, with their heads, loss_mask and loss_keypoint; draws
        regions.
        """
        levels = [features[name] for name in self.in_features]
        regions = [self.sampler.draw(*image) for image in zip(proposals, truth, strict=True)]
        hidden = self.box_features(levels, [r.boxes for r in regions])
        logits, deltas = self.box_predictor(hidden)
        losses = self.box_predictor.losses(logits, deltas, regions)
        objects = [each.objects() for each in regions]
        if self.mask_head is not None:
            boxes, pooler = [r.boxes for r in objects], self.mask_pooler
            if pooler is not None:
                pooled = pooler(levels, boxes)
            else:
                pooled = hidden[places_of_objects(regions, hidden.device)]
            mask_logits = self.mask_head(pooled, torch.cat([r.classes for r in objects]))
            losses["loss_mask"] = self.mask_head.loss(mask_logits, objects, truth)
        if self.keypoint_head is not None:
            losses["loss_keypoint"] = self.keypoint_head.loss(levels, objects, truth)
        return losses

    def detect(
        self, features: Features, proposals: Boxes, image_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Return the detections of each image, in px of the resized image."""
        levels = [features[name] for name in self.in_features]
        logits, deltas = self.box_predictor(self.box_features(levels, proposals))
        detections = self.box_predictor.detect(logits, deltas, proposals, image_sizes)
        if self.mask_head is not None:
            pool = self.mask_pooler or self.box_features
            pooled = pool(levels, [d.boxes for d in detections])
            detections = self.mask_head.predict(pooled, detections)
        if self.keypoint_head is not None:
            detections = self.keypoint_head.predict(levels, detections)
        return detections


class StandardRoIHeads(RoIHeads):
    """Heads of FPN and DC5 detectors: boxes, masks and keypoints each pool their own features.

    State-dict keys: ``box_head.*``, ``box_predictor.*``, ``mask_head.*``, ``keypoint_head.*``.
    """

    box_head_key = "box_head"
    box_head: BoxHead

    def box_features(self, levels: list[Tensor], boxes: Boxes) -> Tensor:
        """Return (M, features of the last layer)."""
        return torch.flatten(self.box_head(self.box_pooler(levels, boxes)), 1)


class Res5RoIHeads(RoIHeads):
    """Heads of C4 detectors: res5 runs on every pooled region and serves both boxes and masks.

    State-dict keys: ``res5.*``, ``box_predictor.*``, ``mask_head.*``.
    """

    box_head_key = "res5"
    res5: nn.Sequential

    def box_features(self, levels: list[Tensor], boxes: Boxes) -> Tensor:
        """Return (M, C, P / 2, P / 2)."""
        first: Any = self.res5[0]
        # torchvision's operator, on a GPU, cannot pool every second cell alone.
        if levels[0].device.type != "cpu" or not first.is_bottleneck:
            return self.res5(self.box_pooler(levels, boxes))
        pool = self.box_pooler
        hidden = first.forward_pooled(levels[0], lambda x, step: pool([x], boxes, step=step))
        return self.res5[1:](hidden)


def make_res5(shape: ResNetShape, *, extra_norm: bool) -> nn.Sequential:
    """Return res5 of stride 2; ``extra_norm`` adds MoCo's ``norm.*``."""
    res5 = make_stage("res5", shape, stride=2)
    if extra_norm:
        res5.add_module("norm", NORMS[shape.norm](shape.channels("res5")))
    return res5
