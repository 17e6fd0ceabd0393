"""Every ResNet of the project: builders, and the names and shapes of its tensors.

Names are torchvision's; stride is in the 3x3 convolution (STRIDE_IN_1X1 False). A backbone's
tensors leave out the head ``fc`` and BN's ``num_batches_tracked``: ResNet-50 has 265.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import Bottleneck, ResNet

Shape = tuple[int, ...]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
BLOCKS |= {101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Depth -> blocks in each of the four stages; bottlenecks from depth 50 on."""

BASIC_BLOCKS = ("resnet18", "resnet34")  # without bottlenecks
WIDENED = ("resnet50_w2x", "resnet50_w4x")  # wider in every layer, stem included
BATCH_COUNTER = "num_batches_tracked"  # optional in a file, never counted in a coverage
BATCH_NORM_EPS = 1e-5  # torch's default and Detectron2's


def _widened_resnet50(
    width: int, *, norm_layer: Callable[[int], nn.Module], num_classes: int
) -> ResNet:
    """Return ResNet-50 with every width multiplied, stem too: R50w2x and w4x of MoCo's Table 1.

    torchvision's ``wide_resnet50_2`` doubles inner widths alone. Source: Kolesnikov et al. 2019,
    arXiv:1901.09005, as cited by arXiv:1911.05722 Table 1.
    """
    # A block has planes x width_per_group / 64 inner and planes x expansion output channels.
    expansion = Bottleneck.expansion * width
    block = type(f"Bottleneck{width}x", (Bottleneck,), {"expansion": expansion})
    shared: dict[str, Any] = {"num_classes": num_classes, "norm_layer": norm_layer}
    encoder = ResNet(block, list(BLOCKS[50]), width_per_group=64 * width, **shared)
    # torchvision's stem always has 64 channels: build it and layer1, which reads it, again.
    encoder.inplanes = 64 * width
    encoder.conv1 = nn.Conv2d(3, 64 * width, kernel_size=7, stride=2, padding=3, bias=False)
    encoder.bn1 = norm_layer(64 * width)
    encoder.layer1 = encoder._make_layer(block, 64, 3)
    for part in (encoder.conv1, *encoder.layer1.modules()):
        if isinstance(part, nn.Conv2d):  # as ResNet.__init__ does
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return encoder


def _for_small_images(factory: Callable[..., ResNet], **kwargs: Any) -> ResNet:
    """Return a ResNet for images of about 32 px: a 3x3 stem of stride 1, and no max-pool.

    Source: the official CIFAR-10 demo (facebookresearch/moco branch colab-notebook @f736491), whose
    stem has ``nn.Conv2d``'s own initialisation.
    """
    encoder = factory(**kwargs)
    channels = encoder.conv1.out_channels
    encoder.conv1 = nn.Conv2d(3, channels, kernel_size=3, stride=1, padding=1, bias=False)
    encoder.maxpool = nn.Identity()
    return encoder


ENCODERS: dict[str, Callable[..., ResNet]] = {
    name: getattr(models, name)
    for name in (
        *("resnet50", "resnet18", "resnet34", "resnet101", "resnet152", "resnext50_32x4d"),
        *("resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
    )
} | {
    "resnext50_32x8d": functools.partial(
        ResNet, Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=8
    ),
    **{f"resnet50_w{width}x": functools.partial(_widened_resnet50, width) for width in (2, 4)},
    **{
        f"resnet{depth}_cifar": functools.partial(_for_small_images, build)
        for depth, build in {18: models.resnet18, 34: models.resnet34, 50: models.resnet50}.items()
    },
}

ARCHITECTURES = tuple(name for name in ENCODERS if not name.endswith("_cifar"))
"""Networks that can be a detector's backbone. No two of them have the same tensors."""


def build_encoder(
    arch: str,
    *,
    num_classes: int,
    norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    in_channels: int = 3,
) -> ResNet:
    """Build a ResNet that maps normalised images (N, in_channels, H, W) to (N, num_classes).

    ``arch`` is a key of :data:`ENCODERS`. The weights are random, as torchvision's.
    """
    encoder = ENCODERS[arch](num_classes=num_classes, norm_layer=norm_layer)
    if in_channels != 3:
        stem: Any = encoder.conv1
        shape = stem.out_channels, stem.kernel_size, stem.stride, stem.padding
        encoder.conv1 = nn.Conv2d(in_channels, *shape, bias=False)
        if not arch.endswith("_cifar"):  # as ResNet.__init__ does
            nn.init.kaiming_normal_(encoder.conv1.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(encoder.maxpool, nn.MaxPool2d):
        # ReLU after max-pooling works on a quarter of the values; output and gradients are equal.
        relu = nn.ReLU(inplace=True)
        encoder.relu, encoder.maxpool = nn.Identity(), nn.Sequential(encoder.maxpool, relu)
    return encoder


def add_mlp_head(encoder: nn.Module) -> None:
    """Put a hidden layer before ``fc``, in place: fc.0 (D -> D), ReLU, fc.2 (D -> C).

    MoCo v2, arXiv:2003.04297 Sec. 3. The last layer keeps its initialisation, as in
    facebookresearch/moco@7397dfe moco/builder.py.
    """
    fc: Any = encoder.fc
    encoder.fc = nn.Sequential(nn.Linear(fc.in_features, fc.in_features), nn.ReLU(), fc)


@functools.cache
def backbone_shapes(arch: str, in_channels: int = 3) -> Mapping[str, Shape]:
    """Return name -> shape of every backbone tensor of ``arch``, in the order of the network."""
    with torch.device("meta"):  # allocates nothing
        state = build_encoder(arch, num_classes=1, in_channels=in_channels).state_dict()
    names = (n for n in state if not n.startswith("fc.") and not n.endswith(BATCH_COUNTER))
    return MappingProxyType({name: tuple(state[name].shape) for name in names})


def has_small_stem(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the first convolution is the 3x3 of networks for CIFAR's images instead of 7x7."""
    stem = tensors.get("conv1.weight")
    return stem is not None and tuple(stem.shape[2:]) == (3, 3)


def recognise(tensors: Mapping[str, Tensor]) -> str:
    """Return the architecture that agrees best with torchvision's name -> backbone tensor.

    A file with a gap is recognised too, so that its gap can be named.
    """
    shapes = {n: tuple(t.shape) for n, t in tensors.items() if not n.endswith(BATCH_COUNTER)}

    def score(arch: str) -> int:
        expected = backbone_shapes(arch)
        agree = sum(shapes.get(name) == shape for name, shape in expected.items())
        return agree - len(expected.keys() ^ shapes.keys())

    exact = (arch for arch in ARCHITECTURES if backbone_shapes(arch) == shapes)
    return next(exact, None) or max(ARCHITECTURES, key=score)
