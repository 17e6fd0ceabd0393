"""InfoNCE over one positive and K negatives, with at most two copies of the (N, 1 + K) logits.

At N = 256 and K = 65,536 one copy is 67 MB. Written plainly, the negatives, their concatenation
with the positive, the log-softmax and two gradients are alive together. Here the logits are written
once, in place, and the backward pass makes the one gradient.

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

from .queue import times_transposed


def unit(features: Tensor) -> Tensor:
    """Return the rows scaled to unit L2 norm; float32 where autocast gave less."""
    reduced = features.dtype in (torch.float16, torch.bfloat16)
    return F.normalize(features.float() if reduced else features, dim=1)


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
        to_q = times_transposed(gradient[:, 1:], ctx.queue, ctx.version)
        return to_q.addcmul_(gradient[:, :1], k).div_(ctx.temperature), None, None, None


def contrastive_logits(q: Tensor, k: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """Return (1 + K)-way logits in which class 0 is the positive key.

    Args:
        q: Query features (N, C), rows of unit L2 norm; carries the gradient.
        k: Key features (N, C) of the same images, unit norm, no gradient.
        queue: Negative keys (C, K), unit-norm columns, no gradient. Before the backward pass only
            one ``enqueue`` may change it.
        temperature: Softmax temperature T > 0 (0.07 in v1, 0.2 in v2).

    Returns:
        ``cat([q . k, q @ queue], dim=1) / T``: (N, 1 + K) in q's dtype, under autocast too. The
        target is 0 for every row.

    Raises:
        ValueError: If the feature dimensions differ or temperature <= 0.
    """
    if q.shape[1] != queue.shape[0] or temperature <= 0:
        raise ValueError(
            f"Expected as many dimensions as the queue has, {queue.shape[0]}, and temperature > 0;"
            f" got {q.shape[1]} and {temperature}."
        )
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
    """Return the mean cross-entropy of class 0: ``F.cross_entropy(logits, zeros)`` in less memory.

    Args:
        logits: (N, 1 + K), float32 or float64, similarities already divided by the temperature.

    Returns:
        Scalar, natural logarithm; ln(1 + K) for uniform logits.
    """
    return _FirstClassCrossEntropy.apply(logits)
