"""Feature pyramid on top of a ResNet, and the dilated-C5 trunk.

Shapes in this module:
    N: images    C: channels of every pyramid level    H, W: height and width of the input in px
    Level p<i> is (N, C, H / 2**i, W / 2**i).
Source:
    FPN: Lin et al. 2017, arXiv:1612.03144. Behaviour checked against
        facebookresearch/detectron2@02b5c4e
    detectron2/modeling/backbone/fpn.py. DC5: He et al. 2019, arXiv:1911.05722, Appendix A.1 (no
    code was published).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from moco_transfer.finetune.torchvision_engine.conv_norm import ConvNorm, init_msra, init_xavier
from moco_transfer.finetune.torchvision_engine.resnet import ResNet


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down path that adds, 3x3 convolutions, and p6 by subsampling
    p5.

    State-dict keys: ``bottom_up.*``, ``fpn_lateral2.*``, ``fpn_output2.*``, ...

    Attributes:
        channels: Channels of each level, by name ('p2' ... 'p6').
        strides: Stride of each level, by name.
        size_divisibility: Images are padded to a multiple of the coarsest lateral's stride, so that
            upsampled maps fit exactly.
    """

    def __init__(
        self, bottom_up: ResNet, *, in_features: Sequence[str], out_channels: int, norm: str
    ) -> None:
        """Build on consecutive features of ``bottom_up``, finest first; with a norm the
        convolutions have no bias.
        """
        super().__init__()
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        self.levels = [int(name.removeprefix("res")) for name in in_features]
        for level, name in zip(self.levels, in_features, strict=True):
            lateral = ConvNorm(bottom_up.channels[name], out_channels, kernel_size=1, norm=norm)
            output = ConvNorm(out_channels, out_channels, kernel_size=3, norm=norm)
            init_xavier(lateral)
            init_xavier(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
        self.strides = {f"p{level}": 2**level for level in [*self.levels, self.levels[-1] + 1]}
        self.channels = dict.fromkeys(self.strides, out_channels)
        self.size_divisibility = 2 ** self.levels[-1]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the levels by name, finest first, for normalised images x (N, 3, H, W), H and W
        divisible by 32.
        """
        bottom_up = self.bottom_up(x)
        merged = None
        outputs: dict[str, Tensor] = {}
        for level, name in reversed(list(zip(self.levels, self.in_features, strict=True))):
            lateral = getattr(self, f"fpn_lateral{level}")(bottom_up[name])
            merged = (
                lateral
                if merged is None
                else lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            )
            outputs[f"p{level}"] = getattr(self, f"fpn_output{level}")(merged)
        top = self.levels[-1]
        features = {f"p{level}": outputs[f"p{level}"] for level in self.levels}
        features[f"p{top + 1}"] = F.max_pool2d(outputs[f"p{top}"], kernel_size=1, stride=2)
        return features


class DilatedC5(nn.Module):
    """A ResNet whose res5 is dilated, and a 3x3 convolution with norm that reduces its channels.

    The paper words it as "an extra 3x3 convolution (with BN) that reduces dimension to 512"; no
    ReLU is mentioned, so none is here. State-dict keys: ``bottom_up.*`` and ``reduce.*``.

    Attributes:
        channels: ``{"dc5": out_channels}``.
        strides: ``{"dc5": 16}``.
        size_divisibility: 0, images are padded to their common size only.
    """

    size_divisibility = 0

    def __init__(self, bottom_up: ResNet, *, out_channels: int = 512, norm: str) -> None:
        """Build on ``bottom_up``'s 'res5'."""
        super().__init__()
        self.bottom_up = bottom_up
        self.reduce = ConvNorm(bottom_up.channels["res5"], out_channels, kernel_size=3, norm=norm)
        init_msra(self.reduce)
        self.channels = {"dc5": out_channels}
        self.strides = {"dc5": bottom_up.strides["res5"]}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"dc5": (N, out_channels, H / 16, W / 16)} for normalised images x (N, 3, H, W)."""
        return {"dc5": self.reduce(self.bottom_up(x)["res5"])}
