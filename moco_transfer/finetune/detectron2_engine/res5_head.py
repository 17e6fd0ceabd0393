"""C4 detectors' second stage with one more norm behind res5, for Detectron2's ROI_HEADS_REGISTRY.

Source:
    He et al. 2019, arXiv:1911.05722, App. A.1; behaviour checked against
    facebookresearch/moco@7397dfe detection/train_net.py, whose class of this name it equals for
    bottlenecks. Added: basic blocks, so that layer4 of a ResNet-18 or -34 finds its place;
        Detectron2's own Res5ROIHeads builds bottlenecks whatever the depth.
"""

from __future__ import annotations

from typing import Any

from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY

# Public by the module's __all__; the package above re-exports the other blocks and not this one.
# ResNet.make_default_stages would choose it as well, but builds, and draws random numbers for, all
# four stages.
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn

# Basic blocks in res5, by depth; deeper networks have bottlenecks.
_BASIC_BLOCKS = {18: 2, 34: 3}


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Detectron2's Res5ROIHeads, its res5 of the blocks that the trunk has and followed by
    MODEL.RESNETS.NORM.

    State-dict keys: ``res5.0.*``, ``res5.1.*``, ..., ``res5.norm.*``, ``box_predictor.*``[,
    ``mask_head.*``].
    """

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of the constructor, as Detectron2's ``@configurable`` wants them."""
        arguments = super().from_config(cfg, input_shape)
        resnets = cfg.MODEL.RESNETS
        out_channels = resnets.RES2_OUT_CHANNELS * 8
        if resnets.DEPTH in _BASIC_BLOCKS:
            arguments["res5"] = _basic_res5(
                _BASIC_BLOCKS[resnets.DEPTH], out_channels, resnets.NORM
            )
        norm = get_norm(resnets.NORM, out_channels)
        if norm is not None:
            arguments["res5"].add_module("norm", norm)
        return arguments


def _basic_res5(num_blocks: int, out_channels: int, norm: str) -> nn.Sequential:
    strides = [2] + [1] * (num_blocks - 1)
    blocks = ResNet.make_stage(
        BasicBlock,
        num_blocks,
        stride_per_block=strides,
        in_channels=out_channels // 2,
        out_channels=out_channels,
        norm=norm,
    )
    return nn.Sequential(*blocks)
