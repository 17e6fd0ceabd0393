"""Triton kernels of ``view_colours.py``: colours, blur and normalisation of a batch in four.

Shapes in this module:
    B: views    S: side of a view, px    R: reach of the widest blur, px
    Views are (B, S, S, 3) in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 1024  # of the block that a program changes


@triton.jit
def _to_grey(red, green, blue):
    return red * 0.299 + green * 0.587 + blue * 0.114


@triton.jit
def _clip(value):
    return tl.minimum(tl.maximum(value, 0.0), 255.0)


@triton.jit
def _hue_channel(hue, high, chroma):
    distance = tl.abs(hue - 2 * chroma)
    distance = tl.minimum(distance, tl.abs(distance - 6 * chroma))
    distance = tl.minimum(distance, tl.abs(distance - 6 * chroma))
    return high - tl.minimum(tl.maximum(2 * chroma - distance, 0.0), chroma)


@triton.jit
def _step(red, green, blue, code, factor, mean):
    # One operation of view_colours.CODES.
    if code == 1:
        red, green, blue = _clip(red * factor), _clip(green * factor), _clip(blue * factor)
    elif code == 2:
        plus = (1 - factor) * mean
        red = _clip(red * factor + plus)
        green = _clip(green * factor + plus)
        blue = _clip(blue * factor + plus)
    elif code == 3:
        plus = (1 - factor) * _to_grey(red, green, blue)
        red = _clip(red * factor + plus)
        green = _clip(green * factor + plus)
        blue = _clip(blue * factor + plus)
    elif code == 4:
        high = tl.maximum(tl.maximum(red, green), blue)
        chroma = high - tl.minimum(tl.minimum(red, green), blue)
        hue = tl.where(green == high, 2 * chroma + blue - red, 4 * chroma + red - green)
        hue = tl.where(red == high, green - blue, hue) + 6 * factor * chroma
        red = _hue_channel(hue + 5 * chroma, high, chroma)
        green = _hue_channel(hue + 3 * chroma, high, chroma)
        blue = _hue_channel(hue + chroma, high, chroma)
    elif code == 5:
        grey = _to_grey(red, green, blue)
        red, green, blue = grey, grey, grey
    return red, green, blue


@triton.jit
def _block(views, size, PIXELS: tl.constexpr):
    # Channels of this program's pixels, their places, and which of them exist.
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    exist = pixel < size * size
    place = tl.program_id(1).to(tl.int64) * (size * size * 3) + pixel * 3
    red = tl.load(views + place, mask=exist, other=0).to(tl.float32)
    green = tl.load(views + place + 1, mask=exist, other=0).to(tl.float32)
    blue = tl.load(views + place + 2, mask=exist, other=0).to(tl.float32)
    return red, green, blue, place, exist


@triton.jit
def _grey_sums(views, rows, sums, size, width, STEPS: tl.constexpr, PIXELS: tl.constexpr):
    # Sum of grey in a block as the view's contrast finds it: (B, blocks).
    red, green, blue, place, exist = _block(views, size, PIXELS)
    row = rows + tl.program_id(1) * width
    before = 1.0
    for step in range(STEPS):
        code = tl.load(row + 2 * step)
        before = tl.where(code == 2, 0.0, before)
        red, green, blue = _step(red, green, blue, code * before, tl.load(row + 2 * step + 1), 0.0)
    grey = tl.where(exist, _to_grey(red, green, blue), 0.0)
    tl.store(sums + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.sum(grey, 0))


@triton.jit
def _colours(
    views, rows, sums, out, size, width, blocks,
    red_by, green_by, blue_by, red_plus, green_plus, blue_plus,
    STEPS: tl.constexpr, BLOCKS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    red, green, blue, place, exist = _block(views, size, PIXELS)
    row, block = rows + tl.program_id(1) * width, tl.arange(0, BLOCKS)
    grey = tl.load(sums + tl.program_id(1) * blocks + block, mask=block < blocks, other=0.0)
    mean = tl.sum(grey, 0) / (size * size)
    for step in range(STEPS):
        red, green, blue = _step(
            red, green, blue, tl.load(row + 2 * step), tl.load(row + 2 * step + 1), mean
        )
    tl.store(out + place, red * red_by + red_plus, mask=exist)
    tl.store(out + place + 1, green * green_by + green_plus, mask=exist)
    tl.store(out + place + 2, blue * blue_by + blue_plus, mask=exist)


@triton.jit
def _blur(
    source, target, rows, size, width, first,
    REACH: tl.constexpr, ALONG_X: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    # Along one side; views whose kernel is zero are left alone.
    value = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    kernel = rows + tl.program_id(1) * width + first
    exist = value < tl.where(tl.load(kernel) > 0, size * size * 3, 0)
    view = tl.program_id(1).to(tl.int64) * (size * size * 3)
    pixel = value // 3
    if ALONG_X:
        at, jump = pixel % size, 3
    else:
        at, jump = pixel // size, 3 * size
    place = source + view + value
    total = tl.load(place, mask=exist, other=0.0) * tl.load(kernel)
    for k in tl.static_range(1, REACH + 1):
        left = place - tl.minimum(k, at) * jump
        right = place + tl.minimum(k, size - 1 - at) * jump
        both = tl.load(left, mask=exist, other=0.0) + tl.load(right, mask=exist, other=0.0)
        total += both * tl.load(kernel + k)
    tl.store(target + view + value, total, mask=exist)


def finish_views(
    views: Tensor, rows: Tensor, steps: int, *, scale: Sequence[float], bias: Sequence[float]
) -> Tensor:
    """Apply colours and blur and normalise; see ``view_colours.finish_views``.

    Args:
        views: uint8 (B, 3, S, S), channels-last.
        rows: float32 (B, 2 * steps + 1 + R + 1) on the same device, contiguous: operation and
            factor of each step, sigma, and half of the blur's kernel, zeros for none. A view's
            contrast is applied at most once.
        steps: Operations of a row.
        scale: Of each channel; a value v becomes v * scale + bias.
        bias: Of each channel.

    Returns float32 (B, 3, S, S), channels-last.
    """
    count, _, size, _ = views.shape
    width, first = rows.shape[1], 2 * steps + 1
    blocks = triton.cdiv(size * size, PIXELS)
    sums = rows.new_empty(count, blocks)
    out, between = (
        torch.empty_like(views, dtype=torch.float32, memory_format=torch.channels_last)
        for _ in range(2)
    )
    on = {"STEPS": steps, "PIXELS": PIXELS}
    _grey_sums[blocks, count](views, rows, sums, size, width, **on)
    on["BLOCKS"] = triton.next_power_of_2(blocks)
    _colours[blocks, count](views, rows, sums, out, size, width, blocks, *scale, *bias, **on)
    # Normalised first: a kernel's weights have the sum 1.
    grid, reach = (triton.cdiv(3 * size * size, PIXELS), count), width - first - 1
    for source, target, along_x in ((out, between, True), (between, out, False)):
        _blur[grid](
            *(source, target, rows, size, width, first),
            **{"REACH": reach, "ALONG_X": along_x, "VALUES": PIXELS},
        )
    return out
