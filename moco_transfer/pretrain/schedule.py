"""Learning rate of pre-training as a function of the place in the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def effective_lr(base_lr: float, *, batch_size_total: int, reference_batch_size: int) -> float:
    """Return the learning rate for a total batch: ``base_lr`` scales linearly with the batch (0.03
    at 256 in the paper).
    """
    return base_lr * batch_size_total / reference_batch_size


def step_factor(*, steps: Sequence[int], gamma: float) -> Callable[[float, float], float]:
    """Return a schedule that multiplies by ``gamma`` at each place in ``steps`` (MoCo v1: 0.1 at
    epochs 120 and 160).
    """
    return lambda place, length: gamma ** sum(place >= milestone for milestone in steps)


def cosine_factor(place: float, length: float) -> float:
    """Return half a period of a cosine, from 1 to 0 (MoCo v2; main_moco.py ``--cos``)."""
    return 0.5 * (1 + math.cos(math.pi * place / length))


def exponential_factor(*, gamma: float, period: float) -> Callable[[float, float], float]:
    """Return a schedule that multiplies by ``gamma`` every ``period`` (IG-1B: 0.9 every 62,500
    iterations, Sec. 4).
    """
    return lambda place, length: gamma ** math.floor(place / period)


class LearningRate:
    """The effective learning rate of each iteration.

    Args:
        lr: Effective learning rate, before any factor.
        factor: (place, length) -> factor: :func:`cosine_factor`, or what :func:`step_factor` or
            :func:`exponential_factor` return. Place and length are in epochs or in iterations, see
            ``by_iteration``.
        max_iterations: Length of the run.
        iterations_per_epoch: Iterations in an epoch.
        first_epoch: Number of the first epoch in the formula; 1 in the official CIFAR-10 demo,
            whose last epoch so has the lr 0.
        by_iteration: The place is the iteration. Else it is the epoch, 0-based, and constant within
            it, as in the official code (facebookresearch/moco@7397dfe main_moco.py
            adjust_learning_rate).
        warmup_iterations: Length of the linear warm-up, which moves every iteration, starts at 1 /
            warmup_iterations, and multiplies the schedule.
    """

    def __init__(
        self,
        lr: float,
        *,
        factor: Callable[[float, float], float],
        max_iterations: int,
        iterations_per_epoch: int,
        first_epoch: int = 0,
        by_iteration: bool = False,
        warmup_iterations: float = 0.0,
    ) -> None:
        self.lr = lr
        self.factor = factor
        self.max_iterations = max_iterations
        self.iterations_per_epoch = iterations_per_epoch
        self.first_epoch = first_epoch
        self.by_iteration = by_iteration
        self.warmup_iterations = warmup_iterations

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of an iteration, 0-based."""
        warmup = (
            min(1.0, (iteration + 1) / self.warmup_iterations)
            if self.warmup_iterations > 0
            else 1.0
        )
        if self.by_iteration:
            return self.lr * warmup * self.factor(iteration, self.max_iterations)
        epochs = math.ceil(self.max_iterations / self.iterations_per_epoch)
        return (
            self.lr
            * warmup
            * self.factor(iteration // self.iterations_per_epoch + self.first_epoch, epochs)
        )
