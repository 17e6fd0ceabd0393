"""The ResNets that can be converted: the names and shapes of their tensors, taken from torchvision, and telling them apart.

Conventions:
    Names are torchvision's. The classifier ``fc`` and BN's ``num_batches_tracked`` are left out, so that ResNet-50 has
    265 tensors: 53 convolutions and 4 tensors for each of 53 batch norms.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor

from .key_maps import BATCH_COUNTER, from_torchvision

ARCHITECTURES = (
    "resnet50",
    "resnet18",
    "resnet34",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
"""torchvision's names. No two of them have the same tensors."""

BASIC_BLOCKS = ("resnet18", "resnet34")
"""The networks without bottlenecks: no 1x1 convolution in their main path."""

BATCH_NORM_EPS = 1e-5
"""What every network here adds to a variance before the square root: torch's default and Detectron2's."""

Shape = tuple[int, ...]


def build_resnet(arch: str, *, device: str = "cpu") -> torchvision.models.ResNet:
    """Return torchvision's ResNet ``arch`` with random weights, in eval mode, on ``device`` ("meta" allocates nothing)."""
    with torch.device(device):
        return torchvision.models.get_model(arch, weights=None).eval()


@functools.cache
def _shapes(arch: str) -> tuple[tuple[str, Shape], ...]:
    state = build_resnet(arch, device="meta").state_dict()
    names = (name for name in state if from_torchvision(name) and not name.endswith(BATCH_COUNTER))
    return tuple((name, tuple(state[name].shape)) for name in names)


def backbone_shapes(arch: str) -> dict[str, Shape]:
    """Return torchvision's name -> shape of every backbone tensor of ``arch``, in the order of the network.

    Args:
        arch: One of :data:`ARCHITECTURES`.
    """
    return dict(_shapes(arch))


def recognise(tensors: Mapping[str, Tensor]) -> str:
    """Return the architecture that agrees best with ``tensors``; an exact one when there is one.

    A file with a gap is still told apart, so that its gap can be named: the score counts tensors of the right name and
    shape, less those missing and those left over.

    Args:
        tensors: torchvision's name -> tensor, backbone tensors only.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith(BATCH_COUNTER)}
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
