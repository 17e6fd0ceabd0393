"""ResNet and ResNeXt trunks, the feature pyramid on top of one, the dilated-C5 trunk, and what the
networks on a trunk share: pixel statistics, and one tensor of a batch of images.

A feature of stride s is (N, C, ceil(H / s), ceil(W / s)).

Source:
    He et al. 2016, arXiv:1512.03385; Xie et al. 2017, arXiv:1611.05431; Lin et al. 2017,
    arXiv:1612.03144. Behaviour checked against facebookresearch/detectron2@02b5c4e
    modeling/backbone/resnet.py and fpn.py, structures/image_list.py. DC5: He et al. 2019,
    arXiv:1911.05722, Appendix A.1 (no code was published).
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import Tensor, nn

from ...models import BLOCKS
from ...runtime.device import sent
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


class Backbone(nn.Module):
    """From normalised images (N, 3, H, W) to features by name."""

    channels: dict[str, int]  # C of each feature
    strides: dict[str, int]  # s of each feature, with respect to the image
    size_divisibility: int = 0  # images are padded to a multiple of it; 0: to their common size


class Block(nn.Module):
    """Two 3x3 convolutions below depth 50, else a bottleneck of 1x1, 3x3, 1x1; and a shortcut.

    ``channels`` are those in and out, ``width`` those of a bottleneck's 3x3 convolution.
    """

    def __init__(
        self, shape: ResNetShape, channels: tuple[int, int], width: int, stride: int, dilation: int
    ) -> None:
        super().__init__()
        in_channels, out_channels = channels
        conv = functools.partial(ConvNorm, norm=shape.norm, bias=False)
        changes = in_channels != out_channels
        self.shortcut = conv(in_channels, out_channels, 1, stride=stride) if changes else None
        self.is_bottleneck = shape.depth >= 50
        if self.is_bottleneck:
            first, second = (stride, 1) if shape.stride_in_1x1 else (1, stride)
            grouped = functools.partial(conv, groups=shape.num_groups, dilation=dilation)
            self.conv1 = conv(in_channels, width, 1, stride=first, relu=True)
            self.conv2 = grouped(width, width, 3, stride=second, relu=True)
            self.conv3 = conv(width, out_channels, 1)
        else:
            dilated = functools.partial(conv, dilation=dilation)
            self.conv1 = dilated(in_channels, out_channels, 3, stride=stride, relu=True)
            self.conv2 = dilated(out_channels, out_channels, 3)
        for layer in self.children():
            c2_msra_fill(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / stride, W / stride)."""
        y = self.conv2(self.conv1(x))
        y = self.conv3(y) if self.is_bottleneck else y
        y += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(y)

    def forward_pooled(self, x: Tensor, pool: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Return ``self(pool(x, 1))`` of a bottleneck, with 1x1 convolutions before the pooling.

        Pooling is linear along height and width, a 1x1 convolution along the channels, so the two
        commute. On the map the convolutions see each position once, not once for each region.
        ``pool`` turns a map and the step between kept cells into regions (M, C, Q, Q).
        """
        convs = [conv for conv in (self.conv1, self.shortcut) if conv is not None]
        pooled = [pool(conv.convolve_densely(x), conv.stride[0]) for conv in convs]
        y = self.conv3(self.conv2(self.conv1.finish(pooled[0])))
        y += pool(x, 1) if self.shortcut is None else self.shortcut.finish(pooled[1])
        return F.relu_(y)


def make_stage(name: str, shape: ResNetShape, *, stride: int, dilation: int = 1) -> nn.Sequential:
    """Return 'res2' to 'res5'; the first block carries the stride and the change of channels."""
    index = STAGE_NAMES.index(name)
    channels = shape.channels(name)
    before = shape.stem_out_channels if index == 0 else channels // 2
    width = shape.num_groups * shape.width_per_group * 2**index
    first = Block(shape, (before, channels), width, stride, dilation)
    repeats = BLOCKS[shape.depth][index] - 1
    others = (Block(shape, (channels, channels), width, 1, dilation) for _ in range(repeats))
    return nn.Sequential(first, *others)


class ResNet(Backbone):
    """Stem and stages up to the last one that is asked for."""

    def __init__(
        self,
        shape: ResNetShape,
        out_features: Sequence[str],
        *,
        res5_dilation: int = 1,
        freeze_at: int = 0,
    ) -> None:
        """Build; the first ``freeze_at`` of stem, res2, ... never train.

        A ``res5_dilation`` of 2 makes res5 keep res4's size.
        """
        super().__init__()
        stem = shape.stem_out_channels
        conv1 = ConvNorm(3, stem, 7, stride=2, norm=shape.norm, bias=False, relu=True)
        c2_msra_fill(conv1)
        pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stem = nn.Sequential(OrderedDict(conv1=conv1, pool=pool))
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


class FPN(Backbone):
    """Lateral 1x1 convolutions, a top-down path that adds, 3x3 convolutions, and p6 from p5.

    State-dict keys: ``bottom_up.*``, ``fpn_lateral2.*``, ``fpn_output2.*``, ...
    """

    def __init__(
        self, bottom_up: ResNet, *, in_features: Sequence[str], out_channels: int, norm: str
    ) -> None:
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


class DilatedC5(Backbone):
    """A ResNet whose res5 is dilated, and a 3x3 convolution with norm that reduces its channels.

    The paper mentions no ReLU, so there is none. State-dict keys: ``bottom_up.*``, ``reduce.*``.
    """

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


class ImageNetwork(nn.Module):
    """A network on normalised images. Pixels are 0-255 in the channel order of the statistics."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, backbone: Backbone, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            statistics = torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, statistics, persistent=False)

    def preprocess(
        self, batch: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Return the images, normalised and padded, on the model's device and in its memory format,
        and their sizes (h, w); see :func:`pad_images`.
        """
        to = self.pixel_mean
        images = [sent(record["image"], to.device).to(to.dtype) for record in batch]
        normalised = [(image - self.pixel_mean) / self.pixel_std for image in images]
        filters = next(p for p in self.backbone.parameters() if p.dim() == 4)
        last = filters.is_contiguous(memory_format=torch.channels_last)
        channels_last = last and not filters.is_contiguous()
        return pad_images(
            normalised,
            divisibility=self.backbone.size_divisibility,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )


def pad_images(
    images: Sequence[Tensor], *, divisibility: int, memory_format: torch.memory_format
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Put normalised images (3, h, w) into the upper left corners of one zero tensor (N, 3, h, w),
    and return it with each image's size.

    The tensor's sides are multiples of ``divisibility``, if that is more than 1.
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    step = max(divisibility, 1)
    height, width = (-(-max(side) // step) * step for side in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), 3, height, width)
    batch = batch.contiguous(memory_format=memory_format)
    for slot, image, (h, w) in zip(batch, images, sizes, strict=True):
        slot[:, :h, :w].copy_(image)
    return batch, sizes
