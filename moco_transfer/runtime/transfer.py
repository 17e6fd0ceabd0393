"""Small tensors from the host to the device without the host waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; on a GPU the copy is queued and the host continues.

    A plain ``.to(device)`` would wait until the GPU has finished all earlier work.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
