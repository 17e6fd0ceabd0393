"""SGD as Detectron2 sets it up: parameter groups, gradient clipping, learning rate over the
iterations.

Source:
    Behaviour checked against facebookresearch/detectron2@02b5c4e detectron2/solver/build.py and
    lr_scheduler.py and facebookresearch/fvcore@3378afe fvcore/common/param_scheduler.py. Goyal et
    al. 2017, arXiv:1706.02677, Sec. 2.2 for the warm-up.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moco_transfer.runtime.errors import InputError

SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR")
WARMUP_METHODS = ("linear", "constant")
CLIP_TYPES = ("value", "norm")

_NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)

# Detectron2 compares progress, a share of the run, with this slack, so an event comes early when
# 1e-6 of the run is an iteration or more.
_PROGRESS_SLACK = 1e-6


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
        Groups for a torch optimizer: "params", "weight_decay" and "lr_factor", which ``set_lr``
            reads.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
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
    groups: Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.9, nesterov: bool = False
) -> torch.optim.SGD:
    """Return SGD on the groups of ``parameter_groups`` at the learning rate ``lr``."""
    groups = list(groups)
    on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
    # Fused, a step makes no copies of all gradients; foreach is for devices, where it saves
    # launches.
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
    """Limit the gradients in place, each parameter's for itself.

    Args:
        parameters: Those without a gradient are passed over.
        clip_type: "value" cuts each element to [-clip_value, clip_value]; "norm" scales a
            parameter's gradient down to the norm clip_value.
        clip_value: The limit.
        norm_type: p of the norm; inf is the maximum.

    Raises:
        InputError: If the type is neither.
    """
    if clip_type not in CLIP_TYPES:
        raise InputError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip_type!r}, expected one of {CLIP_TYPES}."
        )
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if clip_type == "value":
            parameter.grad.clamp_(-clip_value, clip_value)
        else:
            nn.utils.clip_grad_norm_(parameter, clip_value, norm_type)


@dataclass(frozen=True)
class LearningRate:
    """The learning rate at every iteration: warm-up, then steps or a half cosine.

    Attributes:
        base_lr: After the warm-up.
        max_iter: Length of the run.
        schedule: One of ``SCHEDULES``.
        steps: Iterations from which the rate is multiplied by ``gamma`` once more; those beyond
            ``max_iter`` count for nothing.
        gamma: Factor of each step.
        end_lr: Where the cosine ends.
        warmup_iters: Length of the warm-up.
        warmup_factor: The warm-up starts at this multiple of the schedule's first value.
        warmup_method: One of ``WARMUP_METHODS``.
        rescale_interval: Whether the schedule starts after the warm-up; else it runs from iteration
            0 below it.
    """

    base_lr: float
    max_iter: int
    schedule: str = "WarmupMultiStepLR"
    steps: Sequence[int] = ()
    gamma: float = 0.1
    end_lr: float = 0.0
    warmup_iters: int = 0
    warmup_factor: float = 1e-3
    warmup_method: str = "linear"
    rescale_interval: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no schedule.

        Raises:
            InputError: If a name is unknown, the steps do not ascend, or a number lies outside its
                range.
        """
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"SOLVER.LR_SCHEDULER_NAME is {self.schedule!r}, expected one of {SCHEDULES}."
            )
        if self.warmup_method not in WARMUP_METHODS:
            raise InputError(
                f"SOLVER.WARMUP_METHOD is {self.warmup_method!r}, expected one of {WARMUP_METHODS}."
            )
        if self.max_iter < 1:
            raise InputError(f"SOLVER.MAX_ITER is {self.max_iter}, expected at least 1.")
        steps = list(self.steps)
        if any(step < 1 for step in steps) or any(
            a >= b for a, b in zip(steps, steps[1:], strict=False)
        ):
            raise InputError(
                f"SOLVER.STEPS is {steps}, expected iterations above 0 in ascending order."
            )
        if self.schedule == "WarmupCosineLR" and not 0 <= self.end_lr <= self.base_lr:
            raise InputError(
                f"SOLVER.BASE_LR_END is {self.end_lr}, expected 0 to BASE_LR ({self.base_lr})."
            )

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of the step that ends 0-based ``iteration``."""
        return self.base_lr * self._multiplier(iteration / self.max_iter)

    @property
    def _warmup_share(self) -> float:
        return min(self.warmup_iters / self.max_iter, 1.0)

    def _multiplier(self, progress: float) -> float:
        warmup = self._warmup_share
        if progress + _PROGRESS_SLACK > warmup:
            if self.rescale_interval and warmup < 1:
                progress = (progress - warmup) / (1 - warmup)
            return self._after_warmup(progress)
        start = self.warmup_factor * self._after_warmup(0.0)
        if self.warmup_method == "constant":
            return start
        end = self._after_warmup(0.0 if self.rescale_interval else warmup)
        done = progress / warmup
        return end * done + start * (1 - done)

    def _after_warmup(self, progress: float) -> float:
        if self.schedule == "WarmupCosineLR":
            end = self.end_lr / self.base_lr
            return end + 0.5 * (1 - end) * (1 + math.cos(math.pi * progress))
        iteration = int((progress + _PROGRESS_SLACK) * self.max_iter)
        return self.gamma ** bisect.bisect_right(
            [s for s in self.steps if s <= self.max_iter], iteration
        )
