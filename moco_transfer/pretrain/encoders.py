"""Encoders: torchvision's ResNets, so that every state-dict key is that of the published checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import torchvision
from torch import nn

# Stride in the 3x3 convolution, as in torchvision; Detectron2 calls that STRIDE_IN_1X1 False.
ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
}


def build_encoder(arch: str, *, num_outputs: int, norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """Build a ResNet whose last layer ``fc`` has ``num_outputs`` outputs.

    Args:
        arch: A key of :data:`ENCODERS`.
        num_outputs: Feature dimension (contrast) or number of classes (supervised).
        norm_layer: Called with the number of channels.

    Returns:
        A module that maps (N, 3, H, W) normalised RGB to (N, num_outputs), randomly initialised as torchvision does.
    """
    return ENCODERS[arch](weights=None, num_classes=num_outputs, norm_layer=norm_layer)


def add_mlp_head(encoder: nn.Module) -> None:
    """Put a hidden layer before ``fc``, in place: fc.0 (D -> D), ReLU, fc.2 (D -> C). MoCo v2, arXiv:2003.04297 Sec. 3.

    The last layer is kept, as in facebookresearch/moco@7397dfe moco/builder.py, so its initialisation is the linear head's.
    """
    width = encoder.fc.in_features
    encoder.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), encoder.fc)


def count_trunk_parameters(encoder: nn.Module) -> int:
    """Return the number of parameters without the head, what Table 1 of the paper calls #params."""
    return sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith("fc."))
