"""What Caffe2's files (MSRA's R-50.pkl, Detectron 1's detectors) have in place of a plain ResNet's
tensors.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from moco_transfer.models import BATCH_NORM_EPS


def why_bias_is_dropped(name: str, tensor: Tensor) -> str | None:
    """Return why a convolution's bias may be dropped; None for another blob, or when dropping it
    would change the network.

    Args:
        name: The blob's name without a prefix.
        tensor: Its values.
    """
    if not re.fullmatch(r"conv1_b|res\d_\d+_branch(1|2[abc])_b", name):
        return None
    if name == "conv1_b":
        return (
            "bias of the first convolution, which Detectron2's network does not have and leaves out"
            " as well"
        )
    return None if bool(tensor.any()) else "bias of a convolution, all zeros"


def fill_fused_norms(state: dict[str, Tensor], names: dict[str, str]) -> None:
    """Complete, in place, the norms that Caffe2 fused into scale and shift: mean 0 and variance 1 -
    eps make them that.

    Args:
        state: torchvision's name -> tensor.
        names: torchvision's name -> full name in the file; the filled ones are named after the
            scale they complete.
    """
    scales = [
        name
        for name in state
        if name.endswith(".weight") and name[: -len("weight")] + "bias" in state
    ]
    for name in scales:
        mean, var = (name[: -len("weight")] + part for part in ("running_mean", "running_var"))
        if mean not in state and var not in state:
            state[mean] = torch.zeros_like(state[name])
            state[var] = torch.ones_like(state[name]) - BATCH_NORM_EPS
            names[mean], names[var] = (
                f"{names[name]} (fused: mean 0)",
                f"{names[name]} (fused: variance 1)",
            )
