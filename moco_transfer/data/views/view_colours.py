"""Colours, blur and normalisation of views on the training device, as batched operators.

A data worker ships uint8 crops and, per view, a row of numbers that says what happens to it. On a
CPU the compiled loops do it (``native.py``), on a GPU four kernels (``view_colours_triton.py``),
and without either torch's operators in this file. All compute in float32 what torchvision's
operators on float tensors compute, clipped to 0-255 after each step and not rounded in between.

Shapes in this module:
    B: views    S: side of a view, px    R: reach of the widest blur, px    C: channels
Other channels than three are no colours: of the steps brightness and contrast alone change them,
contrast around the mean of all channels.
Faithfulness, in levels (1/255), held by tests/data/test_view_colours.py:
    0.02  from torchvision's operators on float tensors (it weighs red by 0.2989, PIL and this file
          by 0.299).
    3     mean per view from the published PIL chain, whose operators round to whole levels five
          times and hold hue and saturation in 8 bits: single dark or pale pixels are tens of
          levels off there.
    The blur is PIL's GaussianBlur, three box blurs along each side: 3 levels from it (it rounds
    after each of the six), up to 30 in the outermost R px of pure noise (it continues the edge
    again before each box), 3 from a Gaussian on smooth images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...runtime.device import runs_triton, sent
from . import native
from .augmentation import ViewParameters

CODES = {"": 0, "brightness": 1, "contrast": 2, "saturation": 3, "hue": 4, "grey": 5}
STEPS = 5  # four of the jitter and grey
ROW = 2 * STEPS + 1
_TO_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL has it


def colour_row(parameters: ViewParameters, grey_first: bool) -> list[float]:
    """Return a view's colours and blur as :data:`ROW` numbers: operation (see :data:`CODES`) and
    factor of each step in its order, then the blur's sigma, px, 0.0 for none.
    """
    grey = [CODES["grey"], 1.0] if parameters.grey else []
    jitter = [number for name, factor in parameters.jitter for number in (CODES[name], factor)]
    steps = grey + jitter if grey_first else jitter + grey
    return steps + [0.0] * (2 * STEPS - len(steps)) + [parameters.blur_sigma]


def blur_kernels(sigmas: np.ndarray) -> np.ndarray:
    """Return the kernels of PIL's GaussianBlur for ``sigmas`` (B,), px, at most 8: three box blurs
    of fractional width with the Gaussian's variance. Returns float32 (B, R + 1), from the centre
    outwards; all zeros where sigma is 0. R is a multiple of 3.
    """
    variance = np.asarray(sigmas, np.float64)[:, None] ** 2 / 3  # of one box
    # Places on each side with the full weight; one more has `edge`.
    inner = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    edge = (
        (2 * inner + 1) * (3 * variance - inner * (inner + 1)) / (6 * ((inner + 1) ** 2 - variance))
    )
    radius = int(inner.max(initial=0)) + 1
    places = np.abs(np.arange(-radius, radius + 1))
    box = np.where(places <= inner, 1.0, np.where(places == inner + 1, edge, 0.0)) / (
        2 * inner + 1 + 2 * edge
    )
    kernel = np.ones((len(box), 1))
    for _ in range(3):
        wider = np.zeros((len(box), kernel.shape[1] + 2 * radius))
        for i in range(2 * radius + 1):
            wider[:, i : i + kernel.shape[1]] += box[:, i : i + 1] * kernel
        kernel = wider
    return np.where(variance > 0, kernel[:, 3 * radius :], 0.0).astype(np.float32)


def normalize(views: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (views - mean) / std in float32; views (..., C, H, W), mean and std (C,) are 0-255.
    With one number for both, of three equal channels the first alone is returned.
    """
    if len(mean) == 1:
        views = views[..., :1, :, :]
    centre, spread = (_per_channel(tuple(values), views.device) for values in (mean, std))
    return (views.to(torch.float32) - centre) / spread


@functools.lru_cache(maxsize=32)  # a tensor made on a GPU in each step would make the host wait
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def finish_views(
    views: Tensor, colours: Tensor | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Return what the encoder sees: views after their colours and blur, normalised.

    Args:
        views: uint8 (B, C, S, S), 0-255, RGB for C = 3, on any device; three equal channels of
            grey images where mean and std have one number.
        colours: float32 (B, ROW), from :func:`colour_row`, on the CPU, so that choosing the views
            of an operation does not wait for the device; None for finished colours.
        mean: Per channel, 0-255.
        std: Per channel, 0-255.

    Returns float32 (B, C, S, S), with colours channels-last, (value - mean) / std; C is 1 for grey.
    """
    if colours is None:
        return normalize(views, mean, std)
    if len(mean) == 1:
        grey = finish_views(views, colours, 3 * mean, 3 * std)[:, :1]
        return grey.contiguous(memory_format=torch.channels_last)
    kernels = torch.from_numpy(blur_kernels(colours[:, -1].numpy()))
    scale = 1 / torch.tensor(std, dtype=torch.float32)
    bias = -torch.tensor(mean, dtype=torch.float32) * scale
    loops = views.device.type == "cpu" and native.available()
    if views.shape[1] == 3 and (loops or runs_triton(views.device)):
        rows = sent(torch.cat([colours, kernels], dim=1), views.device)
        return _finish(views, rows, scale.tolist(), bias.tolist())
    # Channel by channel, as these operators read it.
    x = views.to(torch.float32, memory_format=torch.contiguous_format)
    for step in range(STEPS):
        _apply_step(x, colours[:, 2 * step], colours[:, 2 * step + 1])
    blurred = kernels[:, 0].nonzero().flatten()
    if len(blurred):
        where = sent(blurred, x.device)
        x[where] = _blur(x[where], sent(kernels[blurred], x.device))
    scale, bias = (sent(t, x.device).view(-1, 1, 1) for t in (scale, bias))
    return x.mul_(scale).add_(bias).contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("moco_transfer::finish_views", mutates_args=())
def _finish(views: Tensor, rows: Tensor, scale: Sequence[float], bias: Sequence[float]) -> Tensor:
    # By the compiled loops, or by four kernels on a GPU: one operator to torch. `rows` (B, ROW + R
    # + 1) are colours and kernels; a value v becomes v * scale + bias.
    channels_last = torch.channels_last
    if runs_triton(views.device):
        from . import view_colours_triton

        views = views.contiguous(memory_format=channels_last)
        return view_colours_triton.finish_views(views, rows, STEPS, scale=scale, bias=bias)
    out = torch.empty(views.shape, memory_format=channels_last)
    native.finish_views(
        *(views.permute(0, 2, 3, 1).contiguous(), rows[:, : 2 * STEPS].contiguous()),
        rows[:, ROW:].contiguous(),
        **{"scale": torch.tensor(scale), "bias": torch.tensor(bias), "out": out},
    )
    return out


def _apply_step(x: Tensor, codes: Tensor, factors: Tensor) -> None:
    """Change x (B, C, S, S) in place: each view by its operation; codes and factors (B,) on the
    CPU.
    """
    operations = (None, _brightness, _contrast, *(_OF_COLOURS if x.shape[1] == 3 else ()))
    for code, operation in enumerate(operations):
        chosen = (codes == code).nonzero().flatten()
        if operation is None or not len(chosen):
            continue
        where, factor = (sent(t, x.device) for t in (chosen, factors[chosen]))
        x[where] = operation(x[where], factor.view(-1, 1, 1, 1))


def _to_grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x[:, 0] * _TO_GREY[0] + x[:, 1] * _TO_GREY[1] + x[:, 2] * _TO_GREY[2]).unsqueeze(1)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 255)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + (1 - factor) * _to_grey(x).mean((1, 2, 3), keepdim=True)).clamp_(0, 255)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + (1 - factor) * _to_grey(x)).clamp_(0, 255)


def _grey(x: Tensor, factor: Tensor) -> Tensor:
    return _to_grey(x).expand_as(x)


def _hue(x: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by ``factor`` of the circle.

    In HSV a channel is V - C clip(2 - |(h + n) mod 6 - 2|, 0, 1) with the hue h in sixths, n = 5,
    3, 1 for R, G, B and the chroma C = max - min. C h is a difference of two channels in each
    sixth, so everything is kept times C and nothing is divided.
    """
    red, green, blue = x.split(1, dim=1)
    high = x.amax(1, keepdim=True)
    chroma = high - x.amin(1, keepdim=True)
    hue = torch.where(green == high, 2 * chroma + blue - red, 4 * chroma + red - green)
    hue = torch.where(red == high, green - blue, hue) + 6 * factor * chroma
    hue = torch.cat([hue + 5 * chroma, hue + 3 * chroma, hue + chroma], dim=1)
    distance = (hue - 2 * chroma).abs_()
    for _ in range(2):  # round the circle, which is 6 C long
        distance = torch.minimum(distance, (distance - 6 * chroma).abs())
    return high - torch.minimum((2 * chroma - distance).clamp_(min=0), chroma)


_OF_COLOURS = (_saturation, _hue, _grey)


def _blur(x: Tensor, kernels: Tensor) -> Tensor:
    """Blur x (B, C, S, S) along columns and rows with kernels (B, R + 1); edges are continued by
    their own value.
    """
    reach, size = kernels.shape[1] - 1, x.shape[-1]
    weights = kernels.T.reshape(reach + 1, -1, 1, 1, 1)
    for dim in (3, 2):
        padding = (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach)
        padded = torch.nn.functional.pad(x, padding, mode="replicate")
        x = weights[0] * x
        for k in range(1, reach + 1):
            x += weights[k] * (
                padded.narrow(dim, reach - k, size) + padded.narrow(dim, reach + k, size)
            )
    return x
