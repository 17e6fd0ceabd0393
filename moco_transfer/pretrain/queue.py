"""The queue of negative keys: a ring buffer of unit-norm columns, in the layout of the published
checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def new_queue(dim: int, queue_size: int) -> Tensor:
    """Return a queue (dim, queue_size), float32, of normalised Gaussian columns
    (facebookresearch/moco@7397dfe moco/builder.py).
    """
    return F.normalize(torch.randn(dim, queue_size), dim=0)


def next_columns(queue: Tensor, queue_ptr: Tensor, num_keys: int) -> Tensor:
    """Return the columns that the next ``num_keys`` keys go to, oldest key first: int64
    (min(num_keys, K),), distinct.

    Any number is legal: what does not fit before the end goes to the start, and of more keys than
        the queue has columns the
    last K stay. Computed on the queue's device, so that the host need not wait for it.
    """
    queue_size = queue.shape[1]
    kept = min(num_keys, queue_size)
    return (torch.arange(num_keys - kept, num_keys, device=queue.device) + queue_ptr) % queue_size


@torch.no_grad()
def enqueue(queue: Tensor, queue_ptr: Tensor, keys: Tensor) -> None:
    """Overwrite the oldest columns by the newest keys, in place, wrapping around at the end (see
    :func:`next_columns`).

    Args:
        queue: (C, K), changed in place.
        queue_ptr: int64 (1,), the column that is overwritten next; changed in place.
        keys: (B, C), oldest first, unit norm. The same on every process, or the queues would
            differ.
    """
    columns = next_columns(queue, queue_ptr, len(keys))
    queue.index_copy_(1, columns, keys[len(keys) - len(columns) :].T.to(queue.dtype))
    queue_ptr.copy_((queue_ptr + len(keys)) % queue.shape[1])
