"""The queue of negative keys: a ring buffer (C, K) of unit-norm columns.

``enqueue`` runs before the backward pass, which needs the queue of the forward pass. A copy of the
queue takes 32 MB; here ``enqueue`` keeps the few columns that it overwrites.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def enqueue(queue: Tensor, queue_ptr: Tensor, keys: Tensor) -> None:
    """Overwrite the oldest columns by the newest keys, in place; wraps around at the end.

    Any number of keys is legal: of more than K the last K stay. The host need not wait for a GPU.

    Args:
        queue: (C, K), changed in place.
        queue_ptr: int64 (1,), the next column to overwrite; changed in place.
        keys: (B, C), oldest first, unit norm; the same on every process.
    """
    kept = min(len(keys), queue.shape[1])
    newest = torch.arange(len(keys) - kept, len(keys), device=queue.device)
    columns = (newest + queue_ptr) % queue.shape[1]
    version, overwritten = queue._version, queue[:, columns].clone()
    queue.index_copy_(1, columns, keys[len(keys) - kept :].T.to(queue.dtype))
    queue_ptr.copy_((queue_ptr + len(keys)) % queue.shape[1])
    queue.last_enqueue = (version, queue._version, columns, overwritten)  # type: ignore[attr-defined]


def times_transposed(gradient: Tensor, queue: Tensor, version: int) -> Tensor:
    """Return ``gradient @ queue.T`` (N, C) with the queue as it was at a version.

    Args:
        gradient: (N, K).
        queue: (C, K).
        version: ``queue._version`` then; at most one ``enqueue`` ago.

    Raises:
        RuntimeError: If the queue changed otherwise since.
    """
    product = gradient @ queue.T
    if queue._version == version:
        return product
    before, after, columns, overwritten = getattr(queue, "last_enqueue", (None,) * 4)
    if (before, after) != (version, queue._version):
        raise RuntimeError(
            "The queue changed between a forward pass and its backward pass: call backward() before"
            " the next forward()."
        )
    return product.add_(gradient[:, columns] @ (overwritten - queue[:, columns]).T)
