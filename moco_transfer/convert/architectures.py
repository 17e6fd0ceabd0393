"""The ResNets that can be converted: the names and shapes of their tensors, taken from torchvision,
and telling them apart.

Conventions:
    Names are torchvision's. The classifier ``fc`` and BN's ``num_batches_tracked`` are left out, so
    that ResNet-50 has 265 tensors: 53 convolutions and 4 tensors for each of 53 batch norms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from .key_maps import BATCH_COUNTER, from_torchvision

DEPTH_50 = (3, 4, 6, 3)
"""Blocks in layer1 to layer4 of every network with 50 layers."""

ARCHITECTURES = (
    "resnet50",
    "resnet18",
    "resnet34",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext50_32x8d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnet50_w2x",
    "resnet50_w4x",
)
"""torchvision's names where it has the network. No two of them have the same tensors."""

SMALL_STEM = (3, 3)
"""Kernel of the first convolution in the networks for CIFAR's images (stride 1, no max pooling);
all others have 7x7.
"""

WIDENED = {"resnet50_w2x": 2, "resnet50_w4x": 4}
"""The networks of which every layer has a multiple of ResNet-50's channels -> the multiple."""

BASIC_BLOCKS = ("resnet18", "resnet34")
"""The networks without bottlenecks: no 1x1 convolution in their main path."""

BATCH_NORM_EPS = 1e-5
"""What every network here adds to a variance before the square root: torch's default and
Detectron2's.
"""

Shape = tuple[int, ...]


def _widened(factor: int) -> ResNet:
    """Return a ResNet-50 with ``factor`` times the channels in every layer, the stem included.

    R50w2x and R50w4x of the MoCo paper (arXiv:1911.05722, Table 1), after Kolesnikov et al. 2019
    (arXiv:1901.09005, Sec. 4). torchvision's ``wide_resnet50_2`` is another network: there the 3x3
    convolutions alone have twice the channels.
    """
    model = ResNet(Bottleneck, list(DEPTH_50))
    model.inplanes = width = 64 * factor
    model.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    for index, depth in enumerate(DEPTH_50):
        layer = model._make_layer(Bottleneck, width << index, depth, stride=1 if index == 0 else 2)
        setattr(model, f"layer{index + 1}", layer)
    model.fc = nn.Linear(model.inplanes, 1000)
    return model


_NOT_IN_TORCHVISION: dict[str, Callable[[], ResNet]] = {
    "resnext50_32x8d": lambda: ResNet(Bottleneck, list(DEPTH_50), groups=32, width_per_group=8),
    **{arch: functools.partial(_widened, factor) for arch, factor in WIDENED.items()},
}


def build_resnet(arch: str, *, device: str = "cpu") -> ResNet:
    """Return the ResNet ``arch`` with random weights, in eval mode, on ``device`` ("meta" allocates
    nothing).

    Args:
        arch: One of :data:`ARCHITECTURES`.
        device: A device of torch.
    """
    with torch.device(device):
        make = _NOT_IN_TORCHVISION.get(arch)
        return (make() if make else torchvision.models.get_model(arch, weights=None)).eval()


@functools.cache
def _shapes(arch: str) -> tuple[tuple[str, Shape], ...]:
    state = build_resnet(arch, device="meta").state_dict()
    names = (name for name in state if from_torchvision(name) and not name.endswith(BATCH_COUNTER))
    return tuple((name, tuple(state[name].shape)) for name in names)


def has_small_stem(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether the first convolution is CIFAR's 3x3 instead of 7x7.

    Args:
        tensors: torchvision's name -> tensor.
    """
    stem = tensors.get("conv1.weight")
    return stem is not None and tuple(stem.shape[2:]) == SMALL_STEM


def backbone_shapes(arch: str) -> dict[str, Shape]:
    """Return torchvision's name -> shape of every backbone tensor of ``arch``, in the order of the
    network.

    Args:
        arch: One of :data:`ARCHITECTURES`.
    """
    return dict(_shapes(arch))


def recognise(tensors: Mapping[str, Tensor]) -> str:
    """Return the architecture that agrees best with ``tensors``; an exact one when there is one.

    A file with a gap is still told apart, so that its gap can be named: the score counts tensors of
        the right name and
    shape, less those missing and those left over.

    Args:
        tensors: torchvision's name -> tensor, backbone tensors only.
    """
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.endswith(BATCH_COUNTER)
    }
    best, best_score = ARCHITECTURES[0], None
    for arch in ARCHITECTURES:
        expected = backbone_shapes(arch)
        if shapes == expected:
            return arch
        agree = sum(shapes.get(name) == shape for name, shape in expected.items())
        score = agree - len(expected.keys() ^ shapes.keys())
        if best_score is None or score > best_score:
            best, best_score = arch, score
    return best
