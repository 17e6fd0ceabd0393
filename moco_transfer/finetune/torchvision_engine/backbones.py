"""ResNet and ResNeXt trunks, the feature pyramid on top of one, and the dilated-C5 trunk.

Each maps normalised images (N, 3, H, W) to features by name; one of stride s is
(N, C, ceil(H / s), ceil(W / s)). ``channels`` and ``strides`` hold C and s by name, and images are
padded to a multiple of ``size_divisibility`` (0: to their common size only).

Source:
    He et al. 2016, arXiv:1512.03385; Xie et al. 2017, arXiv:1611.05431; Lin et al. 2017,
    arXiv:1612.03144. Behaviour checked against facebookresearch/detectron2@02b5c4e
    modeling/backbone/resnet.py and fpn.py. DC5: He et al. 2019, arXiv:1911.05722, Appendix A.1 (no
    code was published).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import Tensor, nn

from ...models import BLOCKS
from .layers import ConvNorm, freeze

STAGE_NAMES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class ResNetShape:
    """A ResNet or ResNeXt; fields are named as Detectron2's keys of MODEL.RESNETS."""

    depth: int  # a key of models.BLOCKS; basic blocks below 50, else bottlenecks
    norm: str  # after each convolution, a key of layers.NORMS
    stride_in_1x1: bool = False  # a bottleneck's stride: first 1x1 (MSRA) or 3x3 (torchvision)
    num_groups: int = 1  # of a bottleneck's 3x3 convolution; more than 1 is ResNeXt
    width_per_group: int = 64  # channels in res2; doubled from stage to stage
    stem_out_channels: int = 64
    res2_out_channels: int = 256  # that res2 returns; doubled from stage to stage

    def channels(self, stage: str) -> int:
        """Return the channels of the output of 'res2' to 'res5'."""
        return self.res2_out_channels * 2 ** STAGE_NAMES.index(stage)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (ResNet-18 and -34)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        conv = functools.partial(ConvNorm, norm=norm, bias=False)
        self.shortcut = _projection(in_channels, out_channels, stride=stride, norm=norm)
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride, relu=True)
        self.conv2 = conv(out_channels, out_channels, 3)
        _init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / stride, W / stride)."""
        y = self.conv2(self.conv1(x))
        y += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution beside a shortcut (ResNet-50 and deeper, ResNeXt)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shape: ResNetShape,
        *,
        width: int,
        stride: int,
        dilation: int,
    ) -> None:
        """Build; ``width`` is the channels of the 3x3 convolution, ``dilation`` its dilation."""
        super().__init__()
        conv = functools.partial(ConvNorm, norm=shape.norm, bias=False)
        stride_1x1, stride_3x3 = (stride, 1) if shape.stride_in_1x1 else (1, stride)
        groups = shape.num_groups
        self.shortcut = _projection(in_channels, out_channels, stride=stride, norm=shape.norm)
        self.conv1 = conv(in_channels, width, 1, stride=stride_1x1, relu=True)
        self.conv2 = conv(
            width, width, 3, stride=stride_3x3, dilation=dilation, groups=groups, relu=True
        )
        self.conv3 = conv(width, out_channels, 1)
        _init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / stride, W / stride)."""
        y = self.conv3(self.conv2(self.conv1(x)))
        y += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(y)

    def forward_pooled(self, x: Tensor, pool: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Return ``self(pool(x, 1))``, with the 1x1 convolutions done before the pooling.

        Pooling is linear along height and width, a 1x1 convolution along the channels, so the two
        commute. On the map the convolutions see each position once, not once for each region.

        Args:
            x: (N, C, H, W), the map that regions are pooled from.
            pool: From a map and the step between kept cells to regions (M, C, Q, Q).
        """
        convs = [conv for conv in (self.conv1, self.shortcut) if conv is not None]
        pooled = [pool(conv.convolve_densely(x), conv.stride[0]) for conv in convs]
        y = self.conv3(self.conv2(self.conv1.finish(pooled[0])))
        y += pool(x, 1) if self.shortcut is None else self.shortcut.finish(pooled[1])
        return F.relu_(y)


def _projection(in_channels: int, out_channels: int, *, stride: int, norm: str) -> ConvNorm | None:
    if in_channels == out_channels:
        return None
    return ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm, bias=False)


def _init_convolutions(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, ConvNorm):
            c2_msra_fill(layer)


def make_stage(name: str, shape: ResNetShape, *, stride: int, dilation: int = 1) -> nn.Sequential:
    """Return one stage; its first block carries the stride and the change of channels.

    Args:
        name: 'res2' to 'res5'.
        shape: The network that the stage belongs to.
        stride: Stride of the stage, 1 or 2.
        dilation: Dilation of the stage's 3x3 convolutions (bottlenecks only).
    """
    index = STAGE_NAMES.index(name)
    channels = shape.channels(name)
    before = shape.stem_out_channels if index == 0 else channels // 2
    width = shape.num_groups * shape.width_per_group * 2**index

    def block(in_channels: int, block_stride: int) -> nn.Module:
        if shape.depth < 50:
            return BasicBlock(in_channels, channels, stride=block_stride, norm=shape.norm)
        return Bottleneck(
            in_channels, channels, shape, width=width, stride=block_stride, dilation=dilation
        )

    repeats = BLOCKS[shape.depth][index] - 1
    return nn.Sequential(block(before, stride), *(block(channels, 1) for _ in range(repeats)))


class Stem(nn.Module):
    """7x7 convolution of stride 2, ReLU, 3x3 max pooling of stride 2."""

    def __init__(self, out_channels: int, *, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, out_channels, 7, stride=2, norm=norm, bias=False, relu=True)
        c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class ResNet(nn.Module):
    """Stem and stages up to the last one that is asked for."""

    size_divisibility = 0

    def __init__(
        self,
        shape: ResNetShape,
        *,
        out_features: Sequence[str],
        res5_dilation: int = 1,
        freeze_at: int = 0,
    ) -> None:
        """Build.

        Args:
            shape: Depth, widths and norm.
            out_features: Stages to return, among 'res2' to 'res5'; no later stage is built.
            res5_dilation: 1, or 2 for a res5 that keeps res4's size (DC5).
            freeze_at: Number of stages that never train: 0 none, 1 the stem, 2 the stem and
                res2, ...
        """
        super().__init__()
        self.stem = Stem(shape.stem_out_channels, norm=shape.norm)
        self.out_features = tuple(out_features)
        self.stage_names = STAGE_NAMES[: 1 + max(STAGE_NAMES.index(name) for name in out_features)]
        self.strides: dict[str, int] = {}
        stride = 4
        for name in self.stage_names:
            dilation = res5_dilation if name == "res5" else 1
            stage_stride = 1 if name == "res2" or dilation == 2 else 2
            self.add_module(name, make_stage(name, shape, stride=stage_stride, dilation=dilation))
            stride *= stage_stride
            self.strides[name] = stride
        self.channels = {name: shape.channels(name) for name in self.out_features}
        for module in [self.stem, *map(self.get_submodule, self.stage_names)][:freeze_at]:
            freeze(module)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features asked for, by stage name."""
        features = {}
        x = self.stem(x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
            if name in self.out_features:
                features[name] = x
        return features


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down path that adds, 3x3 convolutions, and p6 from p5.

    Images are padded so that upsampled maps fit exactly. State-dict keys: ``bottom_up.*``,
    ``fpn_lateral2.*``, ``fpn_output2.*``, ...
    """

    def __init__(
        self, bottom_up: ResNet, *, in_features: Sequence[str], out_channels: int, norm: str
    ) -> None:
        """Build on consecutive features of ``bottom_up``, finest first."""
        super().__init__()
        self.bottom_up = bottom_up
        self.levels = [int(name.removeprefix("res")) for name in in_features]
        for level, name in zip(self.levels, in_features, strict=True):
            lateral = ConvNorm(bottom_up.channels[name], out_channels, 1, norm=norm)
            output = ConvNorm(out_channels, out_channels, 3, norm=norm)
            c2_xavier_fill(lateral)
            c2_xavier_fill(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
        self.strides = {f"p{level}": 2**level for level in [*self.levels, self.levels[-1] + 1]}
        self.channels = dict.fromkeys(self.strides, out_channels)
        self.size_divisibility = 2 ** self.levels[-1]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the levels 'p2', ... by name, finest first."""
        bottom_up = self.bottom_up(x)
        merged, outputs = None, {}
        for level in reversed(self.levels):
            lateral = getattr(self, f"fpn_lateral{level}")(bottom_up[f"res{level}"])
            if merged is not None:
                lateral = lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = lateral
            outputs[f"p{level}"] = getattr(self, f"fpn_output{level}")(merged)
        features = dict(reversed(outputs.items()))
        top = self.levels[-1]
        features[f"p{top + 1}"] = F.max_pool2d(features[f"p{top}"], kernel_size=1, stride=2)
        return features


class DilatedC5(nn.Module):
    """A ResNet whose res5 is dilated, and a 3x3 convolution with norm that reduces its channels.

    The paper words it as "an extra 3x3 convolution (with BN) that reduces dimension to 512"; it
    mentions no ReLU, so there is none. State-dict keys: ``bottom_up.*`` and ``reduce.*``.
    """

    size_divisibility = 0

    def __init__(self, bottom_up: ResNet, *, out_channels: int = 512, norm: str) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.reduce = ConvNorm(bottom_up.channels["res5"], out_channels, 3, norm=norm)
        c2_msra_fill(self.reduce)
        self.channels = {"dc5": out_channels}
        self.strides = {"dc5": bottom_up.strides["res5"]}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return "dc5", of stride 16."""
        return {"dc5": self.reduce(self.bottom_up(x)["res5"])}
