"""InfoNCE over a positive key and a queue of K negatives, with two copies of the logits at most.

At N = 256 and K = 65,536 one copy is 67 MB; written plainly, five are alive together. Here the
logits are written once, in place, and the backward pass makes the one gradient. It needs the queue
of the forward pass: ``enqueue`` keeps the few columns that it overwrites, in place of a copy.

Shapes in this module:
    N: images on this process    C: feature dimension    K: negatives
Source:
    He et al. 2019, arXiv:1911.05722, Eq. (1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def unit(features: Tensor) -> Tensor:
    """Return the rows scaled to unit L2 norm; float32 where autocast gave less."""
    reduced = features.dtype in (torch.float16, torch.bfloat16)
    return F.normalize(features.float() if reduced else features, dim=1)


@torch.no_grad()
def enqueue(queue: Tensor, queue_ptr: Tensor, keys: Tensor) -> None:
    """Overwrite the oldest columns of ``queue`` (C, K), in place; wraps around at the end.

    ``queue_ptr``: int64 (1,), the next column to overwrite; changed in place. ``keys``: (B, C),
    oldest first, equal on every process; of more than K the last K stay.
    """
    kept = min(len(keys), queue.shape[1])
    newest = torch.arange(len(keys) - kept, len(keys), device=queue.device)
    columns = (newest + queue_ptr) % queue.shape[1]
    version, overwritten = queue._version, queue[:, columns].clone()
    queue.index_copy_(1, columns, keys[len(keys) - kept :].T.to(queue.dtype))
    queue_ptr.copy_((queue_ptr + len(keys)) % queue.shape[1])
    queue.last_enqueue = (version, queue._version, columns, overwritten)  # type: ignore[attr-defined]


def _times_transposed(gradient: Tensor, queue: Tensor, version: int) -> Tensor:
    # With the queue as it was when queue._version was `version`, at most one enqueue ago.
    product = gradient @ queue.T
    if queue._version == version:
        return product
    last: tuple[Any, ...] = getattr(queue, "last_enqueue", (None,) * 4)
    before, after, columns, overwritten = last
    if (before, after) != (version, queue._version):
        raise RuntimeError(
            "The queue changed between a forward pass and its backward pass: call backward() before"
            " the next forward()."
        )
    return product.add_(gradient[:, columns] @ (overwritten - queue[:, columns]).T)


class _Logits(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(k)
        ctx.queue, ctx.version, ctx.temperature = queue, queue._version, temperature
        logits = q.new_empty(len(q), 1 + queue.shape[1])
        torch.sum(q * k, dim=1, out=logits[:, 0])  # l_pos
        torch.mm(q, queue, out=logits[:, 1:])  # l_neg
        return logits.div_(temperature)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (k,) = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):  # whoever calls backward under it
            to_q = _times_transposed(gradient[:, 1:], ctx.queue, ctx.version)
        return to_q.addcmul_(gradient[:, :1], k).div_(ctx.temperature), None, None, None


def contrastive_logits(q: Tensor, k: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """Return (1 + K)-way logits, class 0 the positive key: ``cat([q . k, q @ queue], dim=1) / T``.

    Args:
        q: Query features (N, C), rows of unit L2 norm; carries the gradient.
        k: Key features (N, C) of the same images, unit norm, no gradient.
        queue: Negative keys (C, K), unit-norm columns, no gradient. Before the backward pass only
            one ``enqueue`` may change it.
        temperature: Softmax temperature T > 0.

    Returns:
        (N, 1 + K) in q's dtype, under autocast too.
    """
    with torch.autocast(q.device.type, enabled=False):
        return _Logits.apply(q, k, queue, temperature)


class _FirstClassCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        log_sum = torch.logsumexp(logits, dim=1)
        ctx.save_for_backward(logits, log_sum)
        return (log_sum - logits[:, 0]).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        logits, log_sum = ctx.saved_tensors
        softmax = torch.sub(logits, log_sum.unsqueeze(1)).exp_()
        softmax[:, 0] -= 1
        return softmax.mul_(gradient / len(logits))


def info_nce(logits: Tensor) -> Tensor:
    """Return ``F.cross_entropy(logits (N, 1 + K), zeros)`` in less memory; ln(1 + K) at chance."""
    return _FirstClassCrossEntropy.apply(logits)
