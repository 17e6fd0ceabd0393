"""Semantic segmentation with a fully convolutional network: features, then a class for each pixel.

Shapes in this module:
    N: images    C: classes    H, W: image as given to the model, px    h, w: features

Source:
    Long et al. 2015, arXiv:1411.4038; the head is that of He et al. 2019, arXiv:1911.05722, App.
    A.5 (no code was published). State-dict keys are those of Detectron2's SemanticSegmentor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ...runtime.device import sent
from ..pixel_logits import classes_of, image_logits, pixel_loss
from .backbones import Backbone, ImageNetwork
from .layers import ConvNorm, init_normal


class FCNHead(nn.Module):
    """3x3 convolutions of ``convs_dim`` channels with norm and ReLU, ``conv1``, ``conv2``, …, and a
    1x1 ``predictor``.

    The convolutions start as He et al. 2015 (arXiv:1502.01852, fan-out) say, the classifier from
    N(0, 0.01^2) with bias 0, as in open-mmlab/mmsegmentation.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        convs_dim: int,
        num_convs: int,
        dilation: int,
        norm: str,
    ) -> None:
        super().__init__()
        for number in range(1, num_convs + 1):
            conv = ConvNorm(in_channels, convs_dim, 3, norm=norm, relu=True, dilation=dilation)
            c2_msra_fill(conv)
            self.add_module(f"conv{number}", conv)
            in_channels = convs_dim
        self.predictor = ConvNorm(in_channels, num_classes, 1)
        init_normal(self.predictor, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, C, h, w) for features (N, in_channels, h, w)."""
        for layer in self.children():
            features = layer(features)
        return features


@dataclass(frozen=True)
class PixelSettings:
    """How labels are read and images looked at."""

    ignore_value: int  # label of pixels that do not count
    loss_weight: float
    window: int  # see pixel_logits.image_logits
    step: int


class SemanticSegmentor(ImageNetwork):
    """A fully convolutional network; keys ``backbone.*``, ``sem_seg_head.*``."""

    def __init__(
        self,
        backbone: Backbone,
        head: FCNHead,
        settings: PixelSettings,
        *,
        in_feature: str,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.sem_seg_head, self.settings, self.in_feature = head, settings, in_feature
        self.stride = backbone.strides[in_feature]

    def forward(
        self, batch: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return the loss in training, classes in inference.

        A record has "image" float32 or uint8 (3, H, W) 0-255; in training "sem_seg" int64 (H, W) of
        classes 0 .. C-1 and the ignored value; in inference "height" and "width" of the original
        image (default: the image's own size).

        Returns:
            In training scalar {"loss_sem_seg"}; collective. In inference, for each image
            {"sem_seg": int64 (height, width), classes}.
        """
        if self.training:
            return {"loss_sem_seg": self.loss(batch)}
        outputs = []
        for record in batch:  # one by one, so that no image depends on another's padding
            images, ((height, width),) = self.preprocess([record])
            logits = image_logits(
                self.logits,
                images[..., :height, :width],
                stride=self.stride,
                window=self.settings.window,
                step=self.settings.step,
            )
            size = record.get("height", height), record.get("width", width)
            outputs.append({"sem_seg": classes_of(logits.float(), size)})
        return outputs

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (N, C, h, w) for normalised images (N, 3, H, W)."""
        return self.sem_seg_head(self.backbone(images)[self.in_feature])

    def loss(self, batch: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the weighted loss of a training batch, a scalar. Collective."""
        images, sizes = self.preprocess(batch)
        ignored = self.settings.ignore_value
        labels = torch.full((len(batch), *images.shape[-2:]), ignored, device=images.device)
        for slot, record, (height, width) in zip(labels, batch, sizes, strict=True):
            slot[:height, :width] = sent(record["sem_seg"], labels.device)
        found = pixel_loss(self.logits(images), labels, stride=self.stride, ignored=ignored)
        return found * self.settings.loss_weight
