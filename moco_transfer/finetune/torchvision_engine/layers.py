"""A convolution with its normalisation and ReLU, and the normalisation layers.

Features are (N, C, H, W). Forward and backward of a synchronised layer in training are collective.

Source:
    Behaviour checked against facebookresearch/detectron2@02b5c4e layers/wrappers.py (Conv2d) and
    layers/batch_norm.py. Difference: 'SyncBN' also runs on CPU processes (gloo), and in one process
    it is plain BN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce  # sums; so does its backward

from ...runtime.distributed import get_world_size
from ..sync_norm import SyncBatchNorm2d, at_least_float32


class ConvNorm(nn.Conv2d):
    """Convolution, then normalisation, then ReLU; the last two are optional.

    State-dict keys: ``weight``, ``bias`` and ``norm.*``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        norm: str = "",
        bias: bool | None = None,
        relu: bool = False,
        **conv: Any,
    ) -> None:
        """Pad so that an odd kernel keeps the size; without ``norm`` there is a bias by default.

        ``norm`` is a key of ``NORMS``; ``conv`` is ``stride``, ``dilation`` and ``groups``.
        """
        padding = conv.get("dilation", 1) * (kernel_size // 2)
        bias = norm == "" if bias is None else bias
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, bias=bias, **conv)
        self.norm = NORMS[norm](out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H', W') for x (N, in_channels, H, W)."""
        folded = fixed_affine(self.norm)
        if folded is None:
            return self.finish(self._conv_forward(x, self.weight, self.bias))
        # A norm with fixed statistics is part of the filters: one pass over the features less.
        scale, shift = folded
        bias = shift if self.bias is None else shift + self.bias * scale
        y = self._conv_forward(x, self.weight * scale.view(-1, 1, 1, 1), bias)
        return F.relu_(y) if self.relu else y

    def convolve_densely(self, x: Tensor) -> Tensor:
        """Return the convolution alone, at every position as if the stride were 1."""
        return F.conv2d(x, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)

    def finish(self, y: Tensor) -> Tensor:
        """Return the normalisation and ReLU of y, the result of this convolution; changes y."""
        if self.norm is not None:
            y = self.norm(y)
        return F.relu_(y) if self.relu else y


def init_normal(layer: Any, *, std: float) -> None:
    """Draw weights from N(0, std^2); bias 0."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)


class FrozenBatchNorm2d(nn.Module):
    """BN as a fixed affine map per channel: buffers with BN's names, which never change."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        identity = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - eps}
        for name, value in identity.items():
            self.register_buffer(name, torch.full((num_features,), value))
        # Only a frozen copy of a trained layer has a count and its key.
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W), normalised with the stored statistics."""
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # With a gradient, batch_norm would also compute the unused gradients of the vectors.
        scale, shift = _affine(self)
        return x * scale.to(x.dtype).view(1, -1, 1, 1) + shift.to(x.dtype).view(1, -1, 1, 1)


def fixed_affine(norm: nn.Module | None) -> tuple[Tensor, Tensor] | None:
    """Return a norm as scale (C,) and shift (C,); None for GN, no norm and BN in training."""
    is_frozen = isinstance(norm, FrozenBatchNorm2d)
    is_evaluated = isinstance(norm, nn.BatchNorm2d) and not norm.training
    return _affine(norm) if is_frozen or is_evaluated else None


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def freeze(module: nn.Module) -> nn.Module:
    """Return the module, frozen in place; a BN layer becomes a FrozenBatchNorm2d."""
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


class NaiveSyncBatchNorm2d(nn.BatchNorm2d):
    """BN with mean and second moment averaged over the ranks, each rank with equal weight.

    MoCo's published detection configs train with it ('naiveSyncBN'). It equals BN over all images
    only if every rank has the same N, H and W. Its running variance is the biased one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W), normalised."""
        world_size = get_world_size()
        if world_size == 1 or not self.training:
            return super().forward(x)
        wide = at_least_float32(x)
        moments = torch.cat([wide.mean(dim=(0, 2, 3)), wide.square().mean(dim=(0, 2, 3))])
        mean, second = (all_reduce(moments) / world_size).chunk(2)
        var = second - mean.square()
        running: Any = self  # torch's types allow a BN without statistics
        with torch.no_grad():
            running.running_mean.lerp_(mean, self.momentum)
            running.running_var.lerp_(var, self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return (wide * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(x.dtype)


#: Value of a config's NORM key -> from the channels to the layer.
NORMS: dict[str, Callable[[int], nn.Module | None]] = {
    "": lambda channels: None,
    "BN": nn.BatchNorm2d,
    "SyncBN": SyncBatchNorm2d,
    "naiveSyncBN": NaiveSyncBatchNorm2d,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": functools.partial(nn.GroupNorm, 32),
}
