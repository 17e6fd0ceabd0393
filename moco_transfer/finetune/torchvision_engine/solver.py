"""SGD as Detectron2 sets it up: parameter groups, gradient clipping, warm-up.

Source:
    Behaviour checked against facebookresearch/detectron2@02b5c4e solver/build.py and
    lr_scheduler.py. Goyal et al. 2017, arXiv:1706.02677, Sec. 2.2 for the warm-up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import Tensor, nn

_NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_bias: float | None,
    bias_lr_factor: float,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters by weight decay and learning-rate factor.

    Args:
        model: Parameters shared by two modules enter once, under the first.
        weight_decay: Of everything that the next two do not cover.
        weight_decay_norm: Of weight and bias of normalisation layers.
        weight_decay_bias: Of every bias, a norm's included; None leaves the two above in force.
        bias_lr_factor: Learning rate of every bias, as a multiple.

    Returns:
        Groups for a torch optimizer, with a "lr_factor" for ``set_lr``.
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
    groups: list[dict[str, Any]], *, lr: float, momentum: float, nesterov: bool
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
    parameters: Iterable[Tensor], *, clip_type: str, clip_value: float, norm_type: float
) -> None:
    """Limit each parameter's gradient in place, on its own.

    ``clip_type`` "value" clips each element to [-clip_value, clip_value], "norm" scales the
    gradient down to the norm clip_value; ``norm_type`` is p of the norm.
    """
    for parameter in parameters:
        if clip_type == "value":
            nn.utils.clip_grad_value_(parameter, clip_value)
        else:
            nn.utils.clip_grad_norm_(parameter, clip_value, norm_type)


def with_warmup(
    main: ParamScheduler, *, length: float, factor: float, method: str, rescale: bool
) -> ParamScheduler:
    """Return a schedule with a warm-up in front.

    Args:
        main: From the share of the run, 0-1, to a multiple of the base learning rate.
        length: Of the warm-up, as a share of the run, 0-1.
        factor: The warm-up starts at this multiple of main's first value.
        method: "linear" or "constant".
        rescale: Whether main starts after the warm-up; else it runs from 0 below it.
    """
    start, end = factor * main(0.0), main(0.0 if rescale else length)
    ramp: ParamScheduler = LinearParamScheduler(start, end)
    if method == "constant":
        ramp = ConstantParamScheduler(start)
    scaling = ["rescaled", "rescaled" if rescale else "fixed"]
    return CompositeParamScheduler([ramp, main], [length, 1 - length], scaling)
