"""Batch normalisation with statistics of groups of images, as one operator.

On a GPU three Triton kernels do a forward pass, three a backward pass (``triton_kernels.py``),
for any number of groups. Elsewhere torch's batch norm takes group after group and writes into one
tensor.

Shapes in this module:
    N: images    C: channels    G: groups, consecutive images; sizes differ by at most 1
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...runtime.device import runs_triton


def group_sizes(batch_size: int, groups: int) -> list[int]:
    """Return the images of each group, the larger groups first."""
    small, larger = divmod(batch_size, groups)
    return [small + (i < larger) for i in range(groups)]


def _triton(x: Tensor) -> Any:
    # The kernels for this tensor, or None: they read channels-last memory.
    channels_last = x.permute(0, 2, 3, 1).is_contiguous()
    if not (channels_last and runs_triton(x.device)) or x.dtype == torch.float64:
        return None
    from . import triton_kernels

    return triton_kernels


@torch.library.custom_op("moco_transfer::split_batch_norm", mutates_args=())
def split_batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise each group of x (N, C, H, W) by its own mean and variance.

    ``weight`` and ``bias``: (C,), of x's type or wider.

    Returns:
        What x becomes; mean and 1 / sqrt(variance + eps) of each group (G, C), for the backward
        pass; and what a batch adds to the running statistics (2, C): the mean and the unbiased
        variance, averaged over the groups.

    Raises:
        ValueError: If a group has one value for each channel.
    """
    if len(x) // groups * x.shape[2] * x.shape[3] == 1:
        raise ValueError(f"Expected more than 1 value per channel in each of {groups} groups.")
    y = torch.empty_like(x)
    mean = weight.new_empty(groups, len(weight))
    inverse_std, running = torch.empty_like(mean), mean.new_empty(2, len(weight))
    if kernels := _triton(x):
        kernels.forward(x, weight, bias, eps, y, mean, inverse_std, running)
        return y, mean, inverse_std, running
    sizes, of_groups = group_sizes(len(x), groups), mean.new_zeros(2, groups, len(weight))
    for g, (part, out) in enumerate(zip(x.split(sizes), y.split(sizes), strict=True)):
        # With a momentum of 1 the running statistics are this group's.
        statistics = of_groups[0, g], of_groups[1, g]
        torch.native_batch_norm(
            *(part, weight, bias, *statistics, True, 1.0, eps), out=(out, mean[g], inverse_std[g])
        )
    return y, mean, inverse_std, of_groups.mean(1)


@split_batch_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, ...]:
    mean = weight.new_empty(groups, len(weight))
    return torch.empty_like(x), mean, torch.empty_like(mean), mean.new_empty(2, len(weight))


@torch.library.custom_op("moco_transfer::split_batch_norm_backward", mutates_args=())
def split_batch_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias, given that of :func:`split_batch_norm`'s first
    result and its next two results.
    """
    dx, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    grad_bias = torch.empty_like(weight)
    if kernels := _triton(x):
        dy = dy.contiguous(memory_format=torch.channels_last)
        kernels.backward(dy, x, weight, mean, inverse_std, dx, grad_weight, grad_bias)
        return dx, grad_weight, grad_bias
    sizes = group_sizes(len(x), len(mean))
    grad_weight.zero_()
    grad_bias.zero_()
    groups = zip(dx.split(sizes), dy.split(sizes), x.split(sizes), mean, inverse_std, strict=True)
    for out, *parts, group_mean, group_inverse_std in groups:
        found = torch.ops.aten.native_batch_norm_backward(
            *(*parts, weight, None, None, group_mean, group_inverse_std, True, eps, [True] * 3)
        )
        out.copy_(found[0])
        grad_weight += found[1]
        grad_bias += found[2]
    return dx, grad_weight, grad_bias


@split_batch_norm_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, _, ctx.eps = inputs
    ctx.set_materialize_grads(False)  # of the results that have none
    ctx.save_for_backward(x, weight, output[1], output[2])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    return *split_batch_norm_backward(dy, *ctx.saved_tensors, ctx.eps), None, None


split_batch_norm.register_autograd(_gradients, setup_context=_keep)
