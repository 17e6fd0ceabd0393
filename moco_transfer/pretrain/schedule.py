"""The learning rate of pre-training as a function of the place in the run.

Not fvcore's schedulers: they move a step of IG-1B's 1.25 M iterations by one iteration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LearningRate:
    """The effective learning rate of each iteration.

    Attributes:
        schedule: ``step``: times ``gamma`` at each of ``steps`` (MoCo v1). ``cosine``: half a
            period, 1 to 0 (v2). ``exponential``: times ``gamma`` every ``decay_period`` (IG-1B).
        by_iteration: Whether place and length are counted in iterations. Otherwise in epochs,
            constant within one (facebookresearch/moco@7397dfe main_moco.py).
        first_epoch: Number of the first epoch; 1 in the official CIFAR-10 demo.
        warmup_iterations: Length of the linear warm-up, which multiplies the schedule.
    """

    lr: float
    schedule: str
    max_iterations: int
    iterations_per_epoch: int
    steps: tuple[int, ...] = ()
    gamma: float = 0.1
    decay_period: int = 1
    by_iteration: bool = False
    first_epoch: int = 0
    warmup_iterations: float = 0.0

    def describe(self) -> str:
        """Return the schedule in words."""
        unit = "iteration" if self.by_iteration else "epoch"
        how = {
            "step": f"times {self.gamma:g} at {unit}s {', '.join(map(str, self.steps)) or 'none'}",
            "cosine": f"cosine by {unit}",
            "exponential": f"times {self.gamma:g} every {self.decay_period} {unit}s",
        }[self.schedule]
        warmup = self.warmup_iterations
        return how + (f", warm-up of {warmup:g} iterations" if warmup else "")

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of an iteration, 0-based."""
        place, length = iteration, self.max_iterations
        if not self.by_iteration:
            place = iteration // self.iterations_per_epoch + self.first_epoch
            length = math.ceil(self.max_iterations / self.iterations_per_epoch)
        if self.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * place / length))
        elif self.schedule == "exponential":
            factor = self.gamma ** (place // self.decay_period)
        else:
            factor = self.gamma ** sum(place >= step for step in self.steps)
        warmup = 1.0
        if self.warmup_iterations > 0:
            warmup = min(1.0, (iteration + 1) / self.warmup_iterations)
        return self.lr * warmup * factor
