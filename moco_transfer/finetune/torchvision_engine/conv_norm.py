"""A convolution with its normalisation and ReLU, and the ways in which weights are drawn.

Shapes in this module:
    N: images    C: channels    H, W: height and width
Source:
    Behaviour checked against facebookresearch/detectron2@02b5c4e detectron2/layers/wrappers.py
    (Conv2d) and facebookresearch/fvcore@3378afe fvcore/nn/weight_init.py.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from moco_transfer.finetune.torchvision_engine.norm import fixed_affine, get_norm


class ConvNorm(nn.Conv2d):
    """Convolution, then normalisation, then ReLU; the last two are optional.

    State-dict keys: ``weight``, ``bias`` and ``norm.*``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: str = "",
        bias: bool | None = None,
        relu: bool = False,
    ) -> None:
        """Pad so that an odd kernel keeps the size at stride 1; by default a bias stands in only
        where no norm follows.
        """
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=norm == "" if bias is None else bias,
        )
        self.norm = get_norm(norm, out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H', W') for x (N, in_channels, H, W)."""
        folded = None if self.norm is None else fixed_affine(self.norm)
        if folded is None:
            return self.finish(self._convolve(x, self.weight, self.bias))
        # A norm whose statistics are fixed is part of the filters: one pass over the features less.
        scale, shift = folded
        bias = shift if self.bias is None else shift + self.bias * scale
        y = self._convolve(x, self.weight * scale.view(-1, 1, 1, 1), bias)
        return F.relu_(y) if self.relu else y

    def convolve_densely(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H, W): the convolution alone, at every position whatever the
        stride.
        """
        return F.conv2d(x, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)

    def finish(self, y: Tensor) -> Tensor:
        """Return the normalisation and ReLU of y, the result of this convolution; changes y."""
        if self.norm is not None:
            y = self.norm(y)
        return F.relu_(y) if self.relu else y

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def init_msra(layer: nn.Module) -> None:
    """Draw weights from N(0, 2 / fan_out), He et al. 2015 (arXiv:1502.01852), and set the bias to
    0. In place.
    """
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(layer)


def init_xavier(layer: nn.Module) -> None:
    """Draw weights from U(-a, a) with a = sqrt(3 / fan_in), Caffe2's 'XavierFill', and set the bias
    to 0. In place.
    """
    nn.init.kaiming_uniform_(layer.weight, a=1)
    _zero_bias(layer)


def init_normal(layer: nn.Module, *, std: float) -> None:
    """Draw weights from N(0, std^2) and set the bias to 0. In place."""
    nn.init.normal_(layer.weight, std=std)
    _zero_bias(layer)


def _zero_bias(layer: nn.Module) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
