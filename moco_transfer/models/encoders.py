"""Encoders: torchvision's ResNets, so that every state-dict key is that of the published
checkpoints.

Stride is in the 3x3 convolution, as in torchvision; Detectron2 calls that STRIDE_IN_1X1 False.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet


class WideResNet50(ResNet):
    """ResNet-50 with every width multiplied, stem and outputs too: R50w2x and w4x of the paper's
    Table 1.

    Not torchvision's ``wide_resnet50_2``, whose inner widths alone are doubled.

    Args:
        width: Multiplier, 2 or 4.
        num_classes: Outputs of ``fc``, whose input has 2048 x width channels.
        norm_layer: Called with the number of channels.

    Source:
        Widths: Kolesnikov et al. 2019, arXiv:1901.09005, as cited by arXiv:1911.05722 Table 1.
    """

    def __init__(
        self, width: int, *, num_classes: int, norm_layer: Callable[[int], nn.Module]
    ) -> None:
        # A block gives planes x expansion channels, and has inner width planes x width_per_group /
        # 64: both grow by `width`.
        block = type(
            f"Bottleneck{width}x", (Bottleneck,), {"expansion": Bottleneck.expansion * width}
        )
        super().__init__(
            block,
            [3, 4, 6, 3],
            num_classes=num_classes,
            width_per_group=64 * width,
            norm_layer=norm_layer,
        )
        # torchvision's stem has 64 channels whatever the block: it and the first stage, which reads
        # it, are built again.
        self.inplanes = 64 * width
        self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(self.inplanes)
        self.layer1 = self._make_layer(block, 64, 3)
        for part in (self.conv1, *self.layer1.modules()):
            if isinstance(part, nn.Conv2d):  # as ResNet.__init__ does
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _for_small_images(factory: Callable[..., ResNet], **kwargs) -> ResNet:
    """Return a ResNet for images of about 32 px: a 3x3 stem of stride 1 without bias, and no
    max-pool.

    Source:
        The official CIFAR-10 demo (facebookresearch/moco branch colab-notebook @f736491), whose
        stem has ``nn.Conv2d``'s own initialisation and not the ResNet's. State-dict keys stay
        torchvision's; the demo numbers its layers.
    """
    encoder = factory(**kwargs)
    encoder.conv1 = nn.Conv2d(
        3, encoder.conv1.out_channels, kernel_size=3, stride=1, padding=1, bias=False
    )
    encoder.maxpool = nn.Identity()
    return encoder


def _resnext50_32x8d(**kwargs) -> ResNet:
    return ResNet(Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=8, **kwargs)


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
    "resnet101": torchvision.models.resnet101,
    "resnext50_32x8d": _resnext50_32x8d,
    "resnet50_w2x": functools.partial(WideResNet50, 2),
    "resnet50_w4x": functools.partial(WideResNet50, 4),
    "resnet18_cifar": functools.partial(_for_small_images, torchvision.models.resnet18),
    "resnet34_cifar": functools.partial(_for_small_images, torchvision.models.resnet34),
    "resnet50_cifar": functools.partial(_for_small_images, torchvision.models.resnet50),
}


def build_encoder(
    arch: str, *, num_outputs: int, norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> nn.Module:
    """Build a ResNet whose last layer ``fc`` has ``num_outputs`` outputs.

    Args:
        arch: A key of :data:`ENCODERS`.
        num_outputs: Feature dimension (contrast) or number of classes (supervised).
        norm_layer: Called with the number of channels.

    Returns:
        A module that maps (N, 3, H, W) normalised RGB to (N, num_outputs), randomly initialised as
        torchvision does.
    """
    encoder = ENCODERS[arch](num_classes=num_outputs, norm_layer=norm_layer)
    if isinstance(encoder.maxpool, nn.MaxPool2d):
        # The stem's ReLU behind its max-pooling, on a quarter of the values: the same output and
        # gradients, bit for bit.
        encoder.relu, encoder.maxpool = (
            nn.Identity(),
            nn.Sequential(encoder.maxpool, nn.ReLU(inplace=True)),
        )
    return encoder


def add_mlp_head(encoder: nn.Module) -> None:
    """Put a hidden layer before ``fc``, in place: fc.0 (D -> D), ReLU, fc.2 (D -> C). MoCo v2,
    arXiv:2003.04297 Sec. 3.

    The last layer is kept, as in facebookresearch/moco@7397dfe moco/builder.py, so its
    initialisation is the linear head's.
    """
    width = encoder.fc.in_features
    encoder.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), encoder.fc)


def count_trunk_parameters(encoder: nn.Module) -> int:
    """Return the number of parameters without the head, what Table 1 of the paper calls #params."""
    return sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith("fc."))
