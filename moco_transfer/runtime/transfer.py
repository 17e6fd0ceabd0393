"""Small tensors on their way from the host to the device, without the host waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; on a GPU the copy is queued behind the work that is under
    way, and the host goes on.

    A plain ``.to(device)`` waits until the GPU has done all that was asked of it before: once an
    iteration, that keeps the host from preparing the next kernels.

    Args:
        tensor: On the CPU, or on the device already.
        device: Where it is wanted.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
