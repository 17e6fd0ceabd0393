"""Normalisation over all ranks, for both engines: SyncBN, PreciseBN, and which norm a run used."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import Tensor, nn

from ..runtime.distributed import average_bn_statistics, get_world_size, sync_backend

# By the names of their classes, so that this module needs neither engine.
_NORMS = {
    **dict.fromkeys(("SyncBatchNorm2d", "SyncBatchNorm"), "SyncBN"),
    **dict.fromkeys(("NaiveSyncBatchNorm2d", "NaiveSyncBatchNorm"), "naiveSyncBN"),
    **{"BatchNorm2d": "BN", "FrozenBatchNorm2d": "FrozenBN", "GroupNorm": "GN"},
}


def at_least_float32(x: Tensor) -> Tensor:
    """Return x, half types as float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BN over the images of all ranks: ``torch.nn.SyncBatchNorm`` on CUDA, the same statistics over
    gloo on CPU processes, plain BN in one process.

    Not a subclass of ``torch.nn.SyncBatchNorm``: DistributedDataParallel rejects one on the CPU.
    """

    process_group = None  # all ranks; read by torch's forward, as is the check below
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W), normalised."""
        if not self.training or get_world_size() == 1:
            return super().forward(x)
        if x.device.type != "cpu":
            return nn.SyncBatchNorm.forward(cast(nn.SyncBatchNorm, self), x)
        y, mean, var, count = _CrossRankNorm.apply(x, self.weight, self.bias, self.eps)
        tracked = self.num_batches_tracked, self.running_mean, self.running_var, self.momentum
        batches, running_mean, running_var, momentum = cast(Any, tracked)
        with torch.no_grad():
            batches.add_(1)
            running_mean.lerp_(mean, momentum)
            # Normalisation uses the biased variance, the running average the unbiased one: torch's
            # convention for BN.
            running_var.lerp_(var * (count / (count - 1).clamp(min=1)), momentum)
        return y


class _CrossRankNorm(torch.autograd.Function):
    """Normalise with the statistics of all ranks; one collective forward, one backward.

    With x_hat = (x - mean) / std over all N * H * W positions of all ranks, d loss / d x is
    weight / std * (dy - avg(dy) - x_hat * avg(dy * x_hat)), and both averages run over all ranks.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y like x, and as float32 global mean (C,), biased variance (C,), count ()."""
        channels = x.shape[1]
        var, mean = torch.var_mean(at_least_float32(x), dim=(0, 2, 3), correction=0)
        positions = mean.new_full((1,), x.numel() / channels)
        own = torch.cat([mean, var, positions])
        ranks = [torch.empty_like(own) for _ in range(get_world_size())]
        dist.all_gather(ranks, own)
        means, variances, counts = torch.stack(ranks).split([channels, channels, 1], dim=1)
        count = counts.sum()
        share = counts / count
        mean = (means * share).sum(dim=0)
        # Spread inside the ranks plus spread between their means: exact, and free of the
        # cancellation of E[x^2] - E[x]^2.
        var = ((variances + (means - mean).square()) * share).sum(dim=0)
        y = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps), count)
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx, grad_y: Tensor, *_unused: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x (over all ranks), weight and bias (this rank's share)."""
        x, weight, mean, inv_std, count = ctx.saved_tensors
        view = (1, -1, 1, 1)
        x_hat = (at_least_float32(x) - mean.view(view)) * inv_std.view(view)
        grad = at_least_float32(grad_y)
        grad_bias = grad.sum(dim=(0, 2, 3))
        grad_weight = (grad * x_hat).sum(dim=(0, 2, 3))
        sums = torch.cat([grad_bias, grad_weight])
        dist.all_reduce(sums)
        avg, avg_x_hat = (sums / count).split(weight.numel())
        grad_x = (grad - avg.view(view) - x_hat * avg_x_hat.view(view)) * (weight * inv_std).view(
            view
        )
        return grad_x.to(x.dtype), grad_weight, grad_bias, None


def describe_norm(model: nn.Module, world_size: int, device: torch.device) -> str:
    """Return which normalisation a model really uses in a run, for results.json, such as ``"BN
    (SyncBN in one process) x 61"`` or ``"SyncBN over 8 ranks (nccl) x 53 + FrozenBN x 10"``.
    """
    kinds = (type(module).__name__ for module in model.modules())
    counts = Counter(_NORMS[kind] for kind in kinds if kind in _NORMS)
    over = f"over {world_size} ranks ({sync_backend(device)})"
    words = {n: f"{n} {over}" for n in ("SyncBN", "naiveSyncBN")}
    words["BN"] = f"BN per rank (not synchronised, {world_size} ranks)"
    if world_size == 1:
        words = {n: f"BN ({n} in one process)" for n in ("SyncBN", "naiveSyncBN")}
    return " + ".join(f"{words.get(name, name)} x {n}" for name, n in counts.items()) or "none"


def recompute_bn_statistics(
    model: nn.Module, batches: Iterable[list[dict]], *, num_iterations: int
) -> None:
    """Replace BN's running statistics by their averages over training batches (PreciseBN), if a BN
    layer is trained. The model (not in DistributedDataParallel) stays in training mode. Collective.

    All processes get the same statistics; Detectron2's hook leaves each its own (its issue 5398).
    """
    model.train()
    if get_bn_modules(model):
        with torch.no_grad():
            update_bn_stats(model, itertools.islice(batches, num_iterations), num_iterations)
        average_bn_statistics(model)


def sync_on_cpu(model: nn.Module) -> nn.Module:
    """Turn every ``torch.nn.SyncBatchNorm``, which works on CUDA alone, into one that also works
    over CPU processes, in place, and return the model.
    """
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = cast(Any, SyncBatchNorm2d)
    return model
