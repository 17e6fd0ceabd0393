"""The queue of negative keys: a ring buffer of unit-norm columns, in the layout of the published checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def new_queue(dim: int, queue_size: int) -> Tensor:
    """Return a queue (dim, queue_size), float32, of normalised Gaussian columns (facebookresearch/moco@7397dfe moco/builder.py)."""
    return F.normalize(torch.randn(dim, queue_size), dim=0)


@torch.no_grad()
def enqueue(queue: Tensor, queue_ptr: Tensor, keys: Tensor) -> None:
    """Overwrite the oldest columns by the newest keys, in place, wrapping around at the end.

    Any batch size is legal: what does not fit before the end goes to the start, and of a batch larger than the queue the
    last ``queue_size`` keys stay.

    Args:
        queue: (C, K), changed in place.
        queue_ptr: int64 (1,), the column that is overwritten next; changed in place.
        keys: (B, C), oldest first, unit norm. The same on every process, or the queues would differ.
    """
    queue_size = queue.shape[1]
    start = int(queue_ptr)
    end = (start + len(keys)) % queue_size
    first = start
    if len(keys) > queue_size:  # only the newest keys survive; the place of the oldest of them follows from the end
        keys, first = keys[-queue_size:], end
    columns = (torch.arange(len(keys), device=queue.device) + first) % queue_size
    queue.index_copy_(1, columns, keys.T.to(queue.dtype))
    queue_ptr.fill_(end)
