"""Normalisation layers, and what a synchronised one means on this machine.

Shapes in this module:
    N: images on this rank    C: channels    H, W: height and width    S: N * H * W, the number of
        positions of a channel
Distributed:
    Forward and backward of a synchronised layer in training are collective: every rank calls them
        equally often.
Source:
    Behaviour checked against facebookresearch/detectron2@02b5c4e detectron2/layers/batch_norm.py.
    Difference: 'SyncBN' also runs on CPU processes (gloo), and in one process it is plain BN.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from moco_transfer.finetune.sync_norm import SyncBatchNorm2d, at_least_float32, describe_norm
from moco_transfer.runtime.distributed import get_world_size
from moco_transfer.runtime.errors import InputError

__all__ = [
    "NORM_NAMES",
    "FrozenBatchNorm2d",
    "NaiveSyncBatchNorm2d",
    "SyncBatchNorm2d",
    "describe_norm",
    "fixed_affine",
    "freeze",
    "get_norm",
]

NORM_NAMES = ("", "BN", "SyncBN", "naiveSyncBN", "FrozenBN", "GN")
_GN_GROUPS = 32


def get_norm(name: str, channels: int) -> nn.Module | None:
    """Return the normalisation layer that a config's NORM names.

    Args:
        name: One of ``NORM_NAMES``; the empty string means none.
        channels: C, the channels that the layer normalises.

    Raises:
        InputError: If the name is none of ``NORM_NAMES``, or 'GN' does not divide the channels.
    """
    if name == "":
        return None
    if name == "GN":
        if channels % _GN_GROUPS:
            raise InputError(
                f"NORM 'GN' needs channels divisible by {_GN_GROUPS}, got {channels}. Use 'BN' or"
                " 'SyncBN'."
            )
        return nn.GroupNorm(_GN_GROUPS, channels)
    kinds = {
        "BN": nn.BatchNorm2d,
        "SyncBN": SyncBatchNorm2d,
        "naiveSyncBN": NaiveSyncBatchNorm2d,
        "FrozenBN": FrozenBatchNorm2d,
    }
    if name not in kinds:
        raise InputError(
            f"Unknown NORM {name!r}. Use one of {', '.join(repr(n) for n in NORM_NAMES)}."
        )
    return kinds[name](channels)


class FrozenBatchNorm2d(nn.Module):
    """BN as a fixed affine map per channel: its four vectors are buffers, nothing is learned or
    updated.

    The buffers carry BN's names, so the checkpoint of a BN layer loads into it.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        """Start as the identity: the variance is 1 - eps, so that variance + eps is 1."""
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        # Only a frozen copy of a trained layer has a count; a layer built frozen leaves the key out
        # of its state dict.
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W), normalised with the stored statistics."""
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # With a gradient, batch_norm would also work out those of the four vectors, which nobody
        # wants.
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype).view(1, -1, 1, 1) + shift.to(x.dtype).view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        """Show the two numbers that matter in print(model)."""
        return f"{self.num_features}, eps={self.eps}"


def fixed_affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return a norm as scale (C,) and shift (C,), where its statistics are fixed and a convolution
    may take it in.

    Args:
        norm: Any layer of ``get_norm``.

    Returns:
        None where the layer has to see the features: BN in training, and GN. Gradients flow to BN's
            weight and bias.
    """
    is_frozen = isinstance(norm, FrozenBatchNorm2d)
    is_evaluated = isinstance(norm, nn.BatchNorm2d) and not norm.training
    if not is_frozen and not is_evaluated:
        return None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def freeze(module: nn.Module) -> nn.Module:
    """Stop the training of a module for good: no gradients, and every BN inside becomes a
    FrozenBatchNorm2d.

    Args:
        module: Changed in place.

    Returns:
        The module, or its frozen replacement when it is itself a BN layer.
    """
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        frozen = FrozenBatchNorm2d(module.num_features, module.eps)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(frozen, name, getattr(module, name).detach().clone())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze(child))
    return module


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks whose gradient is the sum over ranks."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """Return the sum of x over all ranks."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        """Return the gradient, summed over all ranks."""
        total = grad.clone()
        dist.all_reduce(total)
        return total


class NaiveSyncBatchNorm2d(nn.BatchNorm2d):
    """BN with mean and second moment averaged over the ranks, each rank with equal weight.

    This is what MoCo's published detection configs train with ('naiveSyncBN'): it equals BN over
    all images only when every rank has the same N, H and W, and its running variance is the biased
    one. In one process it is plain BN. Collective in training when the world has more than one
    rank.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W), normalised."""
        world_size = get_world_size()
        if world_size == 1 or not self.training:
            return super().forward(x)
        wide = at_least_float32(x)
        moments = torch.cat([wide.mean(dim=(0, 2, 3)), wide.square().mean(dim=(0, 2, 3))])
        mean, second = (_AllReduceSum.apply(moments) / world_size).chunk(2)
        var = second - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return (wide * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(x.dtype)
