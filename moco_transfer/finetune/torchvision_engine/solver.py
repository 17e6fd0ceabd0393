"""SGD with Detectron2's parameter groups and clipping; checked against its solver/build.py."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def make_sgd(
    model: nn.Module,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_bias: float | None,
    bias_lr_factor: float,
) -> torch.optim.SGD:
    """Return SGD on the trainable parameters, grouped by weight decay and learning-rate factor.

    Biases, a norm's included, decay by ``weight_decay_bias`` unless it is None, and learn
    ``bias_lr_factor`` times as fast. Parameters shared by two modules enter under the first.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = weight_decay_norm if isinstance(module, _NORM_LAYERS) else weight_decay
            if name == "bias" and weight_decay_bias is not None:
                decay = weight_decay_bias
            factor = bias_lr_factor if name == "bias" else 1.0
            groups.setdefault((decay, factor), []).append(parameter)
    on_cpu = all(parameter.device.type == "cpu" for parameter in seen)
    optimizer = torch.optim.SGD(
        [{"params": p, "weight_decay": d, "lr_factor": f} for (d, f), p in groups.items()],
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        # Fused, a step makes no copies of all gradients; on devices foreach saves launches.
        **({"fused": True} if on_cpu else {"foreach": True}),
    )
    set_lr(optimizer, lr)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate ``lr`` times its "lr_factor"."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def clip_gradients(
    parameters: Iterable[Tensor], *, clip_type: str, clip_value: float, norm_type: float
) -> None:
    """Limit each parameter's gradient in place, on its own: its elements, or its p-norm."""
    for parameter in parameters:
        if clip_type == "value":
            nn.utils.clip_grad_value_(parameter, clip_value)
        else:
            nn.utils.clip_grad_norm_(parameter, clip_value, norm_type)
