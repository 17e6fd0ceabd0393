"""Faster, Mask and Keypoint R-CNN: features, proposals, then a head on every proposal.

Shapes in this module:
    N: images    D: detections of one image    h, w: size of an image as given to the model, px
    H, W: size of the original image, px
Pixels are 0-255 in the channel order of the statistics; boxes are XYXY, absolute px, float32.

Source:
    Ren et al. 2015, arXiv:1506.01497; He et al. 2017, arXiv:1703.06870. Behaviour checked against
    facebookresearch/detectron2@02b5c4e modeling/meta_arch/rcnn.py,
    modeling/postprocessing.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from .backbones import Backbone, ImageNetwork
from .box_head import Detections
from .boxes import is_larger_than
from .mask_head import paste_masks
from .roi_heads import RoIHeads
from .rpn import RPN
from .sampling import GroundTruth


class GeneralizedRCNN(ImageNetwork):
    """A two-stage detector; keys ``backbone.*``, ``proposal_generator.*``, ``roi_heads.*``."""

    def __init__(
        self,
        backbone: Backbone,
        proposal_generator: RPN,
        roi_heads: RoIHeads,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.proposal_generator, self.roi_heads = proposal_generator, roi_heads

    def forward(
        self, batch: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return losses in training, detections in inference.

        A record has "image" float32 or uint8 (3, h, w) 0-255; in training "gt_boxes" (G, 4) in px
        of that image, "gt_classes" (G,) int64[, "gt_masks" (G, see ``GroundTruth``)][,
        "gt_keypoints" (G, P, 3): x, y, visibility]; in inference "height" and "width" of the
        original image (default: the image's own size).

        Returns:
            In training scalar float32 {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"[,
            "loss_mask"][, "loss_keypoint"]}. In inference, for each image {"boxes": (D, 4) in px
            of the original one, "scores": (D,) descending, "classes": (D,) int64[, "masks":
            (D, H, W) bool][, "keypoints": (D, P, 3) x, y, score]}.
        """
        images, sizes = self.preprocess(batch)
        features = self.backbone(images)
        if not self.training:
            proposals, _, _ = self.proposal_generator(features, sizes)
            outputs = []
            detections = self.roi_heads.detect(features, proposals, sizes)
            for found, (h, w), record in zip(detections, sizes, batch, strict=True):
                original = record.get("height", h), record.get("width", w)
                outputs.append(to_original_size(found, (h, w), original))
            return outputs
        heads = {
            "with_masks": self.roi_heads.mask_head is not None,
            "with_keypoints": self.roi_heads.keypoint_head is not None,
        }
        truth = [GroundTruth.read(record, device=images.device, **heads) for record in batch]
        proposals, _, rpn_losses = self.proposal_generator(features, sizes, truth)
        return {**self.roi_heads.losses(features, proposals, truth), **rpn_losses}


def to_original_size(
    found: Detections, image_size: tuple[int, int], original_size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the model's output: the detections of an image of (h, w) px in one of (H, W) px."""
    scale_y, scale_x = (new / old for new, old in zip(original_size, image_size, strict=True))
    scale = torch.tensor([scale_x, scale_y] * 2, device=found.boxes.device, dtype=torch.float32)
    boxes = clip_boxes_to_image(found.boxes * scale, original_size)
    keep = is_larger_than(boxes, 0.0)
    output = {"boxes": boxes[keep], "scores": found.scores[keep], "classes": found.classes[keep]}
    if found.masks is not None:
        output["masks"] = paste_masks(found.masks[keep], output["boxes"], original_size)
    if found.keypoints is not None:
        to_original = torch.tensor([scale_x, scale_y, 1.0]).to(found.keypoints)
        output["keypoints"] = found.keypoints[keep] * to_original
    return output
