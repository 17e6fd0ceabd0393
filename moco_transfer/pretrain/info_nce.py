"""InfoNCE over one positive and K negatives, holding no more than two copies of the (N, 1 + K)
logits.

At N = 256 and K = 65,536 one copy is 67 MB. Written plainly, the negatives, their concatenation
with the positive, the log-softmax and two gradients are alive together; here the logits are written
once, in place, and backward makes the one gradient.

Shapes in this module:
    N: images on this process    C: feature dimension    K: negatives
Source:
    He et al. 2019, arXiv:1911.05722, Eq. (1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function


class Negatives:
    """The negatives of one step, for a backward pass that runs after some of their columns were
    overwritten.

    The queue receives the step's keys before backward needs the old ones. Keeping the few columns
    that are overwritten stands in for a copy of the whole queue.

    Args:
        queue: (C, K), unit-norm columns, no gradient; not copied.
    """

    def __init__(self, queue: Tensor) -> None:
        self.queue = queue
        self._columns: Tensor | None = None
        self._kept: Tensor | None = None
        self._version = queue._version

    def keep(self, columns: Tensor) -> None:
        """Remember columns (int64, distinct) that are about to be overwritten."""
        self._columns, self._kept = columns, self.queue[:, columns].clone()

    def overwritten(self) -> None:
        """Say that the columns given to :meth:`keep`, and no others, have been overwritten."""
        self._version = self.queue._version

    def times_transposed(self, gradient: Tensor) -> Tensor:
        """Return ``gradient @ queue.T`` with the queue as it was in the forward pass.

        Args:
            gradient: (N, K).

        Returns:
            (N, C).

        Raises:
            RuntimeError: If the queue was changed otherwise since; run backward before the next
                forward.
        """
        if self.queue._version != self._version:
            raise RuntimeError(
                "The queue changed between a forward pass and its backward pass: call backward()"
                " before the next forward()."
            )
        product = gradient @ self.queue.T
        if self._columns is not None:
            product += gradient[:, self._columns] @ (self._kept - self.queue[:, self._columns]).T
        return product


class _Logits(Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, negatives: Negatives, temperature: float) -> Tensor:
        ctx.save_for_backward(k)
        ctx.negatives, ctx.temperature = negatives, temperature
        logits = q.new_empty(len(q), 1 + negatives.queue.shape[1])
        torch.sum(q * k, dim=1, out=logits[:, 0])
        torch.mm(q, negatives.queue, out=logits[:, 1:])
        return logits.div_(temperature)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (k,) = ctx.saved_tensors
        to_q = ctx.negatives.times_transposed(gradient[:, 1:]).addcmul_(gradient[:, :1], k)
        return to_q.div_(ctx.temperature), None, None, None


def contrastive_logits(
    q: Tensor, k: Tensor, queue: Tensor | Negatives, *, temperature: float
) -> Tensor:
    """Return (1 + K)-way logits in which class 0 is the positive key.

    Args:
        q: Query features (N, C), rows of unit L2 norm; carries the gradient.
        k: Key features (N, C) of the same images, unit norm, no gradient.
        queue: Negative keys (C, K), unit-norm columns, no gradient. They must not change before
            backward, unless they come as :class:`Negatives`.
        temperature: Softmax temperature T > 0, unitless (0.07 in v1, 0.2 in v2).

    Returns:
        Logits (N, 1 + K) in q's dtype and device. The target is 0 for every row.

    Raises:
        ValueError: If the feature dimensions differ or temperature <= 0.

    Reference:
        MoCo, Eq. (1).
    """
    negatives = queue if isinstance(queue, Negatives) else Negatives(queue)
    if q.shape[1] != negatives.queue.shape[0]:
        raise ValueError(
            f"Query features have {q.shape[1]} dimensions, the queue {negatives.queue.shape[0]}."
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}.")
    return _Logits.apply(q, k, negatives, temperature)


class _FirstClassCrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:
        log_sum = torch.logsumexp(logits, dim=1)
        ctx.save_for_backward(logits, log_sum)
        return (log_sum - logits[:, 0]).mean()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        logits, log_sum = ctx.saved_tensors
        softmax = torch.sub(logits, log_sum.unsqueeze(1)).exp_()
        softmax[:, 0] -= 1
        return softmax.mul_(gradient / len(logits))


def info_nce(logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of class 0: ``F.cross_entropy(logits, zeros)`` with less
    memory.

    Args:
        logits: (N, 1 + K), float32 or float64, similarities already divided by the temperature.

    Returns:
        Scalar, natural logarithm; ln(1 + K) for uniform logits.

    Reference:
        MoCo, Eq. (1).
    """
    return _FirstClassCrossEntropy.apply(logits)
