"""ResNet and ResNeXt trunks: a stem and the stages res2 to res5.

Shapes in this module:
    N: images    H, W: height and width of the input in px; a feature of stride s is (N, C, ceil(H /
        s), ceil(W / s))
Source:
    He et al. 2016, arXiv:1512.03385; Xie et al. 2017, arXiv:1611.05431.
    Behaviour checked against facebookresearch/detectron2@02b5c4e
    detectron2/modeling/backbone/resnet.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from moco_transfer.finetune.torchvision_engine.conv_norm import ConvNorm, init_msra
from moco_transfer.finetune.torchvision_engine.norm import freeze

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STAGE_NAMES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class ResNetShape:
    """The numbers that describe a ResNet or ResNeXt.

    Attributes:
        depth: A key of ``BLOCKS_PER_STAGE``; 18 and 34 have basic blocks, the others bottlenecks.
        norm: Name of the normalisation after each convolution (see ``norm.get_norm``).
        stride_in_1x1: Whether a bottleneck halves the size in its first 1x1 (MSRA's weights) or in
            its 3x3 convolution (torchvision's).
        num_groups: Groups of a bottleneck's 3x3 convolution; 1 is ResNet, more is ResNeXt.
        width_per_group: Channels of each group in res2; doubled from stage to stage.
        stem_channels: Channels of the stem.
        res2_channels: Channels that res2 returns; doubled from stage to stage.
    """

    depth: int
    norm: str
    stride_in_1x1: bool = False
    num_groups: int = 1
    width_per_group: int = 64
    stem_channels: int = 64
    res2_channels: int = 256

    @property
    def has_basic_blocks(self) -> bool:
        """Whether the blocks are two 3x3 convolutions (R18, R34)."""
        return self.depth < 50

    def channels(self, stage: str) -> int:
        """Return the channels of the output of 'res2' to 'res5'."""
        return self.res2_channels * 2 ** STAGE_NAMES.index(stage)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (ResNet-18 and -34)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        """Build; the shortcut is a projection where the channels change."""
        super().__init__()
        self.shortcut = _projection(in_channels, out_channels, stride=stride, norm=norm)
        self.conv1 = ConvNorm(
            in_channels,
            out_channels,
            kernel_size=3,
            stride=stride,
            norm=norm,
            bias=False,
            relu=True,
        )
        self.conv2 = ConvNorm(out_channels, out_channels, kernel_size=3, norm=norm, bias=False)
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
        *,
        width: int,
        stride: int,
        dilation: int,
        shape: ResNetShape,
    ) -> None:
        """Build; ``width`` is the channels of the 3x3 convolution, ``dilation`` its dilation."""
        super().__init__()
        norm = shape.norm
        stride_1x1, stride_3x3 = (stride, 1) if shape.stride_in_1x1 else (1, stride)
        self.shortcut = _projection(in_channels, out_channels, stride=stride, norm=norm)
        self.conv1 = ConvNorm(
            in_channels, width, kernel_size=1, stride=stride_1x1, norm=norm, bias=False, relu=True
        )
        self.conv2 = ConvNorm(
            width,
            width,
            kernel_size=3,
            stride=stride_3x3,
            dilation=dilation,
            groups=shape.num_groups,
            norm=norm,
            bias=False,
            relu=True,
        )
        self.conv3 = ConvNorm(width, out_channels, kernel_size=1, norm=norm, bias=False)
        _init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / stride, W / stride)."""
        y = self.conv3(self.conv2(self.conv1(x)))
        y += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(y)

    def forward_pooled(self, x: Tensor, pool: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Return ``self(pool(x, 1))``, with the 1x1 convolutions done before the pooling.

        Pooling is linear along height and width, a 1x1 convolution along the channels, so the two
            may change places: on the map
        the convolutions see each position once, after it they see it in every region that holds it.
        Norms and ReLU stay behind.

        Args:
            x: (N, C, H, W), a map that regions are pooled from.
            pool: From a map and the step between the cells that are kept to regions (M, C, P /
                step, P / step).
        """
        convs = [conv for conv in (self.conv1, self.shortcut) if conv is not None]
        pooled = [pool(conv.convolve_densely(x), conv.stride[0]) for conv in convs]
        y = self.conv3(self.conv2(self.conv1.finish(pooled[0])))
        y += pool(x, 1) if self.shortcut is None else self.shortcut.finish(pooled[1])
        return F.relu_(y)


def _projection(in_channels: int, out_channels: int, *, stride: int, norm: str) -> ConvNorm | None:
    if in_channels == out_channels:
        return None
    return ConvNorm(in_channels, out_channels, kernel_size=1, stride=stride, norm=norm, bias=False)


def _init_convolutions(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, ConvNorm):
            init_msra(layer)


def make_stage(name: str, shape: ResNetShape, *, stride: int, dilation: int = 1) -> nn.Sequential:
    """Return one stage as a sequence of blocks; the first block carries the stride and the change
    of channels.

    Args:
        name: 'res2' to 'res5'.
        shape: The network that the stage belongs to.
        stride: Stride of the stage, 1 or 2.
        dilation: Dilation of the stage's 3x3 convolutions (bottlenecks only).
    """
    index = STAGE_NAMES.index(name)
    out_channels = shape.channels(name)
    in_channels = shape.stem_channels if index == 0 else out_channels // 2
    width = shape.num_groups * shape.width_per_group * 2**index
    blocks: list[nn.Module] = []
    for block in range(BLOCKS_PER_STAGE[shape.depth][index]):
        block_stride = stride if block == 0 else 1
        if shape.has_basic_blocks:
            blocks.append(
                BasicBlock(in_channels, out_channels, stride=block_stride, norm=shape.norm)
            )
        else:
            blocks.append(
                Bottleneck(
                    in_channels,
                    out_channels,
                    width=width,
                    stride=block_stride,
                    dilation=dilation,
                    shape=shape,
                )
            )
        in_channels = out_channels
    return nn.Sequential(*blocks)


class Stem(nn.Module):
    """7x7 convolution of stride 2, ReLU, 3x3 max pooling of stride 2."""

    def __init__(self, out_channels: int, *, norm: str) -> None:
        """Build for three colour channels."""
        super().__init__()
        self.conv1 = ConvNorm(
            3, out_channels, kernel_size=7, stride=2, norm=norm, bias=False, relu=True
        )
        init_msra(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class ResNet(nn.Module):
    """Stem and stages up to the last one that is asked for.

    Attributes:
        channels: Channels of each returned feature, by stage name.
        strides: Stride of each returned feature with respect to the image, by stage name.
        size_divisibility: Multiple to which images are padded; 0 means the common size as it is.
    """

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
            out_features: Stages to return, among 'res2' to 'res5'; later stages than these are not
                built.
            res5_dilation: 1, or 2 for a res5 that keeps res4's size (DC5).
            freeze_at: Number of stages that never train, counted from the stem: 0 none, 1 the stem,
                2 the stem and res2, ...
        """
        super().__init__()
        self.stem = Stem(shape.stem_channels, norm=shape.norm)
        self.out_features = tuple(out_features)
        self.stage_names = STAGE_NAMES[: 1 + max(STAGE_NAMES.index(name) for name in out_features)]
        stride = 4
        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        for name in self.stage_names:
            dilation = res5_dilation if name == "res5" else 1
            stage_stride = 1 if name == "res2" or dilation == 2 else 2
            self.add_module(name, make_stage(name, shape, stride=stage_stride, dilation=dilation))
            stride *= stage_stride
            if name in self.out_features:
                self.channels[name] = shape.channels(name)
                self.strides[name] = stride
        for module in [self.stem, *(getattr(self, name) for name in self.stage_names)][:freeze_at]:
            freeze(module)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features asked for, by stage name, for normalised images x (N, 3, H, W)."""
        features = {}
        x = self.stem(x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
            if name in self.out_features:
                features[name] = x
        return features
