"""SGD as Detectron2 sets it up: parameter groups, gradient clipping, learning rate.

Source:
    Behaviour checked against facebookresearch/detectron2@02b5c4e solver/build.py and
    lr_scheduler.py. Goyal et al. 2017, arXiv:1706.02677, Sec. 2.2 for the warm-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common import param_scheduler as schedulers
from torch import Tensor, nn

from ...runtime.errors import InputError

SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR")
WARMUP_METHODS = ("linear", "constant")
CLIP_TYPES = ("value", "norm")

_NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    weight_decay_norm: float = 0.0,
    weight_decay_bias: float | None = None,
    bias_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters by weight decay and learning-rate factor.

    Args:
        model: Parameters shared by two modules enter once, under the first.
        weight_decay: Of everything that the next two do not cover.
        weight_decay_norm: Of weight and bias of normalisation layers.
        weight_decay_bias: Of every bias, a norm's included; None leaves the two above in force.
        bias_lr_factor: Learning rate of every bias, as a multiple.

    Returns:
        Groups for a torch optimizer: "params", "weight_decay", and "lr_factor" for ``set_lr``.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = weight_decay_norm if isinstance(module, _NORM_LAYERS) else weight_decay
            factor = 1.0
            if name == "bias":
                factor = bias_lr_factor
                decay = decay if weight_decay_bias is None else weight_decay_bias
            groups.setdefault((decay, factor), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for (decay, factor), parameters in groups.items()
    ]


def make_sgd(
    groups: list[dict[str, Any]], *, lr: float, momentum: float = 0.9, nesterov: bool = False
) -> torch.optim.SGD:
    """Return SGD on the groups of ``parameter_groups`` at the learning rate ``lr``."""
    on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
    # Fused, a step makes no copies of all gradients; on devices foreach saves launches.
    how = {"fused": True} if on_cpu else {"foreach": True}
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, **how)
    set_lr(optimizer, lr)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of the optimizer the learning rate ``lr`` times its "lr_factor"."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def clip_gradients(
    parameters: Iterable[Tensor], *, clip_type: str, clip_value: float, norm_type: float = 2.0
) -> None:
    """Limit each parameter's gradient in place, on its own.

    Args:
        parameters: Those without a gradient are skipped.
        clip_type: "value" clips each element to [-clip_value, clip_value]; "norm" scales a
            parameter's gradient down to the norm clip_value.
        clip_value: The limit.
        norm_type: p of the norm; inf is the maximum.
    """
    for parameter in parameters:
        if clip_type == "value":
            nn.utils.clip_grad_value_(parameter, clip_value)
        else:
            nn.utils.clip_grad_norm_(parameter, clip_value, norm_type)


@dataclass(frozen=True)
class LearningRate:
    """The learning rate at every iteration: warm-up, then steps or a half cosine."""

    base_lr: float  # after the warm-up
    max_iter: int  # length of the run
    schedule: str = "WarmupMultiStepLR"  # one of SCHEDULES
    steps: Sequence[int] = ()  # iterations that multiply by gamma; none counts beyond max_iter
    gamma: float = 0.1
    end_lr: float = 0.0  # of the cosine
    warmup_iters: int = 0
    warmup_factor: float = 1e-3  # the warm-up starts at this multiple of the first value
    warmup_method: str = "linear"  # one of WARMUP_METHODS
    rescale_interval: bool = False  # whether the schedule starts after the warm-up, not at 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: If the steps do not ascend, or a number lies outside its range.
        """
        steps = list(self.steps)
        if self.max_iter < 1:
            raise InputError(f"SOLVER.MAX_ITER is {self.max_iter}, expected at least 1.")
        if steps != sorted({step for step in steps if step > 0}):
            raise InputError(f"SOLVER.STEPS is {steps}, expected iterations in ascending order.")
        if self.schedule == "WarmupCosineLR" and not 0 <= self.end_lr <= self.base_lr:
            raise InputError(
                f"SOLVER.BASE_LR_END is {self.end_lr}, expected 0 to BASE_LR ({self.base_lr})."
            )
        object.__setattr__(self, "_multiplier", self._schedule())

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of the step that ends 0-based ``iteration``."""
        return self.base_lr * self._multiplier(iteration / self.max_iter)

    def _schedule(self) -> schedulers.ParamScheduler:
        """Return Detectron2's schedule: from the share of the run to a multiple of base_lr."""
        if self.schedule == "WarmupCosineLR":
            main = schedulers.CosineParamScheduler(1, self.end_lr / self.base_lr)
        else:
            steps = [step for step in self.steps if step < self.max_iter]
            values = [self.gamma**k for k in range(len(steps) + 1)]
            main = schedulers.MultiStepParamScheduler(values, self.max_iter, steps)
        warmup = min(self.warmup_iters / self.max_iter, 1.0)
        start = self.warmup_factor * main(0.0)
        end = main(0.0 if self.rescale_interval else warmup)
        ramp = schedulers.LinearParamScheduler(start, end)
        if self.warmup_method == "constant":
            ramp = schedulers.ConstantParamScheduler(start)
        scaling = ["rescaled", "rescaled" if self.rescale_interval else "fixed"]
        return schedulers.CompositeParamScheduler([ramp, main], [warmup, 1 - warmup], scaling)
