"""Learning rate of pre-training as a function of the place in the run."""

from __future__ import annotations

import math
from collections.abc import Sequence


def effective_lr(base_lr: float, *, batch_size_total: int, reference_batch_size: int) -> float:
    """Return the learning rate for a total batch: ``base_lr`` scales linearly with the batch (0.03 at 256 in the paper)."""
    return base_lr * batch_size_total / reference_batch_size


def lr_factor(
    epoch: int,
    step: int,
    *,
    schedule: str,
    epochs: int,
    iterations_per_epoch: int,
    steps: Sequence[int] = (),
    gamma: float = 0.1,
    warmup_epochs: float = 0.0,
    first_epoch: int = 0,
) -> float:
    """Return what the effective learning rate is multiplied by in one iteration.

    Args:
        epoch: Epoch, 0-based.
        step: Iteration within the epoch, 0-based.
        schedule: ``step`` or ``cosine``. Both change at the start of an epoch, as in the official code (lr of epoch e: cos(pi * e / epochs)).
        epochs: Length of the run.
        iterations_per_epoch: Iterations in an epoch.
        steps: Epochs at which ``step`` multiplies by gamma.
        gamma: Factor of ``step``.
        first_epoch: Number of the first epoch in the formula of ``schedule``; 1 in the official CIFAR-10 demo (lr of its last epoch: 0).
        warmup_epochs: Length of the linear warm-up, which moves every iteration and starts at 1 / (its iterations).

    Returns:
        A factor in [0, 1].

    Reference:
        facebookresearch/moco@7397dfe main_moco.py adjust_learning_rate.
    """
    warmup_iterations = warmup_epochs * iterations_per_epoch
    iteration = epoch * iterations_per_epoch + step
    warmup = min(1.0, (iteration + 1) / warmup_iterations) if warmup_iterations > 0 else 1.0
    epoch += first_epoch
    if schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return warmup * gamma ** sum(epoch >= milestone for milestone in steps)
