"""The dilated-C5 trunk of MoCo's VOC experiments, for Detectron2's BACKBONE_REGISTRY.

Source:
    He et al. 2019, arXiv:1911.05722, App. A.1: res5 with dilation 2 and stride 1, "plus an extra
    3x3 convolution (with BN) that reduces dimension to 512". No code of it was published.
"""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from torch import Tensor

OUT_CHANNELS = 512


class DilatedC5(Backbone):
    """A ResNet whose res5 is dilated, and the convolution that reduces its channels; no ReLU, as
    the paper mentions none.

    State-dict keys: ``bottom_up.*`` and ``reduce.*``.
    """

    def __init__(self, bottom_up: Backbone, *, norm: str, out_channels: int = OUT_CHANNELS) -> None:
        """Build on ``bottom_up``'s 'res5'; with a norm the convolution has no bias."""
        super().__init__()
        self.bottom_up = bottom_up
        res5 = bottom_up.output_shape()["res5"]
        self.reduce = Conv2d(
            res5.channels,
            out_channels,
            kernel_size=3,
            padding=1,
            bias=norm == "",
            norm=get_norm(norm, out_channels),
        )
        weight_init.c2_msra_fill(self.reduce)
        self._shape = ShapeSpec(channels=out_channels, stride=res5.stride)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"dc5": (N, 512, H / 16, W / 16)} for normalised images x (N, 3, H, W)."""
        return {"dc5": self.reduce(self.bottom_up(x)["res5"])}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of 'dc5'."""
        return {"dc5": self._shape}


@BACKBONE_REGISTRY.register()
def build_resnet_dc5_backbone(cfg: Any, input_shape: ShapeSpec) -> DilatedC5:
    """Build the trunk from MODEL.RESNETS, whose OUT_FEATURES must hold 'res5'."""
    return DilatedC5(build_resnet_backbone(cfg, input_shape), norm=cfg.MODEL.RESNETS.NORM)
