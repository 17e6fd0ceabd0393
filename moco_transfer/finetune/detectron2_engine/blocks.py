"""Blocks of MoCo's detectors that Detectron2 lacks, in its registries.

Source:
    He et al. 2019, arXiv:1911.05722, App. A.1. ``Res5ROIHeadsExtraNorm`` equals the class of this
    name in facebookresearch/moco@7397dfe detection/train_net.py; added are basic blocks for
    ResNet-18 and -34. ``DilatedC5``: res5 with dilation 2 and stride 1, "plus an extra 3x3
    convolution (with BN) that reduces dimension to 512"; no code of it was published.
"""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    ROI_HEADS_REGISTRY,
    Backbone,
    build_resnet_backbone,
)
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import Tensor, nn

OUT_CHANNELS = 512
_BASIC_BLOCKS = {18: 2, 34: 3}  # in res5, by depth; deeper networks have bottlenecks


class DilatedC5(Backbone):
    """A ResNet whose res5 is dilated, and the convolution (without ReLU) that reduces its channels;
    state-dict keys ``bottom_up.*`` and ``reduce.*``.
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


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Detectron2's Res5ROIHeads, its res5 of the blocks that the trunk has and followed by
    MODEL.RESNETS.NORM (``res5.norm.*``).
    """

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        arguments = super().from_config(cfg, input_shape)
        resnets = cfg.MODEL.RESNETS
        out_channels = resnets.RES2_OUT_CHANNELS * 8
        if resnets.DEPTH in _BASIC_BLOCKS:
            num_blocks = _BASIC_BLOCKS[resnets.DEPTH]
            blocks = ResNet.make_stage(
                BasicBlock,
                num_blocks,
                stride_per_block=[2] + [1] * (num_blocks - 1),
                in_channels=out_channels // 2,
                out_channels=out_channels,
                norm=resnets.NORM,
            )
            arguments["res5"] = nn.Sequential(*blocks)
        norm = get_norm(resnets.NORM, out_channels)
        if norm is not None:
            arguments["res5"].add_module("norm", norm)
        return arguments
